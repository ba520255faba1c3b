"""Learned electrostatics for equivariant interatomic potentials: Poisson's equation as a plug-in."""

import importlib.metadata
import pkgutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from phi_equivariant.attach import attach_phi
    from phi_equivariant.config import PhiConfig
    from phi_equivariant.engines.calculator import PhiCalculator
    from phi_equivariant.phi_module import PhiModule
    from phi_equivariant.potential import PhiPotential
    from phi_equivariant.taps import Tap

__all__ = ["PhiCalculator", "PhiConfig", "PhiModule", "PhiPotential", "Tap", "attach_phi"]

#: Where the public names are. They are imported when they are asked for: torch takes seconds, and help needs none.
_PLACES = {
    "PhiCalculator": "engines.calculator",
    "PhiConfig": "config",
    "PhiModule": "phi_module",
    "PhiPotential": "potential",
    "Tap": "taps",
    "attach_phi": "attach",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.metadata.version("phi-equivariant")
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = pkgutil.resolve_name(f"phi_equivariant.{_PLACES[name]}:{name}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
