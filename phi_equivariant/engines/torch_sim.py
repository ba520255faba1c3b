"""A model of torch-sim's for potentials with Φ, and for their bare hosts: several systems in one batch."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.formula import Formula

from phi_equivariant.engines.inference import Committee, Model, read_names_of_mace, ready_models
from phi_equivariant.errors import InputError
from phi_equivariant.inputs.state import QUANTITIES, number_of

Charges = float | Mapping[str, float]

try:
    from torch_sim import SimState
    from torch_sim.models.interface import ModelInterface
except ImportError as error:
    raise ImportError("torch-sim is missing: pip install 'phi-equivariant[torch-sim]'.") from error


class PhiTorchSimModel(ModelInterface):
    """Energies, forces, stress and charges of the systems of a torch-sim state, equal to those of ``PhiCalculator``.

    Parameters
    ----------
    model: as of ``PhiCalculator``: a model, a folder, a name of the zoo, or a list of these, a committee
    device: where to compute
    dtype: ``float32`` or ``float64``, by name or torch's own; the model's own where None
    head: name of the host's head, for hosts with several
    skin: Å by which the neighbour lists reach beyond the cut-off, so that most steps of a simulation reuse them
    total_charge: in e, one number for all systems or one for each composition, ``{"NH4": 1, "NO3": -1}``: torch-sim
        splits and sorts batches, so that a place in the batch does not tell a system. Where None, that of the state
        (``charge`` or ``total_charge``, from torch-sim 0.6 on), 0 where it has none
    external_field: (Fx, Fy, Fz) in V/Å that acts on all systems, as of ``PhiCalculator``
    compute_forces, compute_stress: what to differentiate for
    others: names that other calculators have for these, as of ``PhiCalculator``

    Raises
    ------
    InputError
        For an unknown argument, head or precision, a device that is not there, a total charge that is not a number, or
        a host that embeds more of a structure than its total charge, which the states of torch-sim do not hold.
    """

    def __init__(
        self,
        model: Model | Sequence[Model] | None = None,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype | None = None,
        head: str | None = None,
        skin: float = 0.5,
        total_charge: Charges | None = None,
        compute_forces: bool = True,
        compute_stress: bool = True,
        external_field: Sequence[float] | None = None,
        **others: Any,
    ) -> None:
        super().__init__()
        model, dtype, _ = read_names_of_mace(model, dtype, others)
        self.models = torch.nn.ModuleList(ready_models(model, device, dtype))
        self.committee = Committee(list(self.models), head, skin, field=external_field)
        embedded = {name for one in self.committee.inputs for name in one.specs} - {"total_charge"}
        if embedded:
            raise InputError(
                f"the host embeds {', '.join(sorted(embedded))}, which states of torch-sim do not hold; use ase."
            )
        self.total_charge = _read_charge(total_charge)
        self._compute_forces, self._compute_stress = compute_forces, compute_stress

    @property
    def model(self) -> torch.nn.Module:
        """The model, or the first of a committee."""
        return self.models[0]

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The model's precision."""
        return next(self.model.parameters()).dtype

    @property
    def compute_forces(self) -> bool:
        """Whether ``forces`` are computed; can be set."""
        return self._compute_forces

    @compute_forces.setter
    def compute_forces(self, wanted: bool) -> None:
        self._compute_forces = wanted

    @property
    def compute_stress(self) -> bool:
        """Whether ``stress`` is computed; can be set."""
        return self._compute_stress

    @compute_stress.setter
    def compute_stress(self, wanted: bool) -> None:
        self._compute_stress = wanted

    def forward(self, state: SimState) -> dict[str, torch.Tensor]:
        """Evaluate all systems of a state in one batch.

        Parameters
        ----------
        state: ``torch_sim.SimState`` on the model's device and in its precision

        Returns
        -------
        dict of energy (n_systems,) in eV, in float64 whatever the model's precision; forces (n_atoms, 3) in eV/Å and
        stress (n_systems, 3, 3) in eV/Å³, positive under tension, NaN for molecules, wires and without Φ slabs; with Φ
        charges (n_atoms,) in e, for molecules and slabs dipole (n_systems, 3) in e·Å, and for slabs
        surface_potential_step (n_systems,) in V, both as of ``PhiCalculator``; of a committee the means, and
        ``energy_std``, ``forces_std``, … as of ``PhiCalculator``.

        Raises
        ------
        InputError
            For a state of another kind, device or precision, or whose systems are not in order; elements that the model
            does not know; positions or a cell that are not finite; a singular cell; with ``operator="coulomb"`` a wire,
            or a slab whose charges need not sum to the total charge; a total charge that is given twice, or missing for
            a composition.
        """
        structures = self._structures(state)
        stressed = self._compute_stress and self.committee.has_stress(structures[0].pbc)
        out = self.committee(structures, compute_force=self._compute_forces, compute_stress=stressed)
        wanted = (
            ["energy", "charges", "dipole", "surface_potential_step"]
            + ["forces"] * self._compute_forces
            + ["stress"] * stressed
        )
        results = {
            key: value
            for key, value in out.items()
            if value is not None and key.removesuffix("_comm").removesuffix("_var").removesuffix("_std") in wanted
        }
        if self._compute_stress and not stressed:
            results["stress"] = torch.full_like(state.cell, torch.nan)
        return results

    def _structures(self, state: SimState) -> list[Atoms]:
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

    def _charges(self, state: SimState, structures: list[Atoms]) -> list[float]:
        """Total charge of each system in e."""
        carried = getattr(state, "system_extras", {})
        given = [key for key in QUANTITIES["total_charge"].names if getattr(state, key, None) is not None]
        if dropped := [key for key in given if key not in carried]:
            raise InputError(
                f"the state has {dropped[0]}, which this version of torch-sim drops in simulations; give total_charge "
                "to the model."
            )
        if not given:
            return [self._charge_of(atoms) for atoms in structures]
        if self.total_charge is not None:
            raise InputError(f"the total charge is given by the model and by the state ({given[0]}); leave one out.")
        columns = [_array(carried[key]) for key in given]
        found = []
        for values in zip(*columns, strict=True):
            numbers = {_charge(value) for value in values}
            if len(numbers) > 1:
                raise InputError(f"the total charge is given twice and differs: {given} are {values}; leave one out.")
            found.append(numbers.pop())
        return found

    def _charge_of(self, atoms: Atoms) -> float:
        if not isinstance(self.total_charge, dict):
            return self.total_charge or 0.0
        charge = self.total_charge.get(_composition(atoms.symbols.formula))
        if charge is None:
            raise InputError(
                f"total_charge has no entry for {atoms.symbols.formula:hill}; give one for each composition."
            )
        return charge


def _read_charge(total_charge: Charges | None) -> float | dict[frozenset[tuple[str, int]], float] | None:
    """A number for all systems, {composition: number}, or None."""
    if not isinstance(total_charge, Mapping):
        return None if total_charge is None else _charge(total_charge)
    try:
        compositions = [_composition(Formula(text)) for text in total_charge]
    except (ValueError, TypeError) as error:
        raise InputError(f"total_charge has the keys {list(total_charge)}; expected chemical formulas.") from error
    if len(set(compositions)) < len(compositions):
        raise InputError(f"total_charge has the keys {list(total_charge)}; two of them are of one composition.")
    return dict(zip(compositions, map(_charge, total_charge.values()), strict=True))


def _charge(value: Any) -> float:
    return number_of(value, "total_charge", QUANTITIES["total_charge"])


def _composition(formula: Formula) -> frozenset[tuple[str, int]]:
    return frozenset(formula.count().items())


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()
