"""Sums of many parts in the memory of one, differentiable to any order."""

import torch


def sum_of_parts(function, parts, *inputs):
    """Σ_p function(p, *inputs), keeping nothing of a part once it is summed.

    Each derivative is a sum of the same kind, of the parts' vector–Jacobian products, so memory stays that of one part
    plus inputs and outputs, to any order. Parts are computed again for every derivative.

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
    return _SumOfParts.apply(function, parts, *inputs)


class _SumOfParts(torch.autograd.Function):
    @staticmethod
    def forward(ctx, function, parts, *inputs):
        ctx.function, ctx.parts = function, parts
        ctx.save_for_backward(*inputs)
        total = None
        for part in parts:
            values = function(part, *inputs)
            if total is None:
                total = [value.clone() for value in values]  # a part may return what it was given
            else:
                for into, value in zip(total, values, strict=True):
                    into += value
        return tuple(total)

    @staticmethod
    def backward(ctx, *slopes):
        inputs = ctx.saved_tensors
        wanted = [index for index, needed in enumerate(ctx.needs_input_grad[2:]) if needed]

        def products(part, *arguments):
            given = list(arguments[: len(inputs)])

            def of_wanted(*values):
                for index, value in zip(wanted, values, strict=True):
                    given[index] = value
                return ctx.function(part, *given)

            _, pull_back = torch.func.vjp(of_wanted, *(given[index] for index in wanted))
            return pull_back(arguments[len(inputs) :])

        found = iter(sum_of_parts(products, ctx.parts, *inputs, *slopes))
        return None, None, *(next(found) if needed else None for needed in ctx.needs_input_grad[2:])
