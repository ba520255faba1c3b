"""The folder that a run leaves, and its log."""

import contextlib
import logging
import os
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from phi_equivariant.errors import InputError

logger = logging.getLogger("phi_mace_train")
console = Console()
if not console.is_terminal:
    console = Console(width=140)  # tables in a file are not wrapped to a terminal's default width


class _ConsoleHandler(logging.Handler):
    """Lines above the progress bar on a terminal, plain lines elsewhere."""

    def emit(self, record):
        text = self.format(record)
        if console.is_terminal:
            console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=sys.stdout, flush=True)


@contextlib.contextmanager
def structure_bar(title, total):
    """A progress bar over structures on a terminal, nothing elsewhere; gives a function that advances it."""
    if not console.is_terminal:
        yield None
        return
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(title, total=total)
        yield lambda count: progress.update(task, advance=count)


def start_console(level):
    """Send the log to the terminal."""
    try:
        logger.setLevel(level.upper())
    except ValueError:
        raise InputError(f"--log_level: expected DEBUG, INFO, WARNING or ERROR, got {level!r}.") from None
    logger.propagate = False
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    logger.addHandler(_ConsoleHandler())


def folder_of(options):
    """``<work_dir>/<name>``."""
    return Path(options.work_dir) / options.name


def check_folder(options):
    """Find out, before anything is made, whether the run may use its folder.

    Raises
    ------
    InputError
        If the folder holds a run that ``--restart_latest`` was not given for, or cannot be written to.
    """
    folder = folder_of(options)
    if folder.exists() and not folder.is_dir():
        raise InputError(
            f"--name: {folder} is a file; the run needs a folder there. Choose another --name or --work_dir."
        )
    if folder.is_dir() and any(folder.iterdir()) and not options.restart_latest:
        raise InputError(
            f"--name: {folder} already holds a run. Go on with it by --restart_latest, or choose another --name; "
            "nothing in it was touched."
        )
    existing = folder
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(
            f"--work_dir: {existing} cannot be written to, so {folder} cannot be made. Choose another --work_dir."
        )
    return folder


def open_folder(folder):
    """Make the folder, and copy the log into its log.txt."""
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(folder / "log.txt", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S"))
    logger.addHandler(handler)
    return handler


def close_log(handler):
    """Stop copying the log."""
    logger.removeHandler(handler)
    handler.close()
