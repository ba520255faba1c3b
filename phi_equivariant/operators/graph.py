"""The graph Laplacian of a neighbour list, a discrete −∇²."""

import math
from collections.abc import Sequence

import torch

from phi_equivariant.batching import PaddedLayout, segment_sum
from phi_equivariant.operators.base import Bound, Operator, Part, Settings
from phi_equivariant.structures import Structures


def smooth_cutoff(x: torch.Tensor) -> torch.Tensor:
    """ω(x) = 1 − 10x³ + 15x⁴ − 6x⁵ for x = r/r_c: 1 at 0, and 0 with two continuous derivatives from x = 1 on."""
    x = x.clamp(max=1.0)
    return (1 - x) ** 3 * (1 + x * (3 + 6 * x))  # in this form never below zero by rounding


class GraphLaplacian(Operator):
    """Combinatorial graph Laplacian L = D − W on the host's neighbour list, in e/V.

        W_ij = w₀ ω(r_ij / r_c),   (Lφ)_i = Σ_j W_ij (φ_i − φ_j)

    One constant vector per connected component is its null space, so charges ρ = Lφ sum to zero on each.

    Parameters
    ----------
    r_max: cut-off radius r_c in Å
    dense_limit: atoms up to which matrices are made where they are needed

    Source: arXiv 2505.14606, with weights that fall with distance and vanish smoothly at the cut-off.
    """

    name = "graph"
    inverse, carries_charge, dipoles, widths_of_charges = False, False, False, False
    periodicities = frozenset({0, 1, 2, 3})
    element_scale, window_width = 2.0, 0.05

    initial_weight = 0.07  # e/V

    def __init__(self, r_max: float, dense_limit: int = 2000) -> None:
        super().__init__()
        self.r_max, self.dense_limit = r_max, dense_limit
        self.log_weight = torch.nn.Parameter(torch.tensor(math.log(self.initial_weight)))

    @classmethod
    def build(cls, atomic_numbers: Sequence[int], r_max: float, config: Settings) -> "GraphLaplacian":
        """The operator of a host with this cut-off."""
        return cls(r_max, config.dense_limit)

    def at(self, structures: Structures, matrix: bool = False, up_to: int | None = None, edges: bool = False) -> Bound:
        """L at the structures of a batch; in one sum over all edges where no matrix is needed."""
        scale, limit = self.log_weight.exp(), self.dense_limit if up_to is None else min(self.dense_limit, up_to)
        large = [matrix and count > limit for count in structures.counts]
        groups = structures.groups(large, large) if matrix else [list(range(len(structures)))]
        parts = []
        for group in groups:
            atoms, chosen = structures.select(group, edges=True)
            weights = smooth_cutoff(chosen.edge_lengths() / self.r_max)
            parts.append((atoms, _Graph(chosen, weights, scale, dense=not large[group[0]])))
        return Bound(structures, parts, scale)


class _Graph(Part):
    """L of some structures: weights (n_edges,), ω of every edge of this process; scale, w₀ in e/V."""

    def __init__(self, structures: Structures, weights: torch.Tensor, scale: torch.Tensor, dense: bool) -> None:
        super().__init__(structures)
        assert structures.edge_index is not None
        self.edge_index, self.weights, self.scale, self.dense = structures.edge_index, weights, scale, dense

    def product(self, values: torch.Tensor) -> torch.Tensor:
        """Lφ by a sum over edges: (n_atoms, c) in V → (n_atoms, c) in e."""
        sender, receiver = self.edge_index
        share = self.structures.share
        (values,) = share.enter(values)
        differences = self.weights[:, None] * (values[receiver] - values[sender])  # (n_edges, c)
        (found,) = share.leave(segment_sum(differences, receiver, len(values)))
        return self.scale * found

    def matrix(self) -> torch.Tensor:
        """L of every structure; periodic images add up."""
        sender, receiver = self.edge_index
        layout: PaddedLayout = self.structures.layout
        n = layout.n_max
        flat = layout.index[receiver] * n + layout.slot[sender]
        adjacency = self.weights.new_zeros(layout.n_structures * n * n).index_add(0, flat, self.weights)
        (adjacency,) = self.structures.share.leave(adjacency.reshape(layout.n_structures, n, n))
        return self.scale * (torch.diag_embed(adjacency.sum(-1)) - adjacency)

    def diagonal(self) -> torch.Tensor:
        """Σ_j W_ij less what an atom's own images have: (n_atoms,)."""
        sender, receiver = self.edge_index
        others = self.weights * (sender != receiver)
        (found,) = self.structures.share.leave(segment_sum(others, receiver, len(self.structures.positions)))
        return self.scale * found
