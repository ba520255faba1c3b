"""Fetch a published data file once, accept it only when it is complete and right, and know it by its sha256 after."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import requests

from phi_equivariant.errors import InputError
from zoo.store.transfer import cache_folder, locked, reason, sha256_of, transfer

__all__ = ["cache_folder", "fetch", "record_of", "verify"]

logger = logging.getLogger(__name__)


def record_of(path: Path) -> Path:
    """File beside ``path`` that keeps its sha256, in the form that ``sha256sum --check`` reads."""
    return path.with_name(path.name + ".sha256")


def verify(path: Path) -> str:
    """The sha256 of a file, equal to the recorded one if there is a record; raises InputError if they differ."""
    digest = sha256_of(path)
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
        with locked(path, announce=logger.info):
            if not path.exists():
                _download(url, path, check)
            elif not record_of(path).exists():
                # Put there by hand, or a run was killed between the last two steps of a download.
                check(path)
                _record(path, sha256_of(path))
            return verify(path)
    except requests.RequestException as error:
        raise InputError(
            f"Could not download {url}: {reason(error)}. Nothing was kept. Try again later, or get {path.name} by "
            "other means and give its folder as data_dir."
        ) from error
    except OSError as error:
        raise InputError(
            f"Could not write {path}: {error.strerror or error}. Free some space, or name another cache folder in the "
            "environment variable PHI_CACHE."
        ) from error


def _download(url: str, path: Path, check: Callable[[Path], object]) -> None:
    # From the start, not resumed: no published sum would tell parts of two versions of the file apart.
    partial = path.with_name(path.name + ".part")
    logger.info("Downloading %s to %s.", url, path)
    try:
        transfer(url, partial)
        try:
            check(partial)
        except InputError as error:
            raise InputError(f"{url} did not deliver the published file; nothing was kept. {error}") from error
        digest = sha256_of(partial)
        os.replace(partial, path)
        _record(path, digest)
    finally:
        partial.unlink(missing_ok=True)


def _record(path: Path, digest: str) -> None:
    temporary = record_of(path).with_name(record_of(path).name + ".part")
    temporary.write_text(f"{digest}  {path.name}\n")
    os.replace(temporary, record_of(path))
