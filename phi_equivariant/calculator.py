"""An ase calculator for potentials with Φ, and for their bare hosts."""

from pathlib import Path

import numpy as np
import torch
from ase.calculators.calculator import Calculator, all_changes
from ase.neighborlist import primitive_neighbor_list
from ase.stress import full_3x3_to_voigt_6_stress

from phi_equivariant.cells import check_cells
from phi_equivariant.errors import InputError
from phi_equivariant.potential import PhiPotential
from phi_equivariant.response import born_effective_charges
from phi_equivariant.total_charge import total_charge_of
from phi_equivariant.weights import check_dtype, load_model

#: Entries of ``atoms.info`` that a host may embed beside the total charge.
_EMBEDDED = {
    "total_spin": lambda info: float(info.get("total_spin", info.get("spin", 1.0))),
    "elec_temp": lambda info: float(info.get("elec_temp", 0.0)),
}


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
        For an element or head the model does not know, a total charge that is not a number, positions or a cell that
        are not finite, a singular cell, or with ``operator="coulomb"`` one or two periodic directions.
    """

    def __init__(self, model, device="cpu", dtype=None, head=None, skin=0.5, **kwargs):
        super().__init__(**kwargs)
        check_dtype(dtype)
        if isinstance(model, str | Path):
            model = load_model(model, device=device, dtype=dtype)
        elif dtype is not None:
            model = model.to(getattr(torch, dtype))
        if not skin >= 0:
            raise InputError(f"skin is {skin!r}; give a length in Å, 0 or more.")
        self.phi_results = {}
        self.model = model.to(device).eval()
        self.implemented_properties = ["energy", "free_energy", "energies", "forces", "stress"]
        if isinstance(model, PhiPotential):
            self.implemented_properties += ["charges", "dipole"]
        heads = list(getattr(model, "heads", None) or ["Default"])
        head = heads[0] if head is None and len(heads) == 1 else head
        if head not in heads:
            raise InputError(f"head is {head!r}; the model has the heads {', '.join(heads)}: name one of them.")
        self.head = heads.index(head)
        self.skin = skin
        host = model.host if isinstance(model, PhiPotential) else model
        embedded = set(getattr(host, "embedding_specs", None) or {}) - set(_EMBEDDED)
        if unknown := sorted(embedded - {"total_charge"}):
            raise InputError(
                f"the host embeds {', '.join(unknown)}, which this calculator cannot read from atoms.info."
            )
        self._info = {"total_charge": total_charge_of, **_EMBEDDED}
        self._elements = {int(z): i for i, z in enumerate(model.atomic_numbers)}
        self._reference = None  # what the neighbour list was made for

    def check_state(self, atoms, tol=1e-15):
        """What changed since the last calculation: the total charge counts too."""
        changes = super().check_state(atoms, tol=tol)
        if not changes and any(read(atoms.info) != read(self.atoms.info) for read in self._info.values()):
            changes.append("info")
        return changes

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        """Fill ``results`` for ``atoms``."""
        super().calculate(atoms, properties, system_changes)
        periodic = bool(self.atoms.pbc.all())
        out = self.model(self._batch(self.atoms), compute_force=True, compute_stress=periodic)
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
        return born_effective_charges(self.model, self._batch(atoms)).detach().cpu().double().numpy()

    def _batch(self, atoms):
        """One structure with mace's keys."""
        if len(atoms) == 0:
            raise InputError("the structure has no atoms.")
        if not np.isfinite(atoms.positions).all():
            raise InputError("positions are not finite (NaN or infinity); the simulation has probably blown up.")
        unknown = sorted(set(atoms.numbers.tolist()) - set(self._elements))
        if unknown:
            raise InputError(
                f"the model does not know atomic numbers {unknown}; it was made for {list(self._elements)}."
            )
        check_cells(torch.tensor(np.asarray(atoms.cell))[None], torch.tensor(atoms.pbc)[None])
        reference = next(self.model.parameters())
        number = {"dtype": reference.dtype, "device": reference.device}
        whole = {"dtype": torch.long, "device": reference.device}
        senders, receivers, images = self._neighbours(atoms)
        species = torch.tensor([self._elements[z] for z in atoms.numbers.tolist()], **whole)
        cell = np.asarray(atoms.cell)
        return {
            "positions": torch.tensor(atoms.positions, **number),
            "node_attrs": torch.nn.functional.one_hot(species, len(self._elements)).to(reference.dtype),
            "edge_index": torch.tensor(np.stack([senders, receivers]), **whole),
            "shifts": torch.tensor(images @ cell, **number),
            "unit_shifts": torch.tensor(images, **number),
            "cell": torch.tensor(cell, **number),
            "pbc": torch.tensor(np.asarray(atoms.pbc))[None],
            "batch": torch.zeros(len(atoms), **whole),
            "ptr": torch.tensor([0, len(atoms)], **whole),
            "head": torch.tensor([self.head], **whole),
            **{name: torch.tensor([read(atoms.info)], **number) for name, read in self._info.items()},
        }

    def _neighbours(self, atoms):
        """Senders, receivers and cell images of all pairs within the cut-off, from a list kept while atoms move less
        than half the skin."""
        cutoff = float(self.model.r_max)
        state = (atoms.numbers.copy(), np.asarray(atoms.cell).copy(), atoms.pbc.copy())
        kept = self._reference is not None and all(
            np.array_equal(old, new) for old, new in zip(self._reference, state, strict=True)
        )
        if kept:
            moved = np.linalg.norm(atoms.positions - self._built_at, axis=1).max(initial=0.0)
            kept = moved < self.skin / 2
        if not kept:
            self._list = primitive_neighbor_list(
                "ijS", atoms.pbc, np.asarray(atoms.cell), atoms.positions, cutoff + self.skin
            )
            self._built_at, self._reference = atoms.positions.copy(), state
        senders, receivers, images = self._list
        vectors = atoms.positions[receivers] - atoms.positions[senders] + images @ np.asarray(atoms.cell)
        near = np.einsum("ij,ij->i", vectors, vectors) < cutoff**2
        return senders[near], receivers[near], images[near]
