"""The sizes that have a name, ``phi-<host>-<size>``."""

import dataclasses
import importlib.util
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

from phi_equivariant.errors import InputError, did_you_mean


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A size of a host: the type that builds it, its constructor arguments, Φ's settings, and the extra it needs."""

    description: str
    host: str
    arguments: dict[str, Any]
    phi: dict[str, Any] = dataclasses.field(default_factory=dict)
    extra: str | None = None

    @property
    def installed(self) -> bool:
        """Whether the package of the extra is there."""
        return self.extra is None or importlib.util.find_spec(_PACKAGES[self.extra]) is not None


def _mace(hidden_irreps: str, description: str) -> Architecture:
    """mace's own defaults, except the channels."""
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


def _nequip(hidden_irreps: str, description: str) -> Architecture:
    """NequIP's own defaults, except the channels."""
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


def _pyg(host: str, description: str, **arguments: Any) -> Architecture:
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
    "phi-painn-small": Architecture(
        "PaiNN, 64 scalars and vectors, three layers",
        "painn",
        {
            "r_max": 5.0,
            "hidden_channels": 64,
            "num_interactions": 3,
            "num_bessel": 20,
            "num_polynomial_cutoff": 6,
            "train_scale_shift": False,
        },
    ),
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


def architecture(name: str) -> Architecture:
    """The architecture of a name; InputError with the nearest names if there is none."""
    if isinstance(name, str) and name in ARCHITECTURES:
        return ARCHITECTURES[name]
    hint = did_you_mean(name, ARCHITECTURES, f"There are {', '.join(ARCHITECTURES)}.")
    if "." in str(name):
        hint += " A trained model is loaded by load_pretrained."
    raise InputError(f"There is no model {name!r} to create. {hint}")


def check_installed(name: str) -> None:
    """InputError, with the command that helps, if a size needs a package that is not there."""
    size = architecture(name)
    if size.extra is not None and not size.installed:
        raise InputError(
            f"{name} needs {_PACKAGES[size.extra]}, which is not installed: pip install "
            f"'phi-equivariant[{size.extra}]'."
        )


def matching(names: Iterable[str], pattern: str | None) -> list[str]:
    """The names that contain a text, or match a pattern with ``*`` and ``?``; all where it is None."""
    wild = pattern is not None and any(sign in pattern for sign in "*?[")
    return sorted(n for n in names if pattern is None or (fnmatchcase(n, pattern) if wild else pattern in n))
