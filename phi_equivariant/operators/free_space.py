"""P of Gaussian charges in free space: its matrix, or rows of it, a few at a time, that are not kept."""

import torch

from phi_equivariant.operators.base import Part
from phi_equivariant.operators.gaussians import charge_kernel, kernels, own_kernel
from phi_equivariant.solvers.partwise import sum_of_parts
from phi_equivariant.structures import Structures

_TILE = 2**16  # pairs of atoms at a time: half a megabyte for each of the arrays that a tile takes
_JOINT_TILE = 2**15  # the same with dipoles
_KEPT_TO = 1000  # atoms up to which the matrix of charges and dipoles is kept: 16 N² numbers


class FreeSpaceMatrix(Part):
    """P of open structures, each as a matrix, padded to the largest.

        P_ij = k_e erf(r_ij / (√2 γ_ij)) / r_ij,   γ_ij² = σ_i² + σ_j²,   P_ii = k_e / (√π σ_i)

    Parameters
    ----------
    structures: ``Structures``; width_squared: (n_atoms,), σ² in Å²
    """

    dense = True

    def __init__(self, structures: Structures, width_squared: torch.Tensor) -> None:
        super().__init__(structures)
        self.width_squared = width_squared
        self._matrices: dict[bool, torch.Tensor] = {}  # with and without what derivatives need
        self._joint: torch.Tensor | None = None

    def matrix(self) -> torch.Tensor:
        """P of every structure."""
        wanted = torch.is_grad_enabled()
        found = self._matrices.get(True, self._matrices.get(wanted))
        if found is None:
            found = self._matrices[wanted] = self._make_matrix()
        return found

    def _make_matrix(self) -> torch.Tensor:
        layout = self.structures.layout
        pairs = self._is_pair()
        pairs = pairs & ~torch.eye(layout.n_max, dtype=torch.bool, device=pairs.device)
        positions = layout.pad(self.structures.positions)
        squared = (positions[:, :, None] - positions[:, None, :]).square().sum(-1)
        # A root has no derivative at zero: entries that are not a pair of atoms get a distance that is not used.
        distance = squared.where(pairs, squared.new_ones(())).sqrt()  # (n_structures, n_max, n_max)
        potential = charge_kernel(distance, self._gamma_squared(pairs)).where(pairs, squared.new_zeros(()))
        return potential + torch.diag_embed(layout.pad(self.diagonal()))

    def product(self, values: torch.Tensor) -> torch.Tensor:
        """Pq."""
        layout = self.structures.layout
        return layout.unpad(self.matrix() @ layout.pad(values))

    def diagonal(self) -> torch.Tensor:
        """k_e / (√π σ_i)."""
        return own_kernel(2 * self.width_squared)

    def joint(self, charges: torch.Tensor, dipoles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Potential of charges and dipoles, and its gradient."""
        layout = self.structures.layout
        if not torch.is_grad_enabled() and layout.n_max <= _KEPT_TO:
            return self._joint_without_derivatives(charges, dipoles)
        positions = layout.pad(self.structures.positions)
        terms = _joint(
            positions, positions, self._gamma_squared(self._is_pair()), layout.pad(charges), layout.pad(dipoles)
        )
        return layout.unpad(terms[0]), layout.unpad(terms[1])

    def joint_matrix(self) -> torch.Tensor:
        """The same as a matrix, without derivatives."""
        if self._joint is None:
            with torch.no_grad():
                self._joint = self._make_joint_matrix()
        return self._joint

    def _make_joint_matrix(self) -> torch.Tensor:
        layout, pairs = self.structures.layout, self._is_pair()
        positions, n = layout.pad(self.structures.positions), layout.n_max
        difference = positions[:, :, None] - positions[:, None, :]  # (n_structures, n_max, n_max, 3)
        three = kernels(difference.square().sum(-1), self._gamma_squared(pairs))
        zeroth, slope, curvature = (kernel.where(pairs, kernel.new_zeros(())) for kernel in three)
        along = slope[..., None] * difference
        matrix = zeroth.new_empty((len(zeroth), n, 4, n, 4))
        matrix[:, :, 0, :, 0] = zeroth
        matrix[:, :, 0, :, 1:], matrix[:, :, 1:, :, 0] = -along, along.movedim(-1, 2)
        for a in range(3):
            for b in range(3):
                block = -curvature * difference[..., a] * difference[..., b]
                matrix[:, :, 1 + a, :, 1 + b] = block - slope if a == b else block
        return matrix.reshape(len(zeroth), 4 * n, 4 * n)

    def _joint_without_derivatives(
        self, charges: torch.Tensor, dipoles: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        layout = self.structures.layout
        moments = torch.cat([charges[:, None], dipoles.transpose(1, 2)], dim=1)  # (n_atoms, 4, c)
        found = self.joint_matrix() @ layout.pad(moments).flatten(1, 2)
        found = layout.unpad(found.unflatten(1, (-1, 4)))
        return found[:, 0], found[:, 1:].transpose(1, 2)

    def _is_pair(self) -> torch.Tensor:
        mask = self.structures.layout.mask
        return mask[:, :, None] & mask[:, None, :]  # (n_structures, n_max, n_max)

    def _gamma_squared(self, pairs: torch.Tensor) -> torch.Tensor:
        squared = self.structures.layout.pad(self.width_squared)
        return (squared[:, :, None] + squared[:, None, :]).where(pairs, squared.new_ones(()))


class FreeSpaceTiles(Part):
    """P of one open structure as a map, in memory proportional to its number of atoms.

        (Pq)_i = k_e q_i/(√π σ_i) + k_e Σ_{j≠i} erf(r_ij/√2γ_ij)/r_ij q_j,   γ_ij² = σ_i² + σ_j²

    Parameters
    ----------
    structures: ``Structures``, one; width_squared: (n_atoms,), σ² in Å²
    """

    dense = False

    def __init__(self, structures: Structures, width_squared: torch.Tensor) -> None:
        super().__init__(structures)
        self.width_squared = width_squared

    def matrix(self) -> torch.Tensor:
        """Not made."""
        raise NotImplementedError(f"P of {len(self.width_squared)} atoms is applied, not made.")

    def product(self, values: torch.Tensor) -> torch.Tensor:
        """Pq."""
        own = values * self.diagonal()[:, None]
        n = len(values)
        if n == 1:
            return own
        share = self.structures.share
        inputs = share.enter(self.structures.positions, self.width_squared, values)
        tiles = share.of(_tiles(n)) or [(0, 0)]
        return own + share.leave(*sum_of_parts(_rows, tiles, *inputs))[0]

    def diagonal(self) -> torch.Tensor:
        """k_e / (√π σ_i)."""
        return own_kernel(2 * self.width_squared)

    def joint(self, charges: torch.Tensor, dipoles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Potential of charges and dipoles, and its gradient."""
        n = len(charges)
        rows = max(1, _JOINT_TILE // n)
        tiles = [(first, min(n, first + rows)) for first in range(0, n, rows)]
        share = self.structures.share
        inputs = share.enter(self.structures.positions, self.width_squared, charges, dipoles)
        potential, gradient = share.leave(*sum_of_parts(_joint_rows, share.of(tiles) or [(0, 0)], *inputs))
        return potential, gradient


def _tiles(n: int) -> list[tuple[int, int]]:
    """[first, last) rows whose part of the upper triangle has about _TILE entries."""
    tiles, first = [], 0
    while first < n - 1:
        last = min(n, first + max(1, _TILE // (n - first)))
        tiles.append((first, last))
        first = last
    return tiles


def _rows(
    tile: tuple[int, int], positions: torch.Tensor, width_squared: torch.Tensor, charges: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """What the pairs i < j with i in a tile add to the potential: of j at i, and of i at j."""
    first, last = tile
    inside, beyond = positions[first:last], positions[first:]
    squared = torch.zeros((), dtype=positions.dtype, device=positions.device)
    for axis in range(3):
        squared = squared + (inside[:, None, axis] - beyond[None, :, axis]).square()  # (n_rows, n_rest)
    upper = torch.ones_like(squared, dtype=torch.bool).triu(1)
    # A root has no derivative at zero: entries that are not a pair i < j get a distance that is not used.
    distance = squared.where(upper, squared.new_ones(())).sqrt()
    gamma_squared = width_squared[first:last, None] + width_squared[None, first:]
    kernel = charge_kernel(distance, gamma_squared).triu(1)
    at_rows, at_rest = kernel @ charges[first:], kernel.mT @ charges[first:last]
    potential = torch.nn.functional.pad(at_rest, (0, 0, first, 0))
    return (potential + torch.nn.functional.pad(at_rows, (0, 0, first, len(positions) - last)),)


def _joint_rows(
    tile: tuple[int, int],
    positions: torch.Tensor,
    width_squared: torch.Tensor,
    charges: torch.Tensor,
    dipoles: torch.Tensor,
) -> tuple[torch.Tensor, ...]:
    """Potential and gradient at the atoms of a tile."""
    first, last = tile
    gamma_squared = width_squared[None, first:last, None] + width_squared[None, None]
    potential, gradient = _joint(
        positions[None, first:last], positions[None], gamma_squared, charges[None], dipoles[None]
    )
    pad, rest = torch.nn.functional.pad, len(positions) - last
    return pad(potential[0], (0, 0, first, rest)), pad(gradient[0], (0, 0, 0, 0, first, rest))


def _joint(
    here: torch.Tensor,
    there: torch.Tensor,
    gamma_squared: torch.Tensor,
    charges: torch.Tensor,
    dipoles: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """φ (n_structures, n_here, c) and ∇φ (n_structures, n_here, c, 3) of charges (n_structures, n_there, c) and dipoles
    (n_structures, n_there, c, 3): here (n_structures, n_here, 3), there (n_structures, n_there, 3), γ² (n_structures,
    n_here, n_there)."""
    difference = here[:, :, None] - there[:, None, :]  # (n_structures, n_here, n_there, 3)
    zeroth, slope, curvature = kernels(difference.square().sum(-1), gamma_squared)
    along = torch.einsum("gijx,gjcx->gijc", difference, dipoles)  # d·μ_j
    potential = zeroth @ charges - torch.einsum("gij,gijc->gic", slope, along)
    radial = slope[..., None] * charges[:, None] - curvature[..., None] * along  # (n_structures, n_here, n_there, c)
    gradient = torch.einsum("gijc,gijx->gicx", radial, difference) - torch.einsum("gij,gjcx->gicx", slope, dipoles)
    return potential, gradient
