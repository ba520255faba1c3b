"""Lattice sums of large structures on a mesh, and what is nearly the same as a matrix, to precondition solvers with."""

import math
from collections.abc import Callable

import torch

from phi_equivariant.division import WHOLE
from phi_equivariant.operators.lattice import LatticeSum
from phi_equivariant.operators.mesh import Stencils, read, spread
from phi_equivariant.operators.near import NearPairs
from phi_equivariant.operators.particle_mesh import REACH, wave_numbers
from phi_equivariant.operators.waves import Waves
from phi_equivariant.pairs import Pairs

_NEARLY = 4.5  # where both sums end, in units of s and 1/s: 4e-5 of a Gaussian is left
_FAR, _PER_FAR, _FAR_ORDER = 2.0, 2.0, 4  # Å, width that P is smoothed to; mesh points per width; order of the splines


class MeshSum(LatticeSum):
    """``LatticeSum`` of one structure whose smooth part is on a mesh."""

    @torch.no_grad()
    def nearly(self) -> LatticeSum | None:
        """The same in single precision with matrices, to a few times 1e-5, without derivatives.

        It takes the pairs that are at hand, with the s for which their sum ends early, and few waves for that. None
        where several processes have a share of the pairs each.
        """
        if self.structures.share is not WHOLE:
            return None
        reach, single = REACH[self.splitting.dtype], torch.float32
        structures, splitting = self.structures.to(single), (self.splitting * (reach / _NEARLY)).to(single)
        first, second, images = self.near.pairs
        near = NearPairs(Pairs(first, second, images.to(single)), None, splitting.expand(len(first)))
        smooth = Waves(structures, splitting, _NEARLY)
        return LatticeSum(structures, self.width_squared.to(single), splitting, near, smooth, dense=True)

    @torch.no_grad()
    def screened(self, diagonal: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """About (P + η)⁻¹ of charges, symmetric positive definite: diagonal D (n_atoms,) of P + η in V/e → r → M⁻¹r.

        With A that puts charges on a coarse mesh, v = 4π k_e/Vk², g = e^{−k²s²/2}, s = 2 Å, and n_D = c Σ 1/D

            M⁻¹ = D⁻¹ − D⁻¹ Aᵀ [g v/(1 + n_D v)] A D⁻¹,

        which is (D + Aᵀ g v A)⁻¹ at long wavelengths, where an equilibrated crystal screens like a conductor,
        k²/(k² + κ²). c, by how much the smoothed density of 1/D is above its mean at most, keeps it positive.
        """
        if self.structures.share is not WHOLE:
            return None
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
