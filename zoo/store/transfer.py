"""One file over HTTP: into a partial file that an interrupted transfer leaves for the next to go on with.

Not by pooch (1.9): its temporary file stays behind when a process is killed, also around a downloader of ours, and it
has no lock, no resumption and no check of sizes; what it could take over is ``sha256_of`` and an ``os.replace``.
"""

import hashlib
import logging
import os
from contextlib import contextmanager
from pathlib import Path

import requests
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

logger = logging.getLogger(__name__)
CHUNK = 1 << 16
WAIT = (10, 30)  # seconds without a connection, and without a further byte


class WrongContent(Exception):
    """What the server sends cannot be the file that was asked for; trying again will not help."""


def cache_folder() -> Path:
    """Folder for downloads: ``PHI_CACHE``, else ``phi_equivariant`` in ``XDG_CACHE_HOME`` or ``~/.cache``."""
    if folder := os.environ.get("PHI_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "phi_equivariant"


def sha256_of(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locked(path: Path, announce=logger.info):
    """Hold the lock of a file that several processes may want to write; says so when it has to wait."""
    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire(timeout=0.2)
    except Timeout:
        announce("Another process is downloading %s: waiting for it.", path.name)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def transfer(url, partial, size=None, limit=None, resume=False, headers=None):
    """Append to ``partial`` what is missing of the file at ``url``, or fetch all of it.

    Parameters
    ----------
    url : address
    partial : path to write to; what it holds already is kept where ``resume`` is set and the server can go on there
    size : number of bytes of the complete file, None if unknown
    limit : most bytes to accept where the size is unknown
    headers : further headers of the request

    Raises
    ------
    WrongContent
        As soon as the answer cannot have the expected size; nothing of it is kept.
    requests.RequestException, OSError
        Where the transfer fails; what arrived stays in ``partial``.
    """
    start = partial.stat().st_size if resume and partial.exists() else 0
    # identity: ranges and lengths are those of the file, not of a compressed copy.
    asked = {**(headers or {}), "Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    with requests.get(url, stream=True, timeout=WAIT, headers=asked) as response:
        response.raise_for_status()
        part = response.headers.get("Content-Range", "")
        goes_on = response.status_code == 206 and part.startswith(f"bytes {start}-")
        if response.status_code == 206 and not goes_on:
            raise WrongContent("the server sent another part of the file than was asked for")
        done = start if goes_on else 0
        length = _length(response)
        total = None if length is None else done + length
        _check_size(total, size, limit, response)
        with open(partial, "ab" if goes_on else "wb") as file, _progress(partial.name, total or size, done) as advance:
            for chunk in response.iter_content(CHUNK):
                done += len(chunk)
                if (size is not None and done > size) or (limit is not None and done > limit):
                    raise WrongContent(f"the server sent more than the {size or limit} bytes that were expected")
                file.write(chunk)
                advance(len(chunk))
    if size is not None and done < size:
        raise requests.exceptions.ChunkedEncodingError(f"{done} of {size} bytes arrived")


def _length(response):
    """Announced length of the body in bytes, None if unknown or meaningless."""
    text = response.headers.get("Content-Length", "")
    return int(text) if text.isdecimal() and "Content-Encoding" not in response.headers else None


def _check_size(total, size, limit, response):
    if size is None and limit is None:
        return
    kind = response.headers.get("Content-Type", "").split(";")[0]
    if total is None and kind == "text/html":
        raise WrongContent("the server sent a web page")
    if total is None or total == size or (size is None and total <= limit):
        return
    expected = f"{size} were expected" if size is not None else f"at most {limit} are accepted"
    page = ", a web page" if kind == "text/html" else ""
    raise WrongContent(f"the server announced {total} bytes{page}, but {expected}")


def passing(error: Exception) -> bool:
    """Whether an error may go away by itself: a broken connection, a server in trouble."""
    if isinstance(error, requests.HTTPError):
        return error.response.status_code in (408, 416, 429) or error.response.status_code >= 500
    broken = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
    return isinstance(error, broken)


def reason(error: Exception) -> str:
    """Why a transfer failed, in words."""
    if isinstance(error, requests.HTTPError):
        return f"the server answered {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.Timeout) or "Read timed out" in str(error):
        return "the server did not answer in time"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return f"the connection broke before the file was complete ({error})"
    if isinstance(error, requests.ConnectionError):
        return f"no connection ({error})"
    return str(error)


@contextmanager
def _progress(name, total, done):
    """A progress bar on a terminal; gives a function that advances it by a number of bytes."""
    console = Console(stderr=True)
    columns = (TextColumn(name), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(name, total=total, completed=done)
        yield lambda count: progress.advance(task, count)
