"""The ``phi:`` section of a trained model that a run starts from: what its folder says of its Φ."""

from pathlib import Path
from typing import Any

from phi_equivariant.errors import InputError
from phi_equivariant.files import CONFIG_FILE, CONFIG_LIMIT, read_json
from training.options.configuration_file import read_configuration
from training.run_folder import CONFIG
from zoo.store.catalogue import list_models
from zoo.store.find import locate

#: Keys that say how Φ is trained which go with its fields; the others belong to one run.
WEIGHTS = ("pde_weight", "net_charge_weight")


def section_of(model: str | None) -> dict[str, Any]:
    """Settings of the Φ that a trained model has and the weights of its loss terms; empty where it has none.

    ``model`` is what ``--foundation_model`` names. What cannot be read is not judged here: loading it says why.
    """
    if model is None:
        return {}
    folder = Path(model).expanduser()
    try:
        if not folder.exists() and model in list_models(trained=True):
            folder = locate(model)
        if not (folder / CONFIG_FILE).is_file():
            return {}
        saved = read_json(folder / CONFIG_FILE, CONFIG_LIMIT)
        section = dict(saved["phi"]["config"]) if saved.get("phi") else {}
        if section and (folder / CONFIG).is_file():
            trained = read_configuration(folder / CONFIG).section or {}
            section |= {name: trained[name] for name in WEIGHTS if trained.get(name)}
    except (InputError, AttributeError, KeyError, TypeError, ValueError):
        return {}
    section.pop("init", None)  # where a fresh Φ would start: this one is trained
    return section
