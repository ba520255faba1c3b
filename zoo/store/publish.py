"""Putting a model's folder into a registry file that others can point to."""

import json
import shutil
from pathlib import Path

from phi_equivariant.errors import InputError
from phi_equivariant.files import write_atomically
from zoo.store import card
from zoo.store.download import FileInfo, is_right
from zoo.store.pretrained import load_folder
from zoo.store.registry import (
    CARD_FILE,
    FILE_LIMITS,
    FORMAT_VERSION,
    REGISTRY_FILE,
    REGISTRY_LIMIT,
    Entry,
    check_name,
    is_address,
    read_json,
    read_registry,
    shipped,
)
from zoo.store.transfer import locked


def add(folder, registry, urls=(), replace=False):
    """Put a model's folder into a registry file, after loading it and checking its card.

    Without addresses the folder is copied beside the registry file, where others find it; it may be there already.

    Parameters
    ----------
    folder: made by ``phi-zoo export``, its card completed
    registry: path of the file, made where it is not there
    urls: addresses of folders that hold these files
    replace: allow another model of this name to be replaced

    Raises
    ------
    InputError
        If the model does not load, its card leaves out what only its author knows, or the name is taken.
    """
    folder, registry = Path(folder), Path(registry)
    if registry.is_dir() or registry.suffix != ".json":
        registry = registry / REGISTRY_FILE
    if registry.name != REGISTRY_FILE:
        raise InputError(f"registry is {registry}; others look for {REGISTRY_FILE} in the folder that they are told.")
    name = check_name(folder.resolve().name)
    for url in urls:
        if not is_address(url):
            raise InputError(f"url is {url!r}; give an address that begins with https:// or hf://.")
    missing = [file for file in FILE_LIMITS if not (folder / file).is_file()]
    if missing:
        raise InputError(f"{folder} has no {', '.join(missing)}; make the folder by phi-zoo export.")
    content = card.read(folder / CARD_FILE)
    card.check_stated(content, folder / CARD_FILE)
    load_folder(folder)
    files = {file: FileInfo.of(folder / file) for file in FILE_LIMITS}
    if name in shipped() and shipped()[name].files != files:
        raise InputError(f"{name} is a model that comes with the package, which others would get; choose another name.")
    entry = Entry(name, str(content["description"] or ""), files, urls=tuple(urls))
    registry.parent.mkdir(parents=True, exist_ok=True)
    with locked(registry):
        known = read_registry(registry) if registry.is_file() else {}
        if name in known and known[name].files != files and not replace:
            raise InputError(f"{registry} has another {name} already; choose another name, or allow it by --replace.")
        if not urls:
            _copy(folder, registry.parent / name, files)
        models = read_json(registry, REGISTRY_LIMIT)["models"] if registry.is_file() else {}
        models[name] = entry.to_dict()
        text = json.dumps({"format_version": FORMAT_VERSION, "models": dict(sorted(models.items()))}, indent=1) + "\n"
        write_atomically(registry, lambda path: path.write_text(text))
    return entry


def _copy(folder, target, files):
    """Put the files into ``target``, each whole or not at all; those that are there already stay."""
    target.mkdir(exist_ok=True)
    for file, info in files.items():
        if not is_right(target / file, info):
            write_atomically(target / file, lambda path, file=file: shutil.copyfile(folder / file, path))
