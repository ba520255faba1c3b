"""Learned electrostatics for equivariant interatomic potentials: Poisson's equation as a plug-in."""

import torch

# e3nn 0.4.4 reads its constants from a file that holds a slice, which torch >= 2.6 refuses unless declared safe.
torch.serialization.add_safe_globals([slice])

from phi_equivariant.attach import attach_phi  # noqa: E402
from phi_equivariant.born_charges import born_effective_charges  # noqa: E402
from phi_equivariant.config import PhiConfig  # noqa: E402
from phi_equivariant.engines.calculator import PhiCalculator  # noqa: E402
from phi_equivariant.phi_module import PhiModule  # noqa: E402
from phi_equivariant.potential import PhiPotential  # noqa: E402
from phi_equivariant.taps import Tap  # noqa: E402

__all__ = ["PhiCalculator", "PhiConfig", "PhiModule", "PhiPotential", "Tap", "attach_phi", "born_effective_charges"]
