"""Trained models by name, path or address: found, and fetched where need be."""

import dataclasses
import os
from collections.abc import Collection
from pathlib import Path

from phi_equivariant.errors import InputError, did_you_mean
from phi_equivariant.files import CONFIG_FILE
from zoo.sizes import ARCHITECTURES
from zoo.store.download import are_right
from zoo.store.places import is_address, place
from zoo.store.registry import FILE_LIMITS, REGISTRY_FILE, Entry, check_name, registry_at, shipped


def mirror() -> str | None:
    """``PHI_ZOO_URL``: address or path of the folder of another registry.

    It adds models, and further places for those of the package, but cannot change what their files must be.
    """
    return os.environ.get("PHI_ZOO_URL", "").rstrip("/").removesuffix(f"/{REGISTRY_FILE}") or None


def entries(offline: bool = False) -> dict[str, Entry]:
    """{name: entry} of all trained models that are known: those of the package, and those of the mirror."""
    where = mirror()
    known = {name: _also_at(entry, where) for name, entry in shipped().items()}
    return {**registry_at(where, offline=offline), **known} if where else known


def _also_at(entry: Entry, where: str | None) -> Entry:
    first, *others = entry.places
    return dataclasses.replace(entry, places=(first, place(f"{where}/{entry.name}"), *others)) if where else entry


def find(name: str, offline: bool = False, refresh: bool = False) -> Entry:
    """The entry of a name, or of an address ``<address of a registry's folder>/<name>``.

    What is in the cache, completely, is found without a look at the network, unless ``refresh`` is set.

    Raises
    ------
    InputError
        If there is none, with the nearest names.
    """
    known, where = shipped(), mirror()
    if is_address(name):
        where, _, name = name.rstrip("/").rpartition("/")
        if not is_address(where) or where.endswith("/"):
            raise InputError(
                f"{where}/{name} is not an address of a trained model; write https://…/phi-mace-small.water_pbe."
            )
        known = {}
    if name in ARCHITECTURES:
        trained = ", ".join(other for other in known if other.startswith(f"{name}.")) or "none in the package"
        raise InputError(
            f"{name} is a size, not a trained model: create_model makes a fresh one. Trained ones: {trained}."
        )
    check_name(name)
    if name in known:
        return _also_at(known[name], where)
    if where:
        last = {} if refresh else registry_at(where, last=True)
        if name in last and folder_here(last[name]):
            return last[name]
        known |= registry_at(where, offline=offline)
        if name in known:
            return known[name]
    hint = did_you_mean(name, known, f"Known are {', '.join(sorted(known)) or 'none'}.", n=3)
    raise InputError(f"There is no trained model {name!r}. {hint} phi-zoo list shows all.")


def folder_here(entry: Entry, files: Collection[str] = tuple(FILE_LIMITS), checked: bool = True) -> Path | None:
    """The folder on this machine with files of an entry, of the registered size and sha256; None if there is none."""
    for folder in (one.kept(files) for one in entry.places):
        if folder and (not checked or are_right(folder, {name: entry.files[name] for name in files})):
            return folder
    return None


def files_of(entry: Entry, offline: bool = False, files: Collection[str] = tuple(FILE_LIMITS)) -> Path:
    """The same folder, after fetching the files where need be.

    Raises
    ------
    InputError
        If no place has the right files.
    """
    if folder := folder_here(entry, files):
        return folder
    if offline and entry.urls:
        damaged = folder_here(entry, files, checked=False)
        state = f"{damaged} differs from the registered one (damaged, or changed)" if damaged else "it is not here"
        raise InputError(f"{entry.name}: {state}; leave --offline out to download it.")
    failures = []
    for one in entry.places:
        try:
            return one.get({name: entry.files[name] for name in files})
        except InputError as error:
            failures.append(str(error).rstrip("."))
    raise InputError(f"{entry.name}: {'; '.join(failures)}.")


def locate(name: str | Path, offline: bool = False) -> Path:
    """The folder of a trained model: of a registered name or address, checked and fetched, or the path itself.

    Raises
    ------
    InputError
        If there is no such model or folder.
    """
    if not is_path(name):
        try:
            entry = find(str(name), offline)
        except InputError:
            if (Path(name) / CONFIG_FILE).is_file():
                return Path(name)
            raise
        return files_of(entry, offline)
    path = Path(os.path.expanduser(name))
    if not path.is_dir():
        raise InputError(f"{name} is not a folder; give one that holds model.safetensors and config.json.")
    return path


def is_path(name: str | Path) -> bool:
    """Whether a text is the path of a folder rather than a model's name or address."""
    text = str(name)
    return isinstance(name, Path) or (not is_address(text) and (os.sep in text or text in (".", "..")))
