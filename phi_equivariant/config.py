"""Settings of the Φ-Module."""

import dataclasses
import math
import numbers
from collections.abc import Mapping
from typing import Any, Literal

from phi_equivariant.errors import InputError, did_you_mean

_CHOICES = {
    "poisson": ("exact", "learned"),
    "charge_constraint": ("project", "penalty", "none", None),
    "charge_model": ("direct", "qeq", "sqe"),
    "init": ("default", "small"),
}


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


@dataclasses.dataclass(frozen=True)
class PhiConfig:
    """What the Φ-Module computes. Everything else (elements, cut-off, irreps) comes from the host.

    Parameters
    ----------
    operator
        ``coulomb``: L is the inverse of the potential matrix of Gaussian charges, so Lφ = ρ is Poisson's equation in
        free space, or in a periodic cell with a neutralising background. ``graph``: L is the graph Laplacian of the
        host's neighbour list, as in arXiv 2505.14606.
    poisson
        ``exact``: one head; the other field is that of Lφ = ρ. ``learned``: two heads, tied by the Poisson residual.
    num_modes
        Keep the k smoothest modes through a smooth window (None: all modes). Not size-extensive.
    low_pass
        λ_c in e/V of the response f(λ) = 1/(1 + λ/λ_c) (None: f = 1). Not together with ``num_modes``.
    channels
        Pairs of fields per atom. Channel 0 is the charge; the others are neutral auxiliaries.
    multipoles
        0: charges. 1: the heads also give every atom a dipole, from the host's 1o channels; the ``coulomb`` operator
        adds charge–dipole and dipole–dipole interactions. With ``poisson="exact"`` only.
    hidden
        Width of the heads.
    charge_constraint
        ``project`` (default of ``coulomb``): shift ρ to the exact total charge. ``penalty``: leave it to a loss term.
        ``none`` (default of ``graph``, whose charges sum to zero by construction).
    charge_model
        Of channel 0, with ``coulomb``, ``exact`` and all modes. ``direct``: the heads give the charges. ``qeq``: the
        charges of least energy for their total; charge moves any distance. ``sqe``: the heads' charges flow along the
        host's edges to the least energy.
    polarizable
        Whether atoms have induced dipoles too, with the same operator.
    electronegativity
        Of all atoms alike, χ̄ in V: a structure of total charge Q has χ̄Q in its energy, as it has the E0s of its
        elements (None: 0; phi-mace-train fits it to energies of several total charges). With ``coulomb``.
    init
        ``default``: charges of about 0.2 e. ``small``: start so small that a trained host's energies do not change.
    width
        Start in Å, 0.35 to 1.15, of the widths σ of the ``coulomb`` operator, learned per element from there (None: 0.7
        Å; ``covalent``: 0.7 covalent radii). Narrow charges act within bonds too, and pull atoms together that come
        closer than any in the data; wide ones leave that to the host.
    dense_limit
        Structures with more atoms are computed without matrices: sparse products, tiles, a particle mesh and conjugate
        gradients; smaller ones too where that is faster. Results agree; ``num_modes`` needs dense algebra.

    Raises
    ------
    InputError
        For a value that is not allowed.
    """

    operator: str = "coulomb"
    poisson: str = "exact"
    num_modes: int | None = None
    low_pass: float | None = None
    channels: int = 1
    hidden: int = 32
    charge_constraint: str | None = None
    init: str = "default"
    multipoles: int = 0
    width: float | Literal["covalent"] | None = None
    dense_limit: int = 2000
    charge_model: str = "direct"
    polarizable: bool = False
    electronegativity: float | None = None

    @property
    def responds(self) -> bool:
        """Whether charges or dipoles respond to the potential."""
        return self.charge_model != "direct" or self.polarizable

    def __post_init__(self) -> None:
        # An operator's class says what it can do; a description of the settings needs only their names.
        from phi_equivariant.operators.kinds import OPERATORS

        choices = {"operator": tuple(OPERATORS), **_CHOICES}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} is {getattr(self, name)!r}; use one of {', '.join(map(repr, allowed))}.")
        for name in ("num_modes", "channels", "hidden", "dense_limit"):
            value = getattr(self, name)
            if value is None and name == "num_modes":
                continue
            if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
                raise InputError(f"{name} is {value!r}; give a whole number of at least 1.")
            object.__setattr__(self, name, int(value))
        kind = OPERATORS[self.operator]
        if isinstance(self.multipoles, bool) or self.multipoles not in (0, 1):
            raise InputError(f"multipoles is {self.multipoles!r}; use 0 (charges) or 1 (charges and dipoles).")
        if self.multipoles and not (kind.dipoles and self.poisson == "exact"):
            raise InputError(
                f"multipoles is 1 with operator={self.operator!r} and poisson={self.poisson!r}; atomic dipoles need "
                "operator='coulomb' and poisson='exact'."
            )
        if self.low_pass is not None:
            if not (_is_number(self.low_pass) and math.isfinite(self.low_pass) and self.low_pass > 0):
                raise InputError(
                    f"low_pass is {self.low_pass!r}; give a positive number in e/V, or None for all modes."
                )
            object.__setattr__(self, "low_pass", float(self.low_pass))
        if self.width is not None:
            if self.width != "covalent" and not (_is_number(self.width) and 0.35 <= self.width <= 1.15):
                raise InputError(
                    f"width is {self.width!r}; give a number of Å from 0.35 to 1.15, 'covalent' for 0.7 covalent "
                    "radii, or None for 0.7 Å."
                )
            if not kind.widths_of_charges:
                raise InputError(
                    f"width is {self.width!r} with operator={self.operator!r}, which has no Gaussian charges; leave it "
                    "out or use operator='coulomb'."
                )
            if self.width != "covalent":
                object.__setattr__(self, "width", float(self.width))
        self._check_response(kind.inverse and kind.dipoles)
        if self.num_modes is not None and self.low_pass is not None:
            raise InputError("num_modes and low_pass are both given; choose one response.")
        if not kind.carries_charge and self.charge_constraint in ("project", "penalty"):
            raise InputError(
                f"charge_constraint is {self.charge_constraint!r}, but the charges of operator={self.operator!r} sum "
                "to zero by construction; leave it out or use operator='coulomb'."
            )
        if self.electronegativity is not None:
            if not (_is_number(self.electronegativity) and math.isfinite(self.electronegativity)):
                raise InputError(
                    f"electronegativity is {self.electronegativity!r}; give a number of V, or None for 0 V."
                )
            if self.electronegativity and not kind.carries_charge:
                raise InputError(
                    f"electronegativity is {self.electronegativity!r} with operator={self.operator!r}, which takes no "
                    "total charge; leave it out or use operator='coulomb'."
                )
            object.__setattr__(self, "electronegativity", float(self.electronegativity))
        if self.charge_constraint is None:
            object.__setattr__(self, "charge_constraint", "project" if kind.carries_charge else "none")
        if self.num_modes == 1 and (not kind.carries_charge or self.charge_constraint == "project"):
            raise InputError("num_modes is 1, but one mode cannot hold neutral charges; give at least 2.")

    def _check_response(self, can_respond: bool) -> None:
        """InputError where charges or dipoles that respond are combined with what they cannot be."""
        if not isinstance(self.polarizable, bool):
            raise InputError(f"polarizable is {self.polarizable!r}; use True or False.")
        if not self.responds:
            return
        what = f"charge_model={self.charge_model!r}" if self.charge_model != "direct" else "polarizable=True"
        if not can_respond:
            raise InputError(
                f"{what} with operator={self.operator!r}: charges and dipoles respond to the potential of Gaussian "
                "charges, which only operator='coulomb' has. Use it, or charge_model='direct' and polarizable=False."
            )
        if self.poisson != "exact":
            raise InputError(
                f"{what} with poisson={self.poisson!r}: the potential of charges that respond is their own. Use "
                "poisson='exact', or charge_model='direct' and polarizable=False."
            )
        for name in ("num_modes", "low_pass"):
            if getattr(self, name) is not None:
                raise InputError(
                    f"{name} is {getattr(self, name)!r} with {what}: what responds does so in all modes. Leave {name} "
                    "out, or use charge_model='direct' and polarizable=False."
                )
        if self.charge_model == "qeq" and self.charge_constraint in ("penalty", "none"):
            raise InputError(
                f"charge_constraint is {self.charge_constraint!r} with charge_model='qeq', whose charges are found for "
                "an exact sum. Leave it out, or use charge_model='sqe' or 'direct'."
            )

    def to_dict(self) -> dict[str, Any]:
        """The settings as a JSON-able dictionary."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "PhiConfig":
        """The settings from a dictionary; an unknown name is an InputError that names the nearest known one."""
        if not isinstance(values, dict):
            raise InputError(f"the settings of the Φ-Module are {values!r}; give a dictionary of names and values.")
        known = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                hint = did_you_mean(name, known, f"Known are {', '.join(known)}.", n=1)
                raise InputError(f"{name!r} is not a setting of the Φ-Module. {hint}")
        return cls(**values)
