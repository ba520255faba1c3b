"""An ase calculator for potentials with Φ, and for their bare hosts."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from phi_equivariant.born_charges import born_effective_charges, polarizability
from phi_equivariant.derivatives import Batch
from phi_equivariant.engines.inference import Committee, Model, ModelInput, read_names_of_mace, ready_models
from phi_equivariant.errors import InputError

#: Arguments of ase's calculators that say nothing of the model.
_OF_ASE = ("restart", "ignore_bad_restart_file", "label", "atoms", "directory")


class PhiCalculator(Calculator):
    """Energy, forces, stress, charges and dipole through ase.

    ``results`` holds energy, free_energy and energies (n_atoms,) in eV, forces (n_atoms, 3) in eV/Å, and with Φ charges
    (n_atoms,) in e and dipole (3,) in e·Å. Structures that are periodic in all three directions have stress (6,) in
    eV/Å³, in ase's order and sign, and no dipole. ``phi_results``, for which ase has no names, holds potential
    (n_atoms,) in V, host_energy and phi_energy in eV, net_charge in e, and with ``multipoles=1`` or
    ``polarizable`` atomic_dipoles (n_atoms, 3) in e·Å.

    Slabs have with Φ the stress in their plane, zero elsewhere, per volume of the cell (``atoms.cell.complete()``), so
    that ``atoms.get_volume()`` times it does not depend on the vacuum; the component of the dipole along their normal,
    where that is an axis, the others NaN; and in ``phi_results`` surface_potential_step, φ(above) − φ(below) in V,
    "above" being where a×b of the periodic vectors, in cyclic order, points. Wires have neither.

    Several models are a committee: ``results`` has their means, and for energy, forces, stress and dipole what each
    says (``energy_comm``, one row for each), the variance (``energy_var``) and the standard deviation (``energy_std``),
    the first two as in MACECalculator.

    The total charge is ``atoms.info["total_charge"]`` or ``["charge"]``, or the entry the model was trained with
    (``--total_charge_key``), 0 where absent. Hosts that embed it read the spin multiplicity 2S + 1 likewise from
    ``total_spin``, ``spin``, ``multiplicity`` or ``spin_multiplicity``, 1 where absent, and the electronic temperature
    from ``elec_temp``, 0 where absent.

    An external field, that of all structures or ``atoms.info["external_field"]``, three numbers in V/Å that are zero
    along periodic directions, acts on charges and dipoles: −F·Σ(q r + μ), r from the origin of coordinates. −∂E/∂F is
    the dipole about the centre of mass plus the total charge times that centre.

    Threads that share a calculator wait for each other. Threads that share only a model do not. Calculators can be
    pickled.

    Parameters
    ----------
    model: ``PhiPotential``, a host, the folder of a saved one, a name of the zoo, a pattern of folders (``run_*``) or a
        list of these; a model is used as it is, not copied: it is put on the device, into the precision and into
        evaluation mode. ``model_paths`` and ``models``, as MACECalculator has it, mean the same
    device: where to compute
    dtype: ``float32`` or ``float64``; the model's own where None. ``default_dtype`` means the same
    head: name of the host's head, for hosts with several
    skin: Å by which the neighbour list reaches beyond the cut-off, so that most steps of a simulation reuse it
    external_field: (Fx, Fy, Fz) in V/Å that acts on all structures
    others: ``info_keys``, as in MACECalculator, {"total_charge": "Q"}, names entries of ``atoms.info``; label,
        directory and atoms are ase's

    Raises
    ------
    InputError
        For an argument, element or head that is not known, a device that is not there, a total charge that is not a
        number, or that a host which embeds it was not made for, a field that is not three numbers, that is given to a
        bare host or that lies along a periodic direction, positions or a cell that are not finite, a singular cell,
        or with ``operator="coulomb"`` a wire, or a slab whose charges need not sum to the total charge.
    """

    def __init__(
        self,
        model: Model | Sequence[Model] | None = None,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype | None = None,
        head: str | None = None,
        skin: float = 0.5,
        external_field: Sequence[float] | None = None,
        **others: Any,
    ) -> None:
        model, dtype, keys = read_names_of_mace(model, dtype, others, _OF_ASE)
        self._lock = threading.RLock()
        self._told: list[dict[str, Any]] | None = None  # what the models were told of the last structure
        self.committee = Committee(ready_models(model, device, dtype), head, skin, keys, external_field)
        self.phi_results: dict[str, float | np.ndarray] = {}
        self.implemented_properties = ["energy", "free_energy", "energies", "forces", "stress"]
        if self.committee.has_phi:
            self.implemented_properties += ["charges", "dipole"]
        if len(self.committee.models) > 1:
            compared = (name for name in Committee.compared if name in self.implemented_properties)
            self.implemented_properties += [f"{name}_{kind}" for name in compared for kind in ("comm", "var", "std")]
        super().__init__(**others)

    @property
    def model(self) -> torch.nn.Module:
        """The model, or the first of a committee."""
        return self.committee.models[0]

    @property
    def input(self) -> ModelInput:
        """What makes batches for the model, or the first of a committee."""
        return self.committee.inputs[0]

    def __getstate__(self) -> dict[str, Any]:
        """Copies have a lock of their own."""
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.RLock())

    def set(self, **changes: Any) -> dict[str, Any]:
        """Refuse changes: ase would note them, but they would not act."""
        if changes:
            raise InputError(f"{', '.join(changes)} cannot be changed; make another PhiCalculator.")
        return {}

    def get_property(self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True) -> Any:
        """As ase's, one thread at a time."""
        with self._lock:
            return super().get_property(name, atoms, allow_calculation)

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """What changed since the last calculation: the total charge counts too."""
        changes: list[str] = super().check_state(atoms, tol=tol)
        if not changes and not _same(self.committee.read(atoms), self._told):
            changes.append("info")
        return changes

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Fill ``results`` for ``atoms``."""
        with self._lock:
            super().calculate(atoms, properties, system_changes)
            assert self.atoms is not None
            self.results, self._told = {}, None
            told = self.committee.read(self.atoms)
            out = self.committee(
                [self.atoms], compute_force=True, compute_stress=self.committee.has_stress(self.atoms.pbc)
            )
            self._fill({name: value.cpu().double().numpy() for name, value in out.items() if value is not None})
            self._told = told

    def _fill(self, numbers: dict[str, np.ndarray]) -> None:
        energy = float(numbers["energy"][0])
        results: dict[str, Any] = {
            "energy": energy,
            "free_energy": energy,
            "energies": numbers["node_energy"],
            "forces": numbers["forces"],
        }
        if "stress" in numbers:
            results["stress"] = full_3x3_to_voigt_6_stress(numbers["stress"][0])
        if self.committee.has_phi:
            results |= {"charges": numbers["charges"]}
            if "dipole" in numbers:
                results["dipole"] = numbers["dipole"][0]
            self.phi_results = {name: float(numbers[name][0]) for name in ("host_energy", "phi_energy", "net_charge")}
            self.phi_results |= {name: numbers[name] for name in ("potential", "atomic_dipoles") if name in numbers}
            if "surface_potential_step" in numbers:
                self.phi_results["surface_potential_step"] = float(numbers["surface_potential_step"][0])
        for name in (name for name in Committee.compared if f"{name}_comm" in numbers and name in results):
            for kind in ("comm", "var", "std"):
                values = numbers[f"{name}_{kind}"]
                if name != "forces":  # one structure
                    values = values[:, 0] if kind == "comm" else values[0]
                results[f"{name}_{kind}"] = full_3x3_to_voigt_6_stress(values) if name == "stress" else values
        self.results = results

    def get_born_effective_charges(self, atoms: Atoms) -> np.ndarray:
        """Z*_iαβ = ∂P_α/∂r_iβ, (n_atoms, 3, 3) in e, as :func:`born_effective_charges`; not kept."""
        return self._mean(born_effective_charges, atoms)

    def get_polarizability(self, atoms: Atoms) -> np.ndarray:
        """α_ab = ∂μ_a/∂F_b = −∂²E/∂F_a∂F_b of an open structure in its field, (3, 3) in e·Å²/V; not kept.

        Zero for a model whose charges and dipoles do not respond (``charge_model="direct"`` without ``polarizable``).
        """
        return self._mean(polarizability, atoms)[0]

    def _mean(self, function: Callable[[torch.nn.Module, Batch], torch.Tensor], atoms: Atoms) -> np.ndarray:
        """The mean over the models of a function of a model and a batch of one structure."""
        with self._lock:
            of_each = [
                function(model, make([atoms])).detach().cpu().double().numpy()
                for model, make in zip(self.committee.models, self.committee.inputs, strict=True)
            ]
        found: np.ndarray = np.mean(of_each, axis=0)
        return found


def _same(one: list[dict[str, Any]], other: list[dict[str, Any]] | None) -> bool:
    """Whether models were told the same of two structures."""
    if other is None:
        return False
    return all(
        np.array_equal(mine[name], theirs[name]) for mine, theirs in zip(one, other, strict=True) for name in mine
    )
