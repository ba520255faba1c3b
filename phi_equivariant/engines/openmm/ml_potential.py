"""Potentials with Φ, and their bare hosts, as forces of OpenMM systems."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from ase import Atoms, units

from phi_equivariant.engines.inference import Committee, Model, read_names_of_mace, ready_models
from phi_equivariant.errors import InputError, did_you_mean
from phi_equivariant.potential import PhiPotential

try:
    from openmm import PythonForce, System
    from openmm.app import Topology
    from openmm.unit import angstrom
    from openmmml.mlpotential import MLPotentialImpl
except ImportError as error:
    raise ImportError(
        f"OpenMM or OpenMM-ML cannot be imported ({error}): pip install 'phi-equivariant[openmm]'."
    ) from error

_PRECISIONS = {"single": "float32", "double": "float64"}
#: Arguments of createSystem and createMixedSystem that are the embedding's, which hands on all that it is given.
_OF_EMBEDDING = ("linkAtomDistances",)
_OF_SYSTEM = ("charge", "multiplicity", "external_field")
_OF_POTENTIAL = ("modelPath", "device", "dtype", "precision", "head", "skin")


class PhiPotentialImpl(MLPotentialImpl):
    """What ``MLPotential("phi", modelPath=…)`` computes with: total energy and forces of PhiCalculator.

    Parameters
    ----------
    model: as of ``PhiCalculator``: a model, the folder of a saved one, a name of the zoo, or a list of these, a
        committee. ``modelPath``, as OpenMM-ML's other potentials have it, means the same
    device: where to compute; a GPU where there is one, as OpenMM-ML's other potentials do, else the CPU
    dtype: ``float32`` or ``float64``; the model's own where None. ``precision``, ``"single"`` or ``"double"``, means
        the same
    head: name of the host's head, for hosts with several
    skin: Å by which the neighbour list reaches beyond the cut-off, so that most steps of a simulation reuse it

    Raises
    ------
    InputError
        For an argument that is not known or given twice, what is not a model, a device that is not there, or a head
        that the model does not have.
    """

    def __init__(
        self,
        model: Model | Sequence[Model] | None = None,
        device: Any = None,
        dtype: Any = None,
        head: str | None = None,
        skin: float = 0.5,
        **others: Any,
    ) -> None:
        for name in (name for name in _OF_SYSTEM if name in others):
            raise InputError(f"{name} belongs to a system: give it to createSystem or createMixedSystem.")
        if (path := others.pop("modelPath", None)) is not None:
            others["model_path"] = path
        if (precision := others.pop("precision", None)) is not None:
            others["default_dtype"] = _PRECISIONS.get(precision, precision)
        model, dtype, self._keys = read_names_of_mace(model, dtype, others, ("modelPath", "precision"))
        self._head, self._skin = head, skin
        self._models = ready_models(model, self._getTorchDevice({}) if device is None else device, dtype)
        self._committee()  # a head that is not there is told now

    def _committee(self, field: Sequence[float] | None = None) -> Committee:
        return Committee(self._models, self._head, self._skin, self._keys, field)

    def getMLLongRange(self) -> bool:
        """Whether atoms act on far images as charges do: mechanical embedding takes the classical ones out then."""
        return all(isinstance(model, PhiPotential) and model.phi.operator.carries_charge for model in self._models)

    def addForces(
        self,
        topology: Topology,
        system: System,
        atoms: Iterable[int] | None,
        forceGroup: int,
        charge: float = 0.0,
        multiplicity: float | None = None,
        external_field: Sequence[float] | None = None,
        **others: Any,
    ) -> None:
        """Add the energy of all atoms, or of some, as one ``PythonForce``.

        Parameters
        ----------
        topology: with the elements of all atoms; its box says whether they are periodic
        system: that gets the force; where only some atoms are computed, its forces say whether they are periodic
        atoms: indices of those that are computed, all where None
        forceGroup: of the force
        charge: total charge in e of the atoms that are computed
        multiplicity: their spin multiplicity 2S + 1, for hosts that embed it
        external_field: (Fx, Fy, Fz) in V/Å that acts on them, as of ``PhiCalculator``

        Raises
        ------
        InputError
            For an argument that is not known, an atom without an element or of one that the model does not know, a
            total charge that is not a number or that the atoms cannot have, or a field that is not three numbers, that
            a bare host cannot feel or that is set in a periodic box.
        """
        _check_names(others)
        chosen = list(topology.atoms())
        indices = None if atoms is None else [int(index) for index in atoms]
        if indices is not None:
            chosen = [chosen[index] for index in indices]
        for atom in chosen:
            if atom.element is None:
                raise InputError(
                    f"atom {atom.index} of the topology ({atom.name} of residue {atom.residue.name} "
                    f"{atom.residue.id}) has no element; the model computes atoms only, not extra sites."
                )
        structure = Atoms(
            [atom.element.atomic_number for atom in chosen], pbc=_periodic(topology, system, indices is not None)
        )
        structure.info["total_charge"] = charge
        if multiplicity is not None:
            structure.info["total_spin"] = multiplicity
        committee = self._committee(external_field)
        for one in committee.inputs:
            one.check_elements(structure.numbers.tolist())
        committee.read(structure)
        force = PythonForce(PhiFunction(committee, structure))
        force.setName("Φ")
        force.setForceGroup(forceGroup)
        force.setUsesPeriodicBoundaryConditions(bool(structure.pbc.all()))
        if indices is not None:
            force.setParticles(indices)
        system.addForce(force)


class PhiFunction:
    """Energy and forces of a state of OpenMM; can be pickled, so that systems can be copied and written to XML.

    Parameters
    ----------
    committee: the models
    atoms: elements, periodicity, total charge and spin
    """

    def __init__(self, committee: Committee, atoms: Atoms) -> None:
        self.committee, self.atoms = committee, atoms

    def __call__(self, state: Any) -> tuple[float, np.ndarray]:
        """Energy in kJ/mol and forces (n_atoms, 3) in kJ/mol/nm of the positions, and in a periodic system the box, of
        an ``openmm.State``."""
        self.atoms.positions = state.getPositions(asNumpy=True).value_in_unit(angstrom)
        if self.atoms.pbc.any():
            self.atoms.cell = state.getPeriodicBoxVectors(asNumpy=True).value_in_unit(angstrom)
        out = self.committee([self.atoms], compute_force=True)
        energy, forces = out["energy"], out["forces"]
        assert energy is not None and forces is not None
        kilojoule = units.kJ / units.mol
        return energy.item() / kilojoule, forces.cpu().double().numpy() * (units.nm / kilojoule)


def _periodic(topology: Topology, system: System, mixed: bool) -> bool:
    """A box may be in the topology of a file though classical forces do without; for interpolation, OpenMM-ML asks for
    the force in a system that has no particles yet."""
    if mixed and system.getNumParticles():
        found: bool = system.usesPeriodicBoundaryConditions()
        return found
    return topology.getPeriodicBoxVectors() is not None


def _check_names(others: dict[str, Any]) -> None:
    for name in others:
        if name in _OF_EMBEDDING:
            continue
        if name in ("model", *_OF_POTENTIAL):
            raise InputError(f"{name} belongs to the potential: give it to MLPotential('phi', {name}=...).")
        if name in ("pbc", "slab"):
            raise InputError(
                f"{name} cannot be given to OpenMM: its boxes are periodic in all directions or in none. Use "
                "ase or LAMMPS for slabs."
            )
        hint = did_you_mean(name, _OF_SYSTEM, f"Known are {', '.join(_OF_SYSTEM)}.")
        raise InputError(f"{name!r} is not an argument of createSystem with 'phi'. {hint}")
