"""Sums of many parts in the memory of one, differentiable to any order."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

Function = Callable[..., tuple[torch.Tensor, ...]]


def sum_of_parts(function: Function, parts: Sequence[Any], *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Σ_p function(p, *inputs), keeping nothing of a part once it is summed.

    Each derivative is a sum of the same kind, of the parts' vector–Jacobian products, so memory stays that of one part
    plus inputs and outputs, to any order. Parts are computed again for every derivative, unless there is only one.

    Parameters
    ----------
    function: function(part, *inputs) → tuple of tensors, of the same shapes for every part; it sees tensors that
        require a gradient through ``inputs`` only
    parts: what tells one part from another, a sequence that is not empty
    inputs: tensors

    Returns
    -------
    tuple of tensors
    """
    if len(parts) == 1:
        return function(parts[0], *inputs)
    found: tuple[torch.Tensor, ...] = _SumOfParts.apply(function, parts, *inputs)
    return found


class _SumOfParts(torch.autograd.Function):
    """Its derivative is a sum of parts again."""

    @staticmethod
    def forward(ctx: Any, function: Function, parts: Sequence[Any], *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.function, ctx.parts = function, parts
        ctx.save_for_backward(*inputs)
        total: list[torch.Tensor] = []
        for part in parts:
            values = function(part, *inputs)
            if not total:
                total = [value.clone() for value in values]  # a part may return what it was given
            else:
                for into, value in zip(total, values, strict=True):
                    into += value
        return tuple(total)

    @staticmethod
    def backward(ctx: Any, *slopes: torch.Tensor) -> tuple[Any, ...]:
        inputs = ctx.saved_tensors
        wanted = [index for index, needed in enumerate(ctx.needs_input_grad[2:]) if needed]

        def products(part: Any, *arguments: torch.Tensor) -> tuple[torch.Tensor, ...]:
            given = list(arguments[: len(inputs)])

            def of_wanted(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
                for index, value in zip(wanted, values, strict=True):
                    given[index] = value
                found: tuple[torch.Tensor, ...] = ctx.function(part, *given)
                return found

            pull_back = torch.func.vjp(of_wanted, *(given[index] for index in wanted))[1]
            products: tuple[torch.Tensor, ...] = pull_back(arguments[len(inputs) :])
            return products

        found = iter(sum_of_parts(products, ctx.parts, *inputs, *slopes))
        return None, None, *(next(found) if needed else None for needed in ctx.needs_input_grad[2:])
