"""Libraries that speak unasked: e3nn and mace compile parts of themselves with TorchScript, and torch warns of each."""

import contextlib
import io
import sys
import warnings
from collections.abc import Iterator

#: What torch says of TorchScript; our users can do nothing about it.
_TORCHSCRIPT = (
    "The TorchScript type system doesn't support instance-level annotations",
    r"`torch\.jit\.\w+` is (deprecated|not supported)",
)
_CUEQUIVARIANCE = "Cuequivariance acceleration will be disabled"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """A block (or, as a decorator, a function) in which e3nn or mace builds modules: torch's words on TorchScript are
    left out, all other warnings are as they were."""
    with warnings.catch_warnings():
        for message in _TORCHSCRIPT:
            warnings.filterwarnings("ignore", message)
        yield


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """A block that imports e3nn or mace, which prints that it does without cuequivariance: what is asked for and needs
    it is refused by name. Other lines go to standard error: standard output is for results."""
    said = io.StringIO()
    try:
        with quiet(), contextlib.redirect_stdout(said):
            yield
    finally:
        for line in said.getvalue().splitlines():
            if _CUEQUIVARIANCE not in line:
                print(line, file=sys.stderr)
