"""Files whose size and sha256 are known beforehand: fetched once, checked at every use, never wrong in the cache."""

import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path

import requests

from phi_equivariant.errors import InputError
from zoo.store.hub import address_of
from zoo.store.transfer import WrongContent, locked, passing, reason, sha256_of, transfer

logger = logging.getLogger(__name__)
ATTEMPTS, PAUSE = 4, 0.5  # tries per address, and seconds before the second one, doubled for each further one


@dataclass(frozen=True)
class FileInfo:
    """What must be true of a file: its sha256, and its size in bytes."""

    sha256: str
    size: int

    @classmethod
    def of(cls, path):
        """Of a file on disk."""
        return cls(sha256_of(path), path.stat().st_size)


def is_right(path: Path, info: FileInfo) -> bool:
    """Whether a file is there and is the one that ``info`` means."""
    return path.is_file() and path.stat().st_size == info.size and sha256_of(path) == info.sha256


def fetch(path: Path, info: FileInfo, urls: list[str], offline: bool = False) -> Path:
    """Make sure that ``path`` holds the file; needs neither network nor a writable folder where it does.

    A wrong file in the cache is replaced. The transfer goes to a partial file, which becomes ``path`` only with the
    right size and sha256; a broken transfer is gone on with, by this call or a later one. A lock lets one of several
    processes download while the others wait.

    Parameters
    ----------
    path : where to keep the file
    info : its size and sha256
    urls : addresses, tried in this order
    offline : never use the network

    Returns
    -------
    path

    Raises
    ------
    InputError
        If no address gives the right file, the folder cannot be written to, or the file would have to be downloaded
        although ``offline`` is set.
    """
    if is_right(path, info):
        return path
    if offline or not urls:
        state = "differs from the registered one (damaged, or changed)" if path.exists() else "is not there"
        wish = "leave --offline out to download it" if urls else "and the registry knows no address for it"
        raise InputError(f"{path} {state}; {wish}.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path):
            if not is_right(path, info):
                if path.exists():
                    logger.warning("%s differs from the registered file: downloading it again.", path)
                _download(path, info, urls)
    except OSError as error:
        raise InputError(
            f"Could not write {path}: {error.strerror or error}. Free some space, or name another cache folder in the "
            "environment variable PHI_CACHE."
        ) from error
    return path


def _download(path, info, urls):
    # The name says which file this is a part of: a part of another version is never gone on with.
    partial = path.with_name(f"{path.name}.{info.sha256[:16]}.part")
    failures = []
    for url in urls:
        failure = _from_address(url, partial, info)
        if failure is None:
            os.replace(partial, path)
            return
        failures.append(f"{url}: {failure}")
    raise InputError(
        f"Could not download {path.name}: {'; '.join(failures)}. Nothing wrong was kept. Try again later, or name a "
        "mirror in the environment variable PHI_ZOO_URL."
    )


def _from_address(url, partial, info):
    """Fill ``partial`` from one address, with several tries; None, or why it could not be done."""
    failure = None
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE * 2 ** (attempt - 1))
        resumed = partial.exists()
        try:
            if not resumed or partial.stat().st_size < info.size:
                address, headers = address_of(url)
                transfer(address, partial, size=info.size, resume=True, headers=headers)
        except InputError as error:  # an address of a kind that cannot be read here; the next one may be of another
            return str(error).rstrip(".")
        except WrongContent as error:
            partial.unlink(missing_ok=True)
            return f"this is not the registered file ({error})"
        except requests.RequestException as error:
            failure = reason(error)
            if not passing(error):
                return failure
            if isinstance(error, requests.HTTPError) and error.response.status_code == 416:
                partial.unlink()  # the server's file ends before what is here
            continue
        if (found := sha256_of(partial)) == info.sha256:
            return None
        partial.unlink()
        failure = f"this is not the registered file (its sha256 is {found}, not {info.sha256})"
        if not resumed:
            return failure
    return failure
