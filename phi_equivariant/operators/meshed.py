"""Lattice sums of large structures on a mesh, and what is nearly the same as a matrix, to precondition solvers with."""

import dataclasses
import math
from collections.abc import Callable

import torch

from phi_equivariant.division import WHOLE
from phi_equivariant.operators.gaussians import COULOMB_CONSTANT
from phi_equivariant.operators.lattice import LatticeSum
from phi_equivariant.operators.mesh import Stencils, read, spread
from phi_equivariant.operators.near import NearPairs
from phi_equivariant.operators.particle_mesh import REACH, wave_numbers
from phi_equivariant.operators.waves import Waves
from phi_equivariant.pairs import Pairs, find_pairs
from phi_equivariant.structures import Structures

_NEARLY = 4.5  # where both sums end, in units of s and 1/s: 4e-5 of a Gaussian is left
_FAR, _PER_FAR, _FAR_ORDER = 1.4, 2.0, 4  # Å, width that P is smoothed to; mesh points per width; order of the splines
_EMPTY = 1e-3  # of the highest density: what a mesh point with less counts as


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

        With A that smooths charges onto a coarse mesh, Aᵀ that reads means, v = 4π k_e/k², D less what AᵀvA has of the
        images, n = A D⁻¹ the density of 1/D on the mesh, and n̄ its mean,

            M⁻¹ = D⁻¹ − D⁻¹ Aᵀ n^{−1/2} [n̄v/(1 + n̄v)] n^{−1/2} A D⁻¹,

        which is (D + AᵀvA)⁻¹ at long wavelengths, where an equilibrated crystal screens like a conductor: k²/(k² + κ²),
        also where its density varies. A mean of squares is no less than the square of the mean, so A D⁻¹ Aᵀ ≤ n, and
        M⁻¹ is positive.
        """
        cell = self.structures.cell[0].detach()
        size = [max(_FAR_ORDER, math.ceil(_PER_FAR / _FAR * length)) for length in cell.norm(dim=1).tolist()]
        inverse = torch.linalg.inv(cell)
        fractional = self.structures.positions.detach() @ inverse
        stencils = Stencils((fractional - fractional.floor()) * fractional.new_tensor(size), size, _FAR_ORDER)
        k_squared, _ = wave_numbers(inverse, size)
        smoothing = torch.exp(-0.25 * _FAR**2 * k_squared)
        k_squared[0, 0, 0] = torch.inf
        strength = 2 * self.per_volume.detach() / k_squared  # v/V; the uniform wave is left to the total charge

        def filtered(mesh: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
            return torch.fft.irfftn(torch.fft.rfftn(mesh, dim=(1, 2, 3)) * factor, s=size, dim=(1, 2, 3))

        def smooth(values: torch.Tensor) -> torch.Tensor:
            return filtered(spread(stencils, values[:, None, None]), smoothing)

        # In a long cell that is much of P_ii.
        images = torch.fft.irfftn(smoothing.square() * strength, s=size, norm="forward")[0, 0, 0]
        images = images - math.sqrt(2 / math.pi) * COULOMB_CONSTANT / _FAR
        softness = 1 / (diagonal - images.clamp(max=0.5 * float(diagonal.min())))
        density = smooth(softness)
        weight = density.clamp(min=_EMPTY * float(density.max())).rsqrt()
        strength = density.sum() * strength
        factor = strength / (1 + strength)

        def divide(residual: torch.Tensor) -> torch.Tensor:
            charges = softness * residual
            screening = weight * filtered(weight * smooth(charges), factor)
            return charges - softness * read(stencils, filtered(screening, smoothing))[:, 0, 0]

        return divide
