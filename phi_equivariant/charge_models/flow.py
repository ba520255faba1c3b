"""The graph along whose edges charge flows, and how well they conduct."""

import math

import torch

from phi_equivariant.batching import PaddedLayout
from phi_equivariant.division import WHOLE, Share
from phi_equivariant.errors import InputError
from phi_equivariant.operators.graph import smooth_cutoff


class FlowGraph:
    """Edges with conductances w, along which charge flows from atoms of high level u to atoms of low.

        p_ij = w_ij (u_j − u_i),   ρ_i − q⁰_i = Σ_j p_ij = −(L_g u)_i,   energy of the flow ½ Σ p²/w = ½ uᵀL_g u

    A host lists each edge in both directions, here two halves of one edge; several edges between the same atoms add
    up, and those of an atom to its own images carry nothing.

    Parameters
    ----------
    edge_index: (2, n_edges), both directions of every edge
    conductance: w (n_edges,) in e/V, of the whole edge, the same in both directions; 0 is allowed, and may be where an
        edge comes to the cut-off
    layout: which atoms are one structure
    share: this process's of the edges; then these are those of it

    Raises
    ------
    InputError
        For a conductance that is negative or not finite.
    """

    def __init__(
        self, edge_index: torch.Tensor, conductance: torch.Tensor, layout: PaddedLayout, share: Share = WHOLE
    ) -> None:
        known = conductance.detach()
        if not bool(((known >= 0) & torch.isfinite(known)).all()):
            raise InputError(
                "a conductance is negative or not finite (NaN or infinity); it must be at least 0. The model's file is "
                "damaged, or its training has diverged: load another, or train with a smaller learning rate."
            )
        self.sender, self.receiver = edge_index
        self.half, self.layout, self.share = 0.5 * conductance, layout, share

    @torch.no_grad()
    def in_single(self) -> "FlowGraph":
        """The same in single precision, without derivatives."""
        edge_index = torch.stack([self.sender, self.receiver])
        return FlowGraph(edge_index, 2 * self.half.to(torch.float32), self.layout, self.share)

    def flows(self, level: torch.Tensor) -> torch.Tensor:
        """Charge that flows from sender to receiver along every listed edge: level (n_atoms,) in V → (n_edges,) in e.

        The two directions of an edge are half of its flow each, with opposite signs.
        """
        (level,) = self.share.enter(level)
        return self.half * (level.index_select(0, self.sender) - level.index_select(0, self.receiver))

    def apply(self, level: torch.Tensor) -> torch.Tensor:
        """L_g u: (n_atoms,) in V → (n_atoms,) in e, what has left every atom."""
        flows = self.flows(level)
        left = torch.zeros_like(level).index_add(0, self.sender, flows).index_add(0, self.receiver, -flows)
        return self.share.leave(left)[0]

    def matrix(self) -> torch.Tensor:
        """L_g (n_structures, n_max, n_max) in e/V."""
        layout, n = self.layout, self.layout.n_max
        flat = layout.index[self.receiver] * n + layout.slot[self.sender]
        adjacency = self.half.new_zeros(layout.n_structures * n * n).index_add(0, flat, self.half)
        (adjacency,) = self.share.leave(adjacency.reshape(layout.n_structures, n, n))
        adjacency = adjacency + adjacency.mT
        return torch.diag_embed(adjacency.sum(-1)) - adjacency

    def energy(self, level: torch.Tensor) -> torch.Tensor:
        """Half of each edge's ½w(u_i − u_j)² at either end: (n_atoms,) in eV."""
        (entered,) = self.share.enter(level)
        drop = entered.index_select(0, self.sender) - entered.index_select(0, self.receiver)
        part = 0.25 * self.half * drop.square()  # of each of an edge's two listings at each of its two ends
        return self.share.leave(
            torch.zeros_like(level).index_add(0, self.sender, part).index_add(0, self.receiver, part)
        )[0]


class Conductance(torch.nn.Module):
    """Conductances of a neighbour list, w_ij = w₀ c_i c_j ω(r_ij/r_c), in e/V; they end smoothly at the cut-off.

    Parameters
    ----------
    r_max: cut-off radius r_c in Å
    """

    initial = 0.2  # e/V, by validation: docs/log.md

    def __init__(self, r_max: float) -> None:
        super().__init__()
        self.r_max = r_max
        self.log_weight = torch.nn.Parameter(torch.tensor(math.log(self.initial)))

    def forward(
        self, of_atoms: torch.Tensor, edge_index: torch.Tensor, lengths: torch.Tensor, share: Share = WHOLE
    ) -> torch.Tensor:
        """c (n_atoms,), the edges (2, n_edges) of a share and their lengths (n_edges,) in Å → w (n_edges,)."""
        sender, receiver = edge_index
        of_atoms, log_weight = share.enter(of_atoms, self.log_weight)
        both = of_atoms.index_select(0, sender) * of_atoms.index_select(0, receiver)
        return log_weight.exp() * both * smooth_cutoff(lengths / self.r_max)
