"""Charge equilibration: the charges of least energy for a given total charge."""

from collections.abc import Callable

import torch

from phi_equivariant.charge_models.dense import KNOWN_MOMENTS_TO, cholesky, flat, is_small, kept_in_single, unflat
from phi_equivariant.charge_models.energy import ChargeEnergy, Response
from phi_equivariant.charge_models.induced import Elastic
from phi_equivariant.solvers.batched import System, conjugate_gradients, norms
from phi_equivariant.solvers.implicit import with_derivatives
from phi_equivariant.solvers.kept_inverse import KeptInverse, Last

# c, c_λ and a start → z and λ with Hz − λ = c, −Σρ = c_λ: the start says what a residual is small against.
Solve = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], tuple[torch.Tensor, torch.Tensor]]
Divide = Callable[[torch.Tensor], torch.Tensor]

FACTORISED_TO = 1000  # atoms up to which that is faster than conjugate gradients


def equilibrate(
    energy: ChargeEnergy,
    total_charge: torch.Tensor,
    order: int,
    dense: bool | None = None,
    last: Last | None = None,
) -> Response:
    """Minimum of U[ρ, m] and the energy of induced dipoles under Σρ = Q in each structure.

        Kρ + Dm = λ − χ,   K = P + η,   E = U + ½ Σ |m − μ⁰|²/α + λ (Q − Σρ)

    Charge moves between any two atoms of a structure, however far apart. First derivatives of E are those at fixed ρ,
    m and λ; ∂E/∂Q = λ.

    Parameters
    ----------
    energy: U, with hardness and electronegativity
    total_charge: Q (n_structures,) in e
    order, dense, last: as for ``split_charges``

    Raises
    ------
    ConvergenceError
        If conjugate gradients do not converge.

    Source: A. K. Rappé and W. A. Goddard, J. Phys. Chem. 95, 3358 (1991), with Gaussian charges.
    """
    layout, batch = energy.layout, energy.layout.batch
    elastic = Elastic(energy, energy.moments(torch.zeros_like(total_charge)[batch]))

    def on_charges(values: torch.Tensor) -> torch.Tensor:
        """(n_atoms,) → (n_atoms, width), with zeros for dipoles."""
        return torch.nn.functional.pad(values[:, None], (0, energy.width - 1))

    def residual(moments: torch.Tensor, level: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        slope = elastic.slope(moments, energy.fields(moments))
        return on_charges(level[batch]) - slope, layout.sum(moments[:, 0]) - total_charge

    with torch.no_grad():
        if is_small(energy, dense, FACTORISED_TO, KNOWN_MOMENTS_TO):
            solve, last = _factorised(elastic, on_charges), None
        else:
            solve = _iterated(elastic, on_charges, last)
        moments = elastic.start if last is None else last.start(elastic.start)
        missing, excess = residual(moments, torch.zeros_like(total_charge))
        change, level = solve(missing, excess, moments)
        moments = moments + change
    if last is not None:
        last.solution = moments

    @torch.no_grad()
    def inverse(rhs: torch.Tensor, excess: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return solve(rhs, excess, None)

    moments, level = with_derivatives((moments, level), residual, inverse, order)
    fields = energy.fields(moments)
    # Zero in value: it makes the energy stationary, so that its derivatives are those at fixed charges.
    constraint = level * (total_charge - layout.sum(moments[:, 0])) / layout.counts
    return energy.response(moments, fields, level[batch], elastic.of_induced(moments) + constraint[batch])


def _factorised(elastic: Elastic, on_charges: Callable[[torch.Tensor], torch.Tensor]) -> Solve:
    layout = elastic.energy.layout
    lower = cholesky(elastic.matrix(), "charges", layout)
    ones = flat(on_charges(torch.ones_like(layout.batch, dtype=lower.dtype)), layout)
    flat_answer = torch.cholesky_solve(ones, lower)  # to a unit of λ
    answer, capacity = unflat(flat_answer, layout), (ones * flat_answer).sum((1, 2))

    def solve(rhs: torch.Tensor, excess: torch.Tensor, start: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        at_zero = unflat(torch.cholesky_solve(flat(rhs, layout), lower), layout)
        level = -(excess + layout.sum(at_zero[:, 0])) / capacity
        return at_zero + level[layout.batch, None] * answer, level

    return solve


def _iterated(elastic: Elastic, on_charges: Callable[[torch.Tensor], torch.Tensor], last: Last | None) -> Solve:
    """By conjugate gradients among moments whose charges sum to zero: preconditioned ones are brought there along M⁻¹1,
    and residuals are free of a constant."""
    layout = elastic.energy.layout
    diagonal = elastic.diagonal().detach()
    kept = _nearly(elastic, diagonal, last)
    by, agreed = kept or _screened(elastic, diagonal), elastic.energy.operator.agreed

    def divide(residual: torch.Tensor) -> torch.Tensor:
        return agreed(by(residual))

    along = divide(on_charges(torch.ones_like(diagonal[:, 0])))  # M⁻¹1
    along = along / layout.sum(along[:, 0])[layout.batch, None]

    def neutral(moments: torch.Tensor) -> torch.Tensor:
        return moments - along * layout.sum(moments[:, 0])[layout.batch, None]

    def level_of(values: torch.Tensor) -> torch.Tensor:
        return layout.sum((along * values).sum(-1))

    def settle(values: torch.Tensor) -> torch.Tensor:
        return values - on_charges(level_of(values)[layout.batch])

    system = System(
        precondition=lambda residual: neutral(divide(residual))[:, None],
        lift=lambda moments: moments[:, None],
        product=lambda direction: elastic.hessian(direction[:, 0]),
        what="charges",
        settle=settle,
        kept=kept,
    )

    def solve(rhs: torch.Tensor, excess: torch.Tensor, start: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        moments, missing, scale = torch.zeros_like(rhs), rhs, None
        if bool((excess != 0).any()):
            moments = -along * excess[layout.batch, None]
            missing = rhs - elastic.hessian(moments)
        if start is not None:
            scale = norms(settle(missing), layout).maximum(norms(diagonal * start, layout))
        change, left = conjugate_gradients(system, missing, layout, scale)
        return moments + change, -level_of(left)

    return solve


def _nearly(elastic: Elastic, diagonal: torch.Tensor, last: Last | None) -> KeptInverse | None:
    """H⁻¹ of what is nearly H, where there is such a thing."""
    nearly = elastic.nearly()
    if nearly is None:
        return None

    def factorised() -> Divide:
        layout = nearly.energy.layout
        lower = cholesky(nearly.matrix(), "charges", layout)
        return lambda residual: unflat(torch.cholesky_solve(flat(residual, layout), lower), layout)

    return kept_in_single(factorised, nearly.hessian, _screened(elastic, diagonal), diagonal.numel(), last)


def _screened(elastic: Elastic, diagonal: torch.Tensor) -> Divide:
    """Division by the diagonal of H, of charges with their long wavelengths where the operator knows of them."""
    screened = elastic.energy.operator.screened(diagonal[:, 0])
    if screened is None:
        return lambda residual: residual / diagonal
    return lambda residual: torch.cat([screened(residual[:, 0])[:, None], residual[:, 1:] / diagonal[:, 1:]], dim=1)
