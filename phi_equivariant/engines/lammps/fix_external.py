"""A potential as forces of LAMMPS' ``fix external``: checks, the callback, and what the fix reports."""

import math
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import ase.data
import numpy as np
import torch

from phi_equivariant.engines.inference import Model, ready_models
from phi_equivariant.engines.lammps.divided import Divided
from phi_equivariant.engines.lammps.domain import Array, Domain, Evaluation, Evaluator
from phi_equivariant.engines.lammps.mpi import end_all, load_mpi, place_on_machine
from phi_equivariant.engines.lammps.units import read_units
from phi_equivariant.engines.lammps.whole import Whole
from phi_equivariant.errors import InputError
from phi_equivariant.host_protocol import MaceLike
from phi_equivariant.inputs.cells import check_cells
from phi_equivariant.potential import PhiPotential

FIX = "phi"
LINE = f"fix {FIX} all external pf/callback 1 1"
_PROPERTIES_FIX = f"{FIX}_atoms"
_ROUNDING = 1e-6  # Å


class LammpsPotential:
    """A model that LAMMPS asks for forces, on one process or many.

    Parameters
    ----------
    model: ``PhiPotential``, a host, the folder of a saved one, or a name of the zoo
    elements: symbols of LAMMPS' types, in order
    total_charge: in e
    info: what else the host is told of the structure, by the names of ``atoms.info`` (``total_spin``,
        ``external_field``)
    device: where to compute; ``cuda`` takes the devices of a machine in turn, one for each process
    dtype: ``float32`` or ``float64``; the model's own where None
    head: name of the host's head, for hosts with several
    skin: Å by which neighbour lists reach beyond the cut-off
    on_failure: what is called with an exception that occurs during a run; where None, it is kept for :meth:`check` on
        one process, and ends all processes, with its message, on many

    Raises
    ------
    InputError
        For elements that the model does not have, and as ``PhiCalculator``.
    """

    def __init__(
        self,
        model: Model,
        elements: Sequence[str],
        total_charge: float = 0.0,
        info: Mapping[str, Any] | None = None,
        device: str = "cpu",
        dtype: str | torch.dtype | None = None,
        head: str | None = None,
        skin: float = 0.5,
        on_failure: Callable[[BaseException], None] | None = None,
    ) -> None:
        (self.model,) = ready_models(model, _device_of_process(device), dtype)
        self.numbers = _numbers(elements, self.model)
        self.elements = list(elements)
        self.info = {"total_charge": total_charge, **(info or {})}
        self.head, self.skin, self.on_failure = head, skin, on_failure
        self.evaluation: Evaluation | None = None  # of the last step
        self.evaluator: Evaluator | None = None  # once attached
        self._failure: BaseException | None = None
        self._last_step: int | None = None
        self._at_last_exchange: Array | None = None

    def attach(self, lammps: Any) -> None:
        """Become the forces of the fix ``phi`` of a LAMMPS object, after ``fix phi all external pf/callback 1 1``.

        The fix then reports energy and virial, f_phi the total energy, f_phi[1] the host's, f_phi[2] Φ's, in LAMMPS'
        units, and f_phi[3] the sum of charges before projection. With Φ, atoms have the properties d_phi_charge in e
        and d_phi_potential in V, and where the model has dipoles d2_phi_dipole in e·Å.

        Raises
        ------
        InputError
            For units other than metal and real, a fix that is not there, other types than elements, atoms without IDs,
            and on many processes a communication cut-off that is too small, or a model that runs on one process only.
        """
        self.lammps = lammps
        self.units = read_units(lammps.extract_global("units"))
        _check_input(lammps, self.elements)
        self.n_processes = lammps.extract_setting("world_size")
        if self.evaluator is None:
            self.evaluator = self._make_evaluator()
        self.cutoff = math.inf
        if self.n_processes > 1:
            self.cutoff = self._communication_cutoff()
            self._check_reach(0.0)
        lammps.set_fix_external_callback(FIX, self._callback, None)
        lammps.fix_external_set_vector_length(FIX, 3)
        lammps.command(f"fix_modify {FIX} energy yes virial yes")
        self._last_step, self._properties = None, {}
        if isinstance(self.model, PhiPotential):
            config = self.model.phi.config
            self._properties = {"phi_charge": "d_phi_charge", "phi_potential": "d_phi_potential"}
            if config.multipoles or config.polarizable:
                self._properties["phi_dipole"] = "d2_phi_dipole"
            if not lammps.has_id("fix", _PROPERTIES_FIX):
                words = [name + (" 3" if name.startswith("d2") else "") for name in self._properties.values()]
                lammps.command(f"fix {_PROPERTIES_FIX} all property/atom {' '.join(words)}")

    def check(self) -> None:
        """Raise what went wrong during a run on one process, whose forces since then are NaN."""
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def _make_evaluator(self) -> Evaluator:
        if self.n_processes == 1:
            return Whole(self.model, self.info, self.head, self.skin)
        comm = self.lammps.get_mpi_comm() or load_mpi().COMM_WORLD
        return Divided(self.model, self.info, comm, self.head, self.skin)

    def _callback(self, _: object, step: int, n_own: int, tags: Array, positions: Array, forces: Array) -> None:
        """Forces of one step, as ``fix external`` asks for them; an exception that left here would be ignored."""
        try:
            if self._failure is None:
                self._fill(step, forces)
                return
        except BaseException as error:  # a process that went on would leave the others waiting
            if self.on_failure is not None:
                self.on_failure(error)
            elif self.n_processes > 1:
                end_all(error, "Φ in LAMMPS")
            self._failure = error
        forces[:] = np.nan
        self.lammps.force_timeout()  # at the end of this step

    def _fill(self, step: int, forces: Array) -> None:
        assert self.evaluator is not None
        domain = Domain.read(self.lammps, self.numbers)
        check_cells(torch.tensor(domain.cell)[None], torch.tensor(domain.pbc)[None])
        if self.n_processes > 1:
            self._check_reach(self._moved(domain))
        found = self.evaluation = self.evaluator(domain)
        unit = self.units.energy
        forces[:] = found.forces / unit
        if not math.isfinite(found.energy):
            raise InputError(f"the energy is {found.energy} at step {step}; the simulation has probably blown up.")
        self.lammps.fix_external_set_energy_global(FIX, found.energy / unit)
        xx, yy, zz = np.diag(found.virial)
        virial = [xx, yy, zz, found.virial[0, 1], found.virial[0, 2], found.virial[1, 2]]
        self.lammps.fix_external_set_virial_global(FIX, [float(value / unit) for value in virial])
        for index, value in enumerate((found.host_energy / unit, found.phi_energy / unit, found.net_charge), start=1):
            self.lammps.fix_external_set_vector(FIX, index, value)
        for name, values in found.of_atoms.items():
            if domain.n_own:
                self.lammps.numpy.extract_atom(self._properties[name])[: domain.n_own] = values

    def _moved(self, domain: Domain) -> float:
        """By how much an atom of this process and a copy may have come nearer since LAMMPS last made copies, in Å.

        With a box that changes copies move further than their atoms, which is why they are looked at apart.
        """
        before = self._at_last_exchange
        if self.lammps.extract_setting("neigh_ago") == 0 or before is None or before.shape != domain.positions.shape:
            self._at_last_exchange = domain.positions
            return 0.0
        moved = np.sqrt(np.square(domain.positions - before).sum(1))
        return float(moved[: domain.n_own].max(initial=0.0) + moved[domain.n_own :].max(initial=0.0))

    def _check_reach(self, moved: float) -> None:
        """InputError unless a process has copies of all atoms that its own can see, though pairs came nearer by so
        much."""
        assert self.evaluator is not None
        if self.cutoff - moved < self.evaluator.reach - _ROUNDING:
            since = f" and pairs may have come nearer by {moved:.2f} Å since copies were made" if moved else ""
            raise InputError(
                f"the communication cut-off is {self.cutoff:g} Å{since}, but the model sees {self.evaluator.reach:g} "
                f"Å far: add the line 'comm_modify cutoff {self.evaluator.reach + 2.0:g}' before '{LINE}' (what the "
                "model sees and the skin of 'neighbor', 2 Å here)."
            )

    def _communication_cutoff(self) -> float:
        """LAMMPS' communication cut-off in Å, from what its command ``info`` writes on the first process."""
        comm = self.lammps.get_mpi_comm() or load_mpi().COMM_WORLD
        with tempfile.TemporaryDirectory() as folder:  # that of the first process is what is written in
            path = comm.bcast(f"{folder}/info")
            self.lammps.command(f"info communication out overwrite {path}")
            text = Path(path).read_text(encoding="utf-8", errors="replace") if comm.rank == 0 else ""
            text = comm.bcast(text)
        found = [float(number) for number in re.findall(r"ommunication cutoff\s*=\s*([-+\d.eE]+)", text)]
        if not found:
            raise InputError(f"LAMMPS' info does not tell the communication cut-off; it says: {text.strip()!r}.")
        return max(found)


def _check_input(lammps: Any, elements: Sequence[str]) -> None:
    """InputError for what an input lacks."""
    if not lammps.has_id("fix", FIX):
        raise InputError(f"LAMMPS has no fix {FIX}: add the line '{LINE}' after the atoms are there.")
    n_types = lammps.extract_setting("ntypes")
    if n_types != len(elements):
        raise InputError(
            f"LAMMPS has {n_types} types of atoms, and elements are {' '.join(elements)}; give one for each type, in "
            "order."
        )
    if not lammps.extract_setting("tag_enable"):
        raise InputError("atoms have no IDs; remove 'atom_modify id no' from the input.")


def _numbers(elements: Sequence[str], model: torch.nn.Module) -> list[int]:
    """Atomic numbers of symbols that the model knows."""
    known = [int(z) for z in cast(MaceLike, model).atomic_numbers]
    numbers = []
    for symbol in elements:
        number = ase.data.atomic_numbers.get(symbol)
        if not number:
            raise InputError(f"elements holds {symbol!r}, which is not an element; write symbols such as O and H.")
        if number not in known:
            symbols = " ".join(ase.data.chemical_symbols[z] for z in known)
            raise InputError(f"elements holds {symbol}, but the model was made for {symbols}.")
        numbers.append(number)
    return numbers


def _device_of_process(device: str) -> str:
    """Where this process computes."""
    return in_turn(device, place_on_machine(load_mpi()), torch.cuda.device_count()) if device == "cuda" else device


def in_turn(device: str, rank: int, n_devices: int) -> str:
    """``cuda`` as one of the devices of a machine, in turn for its processes, which share them where they are more.

    Parameters
    ----------
    device: as it was asked for; any but ``cuda``, ``cuda:1`` say, stays
    rank: number of the process among those of its machine
    n_devices: number of devices of the machine
    """
    return f"cuda:{rank % n_devices}" if device == "cuda" and n_devices else device
