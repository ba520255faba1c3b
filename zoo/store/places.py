"""Folders that hold a registry or a model: on this machine, on a web server, on the Hugging Face Hub.

The hub is huggingface_hub's: its cache, locks, resumption, token (``HF_TOKEN``), mirror (``HF_ENDPOINT``) and
``HF_HUB_OFFLINE`` are those of its other users.
"""

import hashlib
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from phi_equivariant.errors import InputError
from zoo.store.download import FileInfo, are_right, cache_folder, download, fetch, writing

_HUB = re.compile(r"hf://(?!.*\.\.)(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w.-]+))?(/(?P<path>[\w./-]+))?")


def is_address(text: str) -> bool:
    """Whether a text is an address on a network rather than a path."""
    return text.startswith(("http://", "https://", "hf://"))


@dataclass(frozen=True)
class Folder:
    """A folder on this machine, by its path."""

    where: str

    def kept(self, files: Collection[str]) -> Path | None:
        """The folder on this machine, if it has all these files; they may be wrong."""
        folder = Path(self.where).expanduser()
        return folder if all((folder / name).is_file() for name in files) else None

    def get(self, files: Mapping[str, FileInfo]) -> Path:
        """The folder with these files, right ones, fetched where need be; InputError if they cannot be had."""
        raise InputError(f"not all files in {self.where} are there and the registered ones")

    def renew(self, name: str, check: Callable[[Path], object], most: int) -> Path:
        """The folder with a file that passes a check and has at most so many bytes, as it is at the source now."""
        return Path(self.where).expanduser()


class Web(Folder):
    """A folder on a web server, by its address: fetched into the cache."""

    @property
    def folder(self) -> Path:
        """Its copy in the cache."""
        name = re.sub(r"[^\w.-]", "_", self.where.rsplit("/", 1)[1])
        return cache_folder() / "zoo" / f"{name}-{hashlib.sha256(self.where.encode()).hexdigest()[:16]}"

    def kept(self, files: Collection[str]) -> Path | None:
        """As for a ``Folder``."""
        return Folder(str(self.folder)).kept(files)

    def get(self, files: Mapping[str, FileInfo]) -> Path:
        """As for a ``Folder``."""
        for name, info in files.items():
            fetch(self.folder / name, info, f"{self.where}/{name}")
        return self.folder

    def renew(self, name: str, check: Callable[[Path], object], most: int) -> Path:
        """As for a ``Folder``; what fails never replaces a good copy."""
        with writing(self.folder / name):
            download(self.folder / name, f"{self.where}/{name}", check, most)
        return self.folder


class Hub(Folder):
    """A folder on the Hugging Face Hub, ``hf://owner/repository[@revision]/folder``."""

    def _file(self, name: str) -> dict[str, Any]:
        """How huggingface_hub calls a file."""
        match = _HUB.fullmatch(self.where)
        if match is None:
            raise InputError(
                f"{self.where} is not an address on the hub; write hf://owner/repository[@revision]/folder"
            )
        filename = (Path(match["path"] or "") / name).as_posix()
        return {"repo_id": match["repo"], "filename": filename, "revision": match["revision"]}

    def kept(self, files: Collection[str]) -> Path | None:
        """As for a ``Folder``."""
        try:
            from huggingface_hub import try_to_load_from_cache

            found = [try_to_load_from_cache(**self._file(name)) for name in files]
        except (ImportError, ValueError):  # not installed; not a name of a repository
            return None
        return Path(str(found[0])).parent if all(isinstance(one, str) for one in found) else None

    def get(self, files: Mapping[str, FileInfo]) -> Path:
        """As for a ``Folder``."""
        for anew in (False, True):
            folder = [self._fetch(name, info.size, anew) for name, info in files.items()][-1]
            if are_right(folder, files):
                return folder
        raise InputError(f"the files in {self.where} are not the registered files")

    def renew(self, name: str, check: Callable[[Path], object], most: int) -> Path:
        """As for a ``Folder``."""
        folder = self._fetch(name, most)
        check(folder / name)
        return folder

    def _fetch(self, name: str, most: int, anew: bool = False) -> Path:
        file = self._file(name)
        try:
            from huggingface_hub import hf_hub_download
            from huggingface_hub.errors import HfHubHTTPError
        except ImportError as error:
            raise InputError(
                f"{self.where} is on the Hugging Face Hub, for which huggingface_hub is missing: "
                "pip install 'phi-equivariant[hub]'"
            ) from error
        try:
            size = hf_hub_download(**file, dry_run=True).file_size
            if size is not None and size <= most:
                return Path(hf_hub_download(**file, force_download=anew)).parent
        except (HfHubHTTPError, OSError, ValueError) as error:
            raise InputError(f"{self.where}/{name} cannot be had ({' '.join(str(error).split())[:300]})") from error
        raise InputError(f"{self.where}/{name} has {size} bytes; at most {most} are accepted")


def place(where: str) -> Folder:
    """The place of a path or an address.

    Raises
    ------
    InputError
        If it is the address of something else.
    """
    kind = Hub if where.startswith("hf://") else Web if is_address(where) else Folder
    if "://" in where and (kind is Folder or not urlsplit(where).netloc):
        raise InputError(f"{where!r} is not an address; write https://… or hf://…, or the path of a folder")
    return kind(where.rstrip("/"))
