"""Precisions by name, and torch's default one, which belongs to the whole process."""

import contextlib
import threading
from collections.abc import Iterator

import torch

from phi_equivariant.errors import InputError

DTYPES = {"float32": torch.float32, "float64": torch.float64}
_one_at_a_time = threading.RLock()


def read_dtype(dtype: str | torch.dtype | None, option: str = "dtype") -> torch.dtype | None:
    """``float32`` or ``float64``, by name or torch's own, as torch's; None stays None.

    Raises
    ------
    InputError
        For anything else.
    """
    if dtype is None or (isinstance(dtype, torch.dtype) and dtype in DTYPES.values()):
        return dtype
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise InputError(f"{option} is {dtype!r}; use one of {', '.join(map(repr, DTYPES))}.")
    return DTYPES[dtype]


def set_default_dtype(dtype: str) -> None:
    """Torch's default precision for the rest of the process, by name."""
    torch.set_default_dtype(DTYPES[dtype])


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Torch's default precision while something is built; other threads that build wait."""
    with _one_at_a_time:
        previous = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(previous)
