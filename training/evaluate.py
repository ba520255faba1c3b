"""``phi-mace-eval``: energies, forces and charges of a trained model for the structures of a file."""

import sys
from collections.abc import Sequence

from phi_equivariant.commands import hidden
from phi_equivariant.errors import InputError
from phi_equivariant.files import UNUSABLE_DISK
from training.messages import complain
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
    except InputError as error:
        complain(PROGRAM, str(error))
        return 2
    except OSError as error:
        if error.errno not in UNUSABLE_DISK:
            raise
        where = f" {error.filename}" if error.filename else ""
        complain(PROGRAM, f"cannot write{where}: {error.strerror}; nothing was written.")
        return 2
    except KeyboardInterrupt:
        complain(PROGRAM, "interrupted; nothing was written.")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
