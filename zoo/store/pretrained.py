"""Trained models: checked, built, and checked again by what they give."""

from pathlib import Path

import torch

from phi_equivariant.errors import InputError
from phi_equivariant.precision import DTYPES, read_dtype
from phi_equivariant.weights import build_saved, read_saved
from zoo.bounds import at_most
from zoo.store import limits, reference
from zoo.store.find import locate
from zoo.store.registry import REFERENCE_FILE


def load_pretrained(
    name: str | Path, device: str | torch.device = "cpu", dtype: str | None = None, offline: bool = False
) -> torch.nn.Module:
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
    model, saved = load_folder(locate(name, offline))
    return model.to(device=device, dtype=precision or DTYPES[saved])


def load_folder(folder: Path) -> tuple[torch.nn.Module, str]:
    """A checked model in float64, and the name of the precision it was saved in.

    Raises
    ------
    InputError
        As ``load_pretrained``.
    """
    saved = read_saved(folder)
    limits.check(saved)
    kept = (folder / REFERENCE_FILE).is_file()
    if not kept and saved.config.get("tensors", "all") != "all":
        raise InputError(
            f"{folder} has no {REFERENCE_FILE}; with parameters alone nothing tells whether the model is the trained "
            "one. Make the folder by phi-zoo export."
        )
    with at_most(limits.n_parameters(saved)):
        model = build_saved(saved, dtype="float64")
    if kept:
        reference.check(model, folder)
    return model, str(saved.config["dtype"])
