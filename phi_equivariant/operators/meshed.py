"""Lattice sums of large structures on a mesh, and what is nearly the same as a matrix, to precondition solvers with."""

import dataclasses
import math
from collections.abc import Callable

import torch

from phi_equivariant.division import WHOLE
from phi_equivariant.operators.lattice import LatticeSum
from phi_equivariant.operators.mesh import Stencils, read, spread
from phi_equivariant.operators.near import NearPairs
from phi_equivariant.operators.particle_mesh import REACH, wave_numbers
from phi_equivariant.operators.waves import Waves
from phi_equivariant.pairs import Pairs, find_pairs
from phi_equivariant.structures import Structures

_NEARLY = 4.5  # where both sums end, in units of s and 1/s: 4e-5 of a Gaussian is left
_FAR, _PER_FAR, _FAR_ORDER = 2.0, 2.0, 4  # Å, width that P is smoothed to; mesh points per width; order of the splines


@torch.no_grad()
def in_single(part: LatticeSum) -> tuple[Structures, torch.Tensor, torch.Tensor, NearPairs, Waves]:
    """What is nearly a sum on a mesh, in single precision and with matrices, as its arguments.

    It takes all pairs that are near, with the s for which their sum ends early, and few waves for that; each of several
    processes that have a share of the sum takes all.
    """
    reach, single = REACH[part.splitting.dtype], torch.float32
    structures, pairs = part.structures, part.near.pairs
    if structures.share is not WHOLE:
        everywhere = torch.ones_like(structures.pbc[0])
        pairs = find_pairs(
            reach * float(part.splitting), structures.positions.detach(), structures.cell[0].detach(), everywhere
        )
        structures = dataclasses.replace(structures, share=WHOLE)
    structures, splitting = structures.to(single), (part.splitting * (reach / _NEARLY)).to(single)
    near = NearPairs(
        Pairs(pairs.first, pairs.second, pairs.images.to(single)), None, splitting.expand(len(pairs.first))
    )
    return structures, part.width_squared.to(single), splitting, near, Waves(structures, splitting, _NEARLY)


class MeshSum(LatticeSum):
    """``LatticeSum`` of one structure whose smooth part is on a mesh."""

    def nearly(self) -> LatticeSum:
        """The same in single precision with matrices, to a few times 1e-5, without derivatives."""
        return LatticeSum(*in_single(self), dense=True)

    @torch.no_grad()
    def screened(self, diagonal: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """About (P + η)⁻¹ of charges, symmetric positive definite: diagonal D (n_atoms,) of P + η in V/e → r → M⁻¹r.

        With A that puts charges on a coarse mesh, v = 4π k_e/Vk², g = e^{−k²s²/2}, s = 2 Å, and n_D = c Σ 1/D

            M⁻¹ = D⁻¹ − D⁻¹ Aᵀ [g v/(1 + n_D v)] A D⁻¹,

        which is (D + Aᵀ g v A)⁻¹ at long wavelengths, where an equilibrated crystal screens like a conductor,
        k²/(k² + κ²). c, by how much the smoothed density of 1/D is above its mean at most, keeps it positive.
        """
        cell = self.structures.cell[0].detach()
        size = [max(_FAR_ORDER, math.ceil(_PER_FAR / _FAR * length)) for length in cell.norm(dim=1).tolist()]
        inverse = torch.linalg.inv(cell)
        fractional = self.structures.positions.detach() @ inverse
        stencils = Stencils((fractional - fractional.floor()) * fractional.new_tensor(size), size, _FAR_ORDER)

        def filtered(values: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
            waves = torch.fft.rfftn(spread(stencils, values[:, None, None]), dim=(1, 2, 3))
            return torch.fft.irfftn(waves * factor, s=size, dim=(1, 2, 3), norm="forward")

        k_squared, _ = wave_numbers(inverse, size)
        smoothed, softness = torch.exp(-0.5 * _FAR**2 * k_squared), 1 / diagonal
        density = filtered(softness, smoothed.sqrt())
        k_squared[0, 0, 0] = torch.inf
        strength = 2 * self.per_volume.detach() / k_squared
        factor = smoothed * strength / (1 + density.max() * strength)
        return lambda residual: softness * (residual - read(stencils, filtered(softness * residual, factor))[:, 0, 0])
