"""Split-charge equilibration: charge flows along the edges of a graph, driven by the potential."""

from collections.abc import Callable

import torch

from phi_equivariant.charge_models.dense import cholesky, flat, hessian_matrix, is_small, unflat
from phi_equivariant.charge_models.energy import ChargeEnergy, Response
from phi_equivariant.charge_models.flow import FlowGraph
from phi_equivariant.solvers.batched import Last, System, conjugate_gradients, norms, start_from
from phi_equivariant.solvers.implicit import with_derivatives

Solve = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]

FACTORISED_TO = 400  # atoms up to which that is faster than conjugate gradients


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
    last: dictionary in which conjugate gradients leave the moments, and look for them to start from

    Raises
    ------
    ConvergenceError
        If conjugate gradients do not converge.

    Source: R. A. Nistor et al., J. Chem. Phys. 125, 094108 (2006); with conductances that end at a cut-off.
    """
    layout, start = energy.layout, energy.moments(charges)

    def give(levels: torch.Tensor) -> torch.Tensor:
        """Gy."""
        left = graph.apply(levels[:, 0])[:, None]
        if energy.polarisability is None:
            return left
        return torch.cat([left, energy.polarisability[:, None] * levels[:, 1:]], dim=1)

    def residual(moments: torch.Tensor, levels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        slope = energy.slope(moments, energy.fields(moments))
        return levels - slope, moments + give(levels) - start

    with torch.no_grad():
        if is_small(energy, dense, FACTORISED_TO):
            solve, last = _factorised(energy, graph), None
        else:
            solve = _iterated(energy, give)
        moments = start_from(last, start)
        levels = energy.slope(moments, energy.fields(moments))
        missing = moments + give(levels) - start
        moments = moments - solve(missing, norms(moments, layout).maximum(norms(missing, layout)))
        levels = energy.slope(moments, energy.fields(moments))
    if last is not None:
        last["solution"] = moments

    @torch.no_grad()
    def inverse(slope: torch.Tensor, missing: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        moments = solve(give(slope) - missing, None)
        return moments, energy.hessian(moments) - slope

    moments, levels = with_derivatives((moments, levels), residual, inverse, order)
    fields = energy.fields(moments)
    closed = start - moments - give(levels)  # zero in value: it makes the energy stationary
    flow = graph.energy(levels[:, 0]) + (levels * closed).sum(-1)
    if energy.polarisability is not None:
        flow = flow + 0.5 * energy.polarisability * levels[:, 1:].square().sum(-1)
    return energy.response(moments, fields, levels[:, 0], flow)


def _factorised(energy: ChargeEnergy, graph: FlowGraph) -> Solve:
    """(1 + GK)⁻¹ = C⁻ᵀ (1 + CᵀGC)⁻¹ Cᵀ with K = CCᵀ."""
    layout, width = energy.layout, energy.width
    lower = cholesky(hessian_matrix(energy), "charges", layout)
    response = graph.matrix()  # G (n_structures, n_max, n_max)
    if energy.polarisability is not None:
        alpha = layout.pad(energy.polarisability[:, None] * graph.half.new_tensor([0.0, 1.0, 1.0, 1.0]))
        charge = graph.half.new_zeros((width, width))
        charge[0, 0] = 1.0
        response = torch.kron(response, charge) + torch.diag_embed(alpha.flatten(1))
    matrix = lower.mT @ response @ lower
    inner = cholesky(matrix + torch.eye(matrix.shape[-1]).to(matrix), "charges", layout)

    def solve(missing: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
        found = torch.cholesky_solve(lower.mT @ flat(missing, layout), inner)
        return unflat(torch.linalg.solve_triangular(lower.mT, found, upper=True), layout)

    return solve


def _iterated(energy: ChargeEnergy, give: Callable[[torch.Tensor], torch.Tensor]) -> Solve:
    """The same by conjugate gradients on (K⁻¹ + G) Kz = r, preconditioned by K."""

    def lift(moments: torch.Tensor) -> torch.Tensor:
        return torch.stack([energy.hessian(moments), moments], dim=1)

    system = System(precondition=lift, lift=lift, product=lambda both: both[:, 1] + give(both[:, 0]), what="charges")
    return lambda missing, scale: conjugate_gradients(system, missing, energy.layout, scale)
