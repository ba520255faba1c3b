"""The smooth part of a lattice sum by waves, as it stands."""

import math

import torch

from phi_equivariant.operators.lattice import Smooth, cell_volume, smooth_transform
from phi_equivariant.structures import Structures

# Both sums of Ewald's end where a Gaussian has fallen to e^(−reach²/2): 2e-11 of its height in double precision, 3e-7
# in single.
REACH = {torch.float64: 7.0, torch.float32: 5.5}
_ROWS = 128  # of a symmetric matrix at a time


class Waves(Smooth):
    """Reciprocal vectors k ≠ 0 up to where the smooth part ends, one of each pair ±k, and their waves at the atoms.

    Parameters
    ----------
    structures: ``Structures``, some hundred atoms each
    splitting: (n_structures,), s in Å
    reach: where the sum ends, in units of 1/s; ``REACH`` of the precision where None
    """

    def __init__(self, structures: Structures, splitting: torch.Tensor, reach: float | None = None) -> None:
        cell, self.layout = structures.cell, structures.layout
        inverse = torch.linalg.inv(cell)
        indices = reciprocal_indices(
            (reach or REACH[cell.dtype]) / splitting, inverse.detach()
        )  # (n_structures, n_k, 3)
        self.vectors = 2 * math.pi * indices @ inverse.mT  # (n_structures, n_k, 3) in 1/Å, zero where a list is shorter
        transform = smooth_transform(self.vectors.square().sum(-1), splitting[:, None])
        self.weights = 2 * transform / cell_volume(cell)[:, None]  # one of k and −k stands for both
        fractional = self.layout.pad(structures.positions) @ inverse
        # Whole cells do not change a wave, but large arguments would lose digits.
        phase = 2 * math.pi * indices @ (fractional - fractional.detach().round()).mT  # (n_structures, n_k, n_max)
        self.cosine, self.sine = phase.cos(), phase.sin()

    def potential(self, charges: torch.Tensor) -> torch.Tensor:
        """Σ_k w_k [cos k·r_i Σ_j cos k·r_j q_j + sin k·r_i Σ_j sin k·r_j q_j]."""
        padded, weights = self.layout.pad(charges), self.weights[:, :, None]
        even, odd = weights * (self.cosine @ padded), weights * (self.sine @ padded)  # (n_structures, n_k, c)
        return self.layout.unpad(self.cosine.mT @ even + self.sine.mT @ odd)

    def joint(self, charges: torch.Tensor, dipoles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The same with the source Σ_j (q_j + i k·μ_j) e^{ik·r_j}, and the slopes of its waves."""
        padded, weights = self.layout.pad(charges), self.weights[:, :, None]
        along = torch.einsum("gkx,gjcx->gkjc", self.vectors, self.layout.pad(dipoles))  # k·μ_j
        even = weights * (self.cosine @ padded - torch.einsum("gkj,gkjc->gkc", self.sine, along))
        odd = weights * (self.sine @ padded + torch.einsum("gkj,gkjc->gkc", self.cosine, along))
        potential = self.cosine.mT @ even + self.sine.mT @ odd
        slopes = (self.vectors[:, :, None, :] * both[..., None] for both in (odd, even))  # (n_structures, n_k, c, 3)
        plus, minus = (slope.flatten(2) for slope in slopes)
        gradient = (self.cosine.mT @ plus - self.sine.mT @ minus).unflatten(-1, (-1, 3))
        return self.layout.unpad(potential), self.layout.unpad(gradient)

    def own(self) -> torch.Tensor:
        """Σ_k w_k."""
        return self.weights.sum(1)

    def matrix(self) -> torch.Tensor:
        """Σ_k w_k cos k·r_ij."""
        return self._matrix_of(torch.cat([self.cosine, self.sine], dim=1))

    def joint_matrix(self) -> torch.Tensor:
        """The same with the slopes of the waves for dipoles."""
        along = self.vectors[:, :, None]  # (n_structures, n_k, 1, 3)
        cosine, sine = self.cosine[..., None], self.sine[..., None]
        even, odd = torch.cat([cosine, -along * sine], dim=-1), torch.cat([sine, along * cosine], dim=-1)
        return self._matrix_of(torch.cat([even, odd], dim=1).flatten(2))

    def _matrix_of(self, waves: torch.Tensor) -> torch.Tensor:
        """Σ_k w_k of waves (n_structures, 2 n_k, n) with themselves."""
        weighted = self.weights.repeat(1, 2)[:, :, None] * waves
        if torch.is_grad_enabled():
            return waves.mT @ weighted
        # It is symmetric: the other half is copied.
        n = waves.shape[2]
        found = waves.new_empty((len(waves), n, n))
        for start in range(0, n, _ROWS):
            rows = slice(start, start + _ROWS)
            found[:, rows, : rows.stop] = waves[:, :, rows].mT @ weighted[:, :, : rows.stop]
            found[:, :start, rows] = found[:, rows, :start].mT
        return found


@torch.no_grad()
def reciprocal_indices(k_max: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """Whole numbers m of the reciprocal vectors 0 < |2π m A⁻ᵀ| < k_max, one of each pair ±m, zeros to fill up.

    Parameters
    ----------
    k_max: (n_structures,) in 1/Å
    inverse: (n_structures, 3, 3), inverse of the cells A

    Returns
    -------
    (n_structures, n_k, 3), in the precision of ``inverse``
    """
    lists = []
    for one, end in zip(inverse, k_max, strict=True):
        lengths = torch.linalg.inv(one).norm(dim=1)  # of the cell vectors
        limits = (end * lengths / (2 * math.pi)).int().tolist()
        a, b, c = (torch.arange(-m, m + 1, device=one.device) for m in limits)
        grid = torch.cartesian_prod(a[a >= 0], b, c)
        # Of ±m, the later in this order: what stands before (0, 0, 0) is left out, and itself.
        grid = grid[len(b) * len(c) // 2 + 1 :].to(one.dtype)
        lists.append(grid[(2 * math.pi * grid @ one.mT).norm(dim=1) < end])
    return torch.nn.utils.rnn.pad_sequence(lists, batch_first=True)
