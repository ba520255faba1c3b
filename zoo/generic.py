"""Any network as a host: mace's batch dictionary and output around a module that knows nothing of them."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch

from phi_equivariant.derivatives import Batch
from phi_equivariant.errors import InputError
from phi_equivariant.inputs.cells import check_open, read_cells
from zoo.energy_model import EnergyModel, PerElement


@dataclasses.dataclass(frozen=True)
class Graph:
    """What a network may read of a batch of structures.

    numbers: atomic numbers (n_atoms,)
    positions: (n_atoms, 3) in Å
    batch: (n_atoms,), structure of each atom
    edge_index: (2, n_edges), sender and receiver; all pairs within the cut-off, in both directions, periodic images too
    vectors: (n_edges, 3), from sender to receiver in Å; lengths: (n_edges,) in Å
    """

    numbers: torch.Tensor
    positions: torch.Tensor
    batch: torch.Tensor
    edge_index: torch.Tensor
    vectors: torch.Tensor

    @property
    def lengths(self) -> torch.Tensor:
        """(n_edges,) in Å."""
        return torch.linalg.vector_norm(self.vectors, dim=-1)


class GenericModel(EnergyModel):
    """A network as a host: E = Σ_i E0_(Z_i) + shift_(Z_i) + scale_(Z_i) ε_i with ε = energies(network, graph).

    Forces and stress are derivatives of E; they are exact if the network leaves no part of ε out of the derivative
    (``detach``, ``no_grad``, rounding), and continuous at the cut-off if its messages end there with their first
    derivative.

    Parameters
    ----------
    network: the module, a submodule of the model by the name ``network``
    energies: function of network and ``Graph`` → ε (n_atoms,) or (n_atoms, 1); with ``per="structure"`` (n_structures,)
        or (n_structures, 1). Defined at the top of a module, so that copies and ``torch.save`` find it.
    atomic_numbers: elements that the model knows
    atomic_energies, r_max, atomic_inter_scale, atomic_inter_shift, train_scale_shift: see ``EnergyModel``
    taps: what ``attach_phi`` taps where it is not told: {"network.submodule": irreps, a width, a ``Tap`` or a list of
        these}
    per: ``atom``, or ``structure`` for a network that has added its energies up: its atoms then have equal parts
    periodic: whether ε depends on positions through the graph's vectors or lengths alone, so that images count;
        without, periodic structures are refused

    Raises
    ------
    InputError
        As ``EnergyModel`` does, and for energies that are not a function; in the forward pass for energies of another
        shape or precision or without a derivative by vectors or positions, or a periodic structure.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        energies: Callable[[Any, Graph], torch.Tensor],
        atomic_numbers: Sequence[int],
        atomic_energies: PerElement = 0.0,
        r_max: float = 5.0,
        taps: Mapping[str, Any] | None = None,
        per: Literal["atom", "structure"] = "atom",
        periodic: bool = False,
        atomic_inter_scale: PerElement = 1.0,
        atomic_inter_shift: PerElement = 0.0,
        train_scale_shift: bool = False,
    ) -> None:
        super().__init__(
            atomic_numbers, atomic_energies, r_max, atomic_inter_scale, atomic_inter_shift, train_scale_shift
        )
        if per not in ("atom", "structure"):
            raise InputError(f"per is {per!r}; give 'atom' or 'structure'.")
        if per == "structure" and (train_scale_shift or len(self.scale.unique()) > 1):
            raise InputError(
                "with per='structure' there are no energies of elements: give one atomic_inter_scale, not trained."
            )
        if not callable(energies):
            raise InputError(f"energies is {energies!r}; give a function of network and graph.")
        if not isinstance(network, torch.nn.Module):
            raise InputError(f"network is {network!r}; give a torch.nn.Module, so that its parameters are found.")
        self.network, self.energies, self.per, self.periodic = network, energies, per, periodic
        self._has_slope = False  # seen once that energies depend on where atoms are
        self.phi_taps = taps

    def atom_terms(self, data: Batch, vectors: torch.Tensor) -> tuple[torch.Tensor, None]:
        """ε (n_atoms,); no node features, which Φ finds by its taps."""
        if not self.periodic:
            _, pbc = read_cells(data)
            check_open(pbc, f"{type(self.network).__name__} sees no periodic images (GenericModel's periodic is False)")
        numbers, batch = self.atomic_numbers[data["node_attrs"].argmax(-1)], data["batch"]
        graph = Graph(numbers, data["positions"], batch, data["edge_index"], vectors)
        energies = self.energies(self.network, graph)
        n_structures = len(data["ptr"]) - 1
        n = len(numbers) if self.per == "atom" else n_structures
        if not torch.is_tensor(energies) or energies.shape not in ((n,), (n, 1)):
            given = tuple(energies.shape) if torch.is_tensor(energies) else type(energies).__name__
            raise InputError(
                f"energies(network, graph) gave {given} for {len(numbers)} atoms in {n_structures} structures; with "
                f"per={self.per!r} expected ({n},)."
            )
        if energies.dtype != vectors.dtype:
            raise InputError(f"energies(network, graph) gave {energies.dtype} for a graph in {vectors.dtype}.")
        self._check_slope(energies, graph)
        energies = energies.reshape(n)
        return (energies if self.per == "atom" else (energies / data["ptr"].diff())[batch]), None

    def _check_slope(self, energies: torch.Tensor, graph: Graph) -> None:
        """InputError where the network has cut energies off from the vectors and positions: forces would be zero."""
        if self._has_slope or not graph.vectors.requires_grad or len(graph.vectors) == 0:
            return
        found: Sequence[torch.Tensor | None] = [None]
        if energies.requires_grad:
            where = [graph.vectors, graph.positions]
            found = torch.autograd.grad(energies.sum(), where, retain_graph=True, allow_unused=True)
        self._has_slope = any(slope is not None for slope in found)
        if not self._has_slope:
            raise InputError(
                "energies(network, graph) has no derivative by the graph's vectors, lengths or positions, so forces "
                "would be zero; look for detach(), torch.no_grad() or numpy in the network."
            )
