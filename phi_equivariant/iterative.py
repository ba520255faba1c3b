"""Linear systems whose matrix is only ever applied, by conjugate gradients, with implicit derivatives."""

import torch

from phi_equivariant.errors import ConvergenceError

# Relative residuals: what single precision can reach is given by its rounding.
_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
_MAX_STEPS = 2000


def solve(product, rhs, order, start=None):
    """x with Ax = rhs for a symmetric positive definite A.

    Derivatives are those of the solution, not of the iteration: with x̃ the converged, constant solution,

        x₁ = x̃ + A⁻¹(rhs − Ax̃),   x₂ = x₁ + A⁻¹(rhs − Ax₁),

    where A⁻¹ is held constant, have the value of x̃, and the first and the second derivatives of x.

    Parameters
    ----------
    product: v → Av, (n_atoms, c) → (n_atoms, c), differentiable in what A depends on
    rhs: (n_atoms, c)
    order: number of derivatives that are wanted, 0 to 2
    start: (n_atoms, c), a guess

    Raises
    ------
    ConvergenceError
        If the residual of a column stays above its tolerance, here or in the derivative.

    Source: Hestenes and Stiefel, J. Res. Natl. Bur. Stand. 49, 409 (1952).
    """
    with torch.no_grad():
        solution = conjugate_gradients(product, rhs, start)
        floor = _TOLERANCE[rhs.dtype] * rhs.norm(dim=0)
    for _ in range(order):
        # What is solved for here is zero within the tolerance: only its derivatives are computed.
        solution = solution + _ConstantInverse.apply(rhs - product(solution), product, floor)
    return solution


def conjugate_gradients(product, rhs, start=None, floor=None):
    """A⁻¹ rhs, column by column, to the relative residual of the precision or to ``floor`` (c,), its absolute value."""
    tolerance = _TOLERANCE[rhs.dtype] * rhs.norm(dim=0)  # (c,)
    tolerance = tolerance if floor is None else torch.maximum(tolerance, 10 * floor)
    solution = torch.zeros_like(rhs) if start is None else start
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
    reached = (squared.sqrt() / rhs.norm(dim=0).clamp(min=torch.finfo(rhs.dtype).tiny)).max()
    precision = str(rhs.dtype).removeprefix("torch.")
    raise ConvergenceError(
        f"the low-pass of a structure of {len(rhs)} atoms is a linear system that conjugate gradients did not solve: "
        f"a relative residual of {_TOLERANCE[rhs.dtype]:.0e} was asked for, {float(reached):.1e} was reached after "
        f"{steps} steps in {precision}. Compute in float64, choose a low_pass that is less extreme or none, or solve "
        f"densely with dense_limit={len(rhs)}, where memory allows."
    )


def _descend(product, solution, residual, tolerance, max_steps):
    """Solution after conjugate gradients from a residual (n_atoms, c), and the number of steps taken."""
    direction, squared = residual, residual.square().sum(0)
    for step in range(max_steps):
        if bool((squared.sqrt() <= tolerance).all()) or not bool(torch.isfinite(squared).all()):
            return solution, max(step, 1)
        applied = product(direction)
        curvature = (direction * applied).sum(0)
        # A column that is solved has no direction left: 0/0 there means no step.
        length = torch.where(squared > 0, squared / curvature.where(squared > 0, torch.ones_like(squared)), 0 * squared)
        solution = solution + length * direction
        residual = residual - length * applied
        before, squared = squared, residual.square().sum(0)
        direction = residual + squared / before.where(before > 0, torch.ones_like(before)) * direction
    return solution, max_steps


class _ConstantInverse(torch.autograd.Function):
    """A⁻¹ as a linear map that depends on nothing: its own derivative is the same map, for A is symmetric."""

    @staticmethod
    def forward(ctx, rhs, product, floor):
        ctx.product = product
        return conjugate_gradients(product, rhs, floor=floor)

    @staticmethod
    def backward(ctx, slope):
        return _ConstantInverse.apply(slope, ctx.product, None), None, None
