"""Registry files: JSON that says which trained models there are, and by size and sha256 what their files must be.

    {"format_version": 1,
     "models": {"phi-mace-small.ala3_gfn2": {
        "description": "…",
        "files": {"model.safetensors": {"sha256": "…", "size": 400123}, "config.json": …, …},
        "urls": ["https://…/phi-mace-small.ala3_gfn2"]}}}

The files of a model are in a folder of its name beside the registry file, or at one of ``urls``.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phi_equivariant.errors import InputError
from phi_equivariant.files import CONFIG_FILE, CONFIG_LIMIT, WEIGHTS_FILE, read_json
from zoo.store.download import FileInfo
from zoo.store.places import Folder, place

FORMAT_VERSION = 1
REGISTRY_FILE, REGISTRY_LIMIT = "registry.json", 16 << 20
CARD_FILE, REFERENCE_FILE = "card.yaml", "reference.json"
#: The files of a model, and the most bytes that each may have.
FILE_LIMITS = {WEIGHTS_FILE: 4 << 30, CONFIG_FILE: CONFIG_LIMIT, CARD_FILE: 1 << 20, REFERENCE_FILE: 16 << 20}
SHIPPED = Path(__file__).parents[1] / "weights"
_NAME = re.compile(r"phi-[a-z0-9]+-[a-z0-9_]+\.[a-z0-9_]+")


@dataclass(frozen=True)
class Entry:
    """A trained model: name, what its files must be, and the folders that hold them."""

    name: str
    description: str
    files: dict[str, FileInfo]
    places: tuple[Folder, ...] = ()

    @property
    def urls(self) -> list[str]:
        """Addresses of those folders that are not on this machine."""
        return [one.where for one in self.places if type(one) is not Folder]


def check_name(name: str) -> str:
    """The name of a trained model, ``phi-<host>-<size>.<data>``; InputError for any other."""
    if not isinstance(name, str) or len(name) > 100 or not _NAME.fullmatch(name):
        raise InputError(
            f"{str(name)[:100]!r} is not a name of a trained model; write phi-<host>-<size>.<data> in small letters, "
            "digits and _, as in phi-mace-small.water_pbe."
        )
    return name


def read_registry(path: Path, where: str | None = None) -> dict[str, Entry]:
    """{name: entry} of a registry file.

    Parameters
    ----------
    path : the file, or a copy of it
    where : path or address of its folder, beside which its models are; the file's own folder where None

    Raises
    ------
    InputError
        If the file is not a registry of this format, or an entry has a name, a file, a size or an address that is not
        allowed.
    """
    content = read_json(path, REGISTRY_LIMIT)
    try:
        if content["format_version"] != FORMAT_VERSION:
            raise InputError(
                f"it has format version {content['format_version']!r}, this library reads {FORMAT_VERSION}; a newer "
                "phi-equivariant may read it."
            )
        where = where or str(path.parent)
        return {check_name(name): _entry(name, values, where) for name, values in content["models"].items()}
    except InputError as error:
        raise InputError(f"registry {path}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is not a registry of models ({type(error).__name__}: {error}).") from error


def _entry(name: str, values: dict[str, Any], where: str) -> Entry:
    files = {file: FileInfo(**info) for file, info in values["files"].items()}
    if set(files) != set(FILE_LIMITS):
        raise InputError(f"{name} has the files {sorted(files)}; expected {sorted(FILE_LIMITS)}.")
    for file, info in files.items():
        if not isinstance(info.sha256, str) or not re.fullmatch("[0-9a-f]{64}", info.sha256):
            raise InputError(f"the sha256 of {file} of {name} is {str(info.sha256)[:80]!r}; expected 64 digits.")
        if type(info.size) is not int or not 0 < info.size <= FILE_LIMITS[file]:
            raise InputError(f"{file} of {name} has {info.size!r} bytes; expected 1 to {FILE_LIMITS[file]}.")
    places = [place(str(url)) for url in values.get("urls", [])]
    if not all(type(one) is not Folder for one in places):
        raise InputError(f"urls of {name} are {values['urls']}; write https://… or hf://….")
    return Entry(name, str(values.get("description", "")), files, (place(f"{where}/{name}"), *places))


def shipped() -> dict[str, Entry]:
    """The models of the registry that comes with the package."""
    return read_registry(SHIPPED / REGISTRY_FILE)


def registry_at(where: str, last: bool = False, offline: bool = False) -> dict[str, Entry]:
    """The registry in a folder or at an address.

    Parameters
    ----------
    where : path or address of the folder
    last : take the copy that was read last, and no entries where there is none
    offline : never use the network

    Raises
    ------
    InputError
        If it is not there or no registry; a bad one never replaces a good copy.
    """
    source = place(where)
    folder = source.kept([REGISTRY_FILE])
    if not (last or offline):
        folder = source.renew(REGISTRY_FILE, lambda path: read_registry(path, source.where), REGISTRY_LIMIT)
    elif folder is None and not last:
        raise InputError(f"the registry {where} was never read before, and --offline is set; leave it out once.")
    return read_registry(folder / REGISTRY_FILE, source.where) if folder else {}
