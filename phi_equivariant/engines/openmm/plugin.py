"""What OpenMM-ML finds under the name ``phi``: ``MLPotential("phi", modelPath="runs/my_run")``."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from phi_equivariant.engines.openmm.ml_potential import PhiPotentialImpl


class PhiPotentialImplFactory:
    """Makes potentials with Φ for OpenMM-ML, which loads this class, as those of all packages, when it is imported.

    So it loads nothing, and it does not derive from openmmml's MLPotentialImplFactory: openmmml may be half imported.
    """

    def createImpl(self, name: str, **arguments: Any) -> "PhiPotentialImpl":
        """What implements ``MLPotential(name, **arguments)``; see ``PhiPotentialImpl``."""
        from phi_equivariant.engines.openmm.ml_potential import PhiPotentialImpl

        return PhiPotentialImpl(**arguments)
