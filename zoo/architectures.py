"""Fresh models of the sizes that have a name."""

import math
import operator
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

import numpy as np
import torch

from phi_equivariant import PhiConfig, attach_phi
from phi_equivariant.elements import electronegativity
from phi_equivariant.errors import InputError, did_you_mean
from phi_equivariant.precision import default_dtype, read_dtype
from phi_equivariant.weights import host_type
from zoo.sizes import ARCHITECTURES, Architecture, architecture, check_installed, matching

__all__ = ["ARCHITECTURES", "Architecture", "architecture", "check_installed", "create_model", "matching"]

#: Overrides that every size takes, because they depend on the data.
STATISTICS = ("E0s", "scale", "shift")
_FIXED = ("class",)


def create_model(
    name: str,
    elements: Iterable[int],
    *,
    phi: PhiConfig | Mapping[str, Any] | None = None,
    with_phi: bool = True,
    dtype: str | None = None,
    **overrides: Any,
) -> torch.nn.Module:
    """A fresh model of a named size, from torch's generator, with Φ attached.

    Parameters
    ----------
    name: one of ``list_models()``
    elements: atomic numbers
    phi: ``PhiConfig``, or a dictionary of settings that change the size's own
    with_phi: False for the bare host
    dtype: ``float32`` or ``float64``; torch's default where None
    overrides: arguments of the host that change the size's own, such as ``r_max`` or ``hidden_irreps``; and what
        depends on the data: ``E0s``, {Z: energy of the isolated atom in eV} (0 where not given),
        ``scale`` and ``shift`` of the energies per atom in eV (1 and 0), and, of hosts that have it,
        ``avg_num_neighbors``, mean number of neighbours (16)

    Returns
    -------
    PhiPotential, or the host

    Raises
    ------
    InputError
        For an unknown name, element or override (with the nearest name), a value that cannot be used, or a size whose
        extra is not installed.
    """
    size = architecture(name)
    check_installed(name)
    numbers = _elements(elements)
    known = [key for key in size.arguments if key not in _FIXED] + list(STATISTICS)
    for key in overrides:
        if key not in known:
            hint = did_you_mean(key, known, f"Known are {', '.join(known)}.")
            raise InputError(f"{key!r} is not a setting of {name}. {hint}")
    if not with_phi and phi is not None:
        raise InputError(f"phi is {phi!r} together with with_phi=False; give one of them.")
    arguments = size.arguments | {
        "atomic_numbers": numbers,
        "atomic_energies": _energies(overrides.pop("E0s", None), numbers),
        "atomic_inter_scale": _statistic("scale", overrides.pop("scale", 1.0), numbers, size.host),
        "atomic_inter_shift": _statistic("shift", overrides.pop("shift", 0.0), numbers, size.host),
    }
    arguments |= {key: value.item() if isinstance(value, np.generic) else value for key, value in overrides.items()}
    if phi is None or isinstance(phi, dict):
        phi = PhiConfig.from_dict({**size.phi, **(phi or {})})
    precision = read_dtype(dtype) or torch.get_default_dtype()
    try:
        kind = host_type(size.host)
        kind.check_arguments(arguments)
        with default_dtype(precision):
            host = kind.build(arguments)
            return attach_phi(host, phi) if with_phi else host
    except InputError as error:
        raise InputError(f"{name} cannot be made: {error}") from error
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, AssertionError, RuntimeError) as error:
        raise InputError(f"{name} cannot be made with {overrides}: {type(error).__name__}: {error}") from error


def _elements(elements: Any) -> list[int]:
    """Sorted atomic numbers."""
    try:
        numbers = sorted({operator.index(z) for z in elements if not isinstance(z, bool)})
        if len(numbers) != len(set(elements)):
            raise TypeError("True and False are not atomic numbers")
    except TypeError as error:
        raise InputError(f"elements is {elements!r}; give atomic numbers, as in [1, 6, 8].") from error
    for number in numbers:
        electronegativity(number)
    if not numbers:
        raise InputError("elements is empty; give the atomic numbers that the model is to know, as in [1, 6, 8].")
    return numbers


def _statistic(name: str, value: Any, numbers: list[int], host: str) -> list[float]:
    """A number in eV, as a list; for hosts of our own also one for each element. mace takes one for each head, and a
    fresh model has one head."""
    values = np.atleast_1d(np.asarray(value, dtype=object)).tolist()
    lengths = (1,) if host == "mace" else (1, len(numbers))
    finite = all(_is_number(one) and math.isfinite(one) for one in values)
    if len(values) not in lengths or not finite:
        wish = "a finite number" if host == "mace" else "a finite number, or one for each element,"
        raise InputError(f"{name} is {value!r}; give {wish} in eV.")
    return [float(one) for one in values]


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _energies(given: Any, numbers: list[int]) -> list[list[float]]:
    """Isolated-atom energies in the order of the elements, for one head: (1, n_elements)."""
    if given is None:
        return [[0.0] * len(numbers)]
    if not isinstance(given, dict):
        raise InputError(f"E0s is {given!r}; give a dictionary {{atomic number: energy in eV}}.")
    missing = [z for z in numbers if z not in given]
    if missing:
        raise InputError(f"E0s has no energy for atomic numbers {missing}; give one for each of {numbers}.")
    values = [given[z] for z in numbers]
    if not all(_is_number(value) and math.isfinite(value) for value in values):
        raise InputError(f"E0s is {given!r}; give a finite number in eV for each of {numbers}.")
    return [[float(value) for value in values]]
