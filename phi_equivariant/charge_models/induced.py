"""Induced dipoles: what polarisable atoms add to an energy, and their dipoles beside charges that do not respond."""

import dataclasses

import torch

from phi_equivariant.charge_models.dense import (
    KNOWN_MOMENTS_TO,
    cholesky,
    flat,
    hessian_matrix,
    is_small,
    kept_in_single,
    unflat,
)
from phi_equivariant.charge_models.energy import ChargeEnergy, Response
from phi_equivariant.solvers.batched import Solve, System, conjugate_gradients, norms
from phi_equivariant.solvers.implicit import with_derivatives
from phi_equivariant.solvers.kept_inverse import Last


@dataclasses.dataclass(frozen=True)
class Elastic:
    """The energy U of charges and dipoles with that of inducing the dipoles, U[ρ, m] + ½ Σ |m − μ⁰|²/α.

    Parameters
    ----------
    energy: U; without a polarisability nothing is added to it
    start: z⁰ (n_atoms, width), of which the dipoles are the permanent ones
    """

    energy: ChargeEnergy
    start: torch.Tensor

    def slope(self, moments: torch.Tensor, fields: tuple[torch.Tensor, torch.Tensor | None]) -> torch.Tensor:
        """Its derivative by z (n_atoms, width)."""
        return self.energy.slope(moments, fields) + self._restoring(moments - self.start)

    def hessian(self, moments: torch.Tensor) -> torch.Tensor:
        """Its second derivative applied to z (n_atoms, width)."""
        return self.energy.hessian(moments) + self._restoring(moments)

    def matrix(self) -> torch.Tensor:
        """Its second derivative (n_structures, n_max·width, n_max·width), as ``hessian_matrix``."""
        matrix, alpha = hessian_matrix(self.energy), self.energy.polarisability
        if alpha is None:
            return matrix
        stiffness = torch.nn.functional.pad((1 / alpha.detach())[:, None].expand(-1, 3), (1, 0))
        return matrix + torch.diag_embed(self.energy.layout.pad(stiffness).flatten(1))

    def nearly(self) -> "Elastic | None":
        """As ``ChargeEnergy.nearly``."""
        energy = self.energy.nearly()
        return None if energy is None else Elastic(energy, self.start)

    def diagonal(self) -> torch.Tensor:
        """That of its second derivative, for preconditioners: (n_atoms, width)."""
        energy, operator = self.energy, self.energy.operator
        own = operator.diagonal() if energy.hardness is None else operator.diagonal() + energy.hardness
        if energy.polarisability is None:
            return own[:, None]
        along = operator.dipole_diagonal() + 1 / energy.polarisability
        return torch.cat([own[:, None], along[:, None].expand(-1, 3)], dim=1)

    def of_induced(self, moments: torch.Tensor) -> torch.Tensor:
        """½ |m − μ⁰|²/α of every atom: (n_atoms,) in eV."""
        return 0.5 * (self._restoring(moments - self.start) * (moments - self.start)).sum(-1)

    def _restoring(self, change: torch.Tensor) -> torch.Tensor:
        """What pulls induced dipoles back, change/α, with a zero for the charge."""
        if self.energy.polarisability is None:
            return torch.zeros_like(change)
        return torch.nn.functional.pad(change[:, 1:] / self.energy.polarisability[:, None], (1, 0))


def polarise(
    energy: ChargeEnergy, charges: torch.Tensor, order: int, dense: bool | None = None, last: Last | None = None
) -> Response:
    """Given charges, and the dipoles of least U[ρ, m] + ½ Σ |m − μ⁰|²/α; U itself where nothing is polarisable.

        (T + 1/α)(m − μ⁰) = −(Dᵀρ + Tμ⁰ − F)

    T contains the field of every dipole at its own atom, and is positive definite.

    Parameters
    ----------
    energy: U
    charges: ρ (n_atoms,) in e
    order, dense, last: as for ``split_charges``

    Raises
    ------
    ConvergenceError
        If conjugate gradients do not converge.

    Source: J. Applequist et al., J. Am. Chem. Soc. 94, 2952 (1972), with Gaussian dipoles.
    """
    start, layout = energy.moments(charges), energy.layout
    if energy.polarisability is None:
        fields = energy.fields(start)
        return energy.response(start, fields, energy.slope(start, fields)[:, 0], torch.zeros_like(charges))
    elastic = Elastic(energy, start)

    def whole(dipoles: torch.Tensor) -> torch.Tensor:
        return torch.cat([charges[:, None], dipoles], dim=1)

    def residual(dipoles: torch.Tensor) -> tuple[torch.Tensor]:
        moments = whole(dipoles)
        return (-elastic.slope(moments, energy.fields(moments))[:, 1:],)

    with torch.no_grad():
        if is_small(energy, dense, moments_to=KNOWN_MOMENTS_TO):
            solve, last = _factorised(elastic), None
        else:
            solve = _iterated(elastic, last)
        dipoles = (start if last is None else last.start(start))[:, 1:]
        (missing,) = residual(dipoles)
        # A start from close by is not a reason to ask for more than from afar.
        scale = norms(missing, layout).maximum(norms(dipoles / energy.polarisability[:, None], layout))
        dipoles = dipoles + solve(missing, scale)
    if last is not None:
        last.solution = whole(dipoles).detach()
    (dipoles,) = with_derivatives((dipoles,), residual, lambda rhs: (solve(rhs),), order)
    moments = whole(dipoles)
    fields = energy.fields(moments)
    return energy.response(moments, fields, energy.slope(moments, fields)[:, 0], elastic.of_induced(moments))


def _factorised(elastic: Elastic) -> Solve:
    layout, n = elastic.energy.layout, elastic.energy.layout.n_max
    matrix = elastic.matrix().reshape(layout.n_structures, n, 4, n, 4)[:, :, 1:, :, 1:]
    lower = cholesky(matrix.reshape(layout.n_structures, 3 * n, 3 * n), "induced dipoles", layout)
    return lambda rhs, scale=None: unflat(torch.cholesky_solve(flat(rhs, layout), lower), layout)


def _iterated(elastic: Elastic, last: Last | None) -> Solve:
    """By conjugate gradients, preconditioned by what is nearly the matrix or by its diagonal."""
    diagonal, nearly = elastic.diagonal().detach()[:, 1:], elastic.nearly()

    def product(dipoles: torch.Tensor, of: Elastic = elastic) -> torch.Tensor:
        return of.hessian(torch.nn.functional.pad(dipoles, (1, 0)))[:, 1:]

    def divide(residual: torch.Tensor) -> torch.Tensor:
        return residual / diagonal

    kept = None
    if nearly is not None:
        kept = kept_in_single(
            lambda: _factorised(nearly), lambda dipoles: product(dipoles, nearly), divide, diagonal.numel(), last
        )
    by, agreed = kept or divide, elastic.energy.operator.agreed
    system = System(
        precondition=lambda residual: agreed(by(residual))[:, None],
        lift=lambda dipoles: dipoles[:, None],
        product=lambda direction: product(direction[:, 0]),
        what="induced dipoles",
        kept=kept,
    )
    return lambda rhs, scale=None: conjugate_gradients(system, rhs, elastic.energy.layout, scale)[0]
