"""Learned electrostatics for equivariant interatomic potentials: Poisson's equation as a plug-in."""

from typing import TYPE_CHECKING

import phi_equivariant.e3nn_constants  # noqa: F401  (e3nn and mace can be imported from here on)
from phi_equivariant.lazy import lazy_names

if TYPE_CHECKING:
    from phi_equivariant.attach import attach_phi
    from phi_equivariant.config import PhiConfig
    from phi_equivariant.engines.calculator import PhiCalculator
    from phi_equivariant.phi_module import PhiModule
    from phi_equivariant.potential import PhiPotential
    from phi_equivariant.taps import Tap
    from phi_equivariant.version import __version__

__all__ = ["PhiCalculator", "PhiConfig", "PhiModule", "PhiPotential", "Tap", "__version__", "attach_phi"]

#: Modules that have the public names. They are imported when they are asked for: torch takes seconds, help needs none.
_HOMES = {
    "PhiCalculator": "engines.calculator",
    "PhiConfig": "config",
    "PhiModule": "phi_module",
    "PhiPotential": "potential",
    "Tap": "taps",
    "__version__": "version",
    "attach_phi": "attach",
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
