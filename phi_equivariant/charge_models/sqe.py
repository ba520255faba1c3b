"""Split-charge equilibration: charge flows along the edges of a graph, driven by the potential."""

from collections.abc import Callable

import torch

from phi_equivariant.batching import PaddedLayout
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
from phi_equivariant.charge_models.flow import FlowGraph
from phi_equivariant.errors import ConvergenceError
from phi_equivariant.solvers.batched import TOLERANCE, Solve, System, conjugate_gradients, norms
from phi_equivariant.solvers.implicit import with_derivatives
from phi_equivariant.solvers.kept_inverse import Last

FACTORISED_TO = 400  # atoms up to which that is faster than conjugate gradients
_REFINEMENTS = 5  # after a solve in which charge got lost


def split_charges(
    energy: ChargeEnergy,
    graph: FlowGraph,
    charges: torch.Tensor,
    order: int,
    dense: bool | None = None,
    last: Last | None = None,
) -> Response:
    """Minimum of U[ρ, m] and the energies of the flow and of induced dipoles, from given charges q⁰ and dipoles μ⁰.

        ρ = q⁰ − L_g u,   m = μ⁰ − α v,   u = ∂U/∂ρ,   v = ∂U/∂m

    With moments z = (ρ, m), levels y = (u, v) and G = (L_g, α), that is the stationary point of

        E = U(z) + yᵀ(z⁰ − z) − ½ yᵀGy,

    whose first derivatives are those at fixed z and y. Without a response (w = 0, no α) E = U(z⁰). Each structure, and
    each part of it that edges connect, keeps its charge.

    Parameters
    ----------
    energy: U, with hardness and electronegativity
    graph: edges and conductances
    charges: q⁰ (n_atoms,) in e
    order: derivatives of the results by everything that is given: 0 for energies and their first derivatives, 1 also
        for second derivatives of energies and first of charges and dipoles, 2 for one more
    dense: whether to factorise matrices; by the number of atoms where None
    last: in which conjugate gradients leave the moments, and what they were preconditioned with, and look for both

    Raises
    ------
    ConvergenceError
        If conjugate gradients do not converge, or conductances are so large that rounding makes charge.

    Source: R. A. Nistor et al., J. Chem. Phys. 125, 094108 (2006); with conductances that end at a cut-off.
    """
    layout, start = energy.layout, energy.moments(charges)

    def give(levels: torch.Tensor) -> torch.Tensor:
        return _give(energy, graph, levels)

    def residual(moments: torch.Tensor, levels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        slope = energy.slope(moments, energy.fields(moments))
        return levels - slope, moments + give(levels) - start

    def missing_of(moments: torch.Tensor) -> torch.Tensor:
        return moments + give(energy.slope(moments, energy.fields(moments))) - start

    with torch.no_grad():
        if is_small(energy, dense, FACTORISED_TO, KNOWN_MOMENTS_TO):
            solve, last = _factorised(energy, graph), None
        else:
            solve = _iterated(energy, graph, last)
        moments = start if last is None else last.start(start)
        missing = missing_of(moments)
        moments = moments - solve(missing, norms(moments, layout).maximum(norms(missing, layout)))
        moments = _refined(moments, start, missing_of, solve, layout)
    if last is not None:
        last.solution = moments

    @torch.no_grad()
    def inverse(slope: torch.Tensor, missing: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        moments = solve(give(slope) - missing)
        return moments, energy.hessian(moments) - slope

    fields = energy.fields(moments)
    levels = energy.slope(moments, fields).detach()
    if order:
        moments, levels = with_derivatives((moments, levels), residual, inverse, order)
        fields = energy.fields(moments)
    closed = start - moments - give(levels)  # zero in value: it makes the energy stationary
    flow = graph.energy(levels[:, 0]) + (levels * closed).sum(-1)
    if energy.polarisability is not None:
        flow = flow + 0.5 * energy.polarisability * levels[:, 1:].square().sum(-1)
    return energy.response(moments, fields, levels[:, 0], flow)


def _give(energy: ChargeEnergy, graph: FlowGraph, levels: torch.Tensor) -> torch.Tensor:
    """Gy."""
    left = graph.apply(levels[:, 0])[:, None]
    if energy.polarisability is None:
        return left
    return torch.cat([left, energy.polarisability[:, None] * levels[:, 1:]], dim=1)


def _refined(
    moments: torch.Tensor,
    start: torch.Tensor,
    missing_of: Callable[[torch.Tensor], torch.Tensor],
    solve: Solve,
    layout: PaddedLayout,
) -> torch.Tensor:
    """Moments whose charges have the sum that they started from: where conductances are large, solvers lose of it."""
    # A residual of the size that solvers leave may have one sign on all atoms.
    scale = norms(moments, layout).maximum(norms(start, layout)) * layout.counts.sqrt()
    for _ in range(_REFINEMENTS):
        lost = layout.sum((moments - start)[:, 0]).abs()
        if not bool((lost > TOLERANCE[lost.dtype] * scale).any()):  # what is not a number stays so
            return moments
        moments = moments - solve(missing_of(moments))
    worst = int((lost / scale).argmax())
    precision = str(lost.dtype).removeprefix("torch.")
    advice = "compute in float64, or " if lost.dtype == torch.float32 else ""
    raise ConvergenceError(
        f"the charges of a structure of {int(layout.counts[worst])} atoms have a sum that is wrong by "
        f"{float(lost[worst]):.1e} e in {precision} after {_REFINEMENTS} refinements: conductances have grown without "
        f"bound. To go on, {advice}train with a smaller learning rate."
    )


def _factorised(energy: ChargeEnergy, graph: FlowGraph) -> Solve:
    """(1 + GK)⁻¹ = C⁻ᵀ (1 + CᵀGC)⁻¹ Cᵀ with K = CCᵀ, of charges; dipoles that respond are eliminated before.

    With K in blocks A, B and T, m = S(r_m/α − Bᵀq), S = (T + 1/α)⁻¹, and for q the same with A − BSBᵀ.
    """
    layout, laplacian = energy.layout, graph.matrix()
    whole = hessian_matrix(energy)
    alpha = energy.polarisability
    if alpha is None:
        of_charges = _of_charges(whole, laplacian, energy)
        return lambda missing, scale=None: unflat(of_charges(flat(missing, layout)), layout)
    n = layout.n_max
    blocks = whole.reshape(-1, n, 4, n, 4)
    stiffness = torch.diag_embed(layout.pad((1 / alpha.detach())[:, None].expand(-1, 3)).flatten(1))
    lower = cholesky(blocks[:, :, 1:, :, 1:].reshape(-1, 3 * n, 3 * n) + stiffness, "induced dipoles", layout)
    across = blocks[:, :, 1:, :, 0].reshape(-1, 3 * n, n)  # Bᵀ
    half = torch.linalg.solve_triangular(lower, across, upper=False)
    of_charges = _of_charges(blocks[:, :, 0, :, 0] - half.mT @ half, laplacian, energy)

    def solve(missing: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
        pulled = flat(missing[:, 1:] / alpha[:, None], layout)  # r_m/α
        alone = torch.cholesky_solve(pulled, lower)
        charges = of_charges(flat(missing[:, :1], layout) - laplacian @ (across.mT @ alone))
        dipoles = alone - torch.cholesky_solve(across @ charges, lower)
        return torch.cat([unflat(charges, layout), unflat(dipoles, layout)], dim=1)

    return solve


def _of_charges(
    matrix: torch.Tensor, laplacian: torch.Tensor, energy: ChargeEnergy
) -> Callable[[torch.Tensor], torch.Tensor]:
    """(1 + L_gK)⁻¹ of columns (n_structures, n_max, c): K and L_g (n_structures, n_max, n_max)."""
    lower = cholesky(matrix, "charges", energy.layout)
    inner = lower.mT @ laplacian @ lower
    inner = cholesky(inner + torch.eye(inner.shape[-1]).to(inner), "charges", energy.layout)

    def solve(columns: torch.Tensor) -> torch.Tensor:
        return torch.linalg.solve_triangular(lower.mT, torch.cholesky_solve(lower.mT @ columns, inner), upper=True)

    return solve


def _iterated(energy: ChargeEnergy, graph: FlowGraph, last: Last | None) -> Solve:
    """The same by conjugate gradients on (K⁻¹ + G) Kz = r, preconditioned by K, or by K(1 + GK)⁻¹ with what is nearly
    K in the brackets: that is symmetric enough for the few steps it leaves."""
    nearly, kept = energy.nearly(), None
    if nearly is not None:
        single = graph.in_single()
        kept = kept_in_single(
            lambda: _factorised(nearly, single),
            lambda moments: moments + _give(nearly, single, nearly.hessian(moments)),
            lambda missing: missing,
            energy.width * len(energy.layout.batch),
            last,
        )

    def lift(moments: torch.Tensor) -> torch.Tensor:
        return torch.stack([energy.hessian(moments), moments], dim=1)

    system = System(
        precondition=lift if kept is None else lambda missing: lift(energy.operator.agreed(kept(missing))),
        lift=lift,
        product=lambda both: both[:, 1] + _give(energy, graph, both[:, 0]),
        what="charges",
        kept=kept,
    )
    return lambda missing, scale=None: conjugate_gradients(system, missing, energy.layout, scale)[0]
