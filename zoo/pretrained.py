"""Trained models by name, path or address: found, fetched, checked, loaded."""

import dataclasses
import difflib
import os
from pathlib import Path

from phi_equivariant.errors import InputError
from phi_equivariant.precision import DTYPES, read_dtype
from phi_equivariant.weights import CONFIG_FILE, load_model
from zoo import limits, reference
from zoo.architectures import ARCHITECTURES
from zoo.download import fetch, is_right
from zoo.registry import (
    REFERENCE_FILE,
    REGISTRY_FILE,
    Entry,
    check_name,
    is_address,
    registry_at,
    shipped,
)


def mirror():
    """``PHI_ZOO_URL``: address or folder of another registry, or None."""
    return os.environ.get("PHI_ZOO_URL") or None


def entries(offline: bool = False) -> dict[str, Entry]:
    """{name: entry} of all trained models that are known: those of the package, and those of the mirror.

    A mirror gives further places for the package's models, but cannot change what their files must be.
    """
    known, where = shipped(), mirror()
    if where is None:
        return known
    return {**registry_at(where, offline=offline), **{name: _also_at(entry, where) for name, entry in known.items()}}


def _also_at(entry, where):
    base = where.rstrip("/").removesuffix(f"/{REGISTRY_FILE}")
    if is_address(where):
        return dataclasses.replace(entry, urls=(f"{base}/{entry.name}", *entry.urls))
    return dataclasses.replace(entry, folders=(*entry.folders, Path(base).expanduser() / entry.name))


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
                f"{where}/{name} is no address of a trained model; write https://…/phi-mace-small.water_pbe."
            )
        known = {}
    if name in ARCHITECTURES:
        trained = ", ".join(other for other in known if other.startswith(f"{name}.")) or "none in the package"
        raise InputError(
            f"{name} is a size, not a trained model: create_model makes a fresh one. Trained ones: {trained}."
        )
    check_name(name)
    if name in known:
        return known[name] if where is None else _also_at(known[name], where)
    looks = (False, True) if offline or not refresh else (True,)
    for fresh in looks if where else ():
        found = registry_at(where, fresh, offline)
        if name in found and (fresh or offline or _is_complete(found[name])):
            return found[name]
        known |= found
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(sorted(known)) or 'none'}."
    raise InputError(f"there is no trained model {name!r}; {hint} phi-zoo list shows all.")


def _is_complete(entry):
    return any(_wrong_file(entry, folder) is None for folder in (*entry.folders, entry.cached()))


def _wrong_file(entry, folder):
    """Name of the first file that is missing in a folder or not the registered one; None if all are right."""
    return next((name for name, info in entry.files.items() if not is_right(folder / name, info)), None)


def files_of(entry: Entry, offline: bool = False) -> Path:
    """The folder that holds the files of an entry, all of the registered size and sha256, fetched where need be.

    Raises
    ------
    InputError
        If there is no right file anywhere.
    """
    for folder in entry.folders:
        if _wrong_file(entry, folder) is None:
            return folder
    if not entry.urls:
        folder = entry.folders[0]
        raise InputError(
            f"{entry.name}: {_wrong_file(entry, folder)} in {folder} is missing or is not the registered file, and the "
            "registry knows no address for it. Get the folder again."
        )
    for file, info in entry.files.items():
        fetch(entry.cached() / file, info, [f"{url.rstrip('/')}/{file}" for url in entry.urls], offline)
    return entry.cached()


def locate(name: str | Path, offline: bool = False) -> Path:
    """The folder of a trained model: of a registered name or address, checked and fetched, or the path itself.

    Raises
    ------
    InputError
        If there is no such model or folder.
    """
    if is_path(name):
        path = Path(os.path.expanduser(name))
        if not path.is_dir():
            raise InputError(f"{name} is no folder; give one that holds model.safetensors and config.json.")
        return path
    try:
        entry = find(str(name), offline)
    except InputError:
        if (Path(name) / CONFIG_FILE).is_file():
            return Path(name)
        raise
    return files_of(entry, offline)


def is_path(name: str | Path) -> bool:
    """Whether a text is the path of a folder rather than a model's name or address."""
    text = str(name)
    return isinstance(name, Path) or (not is_address(text) and (os.sep in text or text in (".", "..")))


def load_pretrained(name, device="cpu", dtype=None, offline=False):
    """A trained potential by name, by the path of a folder, or by address, in evaluation mode.

    Only safetensors and JSON are read; size and sha256 of a registered model's files are checked every time, its
    settings before it is built, and its energy, forces and charges of a reference structure afterwards.

    Parameters
    ----------
    name: a name of ``list_models(trained=True)``; the path of a folder (with a separator: ``./folder``), also one that
        training left; or an address ``https://…/<name>`` or ``hf://owner/repository/<name>``, beside which a
        ``registry.json`` says what the files must be
    device: where to put it
    dtype: ``float32`` or ``float64``; as saved where None
    offline: never use the network

    Returns
    -------
    PhiPotential, or a bare host if that was saved

    Raises
    ------
    InputError
        If there is no such model, its files cannot be had or are not the registered ones, its settings are not allowed,
        or it does not give the reference energy, forces and charges.
    """
    precision = read_dtype(dtype)
    folder = locate(name, offline)
    model, saved = load_folder(folder)
    return model.to(device=device, dtype=precision or DTYPES[saved])


def load_folder(folder: Path):
    """A checked model in float64, and the name of the precision it was saved in.

    Raises
    ------
    InputError
        As ``load_pretrained``.
    """
    config = limits.check_files(folder)
    if (folder / REFERENCE_FILE).is_file():
        model = load_model(folder, dtype="float64")
        reference.check(model, folder)
    elif config.get("tensors", "all") == "all":
        model = load_model(folder, dtype="float64")
    else:
        raise InputError(
            f"{folder} has no {REFERENCE_FILE}; with parameters alone nothing tells whether the model is the trained "
            "one. Make the folder by phi-zoo export."
        )
    return model, config["dtype"]
