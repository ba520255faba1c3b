"""An approximate inverse of K = P + η in a large cell, with which charge equilibration slows down less with size."""

import math
from collections.abc import Callable

import torch

from phi_equivariant.operators.coulomb import COULOMB_CONSTANT
from phi_equivariant.operators.mesh import read, spread

_ORDER = 4  # of the splines: the mesh is coarse, and what it gets wrong the iteration corrects


@torch.no_grad()
def screened_inverse(
    positions: torch.Tensor, cell: torch.Tensor, diagonal: torch.Tensor, smoothing: float = 1.3
) -> Callable[[torch.Tensor], torch.Tensor]:
    """r → M⁻¹r with M near K: charges that screen one another on a coarse mesh, and a diagonal for what is finer.

    With H the diagonal of K less that of Gaussian charges of width s, R the smoothing of atoms to a mesh and V the
    potential on it, H + RVRᵀ has the inverse H⁻¹ − H⁻¹R (V⁻¹ + RᵀH⁻¹R)⁻¹ RᵀH⁻¹. Here RᵀH⁻¹R, the screening density,
    is replaced by the largest sum of a row, c: what is taken off is then

        H⁻¹ R [v/(1 + cv)] Rᵀ H⁻¹,   v(k) = 4π k_e/k² per volume of a mesh point ∝ 1/k²,   v/(1 + cv) ∝ 1/(k² + κ²),

    by Fourier transforms. No screening is stronger than c, so that M⁻¹ is positive definite whatever the structure,
    with surfaces and holes too; where atoms are evenly spread it is close to K⁻¹ at wavelengths of several s.

    Parameters
    ----------
    positions: (n_atoms, 3) in Å, of one structure that is periodic in three directions; cell: (3, 3) in Å
    diagonal: P_ii + η (n_atoms,) in V/e
    smoothing: s in Å

    Returns
    -------
    (n_atoms,) in V → (n_atoms,) in e
    """
    size = [max(_ORDER, math.ceil(length / (0.75 * smoothing))) for length in cell.norm(dim=1).tolist()]
    inverse = torch.linalg.inv(cell)
    fractional = positions @ inverse
    place = (fractional - fractional.floor()) * fractional.new_tensor(size)
    own = COULOMB_CONSTANT / (math.sqrt(math.pi) * smoothing)
    weight = 1 / (diagonal - own).maximum(0.5 * diagonal)  # 1/H (n_atoms,)

    axes = [torch.fft.fftfreq(n, 1 / n) for n in size[:2]] + [torch.fft.rfftfreq(size[2], 1 / size[2])]
    indices = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).to(cell)
    waves = 2 * math.pi * indices @ inverse.mT
    squared = waves.square().sum(-1)  # k² (n_a, n_b, n_c/2 + 1)
    bell = torch.exp(-0.5 * squared * smoothing**2)

    def filtered(mesh: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        return torch.fft.irfftn(torch.fft.rfftn(mesh, dim=(1, 2, 3)) * factor, s=size, dim=(1, 2, 3))

    # Splines and Gaussian are not negative and sum to 1, so that no sum of a row is above the largest smoothed density.
    screening = filtered(spread(place, weight[:, None], size, _ORDER), bell).max()
    point = torch.linalg.det(cell).abs() / math.prod(size)
    one = torch.ones_like(squared)
    potential = 4 * math.pi * COULOMB_CONSTANT / (point * squared.where(squared > 0, one))
    factor = bell.square() * (squared > 0) * potential / (1 + screening * potential)

    def apply(residual: torch.Tensor) -> torch.Tensor:
        divided = weight * residual
        mesh = filtered(spread(place, divided[:, None], size, _ORDER), factor)
        return divided - weight * read(place, mesh, _ORDER)[:, 0]

    return apply
