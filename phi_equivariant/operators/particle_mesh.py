"""The smooth part of a lattice sum on a mesh: particle-mesh Ewald summation."""

import math
from collections.abc import Sequence

import torch

from phi_equivariant.operators.divided_mesh import DividedMesh
from phi_equivariant.operators.lattice import Smooth, cell_volume, smooth_transform
from phi_equivariant.operators.mesh import SLOPES, VALUE, Orders, Stencils, read, spread
from phi_equivariant.structures import Structures

# Where the sum over pairs ends, in units of s; order of the splines; mesh points per s.
REACH = {torch.float64: 6.5, torch.float32: 5.0}
_ORDER = {torch.float64: 10, torch.float32: 6}
_PER_WIDTH = {torch.float64: 3.0, torch.float32: 2.5}


class ParticleMesh(Smooth):
    """The smooth potential of one structure as a convolution on a mesh, at a cost in proportion to its size.

    Charges are put on the mesh with cardinal B-splines M_p, multiplied in reciprocal space by v(k)/V Π_a
    sinc^{−2p}(m_a/n_a), and potentials are read off with the same splines; those of dipoles with the splines' slopes.

    Parameters
    ----------
    structures: ``Structures``, one
    splitting: s in Å

    Source: U. Essmann et al., J. Chem. Phys. 103, 8577 (1995). torch-pme's meshes have splines up to p = 5, which leave
    ten thousand times the error at this spacing, and no second derivative in the cell.
    """

    def __init__(self, structures: Structures, splitting: float) -> None:
        self.share, self.n_atoms, self.splitting = structures.share, len(structures.positions), splitting
        positions, cells = self.share.enter(structures.positions, structures.cell)
        (cell,) = cells
        order, spacing = _ORDER[cell.dtype], splitting / _PER_WIDTH[cell.dtype]
        lengths = cell.detach().norm(dim=1).tolist()
        size = [_smooth_number(max(order, math.ceil(length / spacing))) for length in lengths]
        self.mesh = DividedMesh(self.share, size, order, cell.device)
        inverse = torch.linalg.inv(cell)
        fractional = positions @ inverse
        # Whole cells change nothing, but large arguments would lose digits.
        fractional = fractional - fractional.detach().floor()
        points = fractional.new_tensor(size)
        self.per_length = inverse * points  # ∂u/∂r, mesh points per Å
        coordinates = fractional * points
        coordinates = coordinates - points * (coordinates.detach() >= points)  # rounded up to a whole cell
        self.atoms = self.mesh.atoms(coordinates.detach())
        from_window = coordinates[self.atoms] - coordinates.new_tensor([self.mesh.first, 0, 0])
        self.stencils = Stencils(from_window, self.mesh.window, order)
        self.volume = cell_volume(cells)[0]
        self.transform, correction = self._influence(inverse, order)
        self.influence = self.transform * correction / self.volume

    def potential(self, charges: torch.Tensor) -> torch.Tensor:
        """Put on the mesh, filtered, read off: (n_atoms, c) → (n_atoms, c)."""
        (charges,) = self.share.enter(charges)
        return self._filtered(charges[..., None], VALUE)[..., 0]

    def joint(self, charges: torch.Tensor, dipoles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Both from one mesh."""
        charges, dipoles = self.share.enter(charges, dipoles)
        moments = torch.cat([charges[..., None], dipoles @ self.per_length], dim=-1)  # (n_atoms, c, 4)
        found = self._filtered(moments, (*VALUE, *SLOPES))
        return found[..., 0], found[..., 1:] @ self.per_length.mT

    def own(self) -> torch.Tensor:
        """Σ_k v(k)/V; of the last axis half is there."""
        last = self.transform.new_full((self.mesh.half,), 2.0)
        last[0] = 1.0
        if self.mesh.size[2] % 2 == 0:
            last[-1] = 1.0
        (own,) = self.share.leave((self.transform * last).sum()[None] / self.volume)
        return own

    def _filtered(self, moments: torch.Tensor, orders: Orders) -> torch.Tensor:
        """Moments of all atoms → what this process's atoms read, zero elsewhere: (n_atoms, c, n_orders) both."""
        waves = self.mesh.waves(spread(self.stencils, moments[self.atoms], orders))
        found = read(self.stencils, self.mesh.values(waves * self.influence), orders)
        return found.new_zeros(moments.shape).index_copy(0, self.atoms, found)

    def _influence(self, inverse: torch.Tensor, order: int) -> tuple[torch.Tensor, torch.Tensor]:
        """v(k) in V·Å³/e, zero at k = 0, and Π_a sinc^{−2p}(m_a/n_a), of this process's waves: (n_a, n, n_c/2 + 1)
        both."""
        k_squared, m = wave_numbers(inverse, self.mesh.size, self.mesh.columns)
        sinc = [torch.sinc(axis / n).pow(-2 * order) for axis, n in zip(m, self.mesh.size, strict=True)]
        return smooth_transform(k_squared, self.splitting), sinc[0] * sinc[1] * sinc[2]


def wave_numbers(
    inverse: torch.Tensor, size: Sequence[int], columns: slice = slice(None)
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """k² in 1/Å² (n_a, n, n_c/2 + 1) of the waves of a mesh, and their whole numbers m_a along each axis.

    Arguments are the inverse (3, 3) of the cell, the size of the mesh, and which of the second axis are wanted.
    """
    a, b, c = size
    dtype, device = inverse.dtype, inverse.device
    axes = [torch.fft.fftfreq(n, 1 / n, dtype=dtype, device=device) for n in (a, b)]
    axes.append(torch.fft.rfftfreq(c, 1 / c, dtype=dtype, device=device))
    axes[1] = axes[1][columns]
    m = [axis.reshape([-1 if i == j else 1 for j in range(3)]) for i, axis in enumerate(axes)]
    metric = (2 * math.pi) ** 2 * inverse.mT @ inverse
    # Terms that need the last axis come last, for only they are as large as the mesh.
    k_squared = torch.zeros((), dtype=dtype, device=device)
    for j in range(3):
        for i in range(j + 1):
            k_squared = k_squared + (2 - (i == j)) * metric[i, j] * m[i] * m[j]
    return k_squared, m


def _smooth_number(n: int) -> int:
    """The least number from n on without prime factors above 5, which Fourier transforms are fast for."""
    while True:
        rest = n
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return n
        n += 1
