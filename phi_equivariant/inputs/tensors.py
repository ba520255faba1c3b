"""What a batch holds beside mace's own tensors, as whoever made the batch gave it."""

from typing import Any

import torch

from phi_equivariant.errors import InputError


def numbers(name: str, value: Any, like: torch.Tensor) -> torch.Tensor:
    """The value as a tensor with the precision and on the device of ``like``.

    Raises
    ------
    InputError
        For anything but real numbers; ``name`` names it.
    """
    tensor = _tensor(value)
    if tensor is None or tensor.dtype == torch.bool or tensor.is_complex():
        raise InputError(f"{name} is {_shown(value)}; give a tensor of real numbers.")
    return tensor.to(like)


def flags(name: str, value: Any, like: torch.Tensor) -> torch.Tensor:
    """The value as a boolean tensor on the device of ``like``; integers 0 and 1 are taken for False and True.

    Raises
    ------
    InputError
        For anything else; ``name`` names it.
    """
    tensor = _tensor(value)
    if tensor is None or tensor.is_complex() or not bool(((tensor == 0) | (tensor == 1)).all()):
        raise InputError(f"{name} is {_shown(value)}; give True or False for each direction.")
    return tensor.to(device=like.device, dtype=torch.bool)


def _tensor(value: Any) -> torch.Tensor | None:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):  # text, rows of unequal length
        return None


def _shown(value: Any) -> str:
    """For messages, which tensors are too long for."""
    return f"a {value.dtype} tensor of shape {tuple(value.shape)}" if torch.is_tensor(value) else repr(value)
