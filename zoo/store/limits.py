"""What a file from outside may ask for: values and sizes are checked before anything is built or memory is taken."""

import math
from typing import Any

from phi_equivariant.config import PhiConfig
from phi_equivariant.errors import InputError
from phi_equivariant.files import CONFIG_FILE
from phi_equivariant.taps import read_taps
from phi_equivariant.weights import SavedModel, host_type, host_types
from zoo.bounds import check_counts, most_counts, read_irreps, short

MOST_LAYERS, MOST_PARTS = 64, 8  # of taps, and of one tap
MOST_VALUES, LONGEST_TEXT = 50_000, 1000


def n_parameters(saved: SavedModel) -> int:
    """How many numbers the file of weights holds."""
    return sum(math.prod(shape) for shape in saved.shapes.values())


def check(saved: SavedModel) -> None:
    """See that a model may be built from a configuration.

    Every number has bounds, and those of counts depend on how many parameters there are, so that memory stays in
    proportion to the file.

    Raises
    ------
    InputError
        Naming the file and the value.
    """
    path, config = saved.folder / CONFIG_FILE, saved.config
    try:
        _check_values(config)
        host, phi = config["host"], config["phi"]
        if host["type"] not in host_types():
            raise InputError(f"host type {short(host['type'])} is not one of {', '.join(host_types())}")
        host_type(host["type"]).check_arguments(host["arguments"], n_parameters(saved))
        if phi is not None:
            _check_phi(phi, most_counts(n_parameters(saved)))
    except InputError as error:
        raise InputError(f"{path}: {str(error).rstrip('.')}. Nothing was built.") from error
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise InputError(f"{path} is not a configuration of a model ({type(error).__name__}: {error}).") from error


def _check_values(config: Any) -> None:
    """InputError for a text that is too long, a number that is not finite, or more values than a model has settings."""
    left, n_values = [config], 0
    while left:
        value = left.pop()
        n_values += 1
        if n_values > MOST_VALUES:
            raise InputError(f"there are more than {MOST_VALUES} values")
        if isinstance(value, dict):
            left += [*value, *value.values()]
        elif isinstance(value, list):
            left += value
        elif isinstance(value, str) and len(value) > LONGEST_TEXT:
            raise InputError(f"a text has {len(value)} characters")
        elif isinstance(value, int | float) and not abs(value) < 1e12:
            raise InputError(f"{str(value)[:40]} is not a number of moderate size")


def _check_phi(phi: dict[str, Any], most: int) -> None:
    """InputError for settings or taps of Φ that are not allowed, or more channels than parameters are there for."""
    config = PhiConfig.from_dict(phi["config"])
    check_counts({"phi: hidden": config.hidden, "phi: channels": config.channels}, most)
    if len(phi["taps"]) > MOST_LAYERS:
        raise InputError(f"taps are {len(phi['taps'])}; at most {MOST_LAYERS} are allowed")
    for name, given in phi["taps"].items():
        parts = given if isinstance(given, list) else [given]
        if len(parts) > MOST_PARTS:
            raise InputError(f"the tap {name} has {len(parts)} parts; at most {MOST_PARTS} are allowed")
        for part in parts:
            try:
                read_irreps(part["irreps"] if isinstance(part, dict) else part, most)
            except InputError as error:
                raise InputError(f"the tap {name} is {short(part)}; {error}") from error
    read_taps(phi["taps"])
