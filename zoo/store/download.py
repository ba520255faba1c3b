"""Files over HTTP that are checked before they are kept: by size and sha256, or as their owner knows how.

By requests, and not by pooch 1.9: that has no bound on what a server sends and no lock, tries a missing file as often
as a broken connection, and leaves a temporary file behind whenever a process is killed. As much would be written
around it.
"""

import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import track

from phi_equivariant.errors import InputError

logger = logging.getLogger(__name__)
CHUNK, WAIT = 1 << 16, (10, 30)  # bytes; seconds without a connection, and without a further byte
ATTEMPTS, PAUSE = 4, 0.5  # tries per address, and seconds before the second one, doubled for each further one


class WrongContent(Exception):
    """What the server sends cannot be the file that was asked for; trying again will not help."""


@dataclass(frozen=True)
class FileInfo:
    """What must be true of a file: its sha256, and its size in bytes."""

    sha256: str
    size: int

    @classmethod
    def of(cls, path: Path) -> "FileInfo":
        """Of a file on disk."""
        return cls(sha256_of(path), path.stat().st_size)


def sha256_of(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_right(path: Path, info: FileInfo) -> bool:
    """Whether a file is there and is the one that ``info`` means."""
    return path.is_file() and path.stat().st_size == info.size and sha256_of(path) == info.sha256


def are_right(folder: Path, files: Mapping[str, FileInfo]) -> bool:
    """Whether all these files of a folder are."""
    return all(is_right(folder / name, info) for name, info in files.items())


def cache_folder() -> Path:
    """Folder for downloads: ``PHI_CACHE``, else ``phi_equivariant`` in ``XDG_CACHE_HOME`` or ``~/.cache``."""
    if folder := os.environ.get("PHI_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "phi_equivariant"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file that several processes may want to write; says so when it has to wait."""
    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire(timeout=0.2)
    except Timeout:
        logger.warning("Another process is downloading %s: waiting for it.", path.name)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Make the folder of a file in the cache and hold its lock; InputError if it, or the block, cannot write there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path):
            yield
    except OSError as error:
        raise InputError(
            f"Could not write {path}: {error.strerror or error}. Free some space, or name another cache folder in the "
            "environment variable PHI_CACHE."
        ) from error


def fetch(path: Path, info: FileInfo, url: str) -> None:
    """Make sure that ``path`` holds the file; needs neither network nor a writable folder where it does already.

    A wrong file in the cache is replaced. A lock lets one of several processes download while the others wait.

    Raises
    ------
    InputError
        If the address does not give the right file, or the folder cannot be written to.
    """

    def check(partial: Path) -> None:
        if not is_right(partial, info):
            raise WrongContent(f"not the registered file: its sha256 is {sha256_of(partial)}, not {info.sha256}")

    if not is_right(path, info):
        with writing(path):
            if not is_right(path, info):
                download(path, url, check, info.size)


def download(path: Path, url: str, check: Callable[[Path], object], most: int | None = None) -> None:
    """Put a file that passes the check at ``path``, whole or not at all; within ``writing(path)``.

    Parameters
    ----------
    check : called with the path of the complete file, to raise InputError if it is the wrong one
    most : bytes that it may have; None: any number

    Raises
    ------
    InputError
        If the address does not give such a file.
    """
    partial = path.with_name(f"{path.name}.part")
    try:
        for left in reversed(range(ATTEMPTS)):
            try:
                _transfer(url, partial, most)
                break
            except requests.RequestException as error:
                if not left or not _passes(error):
                    raise
                time.sleep(PAUSE * 2 ** (ATTEMPTS - 1 - left))
        check(partial)
        os.replace(partial, path)
    except (WrongContent, InputError, requests.RequestException) as error:
        raise InputError(
            f"Could not download {url}: {_reason(error)}. Nothing was kept. Try again later, or get {path.name} by "
            "other means."
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _transfer(url: str, partial: Path, most: int | None) -> None:
    # identity: the length is that of the file, not of a compressed copy.
    with requests.get(url, stream=True, timeout=WAIT, headers={"Accept-Encoding": "identity"}) as response:
        response.raise_for_status()
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdecimal() and "Content-Encoding" not in response.headers else None
        if most is not None and total is not None and total > most:
            raise WrongContent(f"the server announced {total} bytes, but at most {most} are accepted")
        console = Console(stderr=True)
        chunks, n_chunks = response.iter_content(CHUNK), None if total is None else -(-total // CHUNK)
        with open(partial, "wb") as file:
            for chunk in track(chunks, partial.stem, n_chunks, console=console, disable=not console.is_terminal):
                if most is not None and file.tell() + len(chunk) > most:
                    raise WrongContent(f"the server sent more than the {most} bytes that are accepted")
                file.write(chunk)


def _passes(error: requests.RequestException) -> bool:
    """Whether an error may go away by itself: a broken connection, a server in trouble."""
    broken = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
    status = 0 if error.response is None else error.response.status_code
    return isinstance(error, broken) or status in (408, 429) or status >= 500


def _reason(error: Exception) -> str:
    """Why a transfer failed, in words."""
    if isinstance(error, requests.HTTPError):
        return f"the server answered {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.Timeout) or "Read timed out" in str(error):
        return "the server did not answer in time"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection broke before the file was complete"
    if isinstance(error, requests.ConnectionError):
        return "no connection to the server"
    return str(error).rstrip(".")
