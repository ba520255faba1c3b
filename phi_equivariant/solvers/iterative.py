"""Linear systems whose matrix is only ever applied, by conjugate gradients, with implicit derivatives."""

from collections.abc import Callable
from typing import Any

import torch

from phi_equivariant.errors import ConvergenceError

# Relative residuals: what single precision can reach is given by its rounding.
_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
_MAX_STEPS = 2000

Product = Callable[[torch.Tensor], torch.Tensor]
Solutions = dict[str, torch.Tensor]


def solve(product: Product, rhs: torch.Tensor, order: int, last: Solutions | None = None) -> torch.Tensor:
    """x with Ax = rhs for a symmetric positive definite A.

    Derivatives are those of the solution, not of the iteration: with x̃ the converged, constant solution,

        x₁ = x̃ + A⁻¹(rhs − Ax̃),   x₂ = x₁ + A⁻¹(rhs − Ax₁),

    where A⁻¹ is held constant, have the value of x̃, and the first and the second derivatives of x.

    Parameters
    ----------
    product: v → Av, (n_atoms, c) → (n_atoms, c), differentiable in what A depends on
    rhs: (n_atoms, c)
    order: number of derivatives that are wanted, 0 to 2
    last: dictionary in which the solutions of this system and of its derivative are left, and looked for to start from

    Raises
    ------
    ConvergenceError
        If the residual of a column stays above its tolerance, here or in the derivative.

    Source: Hestenes and Stiefel, J. Res. Natl. Bur. Stand. 49, 409 (1952).
    """
    with torch.no_grad():
        solution = conjugate_gradients(product, rhs, _guess(last, "solution", rhs))
        floor = _TOLERANCE[rhs.dtype] * rhs.norm(dim=0)
    if last is not None:
        last["solution"] = solution
    for _ in range(order):
        # What is solved for here is zero within the tolerance: only its derivatives are computed.
        solution = solution + _ConstantInverse.apply(rhs - product(solution), product, floor, last)
    return solution


def _guess(last: Solutions | None, name: str, rhs: torch.Tensor) -> torch.Tensor | None:
    """A solution that is kept, if it can be one of this system."""
    kept = None if last is None else last.get(name)
    if kept is None or (kept.shape, kept.dtype, kept.device) != (rhs.shape, rhs.dtype, rhs.device):
        return None
    return kept


def conjugate_gradients(
    product: Product, rhs: torch.Tensor, start: torch.Tensor | None = None, floor: torch.Tensor | None = None
) -> torch.Tensor:
    """A⁻¹ rhs, column by column, to the relative residual of the precision or to ``floor`` (c,), its absolute value."""
    tolerance = _TOLERANCE[rhs.dtype] * rhs.norm(dim=0)  # (c,)
    tolerance = tolerance if floor is None else torch.maximum(tolerance, 10 * floor)
    solution = torch.zeros_like(rhs) if start is None else start * (tolerance > 0)
    steps = 0
    while True:
        # The residual of the recursion drifts away from the true one, which alone counts.
        residual = rhs if start is None and steps == 0 else rhs - product(solution)
        squared = residual.square().sum(0)
        if bool((squared.sqrt() <= tolerance).all()):
            return solution
        if steps >= _MAX_STEPS or not bool(torch.isfinite(squared).all()):
            break
        solution, taken = _descend(product, solution, residual, tolerance / 2, _MAX_STEPS - steps)
        steps += taken
    if not bool(torch.isfinite(rhs).all()):
        raise ConvergenceError(
            f"the low-pass of a structure of {len(rhs)} atoms has no solution, because its fields are not finite (NaN "
            "or infinity): look at the weights and the node features."
        )
    reached = (squared.sqrt() / rhs.norm(dim=0).clamp(min=torch.finfo(rhs.dtype).tiny)).max()
    precision = str(rhs.dtype).removeprefix("torch.")
    advice = "Choose" if rhs.dtype == torch.float64 else "Compute in float64, choose"
    raise ConvergenceError(
        f"the low-pass of a structure of {len(rhs)} atoms is a linear system that conjugate gradients did not solve: "
        f"a relative residual of {_TOLERANCE[rhs.dtype]:.0e} was asked for, {float(reached):.1e} was reached after "
        f"{steps} steps in {precision}. {advice} a low_pass that is less extreme or none, or solve densely with "
        f"dense_limit={len(rhs)}, where memory allows."
    )


def _descend(
    product: Product, solution: torch.Tensor, residual: torch.Tensor, tolerance: torch.Tensor, max_steps: int
) -> tuple[torch.Tensor, int]:
    """Solution after conjugate gradients from a residual (n_atoms, c), and the number of steps taken."""
    direction, squared, one = residual, residual.square().sum(0), torch.ones_like(tolerance)
    for step in range(max_steps):
        # A column that is solved stays as it is: on its way to zero the residual would run out of digits.
        active = squared.sqrt() > tolerance  # (c,)
        if not bool(active.any()) or not bool(torch.isfinite(squared).all()):
            return solution, max(step, 1)
        applied = product(direction)
        curvature = (direction * applied).sum(0)
        length = active * squared / curvature.where(active, one)
        solution = solution + length * direction
        residual = residual - length * applied
        before, squared = squared, residual.square().sum(0)
        direction = residual + squared / before.where(active, one) * direction
    return solution, max_steps


class _ConstantInverse(torch.autograd.Function):
    """A⁻¹ as a linear map that depends on nothing: its own derivative is the same map, for A is symmetric."""

    @staticmethod
    def forward(
        ctx: Any, rhs: torch.Tensor, product: Product, floor: torch.Tensor | None, last: Solutions | None
    ) -> torch.Tensor:
        ctx.product, ctx.last = product, last
        if floor is not None:
            return conjugate_gradients(product, rhs, floor=floor)
        solution = conjugate_gradients(product, rhs, _guess(last, "derivative", rhs))
        if last is not None:
            last["derivative"] = solution.detach()  # what is returned becomes part of a graph
        return solution

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[Any, None, None, None]:
        return _ConstantInverse.apply(slope, ctx.product, None, ctx.last), None, None, None
