"""``phi-mace-eval``: energies, forces and charges of a trained model for the structures of a file."""

import sys
from collections.abc import Sequence

from phi_equivariant.commands import hidden
from phi_equivariant.errors import InputError
from training.messages import complain, ending
from training.options.evaluation import PROGRAM, parse


def main(words: Sequence[str] | None = None) -> int:
    """Entry point: exit status 0, 2 for unusable input, 130 when interrupted; nothing is written but with 0."""
    try:
        if message := hidden():
            raise InputError(message)
        asked = parse(words)
        from training import evaluation, run_folder  # with torch and mace, which take seconds

        run_folder.start_console("INFO")
        evaluation.evaluate_file(asked, evaluation.read_model(asked))
    except (InputError, OSError, KeyboardInterrupt) as error:
        status, text = ending(error, "; nothing was written.", "interrupted; nothing was written.")
        complain(PROGRAM, text)
        return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
