"""A model of torch-sim's for potentials with Φ, and for their bare hosts: several systems in one batch."""

from collections.abc import Mapping
from math import nan

import numpy as np
import torch
from ase import Atoms
from ase.formula import Formula

from phi_equivariant.engines.inference import EMBEDDED, ModelInput, embedded_by, ready_model
from phi_equivariant.errors import InputError
from phi_equivariant.inputs.total_charge import KEYS, total_charge_of

try:
    from torch_sim import SimState
    from torch_sim.models.interface import ModelInterface
except ImportError as error:
    raise ImportError("torch-sim is missing: pip install 'phi-equivariant[torch-sim]'.") from error


class PhiTorchSimModel(ModelInterface):
    """Energies, forces, stress and charges of the systems of a torch-sim state, equal to those of ``PhiCalculator``.

    Parameters
    ----------
    model: ``PhiPotential``, a host, or the folder of a saved one; a model is used as it is, not copied: it is put
        on the device, into the precision and into evaluation mode
    device: where to compute
    dtype: ``float32`` or ``float64``; the model's own where None
    head: name of the host's head, for hosts with several
    skin: Å by which the neighbour lists reach beyond the cut-off, so that most steps of a simulation reuse them
    total_charge: in e, one number for all systems or one for each composition, ``{"NH4": 1, "NO3": -1}``: torch-sim
        splits and sorts batches, so that a place in the batch does not tell a system. Where None, that of the state
        (``charge`` or ``total_charge``, from torch-sim 0.6 on), 0 where it has none
    compute_forces, compute_stress: what to differentiate for

    Raises
    ------
    InputError
        For an unknown head or precision, a total charge that is not a number, or a host that embeds more of a structure
        than its total charge, which the states of torch-sim do not hold.
    """

    def __init__(
        self,
        model,
        device="cpu",
        dtype=None,
        head=None,
        skin=0.5,
        total_charge=None,
        compute_forces=True,
        compute_stress=True,
    ):
        super().__init__()
        self.model = ready_model(model, device, dtype)
        self.input = ModelInput(self.model, head, skin)
        if embedded := sorted(embedded_by(self.model) & set(EMBEDDED)):
            raise InputError(f"the host embeds {', '.join(embedded)}, which states of torch-sim do not hold; use ase.")
        self.total_charge = _read_charge(total_charge)
        self._compute_forces, self._compute_stress = compute_forces, compute_stress

    @property
    def device(self):
        """Where the model computes."""
        return next(self.model.parameters()).device

    @property
    def dtype(self):
        """The model's precision."""
        return next(self.model.parameters()).dtype

    @property
    def compute_forces(self):
        """Whether ``forces`` are computed; can be set."""
        return self._compute_forces

    @compute_forces.setter
    def compute_forces(self, wanted):
        self._compute_forces = wanted

    @property
    def compute_stress(self):
        """Whether ``stress`` is computed; can be set."""
        return self._compute_stress

    @compute_stress.setter
    def compute_stress(self, wanted):
        self._compute_stress = wanted

    def forward(self, state):
        """Evaluate all systems of a state in one batch.

        Parameters
        ----------
        state: ``torch_sim.SimState`` on the model's device and in its precision

        Returns
        -------
        dict of energy (n_systems,) in eV, forces (n_atoms, 3) in eV/Å and stress (n_systems, 3, 3) in eV/Å³, positive
        under tension, NaN for systems that are not periodic in all three directions; with Φ charges (n_atoms,) in e
        and, for systems that are open in all directions, dipole (n_systems, 3) in e·Å.

        Raises
        ------
        InputError
            For a state of another kind, device or precision, or whose systems are not in order; elements that the model
            does not know; positions or a cell that are not finite; a singular cell; with ``operator="coulomb"`` one or
            two periodic directions; a total charge that is given twice, or missing for a composition.
        """
        structures = self._structures(state)
        stressed = self._compute_stress and bool(structures[0].pbc.all())
        out = self.model(self.input(structures), compute_force=self._compute_forces, compute_stress=stressed)
        wanted = ["energy", "charges", "dipole"] + ["forces"] * self._compute_forces + ["stress"] * stressed
        results = {key: out[key].detach() for key in wanted if out.get(key) is not None}
        if self._compute_stress and not stressed:
            results["stress"] = torch.full_like(state.cell, torch.nan)
        return results

    def _structures(self, state):
        """The systems as ase's ``Atoms``, with their total charges."""
        if not isinstance(state, SimState):
            raise InputError(
                f"the state is {type(state).__name__}; give a torch_sim.SimState, as torch_sim.initialize_state makes."
            )
        if (state.device, state.dtype) != (self.device, self.dtype):
            raise InputError(
                f"the state is {state.dtype} on {state.device}, the model {self.dtype} on {self.device}; make the "
                "state by torch_sim.initialize_state(systems, model.device, model.dtype)."
            )
        system = _array(state.system_idx)
        if (np.diff(system) < 0).any():
            raise InputError("the systems of the state are not in order: system_idx must ascend.")
        ends = np.cumsum(np.bincount(system))[:-1]
        numbers, positions = (np.split(_array(values), ends) for values in (state.atomic_numbers, state.positions))
        cells, pbc = _array(state.row_vector_cell), _array(torch.as_tensor(state.pbc))
        structures = [
            Atoms(numbers=z, positions=r, cell=cell, pbc=pbc)
            for z, r, cell in zip(numbers, positions, cells, strict=True)
        ]
        for atoms, charge in zip(structures, self._charges(state, structures), strict=True):
            atoms.info["total_charge"] = charge
        return structures

    def _charges(self, state, structures):
        """Total charge of each system in e."""
        carried = getattr(state, "system_extras", {})
        given = [key for key in KEYS if getattr(state, key, None) is not None]
        if dropped := [key for key in given if key not in carried]:
            raise InputError(
                f"the state has {dropped[0]}, which this version of torch-sim drops in simulations; give total_charge "
                "to the model."
            )
        if not given:
            return [self._charge_of(atoms) for atoms in structures]
        if self.total_charge is not None:
            raise InputError(f"the total charge is given by the model and by the state ({given[0]}); leave one out.")
        columns = {key: _array(carried[key]) for key in given}
        return [total_charge_of({key: q[index] for key, q in columns.items()}) for index in range(len(structures))]

    def _charge_of(self, atoms):
        if not isinstance(self.total_charge, dict):
            return self.total_charge or 0.0
        charge = self.total_charge.get(_composition(atoms.symbols.formula))
        if charge is None:
            raise InputError(
                f"total_charge has no entry for {atoms.symbols.formula:hill}; give one for each composition."
            )
        return charge


def _read_charge(total_charge):
    """A number for all systems, {composition: number}, or None."""
    if not isinstance(total_charge, Mapping):
        return None if total_charge is None else total_charge_of({"total_charge": total_charge})
    try:
        compositions = [_composition(Formula(text)) for text in total_charge]
    except (ValueError, TypeError) as error:
        raise InputError(f"total_charge has the keys {list(total_charge)}; expected chemical formulas.") from error
    if len(set(compositions)) < len(compositions):
        raise InputError(f"total_charge has the keys {list(total_charge)}; two of them are of one composition.")
    # Other than in atoms.info, None is no way of leaving the charge out.
    values = [total_charge_of({"total_charge": nan if charge is None else charge}) for charge in total_charge.values()]
    return dict(zip(compositions, values, strict=True))


def _composition(formula):
    return frozenset(formula.count().items())


def _array(tensor):
    return tensor.detach().cpu().numpy()
