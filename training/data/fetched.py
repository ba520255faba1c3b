"""Fetch a published data file once, accept it only when it is complete and right, and know it by its sha256 after."""

import os
from collections.abc import Callable
from pathlib import Path

from phi_equivariant.errors import InputError
from zoo.store.download import cache_folder, download, sha256_of, writing

__all__ = ["cache_folder", "fetch", "record_of", "verify"]


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
    """Make sure that ``path`` holds the file at ``url``, which is downloaded if it is not there; returns its sha256.

    The transfer becomes ``path`` only after ``check``, which raises InputError if the complete transfer is not what was
    expected; a lock keeps a second process waiting meanwhile. The sha256 is recorded beside the file and compared at
    every later call, which needs no network.

    InputError if the server cannot be reached or answers with an error, the transfer ends early, the file fails the
    check, the folder is not writable or full, or the file on disk no longer has its recorded sha256.
    """
    if not (path.exists() and record_of(path).exists()):
        with writing(path):
            if not path.exists():
                download(path, url, check)
            elif not record_of(path).exists():
                check(path)  # put there by hand, or a run was killed between the last two steps of a download
            if not record_of(path).exists():
                _record(path)
    return verify(path)


def _record(path: Path) -> None:
    temporary = record_of(path).with_name(record_of(path).name + ".part")
    temporary.write_text(f"{sha256_of(path)}  {path.name}\n")
    os.replace(temporary, record_of(path))
