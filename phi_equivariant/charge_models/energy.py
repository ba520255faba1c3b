"""The energy of charges and dipoles on atoms that every charge model minimises, and what an operator must do for it."""

import dataclasses
from collections.abc import Callable
from typing import Protocol

import torch

from phi_equivariant.batching import PaddedLayout
from phi_equivariant.errors import InputError

# Atoms up to which a matrix that is nearly ∂²U/∂z² pays, by the columns of z.
_NEARLY_TO = {1: 1000, 4: 400}


class BoundOperator(Protocol):
    """Gaussian charges and dipoles at the places of a batch of structures, built once and applied often.

    Charges are (n_atoms, c) in e, dipoles (n_atoms, c, 3) in e·Å, potentials (n_atoms, c) in V, gradients (n_atoms, c,
    3) in V/Å. Both products are symmetric, positive semi-definite at least among charges of sum zero, and
    differentiable in all that they depend on.
    """

    dense: bool  # whether there is a matrix

    def matrix(self) -> torch.Tensor:
        """P (n_structures, n_max, n_max) in V/e, zero where there is no atom; only if ``dense``."""

    def product(self, values: torch.Tensor) -> torch.Tensor:
        """Potential of charges."""

    def joint(self, charges: torch.Tensor, dipoles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Potential of charges and dipoles, and its gradient."""

    def joint_matrix(self) -> torch.Tensor | None:
        """``joint`` as a matrix (n_structures, 4 n_max, 4 n_max) without derivatives, an atom's moments side by side;
        None where it has to be made of products."""

    def diagonal(self) -> torch.Tensor:
        """P_ii (n_atoms,) in V/e, for preconditioners: it need not be exact, but positive."""

    def nearly(self) -> "BoundOperator | None":
        """Nearly the same in single precision, with matrices and without derivatives; None where it is not known."""

    def screened(self, diagonal: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """r → M⁻¹r (n_atoms,) with M near P + η, of this diagonal, at long wavelengths; None where it is not known."""

    def agreed(self, values: torch.Tensor) -> torch.Tensor:
        """Values (n_atoms, …) with the same bits on all processes that solve together."""

    def dipole_diagonal(self) -> torch.Tensor:
        """S_i (n_atoms,) in V/(e·Å²), what ∇φ of a dipole is at its own atom, per dipole; as ``diagonal``."""


@dataclasses.dataclass(frozen=True)
class Response:
    """Charges and dipoles that a charge model found.

    Attributes
    ----------
    charges: ρ (n_atoms,) in e
    dipoles: μ (n_atoms, 3) in e·Å, permanent and induced; None where there are neither
    potential: φ (n_atoms,) in V, of all charges and dipoles, without external fields
    gradient: ∇φ (n_atoms, 3) in V/Å; None without dipoles
    level: u (n_atoms,) in V, ∂U/∂ρ of every atom: under qeq the same for all atoms of a structure, under sqe what
        charge flows down
    node_energy: (n_atoms,) in eV; its sum over a structure is the minimum of the energy, with all derivatives
    """

    charges: torch.Tensor
    dipoles: torch.Tensor | None
    potential: torch.Tensor
    gradient: torch.Tensor | None
    level: torch.Tensor
    node_energy: torch.Tensor


@dataclasses.dataclass(frozen=True)
class ChargeEnergy:
    """Energy of charges ρ and dipoles m on the atoms of a batch, before any constraint or cost of moving them.

        U[ρ, m] = ½ Σ (ρφ + m·∇φ) + Σ (χρ + ½ηρ² − F·m),   φ = Pρ + Dm

    Charges and dipoles are kept together as moments z: (n_atoms, 1), or (n_atoms, 4) where dipoles respond too.

    Parameters
    ----------
    operator: what makes φ and ∇φ
    layout: which atoms are one structure
    electronegativity: χ (n_atoms,) in V; a homogeneous field F adds −F·r to it; 0 where None
    hardness: η (n_atoms,) in V/e, positive; 0 where None
    dipoles: permanent μ⁰ (n_atoms, 3) in e·Å
    polarisability: bare α (n_atoms,) in e·Å²/V, positive; None where dipoles do not respond. Far away an atom responds
        with α/(1 + αS), S its dipole's own field.
    field: external F (n_atoms, 3) in V/Å that acts on dipoles

    Raises
    ------
    InputError
        For a hardness or polarisability that is not positive and finite.
    """

    operator: BoundOperator
    layout: PaddedLayout
    electronegativity: torch.Tensor | None = None
    hardness: torch.Tensor | None = None
    dipoles: torch.Tensor | None = None
    polarisability: torch.Tensor | None = None
    field: torch.Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("hardness", "polarisability"):
            check_positive(name, getattr(self, name))

    @torch.no_grad()
    def nearly(self) -> "ChargeEnergy | None":
        """One with nearly the same ∂²U/∂z² in single precision, as a matrix, and without first derivatives; None where
        the operator has none, or it would take longer to factorise than it saves."""
        operator = self.operator.nearly() if self.layout.n_max <= _NEARLY_TO[self.width] else None
        if operator is None:
            return None
        given = self.hardness, self.polarisability
        hardness, polarisability = (None if values is None else values.to(torch.float32) for values in given)
        return ChargeEnergy(operator, self.layout, hardness=hardness, polarisability=polarisability)

    @property
    def width(self) -> int:
        """Columns of z: 1, or 4 where dipoles respond."""
        return 1 if self.polarisability is None else 4

    def moments(self, charges: torch.Tensor) -> torch.Tensor:
        """z of charges (n_atoms,) with the permanent dipoles: (n_atoms, width)."""
        if self.polarisability is None:
            return charges[:, None]
        dipoles = charges.new_zeros((len(charges), 3)) if self.dipoles is None else self.dipoles
        return torch.cat([charges[:, None], dipoles], dim=1)

    def dipoles_of(self, moments: torch.Tensor) -> torch.Tensor | None:
        """m (n_atoms, 3) of z, with the permanent ones where dipoles do not respond."""
        return self.dipoles if self.polarisability is None else moments[:, 1:]

    def fields(self, moments: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """φ (n_atoms,) and ∇φ (n_atoms, 3) of z and of the permanent dipoles; ∇φ is None without dipoles."""
        dipoles = self.dipoles_of(moments)
        if dipoles is None:
            return self.operator.product(moments)[:, 0], None
        potential, gradient = self.operator.joint(moments[:, :1], dipoles[:, None])
        return potential[:, 0], gradient[:, 0]

    def hessian(self, moments: torch.Tensor) -> torch.Tensor:
        """∂²U/∂z² applied to z: (n_atoms, width) → (n_atoms, width)."""
        charges = moments[:, :1]
        if self.width == 1:
            product = self.operator.product(charges)
        else:
            potential, gradient = self.operator.joint(charges, moments[:, None, 1:])
            product = torch.cat([potential, gradient[:, 0]], dim=1)
        if self.hardness is None:
            return product
        return product + torch.nn.functional.pad(self.hardness[:, None] * charges, (0, self.width - 1))

    def slope(self, moments: torch.Tensor, fields: tuple[torch.Tensor, torch.Tensor | None]) -> torch.Tensor:
        """∂U/∂z (n_atoms, width) from z and its ``fields``."""
        level, gradient = fields
        if self.electronegativity is not None:
            level = level + self.electronegativity
        if self.hardness is not None:
            level = level + self.hardness * moments[:, 0]
        if self.width == 1 or gradient is None:
            return level[:, None]
        return torch.cat([level[:, None], gradient if self.field is None else gradient - self.field], dim=1)

    def response(
        self,
        moments: torch.Tensor,
        fields: tuple[torch.Tensor, torch.Tensor | None],
        level: torch.Tensor,
        added: torch.Tensor,
    ) -> Response:
        """What a charge model returns: U of every atom and the model's own energy (n_atoms,) beside it."""
        charges, dipoles, (potential, gradient) = moments[:, 0], self.dipoles_of(moments), fields
        energy = 0.5 * charges * potential + added  # (n_atoms,)
        if self.electronegativity is not None:
            energy = energy + self.electronegativity * charges
        if self.hardness is not None:
            energy = energy + 0.5 * self.hardness * charges.square()
        if dipoles is not None and gradient is not None:
            outside = 0.5 * gradient if self.field is None else 0.5 * gradient - self.field
            energy = energy + (dipoles * outside).sum(-1)
        return Response(charges, dipoles, potential, gradient, level, energy)


def check_positive(name: str, values: torch.Tensor | None) -> None:
    """InputError where a value is not positive and finite, naming the first such atom."""
    if values is None:
        return
    values = values.detach()
    wrong = ~((values > 0) & torch.isfinite(values))
    if bool(wrong.any()):
        atom = int(wrong.nonzero()[0, 0])
        raise InputError(
            f"{name} of atom {atom} is {float(values[atom]):.3g}; it must be positive and finite. The model's file is "
            "damaged, or its training has diverged: load another, or train with a smaller learning rate."
        )
