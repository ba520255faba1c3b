"""One process: the structure is evaluated whole, as ``PhiCalculator`` does."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from ase import Atoms

from phi_equivariant.engines.inference import Committee
from phi_equivariant.engines.lammps.domain import PROPERTIES, Domain, Evaluation


class Whole:
    """The model at all atoms, in the order of their tags.

    Parameters
    ----------
    model: ``PhiPotential`` or a host
    info: what a model is told of a structure, by the names of ``atoms.info``
    head, skin: as of ``PhiCalculator``
    """

    reach = 0.0  # the neighbour list knows images

    def __init__(self, model: torch.nn.Module, info: Mapping[str, Any], head: str | None, skin: float) -> None:
        self.info, self.committee = dict(info), Committee([model], head, skin)

    def __call__(self, domain: Domain) -> Evaluation:
        """Evaluate the own atoms, which are all there are."""
        domain.check_all_there(domain.n_own)
        order = domain.tags[: domain.n_own].argsort(kind="stable")
        atoms = Atoms(
            numbers=domain.numbers[order],
            positions=domain.positions[order],
            cell=domain.cell,
            pbc=domain.pbc,
            info=self.info,
        )
        out = self.committee([atoms], compute_force=True, compute_virials=True)
        found = {name: value.cpu().double().numpy() for name, value in out.items() if value is not None}
        inverse = np.empty_like(order)
        inverse[order] = np.arange(len(order))
        phi = float(found["phi_energy"][0]) if "phi_energy" in found else 0.0
        return Evaluation(
            host_energy=float(found["energy"][0]) - phi,
            phi_energy=phi,
            net_charge=float(found["net_charge"][0]) if "net_charge" in found else 0.0,
            forces=found["forces"][inverse],
            virial=found["virials"][0],
            of_atoms={name: found[key][inverse] for name, key in PROPERTIES.items() if key in found},
        )
