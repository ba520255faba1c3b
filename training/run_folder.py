"""The folder that a run leaves, and its log."""

import contextlib
import dataclasses
import logging
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import Progress

from phi_equivariant.errors import InputError
from training import distribution
from training.run import Output

logger = logging.getLogger("phi_mace_train")
LOCK = ".lock"
#: The checkpoint that a restart goes on from, and the weights of each stage's best epoch.
LAST, BEST = "last.ckpt", {1: "best.safetensors", 2: "best_stage_two.safetensors"}
#: What a run leaves beside model.safetensors and config.json: what was asked for and trained on,
CONFIG, DATA, LOG = "config.yaml", "data.json", "log.txt"
#: how it went, and how good the model is.
METRICS, METRICS_TABLE, LEARNING_CURVE = "metrics.json", "metrics.csv", "learning_curve.png"
ERRORS, ERRORS_TABLE, PARITY = "errors.json", "errors.md", "parity.png"
CHARGES, REPORT = "charges.png", "report.html"
console = Console()
if not console.is_terminal and "COLUMNS" not in os.environ:
    console = Console(width=140)  # tables in a file are not fitted to a terminal's default width


class _ConsoleHandler(logging.Handler):
    """Lines above the progress bar on a terminal, plain lines elsewhere."""

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if console.is_terminal:
            console.print(folded(text, console.width), markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=sys.stdout, flush=True)


def folded(text: str, width: int) -> str:
    """A line of the log broken to a width, between what double spaces part or else between words.

    A command stays whole: it is there to be copied.
    """
    if len(text) <= width or text.startswith("command: "):
        return text
    glue = "\N{NO-BREAK SPACE}"  # which textwrap does not break at
    parts = re.sub(r"(?<=\S) (?=\S)", glue, text) if "  " in text.strip() else text
    lines = textwrap.wrap(
        parts, width, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False, replace_whitespace=False
    )
    return "\n".join(lines).replace(glue, " ")


@contextlib.contextmanager
def structure_bar(title: str, total: int) -> Iterator[Callable[[int], None] | None]:
    """A progress bar over structures on a terminal, nothing elsewhere; gives a function that advances it."""
    if not (console.is_terminal and distribution.is_main()):
        yield None
        return
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(title, total=total)
        yield lambda count: progress.update(task, advance=count)


def start_console(level: str) -> None:
    """Send the log to the terminal; the run's own log has every line, whatever the level here."""
    console_handler = _ConsoleHandler() if distribution.is_main() else logging.NullHandler()
    console_handler.setLevel(level.upper())
    logger.setLevel(min(console_handler.level, logging.INFO))
    logger.propagate = False
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    logger.addHandler(console_handler)


@dataclasses.dataclass(frozen=True)
class Folders:
    """Where a run writes: all in its own folder, or in a folder of its name below the one that an option names.

    run : configuration and data; model : model.safetensors and config.json; checkpoints; results : metrics, errors and
    plots; log : a file.
    """

    run: Path
    model: Path
    checkpoints: Path
    results: Path
    log: Path

    def stage_one(self) -> "Folders":
        """The same for the results of stage one, where stage two has the run's places."""
        return dataclasses.replace(self, model=self.model / "stage_one", results=self.results / "stage_one")


def folder_of(output: Output) -> Path:
    """``<work_dir>/<name>``."""
    return Path(output.work_dir) / output.name


def folders_of(output: Output) -> Folders:
    """The places of a run; a relative ``model_dir``, … counts from where the command runs, as in mace."""
    run = folder_of(output)

    def place(option: str | None, otherwise: Path) -> Path:
        return Path(option) / output.name if option else otherwise

    log = Path(output.log_dir) / f"{output.name}.log" if output.log_dir else run / LOG
    checkpoints = place(output.checkpoints_dir, run / "checkpoints")
    return Folders(run, place(output.model_dir, run), checkpoints, place(output.results_dir, run), log)


def check_folders(output: Output, restart: bool) -> Folders:
    """Find out, before anything is made, whether the run may use its folders.

    InputError if one holds a run that ``--restart_latest`` was not given for, or one whose checkpoint is gone, or
    cannot be written to.
    """
    folders = folders_of(output)
    _check_folder("--work_dir", folders.run, restart)
    for name in ("model", "checkpoints", "results"):
        if getattr(output, f"{name}_dir"):
            _check_folder(f"--{name}_dir", getattr(folders, name), restart)
    if output.log_dir:
        _check_folder("--log_dir", folders.log.parent, restart, folders.log)
    if restart:
        _check_checkpoint(folders)
    return folders


def _check_checkpoint(folders: Folders) -> None:
    """A run that got as far as its model had a checkpoint: without it all would be trained and written anew."""
    later = [folders.results / ERRORS, folders.model / "model.safetensors"]
    found = [path for path in later if path.exists()]
    if found and not (folders.checkpoints / LAST).exists():
        raise InputError(
            f"--restart_latest: {found[0]} is of a finished run, but its checkpoint is not in {folders.checkpoints}. "
            "Put it back or name its folder by --checkpoints_dir, or choose another --name to start from zero."
        )


def _check_folder(option: str, folder: Path, restart: bool, file: Path | None = None) -> None:
    """Check the folder that an option makes the run use, or one file in a folder that others use too."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--name: {folder} is a file, not a folder. Choose another --name or {option}.")
    if file and file.is_dir():
        raise InputError(f"--name: {file} is a folder; the log needs that place. Choose another --name or {option}.")
    used = file.exists() if file else folder.is_dir() and any(path.name != LOCK for path in folder.iterdir())
    if used and not restart:
        raise InputError(
            f"--name: {file or folder} already holds a run. Go on with it by --restart_latest, or choose another "
            "--name; nothing in it was touched."
        )
    existing = folder
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"{option}: {existing} cannot be written to, for {folder}. Choose another {option}.")


@contextlib.contextmanager
def held(folders: Folders) -> Iterator[None]:
    """A block in which no other process may write the run; the lock ends with the process, however it ends.

    InputError if another process has it.
    """
    folders.run.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folders.run / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(
            f"--name: another process is writing {folders.run}. Wait for its end or choose another --name; several "
            "processes of one run need --distributed."
        ) from None
    try:
        yield
    finally:
        lock.release()


def open_folders(folders: Folders) -> logging.Handler:
    """Make the folders (that of stage one only when it is written), and copy the log into its file."""
    for folder in (folders.run, folders.model, folders.checkpoints, folders.results, folders.log.parent):
        folder.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(folders.log, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S"))
    logger.addHandler(handler)
    return handler


def close_log(handler: logging.Handler) -> None:
    """Stop copying the log."""
    logger.removeHandler(handler)
    handler.close()
