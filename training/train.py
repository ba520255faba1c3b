"""``phi-mace-train``: train a potential, with Φ or without, and leave a folder with everything about it."""

import logging
import shlex
import sys
import time

from phi_equivariant.errors import InputError
from phi_equivariant.files import UNUSABLE_DISK
from training import distribution, run_folder
from training.build import build, check_run, prepare
from training.compare import compare
from training.one_run import Interrupted, train
from training.options import command_line

logger = logging.getLogger("phi_mace_train")


def run_command(words=None):
    """Parse the command line and train."""
    begin = time.monotonic()
    run = command_line.parse(words)
    distribution.start(run.args)
    run_folder.start_console(run.args.log_level)
    with distribution.together():
        check_run(run)
    distribution.from_main(lambda: run_folder.check_folders(run.args))
    with distribution.together():
        run_data = prepare(run)
    deadline = None if run.args.time_limit is None else begin + 60.0 * run.args.time_limit
    if run.args.compare:
        return compare(run, run_data, deadline)
    if run.args.dry_run:
        for line in run_data.lines:
            logger.info(line)
        built = build(run, run_data)
        logger.info(f"dry run: {sum(p.numel() for p in built.model.parameters())} parameters; nothing was written")
        return None
    return train(run, run_data, deadline)


def main(words=None):
    """Entry point: exit status 0, 2 for unusable input, 130 when interrupted."""
    try:
        run_command(words)
    except InputError as error:
        _complain(str(error))
        return 2
    except OSError as error:
        if error.errno not in UNUSABLE_DISK:
            raise
        where = f" {error.filename}" if error.filename else ""
        _complain(
            f"cannot write{where}: {error.strerror}. What was complete is still there; make room or "
            "choose another --work_dir, then go on with --restart_latest."
        )
        return 2
    except Interrupted as interrupted:
        given = [word for word in (sys.argv[1:] if words is None else words) if word != "--restart_latest"]
        _complain(
            f"interrupted; {interrupted.epochs} epochs are safe. Go on with: "
            f"{shlex.join(['phi-mace-train', *map(str, given), '--restart_latest'])}"
        )
        return 130
    except KeyboardInterrupt:
        _complain("interrupted before training began.")
        return 130
    finally:
        distribution.stop()
    return 0


def _complain(message):
    """One message from all processes of a run, which stop for the same reason."""
    if "Original Traceback" in message:  # torch puts a loader process's whole traceback before it
        message = message.rsplit("InputError: ", 1)[-1].strip()
    if distribution.is_main():
        print(f"phi-mace-train: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
