"""P of Gaussian charges in periodic cells with a neutralising background: Ewald's sum over pairs and a smooth part."""

import abc
import functools
import math

import torch

from phi_equivariant.division import WHOLE
from phi_equivariant.operators.base import Part
from phi_equivariant.operators.gaussians import (
    COULOMB_CONSTANT,
    add_joint_pairs,
    add_pairs,
    own_gradient_kernel,
    own_kernel,
)
from phi_equivariant.operators.near import NearPairs, joint_kernels, near_joint, near_kernel, near_potential
from phi_equivariant.solvers.partwise import sum_of_parts
from phi_equivariant.structures import Structures


class Smooth(abc.ABC):
    """The potential of Gaussian charges of width s in the cells of some structures, without their mean."""

    @abc.abstractmethod
    def potential(self, charges: torch.Tensor) -> torch.Tensor:
        """(1/V) Σ_{k≠0} v(k) Σ_j cos k·r_ij q_j with v(k) = 4π k_e e^{−k²s²/2}/k²: (n_atoms, c) in e → in V.

        Where the structure is shared among processes, they add up to it; so do those of ``joint``.
        """

    @abc.abstractmethod
    def joint(self, charges: torch.Tensor, dipoles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Potential of charges and dipoles (n_atoms, c) in V, and its gradient (n_atoms, c, 3) in V/Å."""

    @abc.abstractmethod
    def own(self) -> torch.Tensor:
        """(1/V) Σ_{k≠0} v(k) of every structure, (n_structures,) in V/e."""

    def matrix(self) -> torch.Tensor:
        """(1/V) Σ_{k≠0} v(k) cos k·r_ij of every structure, (n_structures, n_max, n_max)."""
        raise NotImplementedError(f"{type(self).__name__} makes no matrix.")

    def joint_matrix(self) -> torch.Tensor:
        """``joint`` as a matrix, (n_structures, 4 n_max, 4 n_max)."""
        raise NotImplementedError(f"{type(self).__name__} makes no matrix.")


class LatticeSum(Part):
    """P of structures that are periodic in three directions.

        P_ij / k_e = (4π/V) Σ_{k≠0} e^{−k²s²/2}/k² cos k·r_ij + Σ'_n [erf(r/√2γ_ij) − erf(r/√2s)]/r
                     + δ_ij [1/(√π σ_i) − √(2/π)/s] − 2π (s² − γ_ij²)/V,    r = |r_ij + n|,  γ_ij² = σ_i² + σ_j²

    The sum over cells n leaves out an atom's own place. The last term makes the mean of every atom's potential zero,
    as a uniform background does that neutralises each Gaussian: P then equals (4π/V) Σ_{k≠0} e^{−k²γ_ij²/2}/k²
    cos k·r_ij, which is positive semi-definite for charged vectors too, and does not depend on s. Dipoles have the same
    sums with the derivatives of g, and no field of the whole cell's dipole (conducting surroundings).

    Parameters
    ----------
    structures: ``Structures``; width_squared: (n_atoms,), σ² in Å²
    splitting: (n_structures,), s in Å
    near: ``NearPairs`` up to where the sum over pairs ends, this process's share of them
    smooth: the first sum, by waves or on a mesh

    Source: P. P. Ewald, Ann. Phys. 369, 253 (1921).
    """

    def __init__(
        self,
        structures: Structures,
        width_squared: torch.Tensor,
        splitting: torch.Tensor,
        near: NearPairs,
        smooth: Smooth,
        dense: bool,
    ) -> None:
        super().__init__(structures)
        self.width_squared, self.splitting, self.near, self.smooth = width_squared, splitting, near, smooth
        self.dense, self.share = dense, WHOLE if dense else structures.share  # matrices are small
        self.per_volume = 2 * math.pi * COULOMB_CONSTANT / cell_volume(structures.cell)  # (n_structures,)

    def product(self, values: torch.Tensor) -> torch.Tensor:
        """Pq."""
        (shared,) = self.share.leave(self._of_share(values))
        return shared + self._own()[:, None] * values + self._background(values)

    def joint(self, charges: torch.Tensor, dipoles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Potential of charges and dipoles, and its gradient."""
        potential, gradient = self.share.leave(*self._joint_of_share(charges, dipoles))
        potential = potential + self._own()[:, None] * charges + self._background(charges)
        return potential, gradient + self._own_gradient()[:, None, None] * dipoles

    def _of_share(self, values: torch.Tensor) -> torch.Tensor:
        """What this process adds to the sums over pairs and waves: (n_atoms, c)."""
        if torch.is_grad_enabled():
            about = self.structures.positions, self.width_squared, self.structures.cell
            (near,) = sum_of_parts(near_potential, self.near.chunks(), *self.share.enter(*about, values))
        else:
            first, second, _ = self.near.pairs
            near = add_pairs(first, second, self._fixed_kernel, values)
        return self.smooth.potential(values) + near

    def _joint_of_share(self, charges: torch.Tensor, dipoles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The same with dipoles, and its gradient."""
        if torch.is_grad_enabled():
            about = self.structures.positions, self.width_squared, self.structures.cell
            inputs = self.share.enter(*about, charges, dipoles)
            near, slope = sum_of_parts(near_joint, self.near.chunks(), *inputs)
        else:
            first, second, _ = self.near.pairs
            near, slope = add_joint_pairs(first, second, *self._fixed_kernels, charges, dipoles)
        potential, gradient = self.smooth.joint(charges, dipoles)
        return potential + near, gradient + slope

    def matrix(self) -> torch.Tensor:
        """P of every structure."""
        structures, layout = self.structures, self.structures.layout
        if torch.is_grad_enabled():
            kernel = near_kernel(self.near, structures.positions, self.width_squared, structures.cell)
        else:
            kernel = self._fixed_kernel
        near = self._of_pairs(kernel[:, None, None])
        potential = self.smooth.matrix() + near + near.mT + self._background_matrix()
        potential = potential.where(layout.mask[:, :, None] & layout.mask[:, None, :], potential.new_zeros(()))
        return potential + torch.diag_embed(layout.pad(self._own()))

    @torch.no_grad()
    def joint_matrix(self) -> torch.Tensor | None:
        """The same with dipoles, without derivatives; None on a mesh."""
        if not self.dense:
            return None
        layout, n = self.structures.layout, self.structures.layout.n_max
        vectors, (zeroth, slope, curvature) = self._fixed_kernels
        blocks = torch.diag_embed(torch.stack([zeroth, -slope, -slope, -slope], dim=1))  # (n_pairs, 4, 4)
        blocks[:, 0, 1:], blocks[:, 1:, 0] = slope[:, None] * vectors, -slope[:, None] * vectors
        blocks[:, 1:, 1:] -= curvature[:, None, None] * vectors[:, :, None] * vectors[:, None, :]
        near = self._of_pairs(blocks)
        potential = self.smooth.joint_matrix() + near + near.mT
        potential.unflatten(1, (n, 4)).unflatten(3, (n, 4))[:, :, 0, :, 0] += self._background_matrix()
        there = layout.mask.repeat_interleave(4, dim=1)
        potential = potential.where(there[:, :, None] & there[:, None, :], potential.new_zeros(()))
        own = torch.cat([self._own()[:, None], self._own_gradient()[:, None].expand(-1, 3)], dim=1)
        return potential + torch.diag_embed(layout.pad(own).flatten(1))

    def _of_pairs(self, blocks: torch.Tensor) -> torch.Tensor:
        """Blocks (n_pairs, b, b) of the first and second atom → (n_structures, n_max·b, n_max·b)."""
        layout, (first, second, _) = self.structures.layout, self.near.pairs
        n, b = layout.n_max, blocks.shape[1]
        flat = layout.index[first] * n + layout.slot[second]
        entries = blocks.new_zeros(len(self.structures) * n * n, b * b).index_add(0, flat, blocks.flatten(1))
        return entries.reshape(-1, n, n, b, b).transpose(2, 3).reshape(-1, n * b, n * b)

    def _background_matrix(self) -> torch.Tensor:
        """−2π k_e (s² − γ_ij²)/V."""
        squared = self.structures.layout.pad(self.width_squared)
        background = squared[:, :, None] + squared[:, None, :] - self.splitting.square()[:, None, None]
        return self.per_volume[:, None, None] * background

    def diagonal(self) -> torch.Tensor:
        """P_ii: with an atom's own images."""
        first, second, _ = self.near.pairs
        inputs = self.share.enter(self.structures.positions, self.width_squared, self.structures.cell)
        kernel = near_kernel(self.near, *inputs)
        images = torch.zeros_like(self.width_squared).index_add(0, first, 2 * kernel * (first == second))
        (images,) = self.share.leave(images)
        background = self._of_atoms(self.per_volume) * (2 * self.width_squared - self._of_atoms(self.splitting) ** 2)
        return self._of_atoms(self.smooth.own()) + self._own() + images + background

    @functools.cached_property
    def _fixed_kernel(self) -> torch.Tensor:
        """(n_pairs,), where no derivative is wanted."""
        about = self.structures.positions, self.width_squared, self.structures.cell
        with torch.no_grad():
            return torch.cat([near_kernel(chunk, *about) for chunk in self.near.chunks()])

    @functools.cached_property
    def _fixed_kernels(self) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Vectors (n_pairs, 3) and the kernels (n_pairs,) of dipoles, where no derivative is wanted."""
        about = self.structures.positions, self.width_squared, self.structures.cell
        with torch.no_grad():
            found = [joint_kernels(chunk, *about) for chunk in self.near.chunks()]
        zeroth, slope, curvature = (torch.cat(kernels) for kernels in zip(*(three for _, three in found), strict=True))
        return torch.cat([vectors for vectors, _ in found]), (zeroth, slope, curvature)

    def _of_atoms(self, values: torch.Tensor) -> torch.Tensor:
        """(n_structures,) → (n_atoms,)."""
        return values.expand(len(self.width_squared)) if len(values) == 1 else values[self.structures.batch]

    def _own(self) -> torch.Tensor:
        """What is left of a charge in its own potential: (n_atoms,)."""
        return own_kernel(2 * self.width_squared) - own_kernel(self._of_atoms(self.splitting) ** 2)

    def _own_gradient(self) -> torch.Tensor:
        """What is left of a dipole in its own field: (n_atoms,)."""
        return own_gradient_kernel(2 * self.width_squared) - own_gradient_kernel(self._of_atoms(self.splitting) ** 2)

    def _background(self, charges: torch.Tensor) -> torch.Tensor:
        """−2π k_e/V Σ_j (s² − γ_ij²) q_j: (n_atoms, c)."""
        total = self.structures.sum(charges)  # (n_structures, c)
        second_moment = self.structures.sum(self.width_squared[:, None] * charges)
        constant = self.per_volume[:, None] * (second_moment - self.splitting.square()[:, None] * total)
        slope = self.per_volume[:, None] * total
        if len(total) > 1:
            constant, slope = constant[self.structures.batch], slope[self.structures.batch]
        return constant + self.width_squared[:, None] * slope


def cell_volume(cell: torch.Tensor) -> torch.Tensor:
    """|a·(b×c)| in Å³: (n_structures, 3, 3) → (n_structures,). torch.linalg.det fails to differentiate float32 where
    float64 is torch's default precision."""
    a, b, c = cell.unbind(1)
    return (a * torch.linalg.cross(b, c)).sum(-1).abs()


def smooth_transform(k_squared: torch.Tensor, splitting: torch.Tensor | float) -> torch.Tensor:
    """v(k) = 4π k_e e^{−k²s²/2}/k² in V·Å³/e, 0 at k = 0."""
    some = k_squared.where(k_squared != 0, k_squared.new_ones(()))
    value = 4 * math.pi * COULOMB_CONSTANT * torch.exp(-0.5 * splitting**2 * some) / some
    return value.where(k_squared != 0, value.new_zeros(()))
