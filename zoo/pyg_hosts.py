"""SchNet and ViSNet of PyTorch Geometric as hosts (extra ``pyg``), on our neighbour list.

Their own list is not used: it needs compiled packages, knows no periodic images, and jumps where an atom has more than
``max_num_neighbors``. Theirs is put out of the way by modules that hand on what ``pos`` carries: edges, not positions.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch

from phi_equivariant.errors import InputError
from phi_equivariant.taps import Tap
from zoo.bounds import Count, Degree, Elements, Energies, Layers, Length
from zoo.generic import GenericModel, Graph
from zoo.hosts import EnergyModelHost

LAST_ELEMENT = 99  # their embeddings have 100 rows


class GivenEdges(torch.nn.Module):
    """Stands where a network would list its neighbours, and gives the edges that came as ``pos``."""

    def forward(self, pos: Any, batch: torch.Tensor) -> Any:
        """What came as ``pos``."""
        return pos


class SoftNorm(torch.nn.Module):
    """A linear map of vectors v (n_atoms, 3, channels) whose norm over dimension 1 is (|v|² + ε²)^(1/2).

    ViSNet's readout takes such norms, and |v| has a kink where v vanishes, by symmetry or without neighbours;
    gradients of a loss on forces are NaN there.
    """

    epsilon = 1e-2

    def __init__(self, linear: torch.nn.Module) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """(n_atoms, 3, channels) → (n_atoms, 4, channels), ε as the fourth component."""
        mapped = self.linear(vectors)
        return torch.cat([mapped, torch.full_like(mapped[:, :1], self.epsilon)], dim=1)


class SchNet(GenericModel):
    """SchNet (arXiv 1706.08566) of PyTorch Geometric.

    Its cut-off (1 + cos(πr/r_c))/2 ends with one continuous derivative: forces are continuous there, their slope jumps.

    Parameters
    ----------
    atomic_numbers, atomic_energies, r_max, atomic_inter_scale, atomic_inter_shift, train_scale_shift: see
        ``EnergyModel``
    hidden_channels, num_filters, num_interactions, num_gaussians: see ``torch_geometric.nn.models.SchNet``

    Raises
    ------
    InputError
        Without PyTorch Geometric, for an element above 99, and as ``EnergyModel`` does.
    """

    def __init__(
        self, atomic_numbers: Elements, atomic_energies: Energies, r_max: Length = 5.0, hidden_channels: Count = 64,
        num_filters: Count = 64, num_interactions: Layers = 3, num_gaussians: Count = 50,
        atomic_inter_scale: Energies = 1.0, atomic_inter_shift: Energies = 0.0, train_scale_shift: bool = False,
    ) -> None:  # fmt: skip
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        _check_elements(atomic_numbers)
        network = _models().SchNet(
            hidden_channels, num_filters, num_interactions, num_gaussians, float(r_max), interaction_graph=GivenEdges()
        )
        tap = Tap(hidden_channels, increment=True, start="network.embedding")
        super().__init__(
            network, schnet_energies, atomic_numbers, atomic_energies, r_max,
            taps={f"network.interactions.{layer}": tap for layer in range(num_interactions)}, periodic=True,
            atomic_inter_scale=atomic_inter_scale, atomic_inter_shift=atomic_inter_shift,
            train_scale_shift=train_scale_shift,
        )  # fmt: skip
        self.arguments = arguments  # what a saved model is built from again


class ViSNet(GenericModel):
    """ViSNet (arXiv 2210.16518) of PyTorch Geometric, made smooth.

    Two changes: the map from messages to vectors (``s_proj``) has no bias, whose share would not end at the cut-off but
    jump there; and the readout's norms of vectors are those of ``SoftNorm``. Forces are then continuous everywhere, but
    their slope jumps at the cut-off, a cosine as in ``SchNet``. The reference energies of atoms are E0, not the
    network's own.

    Parameters
    ----------
    atomic_numbers, atomic_energies, r_max, atomic_inter_scale, atomic_inter_shift, train_scale_shift: see
        ``EnergyModel``
    hidden_channels, num_heads, num_rbf: see ``torch_geometric.nn.models.ViSNet``
    num_interactions: its ``num_layers``
    max_ell: its ``lmax``, 1 or 2

    Raises
    ------
    InputError
        As for ``SchNet``; for a number of channels that the heads do not divide; in the forward pass for an atom that
        is its own neighbour, through a cell smaller than the cut-off: the network leaves such edges out.
    """

    def __init__(
        self, atomic_numbers: Elements, atomic_energies: Energies, r_max: Length = 5.0, hidden_channels: Count = 64,
        num_heads: Count = 8, num_interactions: Layers = 3, max_ell: Degree = 1, num_rbf: Count = 32,
        atomic_inter_scale: Energies = 1.0, atomic_inter_shift: Energies = 0.0, train_scale_shift: bool = False,
    ) -> None:  # fmt: skip
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        _check_elements(atomic_numbers)
        if max_ell not in (1, 2):
            raise InputError(f"max_ell is {max_ell!r}; ViSNet has vectors of 1, or of 1 and 2.")
        network = _models().ViSNet(
            lmax=max_ell, num_heads=num_heads, num_layers=num_interactions, hidden_channels=hidden_channels,
            num_rbf=num_rbf, cutoff=float(r_max),
        )  # fmt: skip
        representation, name = network.representation_model, "network.representation_model"
        representation.distance, network.prior_model = GivenEdges(), None
        for layer in representation.vis_mp_layers:
            layer.s_proj.register_parameter("bias", None)
        for block in network.output_model.output_network:
            block.vec1_proj = SoftNorm(block.vec1_proj)
        vectors = "+".join(f"{hidden_channels}x{irrep}" for irrep in ("1o", "2e")[:max_ell])
        taps = [
            Tap(hidden_channels, element=0, increment=True, start=f"{name}.neighbor_embedding"),
            Tap(vectors, element=1, layout="ir_mul", increment=True),
        ]
        super().__init__(
            network, visnet_energies, atomic_numbers, atomic_energies, r_max,
            taps={f"{name}.vis_mp_layers.{layer}": taps for layer in range(num_interactions)}, periodic=True,
            atomic_inter_scale=atomic_inter_scale, atomic_inter_shift=atomic_inter_shift,
            train_scale_shift=train_scale_shift,
        )  # fmt: skip
        self.arguments = arguments


def schnet_energies(network: torch.nn.Module, graph: Graph) -> torch.Tensor:
    """ε (n_atoms, 1); the network's sums are over one atom each."""
    return network(graph.numbers, (graph.edge_index, graph.lengths), _each_alone(graph))


def visnet_energies(network: torch.nn.Module, graph: Graph) -> torch.Tensor:
    """The same of ViSNet, which wants an edge from every atom to itself and vectors that point to the sender."""
    atoms, (sender, receiver) = _each_alone(graph), graph.edge_index
    if bool((sender == receiver).any()):
        raise InputError(
            "an atom is within the cut-off of its own image, and ViSNet leaves such edges out: repeat the cell until "
            "it is wider than r_max, or choose a smaller r_max."
        )
    edge_index = torch.cat([graph.edge_index, atoms.expand(2, -1)], dim=1)
    lengths = torch.cat([graph.lengths, graph.vectors.new_zeros(len(atoms))])
    vectors = torch.cat([-graph.vectors, graph.vectors.new_zeros(len(atoms), 3)])
    return network(graph.numbers, (edge_index, lengths, vectors), atoms)[0]


class SchNetHost(EnergyModelHost):
    """``SchNet``."""

    model_class = SchNet


class ViSNetHost(EnergyModelHost):
    """``ViSNet``."""

    model_class = ViSNet


def _each_alone(graph: Graph) -> torch.Tensor:
    """(n_atoms,), every atom as a structure of its own."""
    return torch.arange(len(graph.numbers), device=graph.numbers.device)


def _check_elements(atomic_numbers: Sequence[int]) -> None:
    unknown = [int(z) for z in atomic_numbers if int(z) > LAST_ELEMENT]
    if unknown:
        raise InputError(
            f"atomic_numbers has {unknown}; PyTorch Geometric's models know elements up to {LAST_ELEMENT}."
        )


def _models() -> ModuleType:
    """``torch_geometric.nn.models``, imported late: most who use the zoo do without."""
    try:
        from torch_geometric.nn import models
    except ImportError as error:
        raise InputError(
            f"PyTorch Geometric cannot be imported ({error}): pip install 'phi-equivariant[pyg]'."
        ) from error
    return models
