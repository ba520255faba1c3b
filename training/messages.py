"""What a command says when it ends early."""

import os
import sys

from phi_equivariant.errors import InputError
from phi_equivariant.files import UNUSABLE_DISK


class Interrupted(Exception):
    """Training was stopped from outside; ``epochs`` are safe in the last checkpoint."""

    def __init__(self, epochs: int):
        super().__init__()
        self.epochs = epochs


def started_first() -> bool:
    """Whether this is the process that speaks, as far as is known before the processes of a run have met."""
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK") == "0"


def complain(program: str, message: str, aloud: bool = True) -> None:
    """One paragraph; of several processes, which stop for the same reason, one says it ``aloud``."""
    if "Original Traceback" in message:  # torch puts a loader process's whole traceback before it
        message = message.rsplit("InputError: ", 1)[-1].strip()
    if aloud:
        print(f"{program}: {message}", file=sys.stderr)


def ending(error: BaseException, after_disk: str, interrupted: str) -> tuple[int, str]:
    """Exit status and message: 2 for unusable input, or a disk, 130 when interrupted; raises other errors again.

    ``after_disk`` : what to say behind "cannot write … : no space left".
    """
    if isinstance(error, InputError):
        return 2, str(error)
    if isinstance(error, OSError):
        if error.errno not in UNUSABLE_DISK:
            raise error
        where = f" {error.filename}" if error.filename else ""
        return 2, f"cannot write{where}: {error.strerror}{after_disk}"
    return 130, interrupted
