"""A trained model that an option names: the folder of a run, a file in it, a name of the zoo, or a ``.model`` file."""

from pathlib import Path

import torch

from phi_equivariant.errors import InputError
from phi_equivariant.files import CONFIG_FILE, WEIGHTS_FILE
from phi_equivariant.weights import load_model
from training import mace_interface, run_folder
from zoo import list_models, load_pretrained
from zoo.mace_host import read_model


def folder_of(name: str) -> Path:
    """The path that a name may be; of a file of a saved model its folder."""
    path = Path(name).expanduser()
    return path.parent if path.name in (WEIGHTS_FILE, CONFIG_FILE) else path


def load(name: str, trust_pickle: bool, dtype: str | None = None) -> torch.nn.Module:
    """The model, in a precision or as it was saved.

    InputError if there is none of that name, it cannot be read, or is a pickle that the user has not said to trust.
    """
    path = folder_of(name)
    if path.is_dir():
        if (path / run_folder.CONFIG).is_file() and not (path / CONFIG_FILE).is_file():
            raise InputError(
                f"{path} is of a run that has no model yet: its command with --restart_latest takes it to its end. If "
                "it has --model_dir, give the folder below that."
            )
        return load_model(path, dtype=dtype)
    if path.exists():
        model = read_model(path, trust_pickle)
        return model if dtype is None else model.to(getattr(torch, dtype))
    known = list_models(trained=True)
    if name in mace_interface.names_of_downloads() and name not in known:
        raise InputError(
            f"{name} is a model that mace downloads, a pickle without a checksum. Download it yourself (mace's ase "
            "calculators leave theirs in ~/.cache/mace), and give its path and --trust_pickle."
        )
    try:
        return load_pretrained(name, dtype=dtype)
    except InputError as error:
        if name in known:
            raise
        raise InputError(
            f"there is no file, folder or model {name}. Give the folder of a run, a .model file, or a name of the zoo. "
            f"{error}"
        ) from error
