"""What a command says when it ends early."""

import os
import sys


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
