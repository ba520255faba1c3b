"""P of Gaussian charges in slabs: the sum over a cell that is periodic along the normal too, less all that this adds.

The vacuum of that cell is chosen here. The result does not depend on it, nor on a cell vector across the slab.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import torch

from phi_equivariant.operators.gaussians import COULOMB_CONSTANT
from phi_equivariant.operators.lattice import LatticeSum, Smooth
from phi_equivariant.operators.meshed import in_single
from phi_equivariant.operators.near import NearPairs
from phi_equivariant.operators.waves import reciprocal_indices
from phi_equivariant.solvers.partwise import sum_of_parts
from phi_equivariant.structures import Structures, planes

# The layers' correction ends where e^{−k·vacuum} has fallen to e^{−end}.
_END = {torch.float64: 30.0, torch.float32: 18.0}
_WIDTHS_APART = 7 * math.sqrt(2)  # vacuum in units of the widest σ: Gaussians of two images do not overlap
_PERIODS_APART = 0.5  # vacuum in units of the longest in-plane period: with more of it the correction has fewer terms
_PER_OCTAVE = 8  # lengths of cells are rounded up to steps of 2^⅛, so that pairs and meshes stay as atoms move
_REACH = 5.0  # widths σ above and below the outermost atoms, in which their charge ends
_ENTRIES = 2**20  # waves times atoms kept at a time


class _Waves(NamedTuple):
    """Waves in the plane that grow along the normal, or against it: vectors, k, and growth, |k|n (n_structures, n_k, 3)
    in 1/Å, weights (n_structures, n_k) in V/e, which stand for k and −k, and e^{±kz − kL/2} (cos k·r, sin k·r) of every
    atom, (n_structures, n_k, n_max) each."""

    vectors: torch.Tensor
    growth: torch.Tensor
    weights: torch.Tensor
    up: tuple[torch.Tensor, torch.Tensor]
    down: tuple[torch.Tensor, torch.Tensor]


def in_boxes(structures: Structures, width_squared: torch.Tensor) -> Structures:
    """The slabs with a cell vector along their normal that is as long as the vacuum wants it.

    The vacuum is at least max(7√2 σ_max, ½λ), λ the longest in-plane period.

    Parameters
    ----------
    structures: slabs; width_squared: (n_atoms,), σ² in Å²
    """
    normal, _ = planes(structures.cell, structures.pbc)
    with torch.no_grad():
        low, high = _ends(structures, normal)
        widest = structures.layout.pad(width_squared).amax(1).sqrt()
        periods = [_longest_period(cell[pbc]) for cell, pbc in zip(structures.cell, structures.pbc, strict=True)]
        vacuum = (_WIDTHS_APART * widest).maximum(_PERIODS_APART * widest.new_tensor(periods))
        lengths = 2 ** ((_PER_OCTAVE * (high - low + vacuum).log2()).ceil() / _PER_OCTAVE)
    across = (lengths[:, None] * normal)[:, None, :]
    return dataclasses.replace(structures, cell=structures.cell.where(structures.pbc[:, :, None], across))


@torch.no_grad()
def uniform_part(structures: Structures, width_squared: torch.Tensor) -> torch.Tensor:
    """c = 2π k_e ℓ/A of slabs in V/e: (n_structures,), a constant; ℓ is the thickness with the Gaussians.

    Among neutral charges P of a slab is positive definite. A net charge Q has a negative energy in it, of no less than
    −½ Q² π k_e ℓ/A: with c for every pair of atoms P is positive definite.
    """
    normal, area = planes(structures.cell, structures.pbc)
    low, high = _ends(structures, normal)
    thickness = high - low + 2 * _REACH * structures.layout.pad(width_squared).amax(1).sqrt()
    return 2 * math.pi * COULOMB_CONSTANT * thickness / area


@torch.no_grad()
def _ends(structures: Structures, normal: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Heights of the lowest and highest atom along the normal, (n_structures,) in Å."""
    heights = (structures.positions * normal[structures.batch]).sum(1)
    mask, padded = structures.layout.mask, structures.layout.pad(heights)
    return padded.masked_fill(~mask, torch.inf).amin(1), padded.masked_fill(~mask, -torch.inf).amax(1)


def _longest_period(vectors: torch.Tensor) -> float:
    """λ = 2π/|k| in Å of the shortest reciprocal vector of a plane lattice (2, 3): the height of its reduced cell on
    the shorter vector (Gauss)."""
    short, long = sorted(vectors.double().unbind(0), key=lambda vector: float(vector.norm()))
    while True:
        long = long - (long @ short / (short @ short)).round() * short
        if float(long.norm()) >= float(short.norm()) * (1 - 1e-9):
            return float((long - long @ short / (short @ short) * short).norm())
        short, long = long, short


class SlabSum(LatticeSum):
    """P of structures that are periodic in two directions, with c for every pair of atoms.

        P_ij = P_ij(three directions, height L) + K_ij + c
        K_ij = −(2π k_e/AL) (z_ij² + γ_ij² + L²/6)
               − Σ_{k≠0} (2π k_e/Ak) 2 cosh(k z_ij)/(e^{kL} − 1) cos k·r_ij

    The first line of K takes the field of the images' layers as wholes and of the background away, its sum over the
    plane's reciprocal vectors that of the layers' waves. The result is the potential of Gaussian charges in the plane's
    lattice alone, for neutral slabs zero half-way between above and below:

        −(2π k_e/A) [z erf(z/√2γ) + γ √(2/π) e^{−z²/2γ²}]
        + Σ_{k≠0} (π k_e/Ak) [e^{kz} erfc(kγ/√2 + z/√2γ) + e^{−kz} erfc(kγ/√2 − z/√2γ)] cos k·r.

    c makes it positive definite and acts on a net charge only, see ``uniform_part``.

    Parameters
    ----------
    structures: ``Structures`` as ``in_boxes`` makes them
    the others: as of ``LatticeSum``

    Sources: I.-C. Yeh and M. L. Berkowitz, J. Chem. Phys. 111, 3155 (1999); A. Arnold, J. de Joannis and C. Holm,
    J. Chem. Phys. 117, 2496 (2002); V. Ballenegger, A. Arnold and J. J. Cerdà, J. Chem. Phys. 131, 094107 (2009).
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
        super().__init__(structures, width_squared, splitting, near, smooth, dense)
        normal, _ = planes(structures.cell, structures.pbc)
        self.normal = normal[structures.batch]  # (n_atoms, 3)
        self.length = structures.cell.detach().masked_fill(structures.pbc[:, :, None], 0.0).sum(1).norm(dim=1)
        self._made: dict[bool, _Waves] = {}
        self._entered: dict[bool, tuple[torch.Tensor, ...]] = {}
        self.uniform = uniform_part(structures, width_squared)
        low, high = _ends(structures, normal.detach())
        self.vacuum = self.length - (high - low)
        # Only differences of positions count. About the middle nothing overflows, and phases are small.
        mean = structures.sum(structures.positions).detach() / structures.layout.counts[:, None]
        middle = 0.5 * (low + high) - (mean * normal.detach()).sum(1)
        self.middle = (mean + middle[:, None] * normal.detach())[structures.batch]  # (n_atoms, 3)

    def product(self, values: torch.Tensor) -> torch.Tensor:
        """Pq."""
        return super().product(values) + self._layers_as_wholes(values)[0]

    def joint(self, charges: torch.Tensor, dipoles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Potential of charges and dipoles, and its gradient."""
        potential, gradient = super().joint(charges, dipoles)
        whole, slope = self._layers_as_wholes(charges, dipoles)
        return potential + whole, gradient + slope

    def _of_share(self, values: torch.Tensor) -> torch.Tensor:
        about, (entered,) = self._about, self.share.enter(values)
        if len(self._chunks) > 1:
            (waves,) = sum_of_parts(self._chunk_potential, self._chunks, *about, entered)
        else:
            waves = self._potential_of_waves(self._all_waves, entered)
        return super()._of_share(values) + waves

    def _joint_of_share(self, charges: torch.Tensor, dipoles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        about, entered = self._about, self.share.enter(charges, dipoles)
        if len(self._chunks) > 1:
            waves, of_waves = sum_of_parts(self._chunk_joint, self._chunks, *about, *entered)
        else:
            waves, of_waves = self._joint_of_waves(self._all_waves, *entered)
        potential, gradient = super()._joint_of_share(charges, dipoles)
        return potential + waves, gradient + of_waves

    def matrix(self) -> torch.Tensor:
        """P of every structure."""
        layout = self.structures.layout
        all_waves = self._all_waves
        up, down = torch.cat(all_waves.up, dim=1), torch.cat(all_waves.down, dim=1)  # (n_structures, 2 n_k, n_max)
        waves = up.mT @ (all_waves.weights.repeat(1, 2)[:, :, None] * down)
        height, squared = layout.pad(self._heights()), layout.pad(self.width_squared)
        apart = (height[:, :, None] - height[:, None, :]).square() + squared[:, :, None] + squared[:, None, :]
        wholes = self.per_volume[:, None, None] * (apart + (self.length.square() / 6)[:, None, None])
        correction = self.uniform[:, None, None] - wholes - waves - waves.mT
        return super().matrix() + correction.where(layout.mask[:, :, None] & layout.mask[:, None, :], 0.0)

    @torch.no_grad()
    def nearly(self) -> "SlabSum | None":
        """As ``MeshSum.nearly``."""
        return None if self.dense else SlabSum(*in_single(self), dense=True)

    @torch.no_grad()
    def joint_matrix(self) -> torch.Tensor | None:
        """The same with dipoles, without derivatives; None on a mesh."""
        whole = super().joint_matrix()
        if whole is None:
            return None
        layout, all_waves, scale = self.structures.layout, self._all_waves, self.per_volume[:, None, None]
        up, down = (
            torch.cat(self._joint_of(all_waves, wave, sign), dim=1)
            for wave, sign in ((all_waves.up, 1), (all_waves.down, -1))
        )  # (n_structures, 2 n_k, 4 n_max)
        waves = up.mT @ (all_waves.weights.repeat(1, 2)[:, :, None] * down)
        one, height, squared = (
            layout.pad(values) for values in (torch.ones_like(self.width_squared), self._heights(), self.width_squared)
        )
        # Charges are 1, z and z² + σ² of what layers have as wholes, dipoles their slopes along the normal.
        zeroth, first, second = (
            torch.cat([value[..., None], (slope[..., None] * layout.pad(self.normal))], dim=-1).flatten(1)
            for value, slope in ((one, 0 * one), (height, one), (height.square() + squared, 2 * height))
        )
        constant = (self.uniform - self.per_volume * self.length.square() / 6)[:, None, None]
        mixed = zeroth[:, :, None] * second[:, None, :]
        lines = 2 * first[:, :, None] * first[:, None, :] - mixed - mixed.mT
        layers = constant * zeroth[:, :, None] * zeroth[:, None, :] + scale * lines - waves - waves.mT
        real = layout.mask.repeat_interleave(4, dim=1)
        return whole + layers.where(real[:, :, None] & real[:, None, :], 0.0)

    def diagonal(self) -> torch.Tensor:
        """P_ii: with an atom's own images."""
        _, rate, weights = self._decays(slice(None), self.structures.cell)
        waves = (2 * weights * torch.exp(-rate * self.length[:, None])).sum(1)
        of_all = self.uniform - self.per_volume * self.length.square() / 6 - waves
        return super().diagonal() + self._of_atoms(of_all) - 2 * self._of_atoms(self.per_volume) * self.width_squared

    def _heights(self) -> torch.Tensor:
        """Along the normal from the middle of each slab, (n_atoms,)."""
        return ((self.structures.positions - self.middle) * self.normal).sum(1)

    def _layers_as_wholes(
        self, charges: torch.Tensor, dipoles: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """c Σ_j q_j − (2π k_e/AL) Σ_j [(z_ij² + γ_ij² + L²/6) q_j − 2 z_ij μ_jz] and its gradient."""
        structures, batch = self.structures, self.structures.batch
        height, squared = self._heights()[:, None], self.width_squared[:, None]
        first, second = height * charges, (height.square() + squared) * charges
        if dipoles is not None:
            along = (dipoles * self.normal[:, None]).sum(-1)  # (n_atoms, c)
            first, second = first + along, second + 2 * height * along
        total, first, second = (structures.sum(moment) for moment in (charges, first, second))  # (n_structures, c)
        scale = self.per_volume[:, None]
        constant = (self.uniform[:, None] - scale * self.length.square()[:, None] / 6) * total - scale * second
        total, first = (scale * total)[batch], (scale * first)[batch]
        potential = constant[batch] - (height.square() + squared) * total + 2 * height * first
        slope = 2 * (first - height * total)
        return potential, slope[..., None] * self.normal[:, None]

    @functools.cached_property
    def _indices(self) -> torch.Tensor:
        """Reciprocal vectors of the plane in whole numbers, one of each pair ±k: (n_structures, n_k, 3)."""
        ends = _END[self.structures.cell.dtype] / self.vacuum
        with torch.no_grad():
            # So short along the normal that no wave fits.
            short = self.structures.cell * (~self.structures.pbc * (math.pi / (ends * self.length))[:, None])[..., None]
            flat = self.structures.cell.where(self.structures.pbc[:, :, None], short)
            return reciprocal_indices(ends, torch.linalg.inv(flat))

    @functools.cached_property
    def _chunks(self) -> list[slice]:
        """Waves of this process, as many as are kept at a time."""
        rows = self.share.rows(self._indices.shape[1])
        size = max(1, rows.stop if self.dense else _ENTRIES // self.structures.layout.n_max)
        starts = range(rows.start, max(rows.start + 1, rows.stop), size)
        return [slice(start, min(rows.stop, start + size)) for start in starts]

    @property
    def _about(self) -> tuple[torch.Tensor, ...]:
        """Positions and cells, entered once with derivatives and once without: solvers ask for products first where
        none is wanted."""
        derived = torch.is_grad_enabled()
        if derived not in self._entered:
            self._entered[derived] = self.share.enter(self.structures.positions, self.structures.cell)
        return self._entered[derived]

    @property
    def _all_waves(self) -> _Waves:
        """Of this process, where all are kept, likewise made twice."""
        derived = torch.is_grad_enabled()
        if derived not in self._made:
            self._made[derived] = self._waves(self._chunks[0], *self._about)
        return self._made[derived]

    def _decays(self, chosen: slice, cell: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """k (n_structures, n_k, 3), |k| in 1/Å and (4π k_e/Ak)/(1 − e^{−kL}), which stands for k and −k, in V/e; 1 and
        0 where a list is shorter."""
        vectors = 2 * math.pi * self._indices[:, chosen] @ torch.linalg.inv(cell).mT
        squared = vectors.square().sum(-1)
        there = squared > 0
        rate = squared.where(there, 1.0).sqrt()
        _, area = planes(cell, self.structures.pbc)
        weights = 4 * math.pi * COULOMB_CONSTANT / (area[:, None] * rate * -torch.expm1(-rate * self.length[:, None]))
        return vectors, rate, weights.where(there, 0.0)

    def _waves(self, chosen: slice, positions: torch.Tensor, cell: torch.Tensor) -> _Waves:
        """Some of the waves."""
        vectors, rate, weights = self._decays(chosen, cell)
        normal, _ = planes(cell, self.structures.pbc)
        from_middle = self.structures.layout.pad(positions - self.middle)
        phase = vectors @ from_middle.mT  # (n_structures, n_k, n_max)
        growth = rate[:, :, None] * normal[:, None, :]
        height, half = growth @ from_middle.mT, (0.5 * rate * self.length[:, None])[:, :, None]
        cosine, sine = phase.cos(), phase.sin()
        up, down = torch.exp(height - half), torch.exp(-height - half)
        return _Waves(vectors, growth, weights, (up * cosine, up * sine), (down * cosine, down * sine))

    def _potential_of_waves(self, waves: _Waves, charges: torch.Tensor) -> torch.Tensor:
        """What waves add to the potential."""
        padded = self.structures.layout.pad(charges)
        total = torch.zeros_like(padded)
        for here, there in ((waves.up, waves.down), (waves.down, waves.up)):
            for wave, source in zip(here, there, strict=True):
                total = total - wave.mT @ (waves.weights[:, :, None] * (source @ padded))
        return self.structures.layout.unpad(total)

    def _joint_of_waves(
        self, waves: _Waves, charges: torch.Tensor, dipoles: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What waves add to the potential of charges and dipoles, and to its gradient."""
        layout, weights = self.structures.layout, waves.weights[:, :, None]
        padded, moments = layout.pad(charges), layout.pad(dipoles)  # (n_structures, n_max, c), (…, c, 3)
        potential, gradient = torch.zeros_like(padded), torch.zeros_like(moments)
        along = waves.vectors[:, :, None, :]  # (n_structures, n_k, 1, 3)
        for sign, here, there in ((1, waves.up, waves.down), (-1, waves.down, waves.up)):
            growth = sign * waves.growth[:, :, None, :]  # of the waves here; those there shrink as these grow
            cosine, sine = (torch.einsum("gkj,gjcx->gkcx", wave, moments) for wave in there)
            even = there[0] @ padded - (growth * cosine + along * sine).sum(-1)  # (n_structures, n_k, c)
            odd = there[1] @ padded + (along * cosine - growth * sine).sum(-1)
            even, odd = -weights * even, -weights * odd
            potential = potential + here[0].mT @ even + here[1].mT @ odd
            on_cosine = growth * even[..., None] + along * odd[..., None]
            on_sine = growth * odd[..., None] - along * even[..., None]
            slope = here[0].mT @ on_cosine.flatten(2) + here[1].mT @ on_sine.flatten(2)
            gradient = gradient + slope.unflatten(-1, gradient.shape[2:])
        return layout.unpad(potential), layout.unpad(gradient)

    @staticmethod
    def _joint_of(waves: _Waves, both: tuple[torch.Tensor, torch.Tensor], sign: int) -> list[torch.Tensor]:
        """Cosine and sine with their slopes for dipoles, (n_structures, n_k, 4 n_max) each: of the waves that grow
        along the normal for 1, against it for −1."""
        cosine, sine = (wave[..., None] for wave in both)  # (n_structures, n_k, n_max, 1)
        growth, along = sign * waves.growth[:, :, None, :], waves.vectors[:, :, None, :]
        even = torch.cat([cosine, growth * cosine - along * sine], dim=-1)
        odd = torch.cat([sine, growth * sine + along * cosine], dim=-1)
        return [even.flatten(2), odd.flatten(2)]

    def _chunk_potential(
        self, chosen: slice, positions: torch.Tensor, cell: torch.Tensor, charges: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        return (self._potential_of_waves(self._waves(chosen, positions, cell), charges),)

    def _chunk_joint(
        self,
        chosen: slice,
        positions: torch.Tensor,
        cell: torch.Tensor,
        charges: torch.Tensor,
        dipoles: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        return self._joint_of_waves(self._waves(chosen, positions, cell), charges, dipoles)
