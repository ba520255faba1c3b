"""Many processes: the host on each one's atoms, Φ on what all of them gathered, and one pass back."""

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from ase import Atoms

from phi_equivariant.derivatives import Batch, strain
from phi_equivariant.division import ShareOfProcesses
from phi_equivariant.engines.inference import ModelInput
from phi_equivariant.engines.lammps.domain import PROPERTIES, Array, Domain, Evaluation
from phi_equivariant.engines.lammps.ghosts import Ghosts
from phi_equivariant.engines.lammps.host_pass import HostPass, HostRunner
from phi_equivariant.errors import InputError
from phi_equivariant.inputs.cells import read_cells
from phi_equivariant.inputs.external_field import NAME as FIELD
from phi_equivariant.inputs.external_field import field_of_batch
from phi_equivariant.inputs.graphs import Edges
from phi_equivariant.kept import Memory
from phi_equivariant.phi_module import PhiModule
from phi_equivariant.potential import PhiPotential, check_no_field
from phi_equivariant.structures import Structures


class Divided:
    """E = Σ_own atoms e_i + E_Φ(heads of all atoms, positions), exact on any number of processes.

    Each process runs the host on its own atoms and reads Φ's heads h_i. All gather heads and positions, compute E_Φ, of
    large structures each a share of its sums, its derivatives ∂E_Φ/∂h_i, held fixed from there on, and its direct
    forces. Then one pass back through the host,

        F = −∂/∂r [Σ_own e_i + Σ_own (∂E_Φ/∂h_i)·h_i] − ∂E_Φ/∂r|_h,

    and what falls on copies goes to their owners. The virial comes likewise from one strain.

    Parameters
    ----------
    model: ``PhiPotential`` or a host
    info: what a model is told of a structure, by the names of ``atoms.info``
    comm: mpi4py's communicator of all processes
    head, skin: as of ``PhiCalculator``

    Raises
    ------
    InputError
        For a model with ``num_modes``, or one that embeds something of every atom.
    """

    def __init__(
        self, model: torch.nn.Module, info: Mapping[str, Any], comm: Any, head: str | None, skin: float
    ) -> None:
        self.model, self.comm, self.info = model, comm, dict(info)
        self.phi: PhiModule | None = model.phi if isinstance(model, PhiPotential) else None
        if self.phi is not None and self.phi.config.num_modes is not None:
            raise InputError(
                f"the model has num_modes={self.phi.config.num_modes}, whose window takes all eigenvalues of the whole "
                "structure; run on one process (mpirun -np 1), or train with low_pass or all modes."
            )
        self.make = ModelInput(model, head, skin)
        if of_atoms := [name for name, spec in self.make.specs.items() if spec["per"] == "atom"]:
            raise InputError(f"the host embeds {of_atoms[0]} of every atom, which LAMMPS does not hold.")
        embedded = {name: value for name, value in self.info.items() if name not in ("total_charge", FIELD)}
        self.host = HostRunner(model, self.make, embedded)
        self.share = ShareOfProcesses(comm)
        self.memory = Memory()
        self.ghosts: Ghosts | None = None
        self.told: dict[str, Any] | None = None  # of the structure
        #: Wall time on this process in s since it was made, by part of a step; waiting for others counts.
        self.seconds = {"host": 0.0, "solve": 0.0, "back": 0.0}

    @property
    def reach(self) -> float:
        """Å around its own atoms in which a process must have copies of all others."""
        return self.host.reach

    def __call__(self, domain: Domain) -> Evaluation:
        """Evaluate; all processes together."""
        clock = time.perf_counter
        begin = clock()
        ghosts = self._ghosts(domain)
        domain.check_all_there(len(ghosts.tags))
        if self.told is None:
            self.told = self._read(ghosts.gather(domain.numbers[: domain.n_own, None])[:, 0], domain)
        passed = self.host(domain, ghosts, {name: value for name, value in self.told.items() if name != FIELD})
        after_host = clock()
        numbers, direct = np.zeros(12), np.zeros((domain.n_own, 3))
        cotangents: dict[str, torch.Tensor] = {}
        of_atoms: dict[str, Array] = {}
        if self.phi is not None:
            with self.memory.used():
                numbers[1:], direct, cotangents, of_atoms = self._of_all(self.phi, domain, ghosts, passed)
            if self.comm.rank > 0:  # the same on all
                numbers[:] = 0.0
        after_solve = clock()
        forces, virial = (values.detach().cpu().double().numpy() for values in passed.backward(cotangents))
        numbers[0] = 0.0 if passed.energy is None else passed.energy.item()
        numbers[3:] += virial.ravel()
        forces = forces[: domain.n_own] + direct + ghosts.to_owners(forces[domain.n_own :])
        total = np.zeros_like(numbers)
        # Not a sum on each: all must have the same bits, or minimisers go different ways.
        self.comm.Reduce(numbers, total, root=0)
        self.comm.Bcast(total, root=0)
        for part, spent in (
            ("host", after_host - begin),
            ("solve", after_solve - after_host),
            ("back", clock() - after_solve),
        ):
            self.seconds[part] += spent
        return Evaluation(
            host_energy=float(total[0]),
            phi_energy=float(total[1]),
            net_charge=float(total[2]),
            forces=forces,
            virial=total[3:].reshape(3, 3),
            of_atoms=of_atoms,
        )

    def _ghosts(self, domain: Domain) -> Ghosts:
        own, copies = domain.tags[: domain.n_own], domain.tags[domain.n_own :]
        if self.ghosts is None or not self.ghosts.fit(own, copies):
            self.ghosts = Ghosts(self.comm, own, copies)
        return self.ghosts

    def _read(self, numbers: Array, domain: Domain) -> dict[str, Any]:
        """What the model is told of the structure with these atoms."""
        told = self.make.read(Atoms(numbers=numbers, cell=domain.cell, pbc=domain.pbc, info=self.info))
        if self.phi is None:
            check_no_field(told)
        return told

    def _of_all(
        self, phi: PhiModule, domain: Domain, ghosts: Ghosts, passed: HostPass
    ) -> tuple[Array, Array, dict[str, torch.Tensor], dict[str, Array]]:
        """E_Φ, net charge and virial (11,); of the own atoms direct forces, ∂E_Φ/∂heads and properties."""
        reference, heads = next(phi.parameters()), passed.heads
        own = slice(0, domain.n_own)
        widths = [values.shape[1:].numel() for values in heads.values()]
        flat = [
            values.detach().reshape(domain.n_own, width).cpu().double().numpy()
            for values, width in zip(heads.values(), widths, strict=True)
        ]
        rows = ghosts.gather(np.concatenate([domain.positions[own], domain.numbers[own, None], *flat], axis=1))
        columns = np.split(rows, np.cumsum([3, 1, *widths])[:-1], axis=1)
        number: dict[str, Any] = {"dtype": reference.dtype, "device": reference.device}
        edges = self._edges(columns[0], domain, ghosts, passed.edges if phi.reads_edges else passed.edges[:, :0])
        atoms = Atoms(numbers=columns[1][:, 0].astype(int), positions=columns[0], cell=domain.cell, pbc=domain.pbc)
        assert self.told is not None
        data = self.make.batch([atoms], [edges], [self.told])
        positions = data["positions"].requires_grad_()
        gathered = {
            name: torch.tensor(part, **number).reshape(-1, *values.shape[1:]).requires_grad_()
            for (name, values), part in zip(heads.items(), columns[2:], strict=True)
        }
        strained = positions.new_zeros((1, 3, 3)).requires_grad_()
        with torch.enable_grad():
            structures = self._structures(data, strained)
            out = phi.of_heads(gathered, structures, order=0)
            energy = out["phi_energy"]
            assert energy is not None
            leaves = [positions, strained, *gathered.values()]
            slopes = [
                torch.zeros_like(leaf) if slope is None else slope
                for leaf, slope in zip(
                    leaves, torch.autograd.grad(energy.sum(), leaves, allow_unused=True), strict=True
                )
            ]
        mine = torch.as_tensor(ghosts.own_rows, device=reference.device)
        net = out["net_charge"]
        assert net is not None
        totals = [float(value.detach()) for value in (energy, net)]
        numbers = np.concatenate([totals, -slopes[1].cpu().double().numpy().ravel()])
        found = {name: out.get(key) for name, key in PROPERTIES.items()}
        return (
            numbers,
            -slopes[0][mine].cpu().double().numpy(),
            {name: slope[mine] for name, slope in zip(heads, slopes[2:], strict=True)},
            {name: value.detach()[mine].cpu().double().numpy() for name, value in found.items() if value is not None},
        )

    def _edges(self, where: Array, domain: Domain, ghosts: Ghosts, edges: Array) -> Edges:
        """Edges to the own atoms, which are this process's share, between atoms of the whole structure."""
        rows = np.concatenate([ghosts.own_rows, ghosts.ghost_rows])
        ends, (senders, receivers) = rows[edges], edges
        copied = domain.positions[receivers] - domain.positions[senders]  # a copy stands a whole number of cells off
        images = (copied - where[ends[1]] + where[ends[0]]) @ np.linalg.inv(domain.cell)
        return Edges(ends, images.round() * domain.pbc, domain.cell)

    def _structures(self, data: Batch, strained: torch.Tensor) -> Structures:
        """All atoms as Φ's structure."""
        cell, pbc = read_cells(data)
        cell = strain(data, cell, strained, self.share)
        field = field_of_batch(data, cell, pbc)
        structures = Structures.of_batch(data, data["total_charge"].reshape(-1), cell, pbc, field)
        return dataclasses.replace(structures, share=self.share)
