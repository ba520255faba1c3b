"""Lattice sums of large structures on a mesh, and what is nearly the same as a matrix, to precondition solvers with."""

import torch

from phi_equivariant.division import WHOLE
from phi_equivariant.operators.lattice import LatticeSum
from phi_equivariant.operators.near import NearPairs
from phi_equivariant.operators.particle_mesh import REACH
from phi_equivariant.operators.waves import Waves
from phi_equivariant.pairs import Pairs

_NEARLY = 4.5  # where both sums end, in units of s and 1/s: 4e-5 of a Gaussian is left


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
