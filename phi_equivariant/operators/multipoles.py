"""Gaussian dipoles beside Gaussian charges, in free space and in periodic cells: what they add to potentials and
energy."""

import math

import torch
from torchpme import CoulombPotential

from phi_equivariant.operators.ewald import REACH, cell_volume, waves
from phi_equivariant.operators.pairs import vectors_between
from phi_equivariant.solvers.partwise import sum_of_parts

_TILE = 2**15  # pairs of atoms at a time
_SERIES_TERMS = {torch.float64: 18, torch.float32: 10}  # of F_m at x ≤ 1, to rounding


def dipole_terms(place, width, mask, charges, dipoles, coulomb_constant):
    """Potential of Gaussian dipoles, and the gradient of the potential of all charges and dipoles.

    With g(r) = k_e erf(r/√2γ_ij)/r, d = r_i − r_j, g₁ = g'/r and g₂ = g₁'/r,

        φ_i = −Σ_j g₁ d·μ_j,   (∇φ)_i = Σ_j [g₁ d q_j − g₁ μ_j − g₂ d (d·μ_j)],

    and the energy of charges and dipoles is ½ Σ_i [q_i (Pq + φ)_i + μ_i·(∇φ)_i]: that of the field of one charge
    density, so never negative. The sums include j = i, where only g₁(0) = −k_e √(2/π)/3γ³ is left, the energy of a
    dipole in its own field.

    Parameters
    ----------
    place: (n_structures, n_max, 3) in Å; width: (n_structures, n_max), σ in Å; mask: (n_structures, n_max)
    charges: (n_structures, n_max, c) in e; dipoles: (n_structures, n_max, c, 3) in e·Å; zero where there is no atom
    coulomb_constant: k_e in eV·Å/e²

    Returns
    -------
    potential: (n_structures, n_max, c) in V, of the dipoles alone
    gradient: (n_structures, n_max, c, 3) in V/Å
    """
    spread = width.square()[:, :, None] + width.square()[:, None, :]
    spread = spread.where(mask[:, :, None] & mask[:, None, :], spread.new_ones(()))  # γ²
    return _terms_at(place, place, spread, charges, dipoles, coulomb_constant)


def _terms_at(here, there, spread, charges, dipoles, coulomb_constant):
    """Potential (n_structures, n_here, c) and gradient (n_structures, n_here, c, 3) of charges and dipoles elsewhere:
    here (n_structures, n_here, 3), there (n_structures, n_there, 3), spread γ² (n_structures, n_here, n_there)."""
    # In powers of r², without its root: nothing is singular where an atom meets itself.
    difference = here[:, :, None] - there[:, None, :]  # (n_structures, n_here, n_there, 3)
    first, second = _kernels(difference.square().sum(-1), spread, coulomb_constant)
    along = torch.einsum("gijx,gjcx->gijc", difference, dipoles)  # d·μ_j
    potential = -torch.einsum("gij,gijc->gic", first, along)
    radial = first[..., None] * charges[:, None] - second[..., None] * along  # (n_structures, n_here, n_there, c)
    gradient = torch.einsum("gijc,gijx->gicx", radial, difference) - torch.einsum("gij,gjcx->gicx", first, dipoles)
    return potential, gradient


def open_dipole_terms(positions, width_squared, charges, dipoles, coulomb_constant):
    """What ``dipole_terms`` gives, of one structure in memory proportional to its number of atoms.

    Parameters
    ----------
    positions: (n_atoms, 3) in Å; width_squared: (n_atoms,), σ² in Å²; charges: (n_atoms, c) in e; dipoles: (n_atoms, c,
        3) in e·Å; coulomb_constant: k_e in eV·Å/e²
    """
    n = len(positions)
    rows = max(1, _TILE // n)
    tiles = [(first, min(n, first + rows)) for first in range(0, n, rows)]

    def of_rows(tile, positions, width_squared, charges, dipoles):
        first, last = tile
        spread = width_squared[None, first:last, None] + width_squared[None, None]
        moments = charges[None], dipoles[None], coulomb_constant
        potential, gradient = _terms_at(positions[None, first:last], positions[None], spread, *moments)
        pad = torch.nn.functional.pad
        return pad(potential[0], (0, 0, first, n - last)), pad(gradient[0], (0, 0, 0, 0, first, n - last))

    return sum_of_parts(of_rows, tiles, positions, width_squared, charges, dipoles)


def lattice_dipole_terms(place, width, mask, cell, splitting, charges, dipoles, coulomb_constant, find_pairs):
    """What ``dipole_terms`` gives in free space, of structures that are periodic in three directions.

    g(r) is summed over all cells as in ``operators.ewald``: smooth Gaussians of width s by reciprocal vectors,

        φ_i = Σ_k v(k)/V [sin(k·r_i) C_k − cos(k·r_i) S_k],   C_k, S_k = Σ_j (k·μ_j) (cos, sin)(k·r_j),

    with k = 0 left out, so that there is no field of the whole cell's dipole (conducting surroundings), and what
    differs from them near each atom by pairs.

    Parameters
    ----------
    cell: (n_structures, 3, 3), rows are the cell vectors in Å; splitting: s in Å; find_pairs: a search of
        ``operators.pairs``; others as in ``dipole_terms``

    Returns
    -------
    as ``dipole_terms``; differentiable to any order in place, width and cell
    """
    coulomb = CoulombPotential(smearing=splitting, prefactor=coulomb_constant)
    inverse = torch.linalg.inv(cell)
    fractional = place @ inverse
    vectors, weights, cosine, sine = waves(fractional, inverse, mask, splitting, coulomb)
    weights = weights / cell_volume(cell)[:, None]
    along = torch.einsum("gkx,gjcx->gkjc", vectors, dipoles)  # k·μ_j
    cos_mu, sin_mu = torch.einsum("gkj,gkjc->gkc", cosine, along), torch.einsum("gkj,gkjc->gkc", sine, along)
    cos_q, sin_q = cosine @ charges, sine @ charges  # (n_structures, n_k, c)
    potential = torch.einsum("gk,gkn,gkc->gnc", weights, sine, cos_mu)
    potential = potential - torch.einsum("gk,gkn,gkc->gnc", weights, cosine, sin_mu)
    gradient = torch.einsum("gk,gkx,gkn,gkc->gncx", weights, vectors, cosine, sin_q + cos_mu)
    gradient = gradient + torch.einsum("gk,gkx,gkn,gkc->gncx", weights, vectors, sine, sin_mu - cos_q)

    near_potential, near_gradient = _near_terms(
        place, width, mask, cell, splitting, charges, dipoles, coulomb_constant, find_pairs
    )
    return potential + near_potential, gradient + near_gradient


def _near_terms(place, width, mask, cell, splitting, charges, dipoles, coulomb_constant, find_pairs):
    """Sums over pairs of g less that of Gaussians of width s: potential and gradient as in ``dipole_terms``."""
    spread = width.square()[:, :, None] + width.square()[:, None, :]  # γ²
    radius = REACH[place.dtype] * max(splitting, float(spread.detach().amax().sqrt()))
    fractional = (place @ torch.linalg.inv(cell)).detach()
    pairs = find_pairs(radius, fractional, mask, cell.detach())
    structure, left, right, _ = pairs
    flat = structure * place.shape[1] + left, structure * place.shape[1] + right
    moments = charges.flatten(0, 1), dipoles.flatten(0, 1)
    difference, spread = -vectors_between(place, cell, pairs), spread[structure, left, right]
    potential, gradient = pair_terms(*flat, difference, spread, splitting, *moments, coulomb_constant)
    width_squared = width.square().where(mask, torch.ones_like(width))
    own = own_gradient(width_squared, splitting, coulomb_constant)[:, :, None, None] * dipoles
    return potential.reshape(charges.shape), gradient.reshape(dipoles.shape) + own


def pair_terms(left, right, difference, spread, splitting, charges, dipoles, coulomb_constant):
    """What pairs of atoms add to ``lattice_dipole_terms``, with g less that of Gaussians of width s.

    Parameters
    ----------
    left, right: (n_pairs,) the two atoms; difference: (n_pairs, 3), r_left − r_right in Å; spread: (n_pairs,), γ² in Å²
    splitting: s in Å; charges: (n_atoms, c) in e; dipoles: (n_atoms, c, 3) in e·Å

    Returns
    -------
    potential: (n_atoms, c) in V, of the dipoles alone; gradient: (n_atoms, c, 3) in V/Å
    """
    squared, smooth = difference.square().sum(-1), torch.full_like(spread, splitting**2)
    exact, gaussian = (_kernels(squared, one, coulomb_constant) for one in (spread, smooth))
    first, second = (one - other for one, other in zip(exact, gaussian, strict=True))
    potential, gradient = torch.zeros_like(charges), torch.zeros_like(dipoles)
    for sign, here, there in ((1, left, right), (-1, right, left)):
        d, mu = sign * difference[:, None, :], dipoles.index_select(0, there)  # (n_pairs, 1, 3), (n_pairs, c, 3)
        along = (d * mu).sum(-1)  # d·μ_j
        radial = first[:, None] * charges.index_select(0, there) - second[:, None] * along
        potential = potential.index_add(0, here, -first[:, None] * along)
        gradient = gradient.index_add(0, here, radial[..., None] * d - first[:, None, None] * mu)
    return potential, gradient


def own_gradient(width_squared, splitting, coulomb_constant):
    """−g₁(0), ∇φ of a dipole where it is per dipole, less that of a Gaussian of width s: like ``width_squared``."""
    exact, smooth = (
        _kernels(torch.zeros_like(spread), spread, coulomb_constant)[0]
        for spread in (2 * width_squared, torch.full_like(width_squared, splitting**2))
    )
    return smooth - exact


def _kernels(squared, spread, coulomb_constant):
    """g₁ in V/Å²/e and g₂ in V/Å⁴/e at distances r² for γ²."""
    x = squared / (2 * spread)
    scale = coulomb_constant * math.sqrt(2 / math.pi) * spread.rsqrt()  # g = scale F₀(r²/2γ²)
    return -scale / spread * boys(1, x), scale / spread.square() * boys(2, x)


def boys(order, x):
    """F_m(x) = ∫₀¹ t^{2m} e^{−xt²} dt for x ≥ 0; F_m' = −F_{m+1} makes it differentiable to any order.

    F₀(r²/2γ²) is √(π/2) γ erf(r/√2γ)/r.

    Source: S. F. Boys, Proc. R. Soc. A 200, 542 (1950).
    """
    return _Boys.apply(order, x)


class _Boys(torch.autograd.Function):
    @staticmethod
    def forward(order, x):
        return torch.where(x < 1, _series(order, x.clamp(max=1)), _recursion(order, x.clamp(min=1)))

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.order, x = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return None, -gradient * _Boys.apply(ctx.order + 1, x)


def _series(order, x):
    """Σ_k (−x)^k / (k! (2m + 2k + 1))."""
    total = torch.zeros_like(x)
    for k in reversed(range(_SERIES_TERMS[x.dtype] + 1)):
        total = total * -x + 1 / (math.factorial(k) * (2 * order + 2 * k + 1))
    return total


def _recursion(order, x):
    """F_{m+1} = [(2m + 1) F_m − e^{−x}]/2x from F₀ = ½ √(π/x) erf √x; stable where x is not small."""
    root, decay = x.sqrt(), torch.exp(-x)
    value = 0.5 * math.sqrt(math.pi) * torch.erf(root) / root
    for m in range(order):
        value = ((2 * m + 1) * value - decay) / (2 * x)
    return value
