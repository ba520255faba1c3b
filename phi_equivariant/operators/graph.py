"""The graph Laplacian of a neighbour list, a discrete −∇²."""

import math

import torch

from phi_equivariant.batching import segment_sum


def smooth_cutoff(x):
    """ω(x) = 1 − 10x³ + 15x⁴ − 6x⁵ for x = r/r_c: 1 at 0, and 0 with two continuous derivatives from x = 1 on."""
    x = x.clamp(max=1.0)
    return (1 - x) ** 3 * (1 + x * (3 + 6 * x))  # in this form never below zero by rounding


class GraphLaplacian(torch.nn.Module):
    """Combinatorial graph Laplacian L = D − W on the host's neighbour list, in e/V.

        W_ij = w₀ ω(r_ij / r_c),   (Lφ)_i = Σ_j W_ij (φ_i − φ_j)

    One constant vector per connected component is its null space, so charges ρ = Lφ sum to zero on each.

    Parameters
    ----------
    r_max: cut-off radius r_c in Å

    Source: arXiv 2505.14606, with weights that fall with distance and vanish smoothly at the cut-off.
    """

    initial_weight = 0.07  # e/V

    def __init__(self, r_max):
        super().__init__()
        self.r_max = r_max
        self.log_weight = torch.nn.Parameter(torch.tensor(math.log(self.initial_weight)))

    def edge_weights(self, lengths):
        """ω of every edge: lengths (n_edges,) in Å → (n_edges,), without the common factor w₀."""
        return smooth_cutoff(lengths / self.r_max)

    def apply(self, weights, edge_index, field):
        """Lφ by a sum over edges, no matrix: weights (n_edges,), field (n_atoms, c) in V → (n_atoms, c) in e."""
        sender, receiver = edge_index
        differences = weights[:, None] * (field[receiver] - field[sender])  # (n_edges, c)
        return self.log_weight.exp() * segment_sum(differences, receiver, len(field))

    def matrix(self, weights, edge_index, layout):
        """L/w₀ of every structure: (n_structures, n_max, n_max); periodic images add up."""
        sender, receiver = edge_index
        n = layout.n_max
        flat = layout.index[receiver] * n + layout.slot[sender]
        adjacency = weights.new_zeros(layout.n_structures * n * n).index_add(0, flat, weights)
        adjacency = adjacency.reshape(layout.n_structures, n, n)
        return torch.diag_embed(adjacency.sum(-1)) - adjacency
