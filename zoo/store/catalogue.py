"""What models there are, and what is known of each."""

import dataclasses
from typing import Any

from phi_equivariant.errors import InputError
from zoo.sizes import ARCHITECTURES, architecture, matching
from zoo.store import card
from zoo.store.find import entries, files_of, find, folder_here
from zoo.store.places import is_address
from zoo.store.registry import CARD_FILE, SHIPPED, Entry, shipped
from zoo.store.summary import summary_of


def list_models(filter: str | None = None, trained: bool = False, offline: bool = False) -> list[str]:
    """Names of the sizes that ``create_model`` can make here, or of the trained models that ``load_pretrained`` loads.

    Parameters
    ----------
    filter: part of the name, or a pattern such as ``phi-mace-*``
    trained: list trained models: those of the package, and those of the registry that ``PHI_ZOO_URL`` names
    offline: do not ask that registry's server, but take what it said last
    """
    fresh = [name for name, size in ARCHITECTURES.items() if size.installed]
    return matching(entries(offline) if trained else fresh, filter)


def model_info(name: str, offline: bool = False) -> dict[str, Any]:
    """What is known of a size or of a trained model, as a dictionary.

    ``kind`` is ``architecture``, with host, arguments, phi, extra (what it needs beside the library) and the names of
    trained models of that size; or ``trained``, with files (size, sha256), addresses, place and card (None where it
    would have to be downloaded although ``offline`` is set).

    Raises
    ------
    InputError
        If there is no such model.
    """
    if "." not in name and not is_address(name):
        trained = [other for other in shipped() if other.startswith(f"{name}.")]
        return {"name": name, "kind": "architecture", **dataclasses.asdict(architecture(name)), "trained": trained}
    entry = find(name, offline, refresh=True)
    known = folder_here(entry, [CARD_FILE]) is not None or not offline
    return {
        "name": entry.name,
        "kind": "trained",
        "description": entry.description,
        "files": {file: dataclasses.asdict(info) for file, info in entry.files.items()},
        "urls": entry.urls,
        "place": place_of(entry),
        "card": card.read(files_of(entry, offline, [CARD_FILE]) / CARD_FILE) if known else None,
    }


def place_of(entry: Entry) -> str:
    """Where the files of an entry are, without checking them: with the package, a folder, the cache, or ``remote``."""
    if folder := folder_here(entry, checked=False):
        return "package" if folder.parent == SHIPPED else str(folder)
    return "remote" if entry.urls else "missing"


def summary_lines(entry: Entry) -> list[str]:
    """What a list says of a trained model: its card in short, or the registry's line where the card is elsewhere."""
    if folder := folder_here(entry, [CARD_FILE], checked=False):
        try:
            return summary_of(card.read(folder / CARD_FILE)).lines()
        except InputError:
            return [entry.description, "its card cannot be read: phi-zoo verify"]
    return [entry.description, "not here: phi-zoo info gets its card"]


def on_this_machine(offline: bool = False) -> list[str]:
    """Names of the trained models that are there, without checking them."""
    return [name for name, entry in entries(offline).items() if folder_here(entry, checked=False)]
