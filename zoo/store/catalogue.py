"""What models there are, and what is known of each."""

from phi_equivariant.errors import InputError
from zoo.architectures import ARCHITECTURES, architecture, matching
from zoo.store import card
from zoo.store.download import fetch, is_right
from zoo.store.pretrained import entries, find
from zoo.store.registry import CARD_FILE, SHIPPED, is_address, shipped


def list_models(filter=None, trained=False, offline=False):
    """Names of the sizes that ``create_model`` can make here, or of the trained models that ``load_pretrained`` loads.

    Parameters
    ----------
    filter: part of the name, or a pattern such as ``phi-mace-*``
    trained: list trained models: those of the package, and those of the registry that ``PHI_ZOO_URL`` names
    offline: do not ask that registry's server, but take what it said last
    """
    fresh = [name for name, size in ARCHITECTURES.items() if size.installed]
    return matching(entries(offline) if trained else fresh, filter)


def model_info(name, offline=False):
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
        size = architecture(name)
        return {
            "name": name,
            "kind": "architecture",
            "description": size.description,
            "host": size.host,
            "arguments": dict(size.arguments),
            "phi": dict(size.phi),
            "extra": size.extra,
            "trained": [other for other in shipped() if other.startswith(f"{name}.")],
        }
    entry = find(name, offline, refresh=True)
    return {
        "name": entry.name,
        "kind": "trained",
        "description": entry.description,
        "files": {file: {"size": info.size, "sha256": info.sha256} for file, info in entry.files.items()},
        "urls": list(entry.urls),
        "place": place_of(entry),
        "card": _card(entry, offline),
    }


def place_of(entry):
    """Where the files of an entry are, without checking them: with the package, a folder, the cache, or ``remote``."""
    for folder in (*entry.folders, entry.cached()):
        if all((folder / name).is_file() for name in entry.files):
            return "package" if folder.parent == SHIPPED else str(folder)
    return "remote" if entry.urls else "missing"


def _card(entry, offline):
    info = entry.files[CARD_FILE]
    for folder in (*entry.folders, entry.cached()):
        if is_right(folder / CARD_FILE, info):
            return card.read(folder / CARD_FILE)
    if offline:
        return None
    if not entry.urls:
        raise InputError(f"{entry.name}: its card is missing or is not the registered one; get the folder again.")
    urls = [f"{url.rstrip('/')}/{CARD_FILE}" for url in entry.urls]
    return card.read(fetch(entry.cached() / CARD_FILE, info, urls))
