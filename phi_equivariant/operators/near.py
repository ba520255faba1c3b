"""The part of a lattice sum that is summed over pairs: Gaussian charges and dipoles less those of the smooth part."""

from typing import NamedTuple

import torch

from phi_equivariant.operators.gaussians import add_joint_pairs, add_pairs, charge_kernel, kernels
from phi_equivariant.pairs import Pairs

_PAIRS = 2**17  # pairs at a time


class NearPairs(NamedTuple):
    """Pairs of atoms of a group of structures: ``pairs`` with the group's numbers of atoms, ``owner`` (n_pairs,), the
    structure of each, None where there is one, and ``splitting`` (n_pairs,) in Å."""

    pairs: Pairs
    owner: torch.Tensor | None
    splitting: torch.Tensor

    def chunks(self) -> list["NearPairs"]:
        """The same, some at a time."""
        owners = [None] if self.owner is None else self.owner.split(_PAIRS)
        parts = zip(*(part.split(_PAIRS) for part in (*self.pairs, self.splitting)), strict=True)
        if len(owners) == 1:
            return [NearPairs(Pairs(a, b, c), self.owner, s) for a, b, c, s in parts]
        return [NearPairs(Pairs(a, b, c), o, s) for (a, b, c, s), o in zip(parts, owners, strict=True)]

    def vectors(self, positions: torch.Tensor, cell: torch.Tensor) -> torch.Tensor:
        """From the first to the second atom, (n_pairs, 3): positions (n_atoms, 3), cell (n_structures, 3, 3)."""
        if self.owner is None:
            return self.pairs.vectors(positions, cell[0])
        first, second, images = self.pairs
        shifts = (images[:, None, :] @ cell.index_select(0, self.owner))[:, 0]
        return positions.index_select(0, second) - positions.index_select(0, first) + shifts

    def gamma_squared(self, width_squared: torch.Tensor) -> torch.Tensor:
        """γ² (n_pairs,) in Å²."""
        return width_squared.index_select(0, self.pairs.first) + width_squared.index_select(0, self.pairs.second)


def near_kernel(
    near: NearPairs, positions: torch.Tensor, width_squared: torch.Tensor, cell: torch.Tensor
) -> torch.Tensor:
    """[erf(r/√2γ) − erf(r/√2s)] k_e/r of every pair."""
    distance = near.vectors(positions, cell).square().sum(1).sqrt()  # (n_pairs,)
    return charge_kernel(distance, near.gamma_squared(width_squared)) - charge_kernel(distance, near.splitting.square())


def near_potential(
    near: NearPairs, positions: torch.Tensor, width_squared: torch.Tensor, cell: torch.Tensor, charges: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """What pairs add to the potential."""
    first, second, _ = near.pairs
    return (add_pairs(first, second, near_kernel(near, positions, width_squared, cell), charges),)


def near_joint(
    near: NearPairs,
    positions: torch.Tensor,
    width_squared: torch.Tensor,
    cell: torch.Tensor,
    charges: torch.Tensor,
    dipoles: torch.Tensor,
) -> tuple[torch.Tensor, ...]:
    """What pairs add to the potential of charges and dipoles, and to its gradient."""
    first, second, _ = near.pairs
    vectors, three = joint_kernels(near, positions, width_squared, cell)
    return add_joint_pairs(first, second, vectors, three, charges, dipoles)


def joint_kernels(
    near: NearPairs, positions: torch.Tensor, width_squared: torch.Tensor, cell: torch.Tensor
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """The vector of every pair, and g, g₁ and g₂ without those of the smooth part."""
    vectors = near.vectors(positions, cell)
    squared = vectors.square().sum(1)
    exact, smooth = (kernels(squared, one) for one in (near.gamma_squared(width_squared), near.splitting.square()))
    return vectors, (exact[0] - smooth[0], exact[1] - smooth[1], exact[2] - smooth[2])
