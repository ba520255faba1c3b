"""Learned electrostatics for equivariant interatomic potentials: Poisson's equation as a plug-in."""

from typing import TYPE_CHECKING

from phi_equivariant.e3nn_constants import declare_slice
from phi_equivariant.lazy import lazy_names

if TYPE_CHECKING:
    from phi_equivariant.attach import attach_phi
    from phi_equivariant.born_charges import born_effective_charges, polarizability
    from phi_equivariant.config import PhiConfig
    from phi_equivariant.engines.calculator import PhiCalculator
    from phi_equivariant.phi_module import PhiModule
    from phi_equivariant.potential import PhiPotential
    from phi_equivariant.taps import Tap
    from phi_equivariant.version import __version__

__all__ = [
    "PhiCalculator", "PhiConfig", "PhiModule", "PhiPotential", "Tap", "__version__", "attach_phi",
    "born_effective_charges", "polarizability",
]  # fmt: skip

declare_slice()
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "PhiCalculator": "engines.calculator",
        "PhiConfig": "config",
        "PhiModule": "phi_module",
        "PhiPotential": "potential",
        "Tap": "taps",
        "__version__": "version",
        "attach_phi": "attach",
        "born_effective_charges": "born_charges",
        "polarizability": "born_charges",
    },
)
