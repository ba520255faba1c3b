"""The sizes that have a name, ``phi-<host>-<size>``, and fresh models of them."""

import dataclasses
import difflib
import importlib.util
import math
import operator
from fnmatch import fnmatchcase
from numbers import Real

import numpy as np
import torch

from phi_equivariant import PhiConfig, attach_phi
from phi_equivariant.elements import electronegativity
from phi_equivariant.errors import InputError
from phi_equivariant.precision import default_dtype, read_dtype
from phi_equivariant.weights import host_types
from zoo import limits


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A size of a host: the type that builds it, its constructor arguments, Φ's settings, and the extra it needs."""

    description: str
    host: str
    arguments: dict
    phi: dict = dataclasses.field(default_factory=dict)
    extra: str | None = None

    @property
    def installed(self):
        """Whether the package of the extra is there."""
        return self.extra is None or importlib.util.find_spec(_PACKAGES[self.extra]) is not None


def _mace(hidden_irreps, description):
    """mace's own defaults, but for the channels."""
    return Architecture(
        description,
        "mace",
        {
            "class": "ScaleShiftMACE",
            "r_max": 5.0,
            "hidden_irreps": hidden_irreps,
            "num_interactions": 2,
            "max_ell": 3,
            "correlation": 3,
            "num_bessel": 8,
            "num_polynomial_cutoff": 5,
            "radial_MLP": [64, 64, 64],
            "MLP_irreps": "16x0e",
            "gate": "silu",
            "readout_cls": "NonLinearReadoutBlock",
            "edge_irreps": None,
            "use_reduced_cg": False,
            "interaction_cls": "RealAgnosticResidualInteractionBlock",
            "interaction_cls_first": "RealAgnosticResidualInteractionBlock",
            "avg_num_neighbors": 16.0,
        },
    )


def _nequip(hidden_irreps, description):
    """NequIP's own defaults, but for the channels."""
    return Architecture(
        description,
        "nequip",
        {
            "r_max": 5.0,
            "hidden_irreps": hidden_irreps,
            "num_interactions": 4,
            "max_ell": None,  # that of hidden_irreps
            "parity": True,
            "num_bessel": 8,
            "num_polynomial_cutoff": 6,
            "radial_MLP": [64, 64],
            "avg_num_neighbors": 16.0,
            "train_scale_shift": False,
        },
    )


def _pyg(host, description, **arguments):
    """A network of PyTorch Geometric."""
    arguments = {"r_max": 5.0, **arguments, "train_scale_shift": False}
    return Architecture(description, host, arguments, extra="pyg")


_PACKAGES = {"pyg": "torch_geometric"}
#: {name: architecture}. A new one is one more item; tests take it from here.
ARCHITECTURES = {
    "phi-mace-small": _mace("32x0e+32x1o", "MACE, 32 channels, l = 1, two layers"),
    "phi-mace-medium": _mace("64x0e+64x1o", "MACE, 64 channels, l = 1, two layers"),
    "phi-nequip-small": _nequip("20x0e+20x1o+20x2e", "NequIP, 20 channels, l = 2, four layers"),
    "phi-nequip-medium": _nequip("32x0e+32x1o+32x2e", "NequIP, 32 channels, l = 2, four layers"),
    "phi-schnet-small": _pyg(
        "schnet",
        "SchNet of PyTorch Geometric, 64 channels, three layers",
        hidden_channels=64,
        num_filters=64,
        num_interactions=3,
        num_gaussians=50,
    ),
    "phi-visnet-small": _pyg(
        "visnet",
        "ViSNet of PyTorch Geometric, 64 channels, l = 1, three layers",
        hidden_channels=64,
        num_heads=8,
        num_interactions=3,
        max_ell=1,
        num_rbf=32,
    ),
}
#: Overrides that every size takes, because they depend on the data.
STATISTICS = ("E0s", "scale", "shift")
_FIXED = ("class",)


def architecture(name):
    """The architecture of a name; InputError with the nearest names if there is none."""
    if isinstance(name, str) and name in ARCHITECTURES:
        return ARCHITECTURES[name]
    near = difflib.get_close_matches(str(name), ARCHITECTURES, n=2)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(ARCHITECTURES)}."
    if "." in str(name):
        hint += " A trained model is loaded by load_pretrained."
    raise InputError(f"there is no model {name!r} to create; {hint}")


def check_installed(name):
    """InputError, with the command that helps, if a size needs a package that is not there."""
    size = architecture(name)
    if not size.installed:
        raise InputError(
            f"{name} needs {_PACKAGES[size.extra]}, which is not installed: pip install "
            f"'phi-equivariant[{size.extra}]'."
        )


def matching(names, pattern):
    """The names that contain a text, or match a pattern with ``*`` and ``?``; all where it is None."""
    wild = pattern is not None and any(sign in pattern for sign in "*?[")
    return sorted(n for n in names if pattern is None or (fnmatchcase(n, pattern) if wild else pattern in n))


def create_model(name, elements, *, phi=None, with_phi=True, dtype=None, **overrides):
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
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}."
            raise InputError(f"{key!r} is no setting of {name}; {hint}")
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
        limits.check_arguments(arguments)
        with default_dtype(precision):
            host = host_types()[size.host].load().build(arguments)
            return attach_phi(host, phi) if with_phi else host
    except InputError as error:
        raise InputError(f"{name} cannot be made: {error}") from error
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, AssertionError, RuntimeError) as error:
        raise InputError(f"{name} cannot be made with {overrides}: {type(error).__name__}: {error}") from error


def _elements(elements):
    """Sorted atomic numbers."""
    try:
        numbers = sorted({operator.index(z) for z in elements if not isinstance(z, bool)})
        if len(numbers) != len(set(elements)):
            raise TypeError("True and False are no atomic numbers")
    except TypeError as error:
        raise InputError(f"elements is {elements!r}; give atomic numbers, as in [1, 6, 8].") from error
    for number in numbers:
        electronegativity(number)
    if not numbers:
        raise InputError("elements is empty; give the atomic numbers that the model is to know, as in [1, 6, 8].")
    return numbers


def _statistic(name, value, numbers, host):
    """A number in eV, as a list; for hosts of our own also one for each element. mace takes one for each head, and a
    fresh model has one head."""
    values = np.atleast_1d(np.asarray(value, dtype=object)).tolist()
    lengths = (1,) if host == "mace" else (1, len(numbers))
    finite = all(_is_number(one) and math.isfinite(one) for one in values)
    if len(values) not in lengths or not finite:
        wish = "a finite number" if host == "mace" else "a finite number, or one for each element,"
        raise InputError(f"{name} is {value!r}; give {wish} in eV.")
    return [float(one) for one in values]


def _is_number(value):
    return isinstance(value, Real) and not isinstance(value, bool)


def _energies(given, numbers):
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
