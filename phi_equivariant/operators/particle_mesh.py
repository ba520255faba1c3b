"""Potentials of Gaussian charges in a periodic cell without their matrix: particle-mesh Ewald summation."""

import math

import torch
from torchpme import CoulombPotential

from phi_equivariant.operators.ewald import cell_volume
from phi_equivariant.operators.mesh import read, read_slopes, spread, spread_slopes
from phi_equivariant.operators.multipoles import own_gradient, pair_terms
from phi_equivariant.solvers.partwise import sum_of_parts

# Where the sum over pairs ends, in units of the width of the Gaussian; order of the splines; mesh points per width s.
_REACH = {torch.float64: 6.5, torch.float32: 5.0}
_ORDER = {torch.float64: 10, torch.float32: 6}
_PER_WIDTH = {torch.float64: 3.0, torch.float32: 2.5}
_PAIRS = 2**17  # pairs at a time


class ParticleMesh:
    """P of one periodic structure, applied to charges; a cost in proportion to the number of atoms.

    The split is that of ``operators.ewald``. The sum over pairs is computed as it stands there; the smooth part
    is a convolution on a mesh: charges are spread with cardinal B-splines M_p, multiplied in reciprocal space by
    v(k)/V Π_a sinc^{−2p}(m_a/n_a), and read off with the same splines.

    Parameters
    ----------
    positions: (n_atoms, 3) in Å; width_squared: (n_atoms,), σ² in Å²; cell: (3, 3), rows are the cell vectors in Å
    splitting: s in Å, raised to the widest γ_ij, beyond which pairs would reach further than s asks for
    coulomb_constant: k_e in eV·Å/e²
    find_pairs: a search of ``operators.pairs`` that is fast for one large structure

    Source: U. Essmann et al., J. Chem. Phys. 103, 8577 (1995). torch-pme's meshes have splines up to p = 5, which leave
    ten thousand times the error at this spacing, and no second derivative in the cell; the kernels are torch-pme's.
    """

    def __init__(self, positions, width_squared, cell, splitting, coulomb_constant, find_pairs):
        widest = math.sqrt(2 * float(width_squared.detach().max()))
        self.splitting = splitting = max(splitting, widest)
        self.coulomb = CoulombPotential(smearing=splitting, prefactor=coulomb_constant)
        self.constant = coulomb_constant
        self.positions, self.width_squared, self.cell = positions, width_squared, cell
        self.volume = cell_volume(cell[None])[0]
        order, spacing = _ORDER[cell.dtype], splitting / _PER_WIDTH[cell.dtype]
        lengths = cell.detach().norm(dim=1)
        self.size = [_smooth_number(max(order, math.ceil(length / spacing))) for length in lengths.tolist()]
        inverse = torch.linalg.inv(cell)
        self.points = inverse * inverse.new_tensor(self.size)  # ∂u/∂r, mesh points per Å
        fractional = positions @ inverse
        # Whole cells change nothing, but large arguments would lose digits.
        self.place = (fractional - fractional.detach().floor()) * fractional.new_tensor(self.size)  # (n_atoms, 3)
        self.influence = self._influence(inverse, order) / self.volume
        everywhere = torch.ones_like(fractional[None, :, 0], dtype=torch.bool)
        reach = _REACH[cell.dtype] * splitting
        _, first, second, images = find_pairs(reach, fractional.detach()[None], everywhere, cell.detach()[None])
        self.pairs = list(zip(first.split(_PAIRS), second.split(_PAIRS), images.split(_PAIRS), strict=True))

    def __call__(self, charges):
        """Pq: charges (n_atoms, c) in e → (n_atoms, c) in V; differentiable to any order."""
        constant, coulomb, width_squared = self.constant, self.coulomb, self.width_squared
        total = charges.sum(0)
        background = math.pi * constant * (width_squared[:, None] * total + width_squared @ charges)
        background = 2 * (background - coulomb.background_correction() * total) / self.volume
        own = constant * (math.pi * width_squared).rsqrt() - coulomb.self_contribution()  # (n_atoms,)
        (near,) = sum_of_parts(self._near, self.pairs, self.positions, width_squared, self.cell, charges)
        return self._smooth(charges) + background + own[:, None] * charges + near

    def dipole_terms(self, charges, dipoles):
        """What ``lattice_dipole_terms`` gives: charges (n_atoms, c) in e, dipoles (n_atoms, c, 3) in e·Å → (n_atoms, c)
        in V, (n_atoms, c, 3) in V/Å."""
        order = _ORDER[charges.dtype]
        of_dipoles = self._filter(spread_slopes(self.place, dipoles @ self.points, self.size, order))
        of_charges = self._filter(spread(self.place, charges, self.size, order))
        potential = read(self.place, of_dipoles, order)
        gradient = read_slopes(self.place, of_dipoles + of_charges, order) @ self.points.mT
        own = own_gradient(self.width_squared, self.splitting, self.constant)[:, None, None] * dipoles
        inputs = self.positions, self.width_squared, self.cell, charges, dipoles
        near_potential, near_gradient = sum_of_parts(self._near_dipoles, self.pairs, *inputs)
        return potential + near_potential, gradient + own + near_gradient

    def _near_dipoles(self, pairs, positions, width_squared, cell, charges, dipoles):
        first, second, images = pairs
        difference = positions.index_select(0, first) - positions.index_select(0, second) - images @ cell
        spread = width_squared.index_select(0, first) + width_squared.index_select(0, second)
        return pair_terms(first, second, difference, spread, self.splitting, charges, dipoles, self.constant)

    def _near(self, pairs, positions, width_squared, cell, charges):
        """Σ_j [erf(r/√2γ_ij) − erf(r/√2s)]/r q_j over some of the pairs."""
        first, second, images = pairs
        vectors = positions.index_select(0, second) - positions.index_select(0, first) + images @ cell
        distance = vectors.square().sum(1).sqrt()  # (n_pairs,)
        spread = width_squared.index_select(0, first) + width_squared.index_select(0, second)
        kernel = self.constant * torch.erf(distance * (2 * spread).rsqrt()) / distance
        kernel = (kernel - self.coulomb.lr_from_dist(distance))[:, None]
        potential = torch.zeros_like(charges).index_add(0, first, kernel * charges.index_select(0, second))
        return (potential.index_add(0, second, kernel * charges.index_select(0, first)),)

    def _smooth(self, charges):
        """(1/V) Σ_{k≠0} v(k) Σ_j cos k·r_ij q_j on the mesh."""
        order = _ORDER[charges.dtype]
        return read(self.place, self._filter(spread(self.place, charges, self.size, order)), order)

    def _filter(self, mesh):
        """The potential on the mesh of charges on the mesh: (c, *size) → (c, *size)."""
        waves = torch.fft.rfftn(mesh, dim=(1, 2, 3))
        return torch.fft.irfftn(waves * self.influence, s=self.size, dim=(1, 2, 3), norm="forward")

    def _influence(self, inverse, order):
        """v(k) Π_a sinc^{−2p}(m_a/n_a), zero at k = 0: (n_a, n_b, n_c/2 + 1), in V·Å³/e."""
        a, b, c = self.size
        number = {"dtype": inverse.dtype, "device": inverse.device}
        axes = [torch.fft.fftfreq(a, 1 / a, **number), torch.fft.fftfreq(b, 1 / b, **number)]
        axes.append(torch.fft.rfftfreq(c, 1 / c, **number))
        shapes = (-1, 1, 1), (1, -1, 1), (1, 1, -1)
        metric = (2 * math.pi) ** 2 * inverse.mT @ inverse
        m = [axis.reshape(shape) for axis, shape in zip(axes, shapes, strict=True)]
        # Terms that need the last axis come last, for only they are as large as the mesh.
        k_squared = sum((2 - (i == j)) * metric[i, j] * m[i] * m[j] for j in range(3) for i in range(j + 1))
        sinc = [torch.sinc(axis / n).pow(-2 * order) for axis, n in zip(m, self.size, strict=True)]
        return self.coulomb.lr_from_k_sq(k_squared) * (sinc[0] * sinc[1] * sinc[2])


def _smooth_number(n):
    """The least number from n on without prime factors above 5, which Fourier transforms are fast for."""
    while True:
        rest = n
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return n
        n += 1
