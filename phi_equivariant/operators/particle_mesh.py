"""The smooth part of a lattice sum on a mesh: particle-mesh Ewald summation."""

import math
from collections.abc import Sequence

import torch

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
        cell, self.share = structures.cell[0], structures.share
        self.rows, self.n_atoms = self.share.rows(len(structures.positions)), len(structures.positions)
        self.splitting, self.volume = splitting, cell_volume(structures.cell)[0]
        order, spacing = _ORDER[cell.dtype], splitting / _PER_WIDTH[cell.dtype]
        lengths = cell.detach().norm(dim=1).tolist()
        self.size = [_smooth_number(max(order, math.ceil(length / spacing))) for length in lengths]
        inverse = torch.linalg.inv(cell)
        self.per_length = inverse * inverse.new_tensor(self.size)  # ∂u/∂r, mesh points per Å
        fractional = structures.positions @ inverse
        # Whole cells change nothing, but large arguments would lose digits.
        fractional = fractional - fractional.detach().floor()
        (coordinates,) = self.share.enter(fractional * fractional.new_tensor(self.size))
        self.stencils = Stencils(coordinates[self.rows], self.size, order)
        self.transform, correction = self._influence(inverse, order)
        self.influence = self.transform * correction / self.volume

    def potential(self, charges: torch.Tensor) -> torch.Tensor:
        """Put on the mesh, filtered, read off: (n_atoms, c) → (n_atoms, c)."""
        return self._filtered(charges[..., None], VALUE)[..., 0]

    def joint(self, charges: torch.Tensor, dipoles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Both from one mesh."""
        moments = torch.cat([charges[..., None], dipoles @ self.per_length], dim=-1)  # (n_atoms, c, 4)
        found = self._filtered(moments, (*VALUE, *SLOPES))
        (per_length,) = self.share.enter(self.per_length)
        return found[..., 0], found[..., 1:] @ per_length.mT

    def own(self) -> torch.Tensor:
        """Σ_k v(k)/V; of the last axis half is there."""
        last = torch.full_like(self.transform[0, 0], 2.0)
        last[0] = 1.0
        if self.size[2] % 2 == 0:
            last[-1] = 1.0
        return (self.transform * last).sum()[None] / self.volume

    def _filtered(self, moments: torch.Tensor, orders: Orders) -> torch.Tensor:
        """Moments of all atoms → what this process's rows read, zero elsewhere: (n_atoms, c, n_orders) both."""
        (moments,) = self.share.enter(moments)
        (mesh,) = self.share.leave(spread(self.stencils, moments[self.rows], orders))
        waves = torch.fft.rfftn(mesh, dim=(1, 2, 3))
        mesh = torch.fft.irfftn(waves * self.influence, s=self.size, dim=(1, 2, 3), norm="forward")
        (mesh,) = self.share.enter(mesh)
        found = read(self.stencils, mesh, orders)
        before, after = self.rows.start, self.n_atoms - self.rows.stop
        return torch.nn.functional.pad(found, (0, 0, 0, 0, before, after)) if before or after else found

    def _influence(self, inverse: torch.Tensor, order: int) -> tuple[torch.Tensor, torch.Tensor]:
        """v(k) in V·Å³/e, zero at k = 0, and Π_a sinc^{−2p}(m_a/n_a): (n_a, n_b, n_c/2 + 1) both."""
        k_squared, m = wave_numbers(inverse, self.size)
        sinc = [torch.sinc(axis / n).pow(-2 * order) for axis, n in zip(m, self.size, strict=True)]
        return smooth_transform(k_squared, self.splitting), sinc[0] * sinc[1] * sinc[2]


def wave_numbers(inverse: torch.Tensor, size: Sequence[int]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """k² in 1/Å² (n_a, n_b, n_c/2 + 1) of the waves of a mesh, and their whole numbers m_a along each axis: inverse (3,
    3) of the cell, size of the mesh."""
    a, b, c = size
    dtype, device = inverse.dtype, inverse.device
    axes = [torch.fft.fftfreq(n, 1 / n, dtype=dtype, device=device) for n in (a, b)]
    axes.append(torch.fft.rfftfreq(c, 1 / c, dtype=dtype, device=device))
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
