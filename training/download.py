"""Fetch a file once, accept it only when it is complete and right, and recognise it ever after by its sha256."""

import logging
import os
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import pooch
import requests
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from phi_equivariant.errors import InputError

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Folder for downloads: ``PHI_CACHE``, else ``phi_equivariant`` in ``XDG_CACHE_HOME`` or ``~/.cache``."""
    if folder := os.environ.get("PHI_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "phi_equivariant"


def record_of(path: Path) -> Path:
    """File beside ``path`` that keeps its sha256, in the form that ``sha256sum --check`` reads."""
    return path.with_name(path.name + ".sha256")


def verify(path: Path) -> str:
    """The sha256 of a file, equal to the recorded one if there is a record; raises InputError if they differ."""
    digest = pooch.file_hash(str(path), alg="sha256")
    record = record_of(path)
    if record.exists():
        words = record.read_text().split()
        if not words or words[0] != digest:
            raise InputError(
                f"{path} has changed: its sha256 is {digest}, but {words[0] if words else 'nothing'} was recorded when "
                f"it was downloaded. Delete {path} and {record}; the file will then be downloaded again."
            )
    return digest


def fetch(url: str, path: Path, check: Callable[[Path], object]) -> str:
    """Make sure that ``path`` holds the file at ``url``; downloads it if it is not there.

    The transfer goes to a partial file that becomes ``path`` only after ``check``; a lock keeps a second process
    waiting meanwhile. The sha256 is recorded beside the file and compared at every later call, which needs no network.

    Parameters
    ----------
    url : address of the file
    path : where to keep it
    check : called with the path of the complete transfer; raises InputError if it is not what was expected

    Returns
    -------
    sha256 of the file

    Raises
    ------
    InputError
        if the server cannot be reached or answers with an error, the transfer ends early, the file fails the check, the
        folder is not writable or full, or the file on disk no longer has its recorded sha256.
    """
    if path.exists() and record_of(path).exists():
        return verify(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path):
            if not path.exists():
                _download(url, path, check)
            elif not record_of(path).exists():
                # Put there by hand, or a run was killed between the last two steps of a download.
                check(path)
                _record(path, pooch.file_hash(str(path), alg="sha256"))
            return verify(path)
    except requests.RequestException as error:
        raise InputError(
            f"Could not download {url}: {_reason(error)}. Nothing was kept. Try again later, or get {path.name} by "
            "other means and give its folder as data_dir."
        ) from error
    except OSError as error:
        raise InputError(
            f"Could not write {path}: {error.strerror or error}. Free some space, or name another cache folder in the "
            "environment variable PHI_CACHE."
        ) from error


def _download(url: str, path: Path, check: Callable[[Path], object]) -> None:
    partial = path.with_name(path.name + ".part")
    logger.info("Downloading %s to %s.", url, path)
    try:
        with _RichProgress(path.name) as progress:
            pooch.HTTPDownloader(progressbar=progress, chunk_size=1 << 16)(url, str(partial), None)
        try:
            check(partial)
        except InputError as error:
            raise InputError(f"{url} did not deliver the published file; nothing was kept. {error}") from error
        digest = pooch.file_hash(str(partial), alg="sha256")
        os.replace(partial, path)
        _record(path, digest)
    finally:
        partial.unlink(missing_ok=True)


def _record(path: Path, digest: str) -> None:
    temporary = record_of(path).with_name(record_of(path).name + ".part")
    temporary.write_text(f"{digest}  {path.name}\n")
    os.replace(temporary, record_of(path))


@contextmanager
def _locked(path: Path):
    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire(timeout=0.2)
    except Timeout:
        logger.info("Another process is downloading %s: waiting for it.", path.name)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _reason(error: requests.RequestException) -> str:
    if isinstance(error, requests.HTTPError):
        return f"the server answered {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.Timeout):
        return "the server did not answer in time"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return f"the connection broke before the file was complete ({error})"
    if isinstance(error, requests.ConnectionError):
        return f"no connection ({error})"
    return str(error)


class _RichProgress:
    """The progress bar that pooch calls (``total``, ``update``, ``reset``, ``close``), drawn by rich on a terminal."""

    def __init__(self, name: str):
        console = Console(stderr=True)
        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        self._progress = Progress(TextColumn(name), *columns, console=console, disable=not console.is_terminal)
        self._task = self._progress.add_task(name, total=None)

    def __enter__(self):
        self._progress.start()
        return self

    def __exit__(self, *exception):
        self._progress.stop()

    @property
    def total(self):
        return self._progress.tasks[0].total

    @total.setter
    def total(self, size: int):
        self._progress.update(self._task, total=size or None)

    def update(self, size: int):
        self._progress.advance(self._task, size)

    def reset(self):
        self._progress.update(self._task, completed=0)

    def close(self):
        self._progress.stop()
