"""An ase calculator for potentials with Φ, and for their bare hosts."""

import torch
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from phi_equivariant.dipole_slopes import born_effective_charges
from phi_equivariant.engines.inference import ModelInput, ready_model
from phi_equivariant.errors import InputError
from phi_equivariant.potential import PhiPotential


class PhiCalculator(Calculator):
    """Energy, forces, stress, charges and dipole through ase.

    ``results`` holds energy, free_energy and energies (n_atoms,) in eV, forces (n_atoms, 3) in eV/Å, and with Φ charges
    (n_atoms,) in e and dipole (3,) in e·Å. Structures that are periodic in all three directions have stress (6,) in
    eV/Å³, in ase's order and sign; those that are periodic in any have no dipole. ``phi_results``, for which ase has no
    names, holds potential (n_atoms,) in V, host_energy and phi_energy in eV, net_charge in e, and with ``multipoles=1``
    atomic_dipoles (n_atoms, 3) in e·Å.
    The total charge is ``atoms.info["total_charge"]`` or ``atoms.info["charge"]``, 0 where absent. Hosts that embed it
    read the spin multiplicity from ``info["total_spin"]`` or ``info["spin"]``, 1 where absent, and the electronic
    temperature from ``info["elec_temp"]``, 0 where absent, as mace does.

    Parameters
    ----------
    model: ``PhiPotential``, a host, or the folder of a saved one; a model is used as it is, not copied: it is put
        on the device, into the precision and into evaluation mode
    device: where to compute
    dtype: ``float32`` or ``float64``; the model's own where None
    head: name of the host's head, for hosts with several
    skin: Å by which the neighbour list reaches beyond the cut-off, so that most steps of a simulation reuse it

    Raises
    ------
    InputError
        For an element or head the model does not know, a total charge that is not a number, or that a host which
        embeds it was not made for, positions or a cell that are not finite, a singular cell, or with
        ``operator="coulomb"`` one or two periodic directions.
    """

    def __init__(self, model, device="cpu", dtype=None, head=None, skin=0.5, **kwargs):
        super().__init__(**kwargs)
        self.model = ready_model(model, device, dtype)
        self.input = ModelInput(self.model, head, skin)
        self.phi_results = {}
        self.implemented_properties = ["energy", "free_energy", "energies", "forces", "stress"]
        if isinstance(self.model, PhiPotential):
            self.implemented_properties += ["charges", "dipole"]

    def check_state(self, atoms, tol=1e-15):
        """What changed since the last calculation: the total charge counts too."""
        changes = super().check_state(atoms, tol=tol)
        if not changes and self.input.read(atoms.info) != self.input.read(self.atoms.info):
            changes.append("info")
        return changes

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        """Fill ``results`` for ``atoms``."""
        super().calculate(atoms, properties, system_changes)
        periodic = bool(self.atoms.pbc.all())
        out = self.model(self.input([self.atoms]), compute_force=True, compute_stress=periodic)
        numbers = {key: value.detach().cpu().double().numpy() for key, value in out.items() if torch.is_tensor(value)}
        energy = float(numbers["energy"][0])
        self.results = {
            "energy": energy,
            "free_energy": energy,
            "energies": numbers["node_energy"],
            "forces": numbers["forces"],
        }
        if periodic:
            self.results["stress"] = full_3x3_to_voigt_6_stress(numbers["stress"][0])
        if isinstance(self.model, PhiPotential):
            self.results["charges"] = numbers["charges"]
            if "dipole" in numbers:
                self.results["dipole"] = numbers["dipole"][0]
            self.phi_results = {key: float(numbers[key][0]) for key in ("host_energy", "phi_energy", "net_charge")}
            self.phi_results |= {key: numbers[key] for key in ("potential", "atomic_dipoles") if key in numbers}

    def get_born_effective_charges(self, atoms):
        """Z*_iαβ = ∂μ_α/∂r_iβ of an open structure, (n_atoms, 3, 3) in e; three derivatives, not kept."""
        if not isinstance(self.model, PhiPotential):
            raise InputError("the model is a bare host, which has no charges; attach Φ for Born effective charges.")
        return born_effective_charges(self.model, self.input([atoms])).detach().cpu().double().numpy()
