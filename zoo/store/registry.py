"""Registry files: JSON that says which trained models there are, and by size and sha256 what their files must be.

    {"format_version": 1,
     "models": {"phi-mace-small.ala3_gfn2": {
        "description": "…",
        "files": {"model.safetensors": {"sha256": "…", "size": 400123}, "config.json": …, …},
        "urls": ["https://…/phi-mace-small.ala3_gfn2"]}}}

The files of a model are in a folder of its name beside the registry file, or at one of ``urls``.
"""

import hashlib
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import requests

from phi_equivariant.errors import InputError
from phi_equivariant.weights import CONFIG_FILE, WEIGHTS_FILE
from zoo.store.download import FileInfo
from zoo.store.hub import address_of
from zoo.store.transfer import WrongContent, cache_folder, locked, reason, transfer

FORMAT_VERSION = 1
REGISTRY_FILE = "registry.json"
CARD_FILE, REFERENCE_FILE = "card.yaml", "reference.json"
#: The files of a model, and the most bytes that each may have.
FILE_LIMITS = {WEIGHTS_FILE: 4 << 30, CONFIG_FILE: 4 << 20, CARD_FILE: 1 << 20, REFERENCE_FILE: 16 << 20}
REGISTRY_LIMIT = 16 << 20
SHIPPED = Path(__file__).parents[1] / "weights"
_NAME = re.compile(r"phi-[a-z0-9]+-[a-z0-9_]+\.[a-z0-9_]+")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Entry:
    """A trained model: name, what its files must be, and where they are.

    folders : local folders that may hold the files, tried before the cache
    urls : addresses of folders that hold them
    """

    name: str
    description: str
    files: dict[str, FileInfo]
    folders: tuple[Path, ...] = ()
    urls: tuple[str, ...] = field(default=())

    def cached(self) -> Path:
        """Folder in the cache; its name changes with the content, so that two versions never mix."""
        weights = self.files[WEIGHTS_FILE].sha256[:12], self.files[CONFIG_FILE].sha256[:12]
        return cache_folder() / "zoo" / f"{self.name}-{'-'.join(weights)}"

    def to_dict(self) -> dict:
        """As it stands in a registry file."""
        files = {name: {"sha256": info.sha256, "size": info.size} for name, info in self.files.items()}
        return {"description": self.description, "files": files, "urls": list(self.urls)}


def check_name(name: str) -> str:
    """The name of a trained model, ``phi-<host>-<size>.<data>``; InputError for any other."""
    if not isinstance(name, str) or len(name) > 100 or not _NAME.fullmatch(name):
        raise InputError(
            f"{str(name)[:100]!r} is no name of a trained model; write phi-<host>-<size>.<data> in small letters, "
            "digits and _, as in phi-mace-small.water_pbe."
        )
    return name


def is_address(text: str) -> bool:
    """Whether a text is an address on a network rather than a path."""
    return text.startswith(("http://", "https://", "hf://"))


def read_json(path: Path, limit: int):
    """A JSON file of bounded size.

    Raises
    ------
    InputError
        If it is missing, too large, nested too deeply, or no JSON; NaN and infinity are none.
    """
    try:
        if path.stat().st_size > limit:
            raise InputError(f"{path} has {path.stat().st_size} bytes; more than {limit} are not read.")
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
    except FileNotFoundError as error:
        raise InputError(f"There is no file {path}.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON file that can be read ({type(error).__name__}: {error}).") from error


def _no_constant(text):
    raise ValueError(f"{text} is no number")


def read_registry(path: Path, base: str | Path | None = None) -> dict[str, Entry]:
    """{name: entry} of a registry file.

    Parameters
    ----------
    path : the file, or a copy of it
    base : address or folder where the file belongs, beside which its models are; the file's own folder where None

    Raises
    ------
    InputError
        If the file is no registry of this format, or an entry has a name, a file, a size or an address that is not
        allowed.
    """
    content = read_json(path, REGISTRY_LIMIT)
    base = path.parent if base is None else base
    try:
        if content["format_version"] != FORMAT_VERSION:
            raise InputError(
                f"{path} has format version {content['format_version']!r}, this library reads {FORMAT_VERSION}; a "
                "newer phi-equivariant may read it."
            )
        return {check_name(name): _entry(name, values, base) for name, values in content["models"].items()}
    except InputError as error:
        raise InputError(f"registry {path}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is no registry of models ({type(error).__name__}: {error}).") from error


def _entry(name, values, base):
    files = {file: FileInfo(**info) for file, info in values["files"].items()}
    if set(files) != set(FILE_LIMITS):
        raise InputError(f"{name} has the files {sorted(files)}; expected {sorted(FILE_LIMITS)}.")
    for file, info in files.items():
        if not isinstance(info.sha256, str) or not _SHA256.fullmatch(info.sha256):
            raise InputError(f"the sha256 of {file} of {name} is {str(info.sha256)[:80]!r}; expected 64 digits.")
        whole = isinstance(info.size, int) and not isinstance(info.size, bool)
        if not whole or not 0 < info.size <= FILE_LIMITS[file]:
            raise InputError(f"{file} of {name} has {info.size!r} bytes; expected 1 to {FILE_LIMITS[file]}.")
    urls = list(values.get("urls", []))
    for url in urls:
        if not isinstance(url, str) or not is_address(url) or not urlsplit(url).netloc:
            raise InputError(f"{url!r} of {name} is no address; write https://… or hf://….")
    folders = ()
    if isinstance(base, Path):
        folders = (base / name,)
    else:
        urls.insert(0, f"{base.rstrip('/')}/{name}")
    return Entry(name, str(values.get("description", "")), files, folders, tuple(urls))


def shipped() -> dict[str, Entry]:
    """The models of the registry that comes with the package."""
    return read_registry(SHIPPED / REGISTRY_FILE)


def registry_at(where: str, refresh: bool = True, offline: bool = False) -> dict[str, Entry]:
    """The registry of a mirror: an address, or a folder; without ``refresh`` its last copy, empty if there is none.

    Raises
    ------
    InputError
        If it is not there or no registry; a bad one never replaces a good copy.
    """
    if "://" in where and not is_address(where):
        raise InputError(f"the registry {where} is neither a folder nor an address with https:// or hf://.")
    if not is_address(where):
        folder = Path(where).expanduser()
        return read_registry(folder if folder.is_file() else folder / REGISTRY_FILE)
    base = where.rstrip("/").removesuffix(f"/{REGISTRY_FILE}")
    url = f"{base}/{REGISTRY_FILE}"
    copy = cache_folder() / "zoo" / "registries" / f"{_key(base)}.json"
    if (offline or not refresh) and copy.is_file():
        return read_registry(copy, base)
    if not refresh:
        return {}
    if offline:
        raise InputError(f"{url} was never read before, and --offline is set; leave it out once.")
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        with locked(copy):
            _refresh(url, copy, base)
    except (requests.RequestException, WrongContent) as error:
        raise InputError(f"Could not read the registry {url}: {reason(error)}.") from error
    except OSError as error:
        raise InputError(
            f"Could not write {copy}: {error.strerror or error}. PHI_CACHE names another cache."
        ) from error
    return read_registry(copy, base)


def _refresh(url, copy, base):
    partial = copy.with_suffix(".part")
    try:
        address, headers = address_of(url)
        transfer(address, partial, limit=REGISTRY_LIMIT, headers=headers)
        try:
            read_registry(partial, base)
        except InputError as error:
            raise InputError(f"{url} is no registry of models: {error}") from error
        os.replace(partial, copy)
    finally:
        partial.unlink(missing_ok=True)


def _key(base):
    """Name of a registry's copy: its host, to be read by people, and a hash of its address."""
    host = re.sub(r"[^\w.-]", "_", urlsplit(base).netloc)
    return f"{host}-{hashlib.sha256(base.encode()).hexdigest()[:16]}"
