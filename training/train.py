"""``phi-mace-train``: train a potential, with Φ or without, and leave a folder with everything about it."""

import shlex
import sys
import time
from collections.abc import Sequence

from phi_equivariant.commands import hidden
from phi_equivariant.errors import InputError
from training.messages import Interrupted, complain, ending, started_first
from training.options import command_line
from training.run import Run

PROGRAM = "phi-mace-train"


def main(words: Sequence[str] | None = None) -> int:
    """Entry point: exit status 0, 2 for unusable input, 130 when interrupted."""
    begin = time.monotonic()
    words = [str(word) for word in (sys.argv[1:] if words is None else words)]
    try:
        if message := hidden():
            raise InputError(message)
        run = command_line.parse(words)
    except (InputError, KeyboardInterrupt) as error:
        return _end(error, words, started_first())

    from training import distribution  # with torch and Lightning, which take seconds

    try:
        carry_out(run, begin)
    except (InputError, OSError, Interrupted, KeyboardInterrupt) as error:
        return _end(error, words, distribution.is_main())
    finally:
        distribution.stop()
    return 0


def _end(error: BaseException, words: list[str], aloud: bool) -> int:
    """Say why the command ends early; returns its status."""
    interrupted = "interrupted before training began."
    if isinstance(error, Interrupted):
        again = shlex.join([PROGRAM, *(word for word in words if word != "--restart_latest"), "--restart_latest"])
        interrupted = f"interrupted; {error.epochs} epochs are safe. Go on with: {again}"
    advice = "make room or choose another --work_dir, then go on with --restart_latest."
    status, text = ending(error, f". What was complete is still there; {advice}", interrupted)
    complain(PROGRAM, text, aloud)
    return status


def carry_out(run: Run, begin: float) -> None:
    """Load the data, build the model, fit, and finish; or compare, or only rehearse.

    ``begin``: ``time.monotonic()`` when the command began, from which a time limit counts.
    """
    from training import build, compare, distribution, one_run, run_folder

    distribution.start(run.machine)
    run_folder.start_console(run.output.log_level)
    with distribution.together():
        build.check_machine(run)
    distribution.from_main(lambda: run_folder.check_folders(run.output, run.task.restart_latest))
    with distribution.together():
        run, data = build.load(run)
    deadline = None if run.task.time_limit is None else begin + 60.0 * run.task.time_limit
    if run.task.compare:
        compare.compare(run, data, deadline)
    elif run.task.dry_run:
        one_run.rehearse(run, data)
    else:
        one_run.train(run, data, deadline)


if __name__ == "__main__":
    sys.exit(main())
