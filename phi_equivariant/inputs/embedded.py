"""Charges, spins and other entries that a host embeds into its features, by mace's ``embedding_specs``."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from ase import Atoms

from phi_equivariant.errors import InputError
from phi_equivariant.inputs.state import QUANTITIES


def embedding_specs(model: torch.nn.Module) -> dict[str, dict[str, Any]]:
    """{name: specification} of what the host of a potential, or a bare host, embeds."""
    return dict(getattr(getattr(model, "host", model), "embedding_specs", None) or {})


def check_classes(host: torch.nn.Module, data: Mapping[str, Any]) -> None:
    """Find out whether what a host embeds as classes is one of its classes.

    Parameters
    ----------
    host: with or without ``embedding_specs``
    data: batch with mace's keys

    Raises
    ------
    InputError
        For a value that is not a whole number, which the host would cut off, or none of its classes.
    """
    for name, spec in embedding_specs(host).items():
        if spec["type"] != "categorical" or name not in data:
            continue
        value = torch.as_tensor(data[name])
        good = _is_class(value, spec)
        if not bool(good.all()):
            raise InputError(
                f"{name} is {value[~good][:3].tolist()}; the host embeds {_classes(spec)}, the classes that it was "
                "trained for."
            )


def read_embedded(atoms: Atoms, specs: Mapping[str, dict[str, Any]], where: str) -> dict[str, float | np.ndarray]:
    """What a host embeds of a structure beside its charge, spin and electronic temperature.

    Parameters
    ----------
    specs: {name: specification}; an entry stands under the specification's ``key`` or its name, in ``atoms.info``, or
        with ``per: atom`` in ``atoms.arrays``
    where: the structure's name in messages

    Returns
    -------
    {name: number, or array with one row for each atom}

    Raises
    ------
    InputError
        If a structure has no such entry, or one that the embedding cannot take.
    """
    found = {}
    for name, spec in specs.items():
        per_atom = spec["per"] == "atom"
        if name in QUANTITIES and not per_atom:
            continue
        key = spec.get("key") or name
        place: Mapping[str, Any] = atoms.arrays if per_atom else atoms.info
        value = place.get(key, place.get(name))
        if value is None:
            kind = "atom" if per_atom else "structure"
            raise InputError(f"{where} has no entry {key!r} per {kind}, which {name} reads. Add it.")
        found[name] = embedded_value(value, spec, len(atoms), f"{where}: the {key!r} that {name} reads")
    return found


def embedded_value(value: Any, spec: Mapping[str, Any], n_atoms: int, what: str) -> float | np.ndarray:
    """An entry as mace's embedding takes it: whole numbers of classes, or floats; ``what`` names it in messages.

    Raises
    ------
    InputError
        For one that is not finite, of another shape, or no class.
    """
    array, per_atom = np.asarray(value), spec["per"] == "atom"
    if array.dtype.kind not in "biuf" or not np.isfinite(array).all():
        raise InputError(f"{what} is {value!r}; expected finite numbers. Correct the file.")
    categorical = spec["type"] == "categorical"
    shape = (n_atoms, spec.get("in_dim", 1)) if per_atom and not categorical else (n_atoms,) if per_atom else ()
    if array.size != np.prod(shape) or (per_atom and len(array) != n_atoms):
        raise InputError(f"{what} has shape {array.shape}; expected {shape}. Correct the file or the specification.")
    if categorical:
        if not bool(np.all(_is_class(array, spec))):
            raise InputError(
                f"{what} is {value!r}; expected {_classes(spec)}, the {spec['num_classes']} classes of the "
                "specification. Correct the file, num_classes or offset."
            )
        return array.astype(np.int64).reshape(shape) if per_atom else int(array.item())
    return array.astype(np.float64).reshape(shape) if per_atom else float(array.item())


def _is_class(value: Any, spec: Mapping[str, Any]) -> Any:
    """Where an array or a tensor of numbers holds classes of an embedding: whole numbers in its range."""
    rounded = value.round() if torch.is_tensor(value) else np.asarray(value, dtype=float).round()
    shifted = rounded + spec.get("offset", 0)
    return (value == rounded) & (shifted >= 0) & (shifted < spec["num_classes"])


def _classes(spec: Mapping[str, Any]) -> str:
    offset = spec.get("offset", 0)
    return f"whole numbers from {-offset} to {spec['num_classes'] - 1 - offset}"
