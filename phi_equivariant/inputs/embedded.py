"""Charges, spins and other entries that a host embeds into its features, by mace's ``embedding_specs``."""

import torch

from phi_equivariant.errors import InputError


def check_classes(host, data):
    """Find out whether what a host embeds as classes is one of its classes.

    Parameters
    ----------
    host: with or without ``embedding_specs``
    data: batch with mace's keys

    Raises
    ------
    InputError
        For a value that is no whole number, which the host would cut off, or none of its classes.
    """
    for name, spec in (getattr(host, "embedding_specs", None) or {}).items():
        if spec["type"] != "categorical" or name not in data:
            continue
        offset, value = spec.get("offset", 0), torch.as_tensor(data[name])
        good = (value == value.round()) & (value + offset >= 0) & (value + offset < spec["num_classes"])
        if not bool(good.all()):
            raise InputError(
                f"{name} is {value[~good][:3].tolist()}; the host embeds whole numbers from {-offset} to "
                f"{spec['num_classes'] - 1 - offset}, the classes that it was trained for."
            )
