"""Conjugate gradients for the systems of all structures of a batch at once, whose matrices are only ever applied."""

import dataclasses
from collections.abc import Callable

import torch

from phi_equivariant.batching import PaddedLayout
from phi_equivariant.errors import ConvergenceError
from phi_equivariant.solvers.kept_inverse import KeptInverse

# Relative residuals: what single precision can reach is given by its rounding.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
MAX_STEPS = 1000
_FAITHFUL = 20  # steps for which the residual of the recursion is the true one, to rounding

Solve = Callable[..., torch.Tensor]  # r, and what its norm is relative to if not to itself


@dataclasses.dataclass(frozen=True)
class System:
    """A symmetric positive definite system Ax = b with a preconditioner M, of all structures of a batch.

    A direction holds, besides Mr, the vector that it is made from where A is known by both only: with M = K and
    A = K⁻¹ + G, A(Kr) = r + G(Kr) takes no inverse.

    Parameters
    ----------
    precondition: r (n_atoms, k) → a direction (n_atoms, d, k), whose first row is Mr and whose last row is what a step
        adds to the solution
    lift: a solution (n_atoms, k) → the direction whose last row it is
    product: a direction → A times it (n_atoms, k)
    what: what is solved for, for messages
    settle: what of a residual counts, where it has a part that no solution removes
    kept: what ``precondition`` uses, if it is of an earlier system perhaps
    """

    precondition: Callable[[torch.Tensor], torch.Tensor]
    lift: Callable[[torch.Tensor], torch.Tensor]
    product: Callable[[torch.Tensor], torch.Tensor]
    what: str
    settle: Callable[[torch.Tensor], torch.Tensor] = lambda residual: residual
    kept: KeptInverse | None = None


@torch.no_grad()
def conjugate_gradients(
    system: System, rhs: torch.Tensor, layout: PaddedLayout, scale: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """x with Ax = rhs, and rhs − Ax, of which ``system.settle`` leaves nothing.

    Parameters
    ----------
    system: the matrix and its preconditioner
    rhs: (n_atoms, k)
    layout: which atoms belong to one system
    scale: (n_structures,), norms that the residuals of each structure are relative to; those of ``rhs`` where None

    Returns
    -------
    (n_atoms, k) both

    Raises
    ------
    ConvergenceError
        If the residual of a structure stays above the tolerance of its precision, or is not finite.

    Source: Hestenes and Stiefel, J. Res. Natl. Bur. Stand. 49, 409 (1952).
    """
    scale = norms(system.settle(rhs), layout) if scale is None else scale
    tolerance = TOLERANCE[rhs.dtype] * scale  # (n_structures,)
    solution, left, steps = torch.zeros_like(rhs), rhs, 0
    while True:
        found = norms(system.settle(left), layout)
        if bool((found <= tolerance).all()):
            if system.kept is not None:
                system.kept.took(steps)
            return solution, left
        if steps >= MAX_STEPS or not bool(torch.isfinite(found).all()):
            raise _failure(system, layout, scale, found, steps, rhs.dtype)
        if system.kept is not None and system.kept.is_old:
            # It may be so far off that steps lead nowhere, so they are few, and nothing is built on them if it is.
            few = min(system.kept.patience, _FAITHFUL)
            added, rest, taken = _descend(system, left, layout, tolerance / 2, few)
            if bool((norms(system.settle(rest), layout) <= found).all()):
                solution, left = solution + added, rest
            if not bool((norms(system.settle(left), layout) <= tolerance).all()):
                system.kept.renew()
            steps += taken
            continue
        added, left, taken = _descend(system, left, layout, tolerance / 2, MAX_STEPS - steps)
        solution, steps = solution + added, steps + taken
        if taken > _FAITHFUL:
            # The residual of the recursion drifts away from the true one, which alone counts.
            left = rhs - system.product(system.lift(solution))


def norms(values: torch.Tensor, layout: PaddedLayout) -> torch.Tensor:
    """(n_atoms, k) → (n_structures,)."""
    return layout.sum(values.square().sum(-1)).sqrt()


def _descend(
    system: System, left: torch.Tensor, layout: PaddedLayout, tolerance: torch.Tensor, max_steps: int
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """What conjugate gradients add to the solution, what they leave of rhs − Ax, and the number of steps taken."""
    solution, one = torch.zeros_like(left), torch.ones_like(tolerance)
    direction, before = torch.zeros_like(left)[:, None], one
    for step in range(max_steps):
        residual = system.settle(left)
        # A structure that is solved stays as it is: on its way to zero the residual would run out of digits.
        found = norms(residual, layout)
        active = found > tolerance
        if not bool(active.any()) or not bool(torch.isfinite(found).all()):
            return solution, left, max(step, 1)
        new = system.precondition(residual)
        squared = layout.sum((new[:, 0] * residual).sum(-1))  # (n_structures,)
        active = active & (squared > 0)
        if not bool(active.any()):
            return solution, left, max(step, 1)
        direction = new + (squared / before)[layout.batch, None, None] * direction
        before = squared.where(active, one)
        applied = system.product(direction)
        curvature = layout.sum((direction[:, 0] * applied).sum(-1))
        length = (active * squared / curvature.where(active, one))[layout.batch, None]  # (n_atoms, 1)
        solution = solution + length * direction[:, -1]
        left = left - length * applied
    return solution, left, max_steps


def _failure(
    system: System, layout: PaddedLayout, scale: torch.Tensor, found: torch.Tensor, steps: int, dtype: torch.dtype
) -> ConvergenceError:
    finite = torch.isfinite(found)
    relative = (found / scale.clamp(min=torch.finfo(dtype).tiny)).where(finite, found.new_tensor(torch.inf))
    worst = int(relative.argmax())
    about = f"the {system.what} of a structure of {int(layout.counts[worst])} atoms"
    if not bool(finite[worst]):
        return ConvergenceError(
            f"{about} have no solution, because what they are computed from is not finite (NaN or infinity): "
            "look at the weights, the node features and the positions."
        )
    precision = str(dtype).removeprefix("torch.")
    advice = "Compute in float64, and look" if dtype == torch.float32 else "Look"
    return ConvergenceError(
        f"{about} did not converge: a relative residual of {TOLERANCE[dtype]:.0e} was asked for, "
        f"{float(relative[worst]):.1e} was reached after {steps} steps of conjugate gradients in {precision}. {advice} "
        "for atoms on top of each other, and for hardnesses near zero and conductances or polarisabilities that have "
        "grown without bound; with matrices (dense_limit of at least the number of atoms) nothing iterates."
    )
