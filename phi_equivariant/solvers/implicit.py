"""Derivatives of the solution of a linear system, by the implicit function theorem, whichever way it was solved."""

from collections.abc import Callable
from typing import Any

import torch

Parts = tuple[torch.Tensor, ...]


def with_derivatives(
    solution: Parts, residual: Callable[..., Parts], inverse: Callable[..., Parts], order: int
) -> Parts:
    """A solution y of My = c, with its derivatives by everything that M and c depend on.

    With ỹ the constant solution, y₁ = ỹ + M⁻¹(c − Mỹ) and y₂ = y₁ + M⁻¹(c − My₁), M⁻¹ held constant, have the value of
    ỹ and the first, and the first two, derivatives of y. The system is solved again only for derivatives of y.

    Parameters
    ----------
    solution: ỹ in parts, without a graph
    residual: *y → c − My in the same parts, differentiable
    inverse: *c → M⁻¹c for a symmetric M; called without a graph
    order: number of derivatives that are wanted
    """
    for _ in range(order):
        added = _Correction.apply(inverse, *residual(*solution))
        solution = tuple(part + change for part, change in zip(solution, added, strict=True))
    return solution


class _Correction(torch.autograd.Function):
    """M⁻¹ of a residual that is zero to the solver's tolerance: only its derivative is computed."""

    @staticmethod
    def forward(ctx: Any, inverse: Callable[..., Parts], *residual: torch.Tensor) -> Parts:
        ctx.inverse = inverse
        return tuple(torch.zeros_like(part) for part in residual)

    @staticmethod
    def backward(ctx: Any, *slopes: torch.Tensor) -> tuple[Any, ...]:
        return None, *_Inverse.apply(ctx.inverse, *slopes)


class _Inverse(torch.autograd.Function):
    """M⁻¹ as a linear map that depends on nothing: its own derivative is the same map, for M is symmetric."""

    @staticmethod
    def forward(ctx: Any, inverse: Callable[..., Parts], *rhs: torch.Tensor) -> Parts:
        ctx.inverse = inverse
        return inverse(*rhs)

    @staticmethod
    def backward(ctx: Any, *slopes: torch.Tensor) -> tuple[Any, ...]:
        return None, *_Inverse.apply(ctx.inverse, *slopes)
