"""The operators that there are, by name: the one place that knows them all."""

from phi_equivariant.operators.base import Operator, Settings
from phi_equivariant.operators.coulomb import GaussianCoulomb
from phi_equivariant.operators.graph import GraphLaplacian

OPERATORS: dict[str, type[Operator]] = {kind.name: kind for kind in (GaussianCoulomb, GraphLaplacian)}


def operator_class(config: Settings) -> type[Operator]:
    """The class of the operator that a configuration names, which says what it can serve."""
    return OPERATORS[config.operator]
