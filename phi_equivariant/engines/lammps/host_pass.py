"""The host on the atoms of one process: its energy, and what Φ reads of its features."""

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from ase import Atoms

from phi_equivariant.derivatives import Batch, Output
from phi_equivariant.engines.inference import ModelInput
from phi_equivariant.engines.lammps.domain import Array, Domain
from phi_equivariant.engines.lammps.ghosts import Ghosts
from phi_equivariant.engines.lammps.receptive_field import layers_seen
from phi_equivariant.engines.neighbours import NeighbourList
from phi_equivariant.host_energy import isolated_of_atoms, run_host, without_isolated
from phi_equivariant.host_protocol import MaceLike
from phi_equivariant.inputs.distances import check_edges
from phi_equivariant.inputs.graphs import Edges
from phi_equivariant.potential import PhiPotential
from phi_equivariant.taps import irreps_of


@dataclasses.dataclass(frozen=True)
class HostPass:
    """A forward pass that can be differentiated.

    Parameters
    ----------
    positions: (n_own + n_ghosts, 3), and strain (3, 3): leaves
    energy: of the own atoms, a scalar in eV; None on a process that has nothing to differentiate
    heads: {name: (n_own, …)}, what Φ reads of the own atoms
    edges: (2, n_edges), senders and receivers of all edges to own atoms
    """

    positions: torch.Tensor
    strain: torch.Tensor
    energy: torch.Tensor | None
    heads: dict[str, torch.Tensor]
    edges: Array

    def backward(self, cotangents: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """−∂/∂positions and −∂/∂strain of energy + Σ cotangents·heads."""
        leaves = [self.positions, self.strain]
        if self.energy is None:
            return torch.zeros_like(leaves[0]), torch.zeros_like(leaves[1])
        outputs = [self.energy, *self.heads.values()]
        weights = [torch.ones_like(self.energy), *(cotangents[name] for name in self.heads)]
        found = torch.autograd.grad(outputs, leaves, weights, allow_unused=True)
        slopes = [
            torch.zeros_like(leaf) if slope is None else -slope for leaf, slope in zip(leaves, found, strict=True)
        ]
        return slopes[0], slopes[1]


class HostRunner:
    """Runs a host on the atoms of one process, all edges of their receivers and no other where the host can exchange
    features between its layers; else on all atoms that it sees, as an open structure in which images are atoms.

    Parameters
    ----------
    model: ``PhiPotential`` or a host; make: what makes its batches
    info: what the host embeds of a structure, by name
    """

    def __init__(self, model: torch.nn.Module, make: ModelInput, info: Mapping[str, Any]) -> None:
        self.model, self.make = model, make
        self.host = model.host if isinstance(model, PhiPotential) else model
        self.by_mace = _is_mace(self.host)
        self.exchanges = self.by_mace or bool(getattr(self.host, "exchanges_ghosts", False))
        self.layers = 1 if self.exchanges else layers_seen(model, make, info)
        self.reach = self.layers * float(cast(MaceLike, model).r_max)
        self.neighbours = NeighbourList(float(cast(MaceLike, model).r_max), make.skin)
        self.elements = {int(z): i for i, z in enumerate(cast(MaceLike, model).atomic_numbers)}

    def species(self, numbers: Array) -> torch.Tensor:
        """Index of each atom's element, (n_atoms,), on the model's device."""
        device = next(self.model.parameters()).device
        return torch.tensor([self.elements[z] for z in numbers.tolist()], dtype=torch.long, device=device)

    def __call__(self, domain: Domain, ghosts: Ghosts, told: Mapping[str, Any]) -> HostPass:
        """The forward pass; where hosts exchange features, all processes call it together.

        Parameters
        ----------
        domain: what the process holds; ghosts: who owns the copies
        told: what the host is told of the structure, as ``ModelInput.read`` reads it
        """
        reference = next(self.model.parameters())
        positions = torch.tensor(domain.positions, dtype=reference.dtype, device=reference.device).requires_grad_()
        strain = positions.new_zeros((3, 3)).requires_grad_()
        senders, receivers, _ = self.neighbours(domain.positions, np.zeros((3, 3)), np.zeros(3, dtype=bool))
        to_own = np.stack([senders, receivers])[:, receivers < domain.n_own]
        atoms, edges = None, to_own
        if not self.exchanges:
            atoms, edges = _seen(senders, receivers, domain.n_own, len(domain.tags), self.layers)
        with torch.enable_grad():
            if domain.n_own == 0 and not self.exchanges:
                return HostPass(positions, strain, None, self._read_heads(self._no_layers(positions), domain), to_own)
            strained = positions + positions @ (0.5 * (strain + strain.T))
            chosen = strained if atoms is None else strained[torch.as_tensor(atoms, device=reference.device)]
            numbers = domain.numbers if atoms is None else domain.numbers[atoms]
            if domain.n_own == 0:  # hosts compute nothing for no atoms, but others wait: one that sees none
                chosen = torch.cat([chosen.new_zeros((1, 3)), chosen])
                numbers = np.concatenate([[next(iter(self.elements))], numbers])
            data = self._batch(chosen, numbers, edges, told)
            out, layers = self._run(data, max(domain.n_own, 1), ghosts)
            energies = out["node_energy"]
            assert energies is not None
            heads = self._read_heads([features[: domain.n_own] for features in layers], domain)
            return HostPass(positions, strain, energies[: domain.n_own].double().sum(), heads, to_own)

    def _batch(self, positions: torch.Tensor, numbers: Array, edges: Array, told: Mapping[str, Any]) -> Batch:
        """Atoms as one open structure with mace's keys."""
        atoms = Atoms(numbers=numbers, positions=positions.detach().cpu().numpy())
        data = self.make.batch([atoms], [Edges(edges, np.zeros((edges.shape[1], 3)), np.zeros((3, 3)))], [told])
        check_edges(data)
        return {**data, "positions": positions}

    def _run(self, data: Batch, n_own: int, ghosts: Ghosts) -> tuple[Output, list[torch.Tensor]]:
        """The host's output, and the features that Φ reads."""
        run = run_host
        if self.exchanges:
            exchange = Exchange(ghosts, n_own)
            data = {**data, "exchange_ghosts": exchange.rows}
            if self.by_mace:
                run = exchange.run_mace
        if isinstance(self.model, PhiPotential):
            return self.model.host_and_layers(data, False, run)
        return run(self.host, data, training=False, compute_force=False), []

    def _no_layers(self, positions: torch.Tensor) -> list[torch.Tensor]:
        """Features of no atoms."""
        if not isinstance(self.model, PhiPotential):
            return []
        return [positions.new_zeros((0, irreps_of(parts).dim)) for parts in self.model.taps.values()]

    def _read_heads(self, layers: list[torch.Tensor], domain: Domain) -> dict[str, torch.Tensor]:
        if not isinstance(self.model, PhiPotential):
            return {}
        return self.model.phi.read_heads(layers, self.species(domain.numbers[: domain.n_own]))


class Exchange:
    """Node features of copies from their owners between two layers, and cotangents of the copies back to them.

    Parameters
    ----------
    ghosts: who owns the copies
    n_own: number of own rows: that of the own atoms, or more
    """

    def __init__(self, ghosts: Ghosts, n_own: int) -> None:
        self.ghosts, self.n_own = ghosts, n_own

    def rows(self, features: torch.Tensor) -> torch.Tensor:
        """(n_own + n_ghosts, c), of which the rows of the copies are not read → the same with those of their owners."""
        found: torch.Tensor = _Exchanged.apply(features, self)
        return found

    def forward_exchange(self, features: torch.Tensor, out: torch.Tensor, width: int) -> None:
        """What mace calls between layers: fill ``out`` (n_own + n_ghosts, width)."""
        own = features[: self.n_own]
        out[: self.n_own] = own
        out[self.n_own :] = torch.from_numpy(self.ghosts.to_copies(own.detach().cpu().numpy())).to(out)

    def reverse_exchange(self, slope: torch.Tensor, out: torch.Tensor, width: int) -> None:
        """The transpose."""
        returned = self.ghosts.to_owners(slope[self.n_own :].detach().cpu().numpy())
        out[: self.n_own] = slope[: self.n_own]
        out[: len(returned)] += torch.from_numpy(returned).to(slope)
        out[self.n_own :] = 0.0

    def run_mace(self, host: torch.nn.Module, data: Batch, **options: Any) -> Output:
        """mace's own seam for copies: energies of the own atoms, E0 added in float64."""
        n, n_own = len(data["node_attrs"]), self.n_own
        sender, receiver = data["edge_index"]
        vectors = data["positions"][receiver] - data["positions"][sender]
        of_own = {**data, "batch": data["batch"][:n_own], "ptr": data["ptr"].new_tensor([0, n_own])}
        told = {"vectors": vectors, "natoms": (n_own, n - n_own), "lammps_class": self}
        out: Output = {**without_isolated(host)({**of_own, **told}, **options, lammps_mliap=True)}
        isolated = isolated_of_atoms(host, {**of_own, "node_attrs": data["node_attrs"][:n_own]})
        energies = out["node_energy"]
        assert energies is not None
        out["node_energy"] = isolated + energies
        return out


class _Exchanged(torch.autograd.Function):
    """``Exchange`` in the graph, once differentiable."""

    @staticmethod
    def forward(context: Any, features: torch.Tensor, exchange: Exchange) -> torch.Tensor:
        context.exchange = exchange
        out = torch.empty_like(features)
        exchange.forward_exchange(features, out, features.shape[1])
        return out

    @staticmethod
    def backward(context: Any, *slopes: torch.Tensor) -> tuple[torch.Tensor, None]:
        out = torch.empty_like(slopes[0])
        context.exchange.reverse_exchange(slopes[0], out, out.shape[1])
        return out, None


def _is_mace(host: torch.nn.Module) -> bool:
    """Whether it has mace's seam for copies, which leaves out what it embeds of a structure."""
    blocks = list(getattr(host, "interactions", ()))
    return (
        bool(blocks) and all(hasattr(one, "handle_lammps") for one in blocks) and not hasattr(host, "joint_embedding")
    )


def _seen(senders: Array, receivers: Array, n_own: int, n: int, layers: int) -> tuple[Array, Array]:
    """Atoms that the own ones see through so many layers, own ones first; and the edges (2, n_edges) of all those that
    receive something which an own atom sees."""
    inside = receivers < n_own
    needed = np.arange(n) < n_own
    for _ in range(layers - 1):
        needed[senders[inside]] = True
        inside = needed[receivers]
    edges = np.stack([senders[inside], receivers[inside]])
    needed[edges[0]] = True
    atoms = np.flatnonzero(needed)
    new = np.full(n, -1)
    new[atoms] = np.arange(len(atoms))
    return atoms, new[edges]
