"""Putting a model's folder into a registry file that others can point to."""

import dataclasses
import functools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from phi_equivariant.errors import InputError
from phi_equivariant.files import read_json, write_atomically
from zoo.store import card
from zoo.store.download import FileInfo, is_right, locked
from zoo.store.places import is_address
from zoo.store.pretrained import load_folder
from zoo.store.registry import (
    CARD_FILE,
    FILE_LIMITS,
    FORMAT_VERSION,
    REGISTRY_FILE,
    REGISTRY_LIMIT,
    check_name,
    read_registry,
    shipped,
)


def add(folder: str | Path, registry: str | Path, urls: Sequence[str] = (), replace: bool = False) -> str:
    """Put a model's folder into a registry file, after loading it and checking its card.

    Without addresses the folder is copied beside the registry file, where others find it; it may be there already.

    Parameters
    ----------
    folder: made by ``phi-zoo export``, its card completed
    registry: path of the file, made where it is not there
    urls: addresses of folders that hold these files
    replace: allow another model of this name to be replaced

    Returns
    -------
    name of the model

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
    if missing := [file for file in FILE_LIMITS if not (folder / file).is_file()]:
        raise InputError(f"{folder} has no {', '.join(missing)}; make the folder by phi-zoo export.")
    content = card.read(folder / CARD_FILE)
    card.check_stated(content, folder / CARD_FILE)
    load_folder(folder)
    files = {file: FileInfo.of(folder / file) for file in FILE_LIMITS}
    if name in shipped() and shipped()[name].files != files:
        raise InputError(f"{name} is a model that comes with the package, which others would get; choose another name.")
    entry = {
        "description": str(content["description"] or ""),
        "files": {file: dataclasses.asdict(info) for file, info in files.items()},
        "urls": list(urls),
    }
    registry.parent.mkdir(parents=True, exist_ok=True)
    with locked(registry):
        known = read_registry(registry) if registry.is_file() else {}
        if name in known and known[name].files != files and not replace:
            raise InputError(f"{registry} has another {name} already; choose another name, or allow it by --replace.")
        target = registry.parent / name
        for file, info in () if urls else files.items():
            if not is_right(target / file, info):
                target.mkdir(exist_ok=True)
                write_atomically(target / file, functools.partial(shutil.copyfile, folder / file))
        models = read_json(registry, REGISTRY_LIMIT)["models"] if known else {}
        content = {"format_version": FORMAT_VERSION, "models": dict(sorted({**models, name: entry}.items()))}
        write_atomically(registry, lambda path: path.write_text(json.dumps(content, indent=1) + "\n"))
    return name
