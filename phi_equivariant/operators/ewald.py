"""Ewald summation: the potential matrix of Gaussian charges in a periodic cell with a neutralising background."""

import math

import torch
from torchpme import CoulombPotential

from phi_equivariant.operators.pairs import vectors_between

# Both sums end where a Gaussian has fallen to e^(−reach²/2): 2e-11 of its height in double precision, 3e-7 in single.
REACH = {torch.float64: 7.0, torch.float32: 5.5}


def ewald_matrix(place, width, mask, cell, splitting, coulomb_constant, find_pairs):
    """P of structures that are periodic in three directions, in V/e.

        P_ij / k_e = (4π/V) Σ_{k≠0} e^{−k²s²/2}/k² cos k·r_ij + Σ'_n [erf(r/√2γ_ij) − erf(r/√2s)]/r
                     + δ_ij [1/(√π σ_i) − √(2/π)/s] − 2π (s² − γ_ij²)/V,    r = |r_ij + n|,  γ_ij² = σ_i² + σ_j²

    The sum over cells n leaves out an atom's own place. The last term makes the mean of every atom's potential zero,
    as a uniform background does that neutralises each Gaussian: P then equals (4π/V) Σ_{k≠0} e^{−k²γ_ij²/2}/k²
    cos k·r_ij, which is positive semi-definite for charged vectors too, and does not depend on s.

    Parameters
    ----------
    place: (n_structures, n_max, 3) in Å
    width: (n_structures, n_max), σ in Å
    mask: (n_structures, n_max), True where there is an atom
    cell: (n_structures, 3, 3), rows are the cell vectors in Å
    splitting: s in Å; P depends on it by rounding only
    coulomb_constant: k_e in eV·Å/e²
    find_pairs: a search of ``operators.pairs``

    Returns
    -------
    (n_structures, n_max, n_max), zero where there is no pair; differentiable to any order in place, width and cell

    Source: P. P. Ewald, Ann. Phys. 369, 253 (1921). The kernels of the split are torch-pme's. Its EwaldCalculator
    applies P to given charges, one structure at a time: on N unit charges it gives the matrix at four to eight times
    the cost (100 atoms).
    """
    coulomb = CoulombPotential(smearing=splitting, prefactor=coulomb_constant)
    n = place.shape[1]
    volume = cell_volume(cell)[:, None, None]
    inverse = torch.linalg.inv(cell)
    fractional = place @ inverse  # (n_structures, n_max, 3)
    spread = width.square()[:, :, None] + width.square()[:, None, :]  # γ², (n_structures, n_max, n_max)

    potential = _long_range(fractional, inverse, mask, splitting, coulomb) / volume
    potential = potential + 2 * (math.pi * coulomb_constant * spread - coulomb.background_correction()) / volume
    own = coulomb_constant / (math.sqrt(math.pi) * width.where(mask, torch.ones_like(width)))
    potential = potential + torch.diag_embed(own - coulomb.self_contribution())

    radius = REACH[place.dtype] * max(splitting, float(spread.detach().amax().sqrt()))
    pairs = find_pairs(radius, fractional.detach(), mask, cell.detach())
    structure, first, second, images = pairs
    vectors = vectors_between(place, cell, pairs)
    distance = vectors.norm(dim=-1)  # (n_pairs,)
    near = coulomb_constant * torch.erf(distance * (2 * spread[structure, first, second]).rsqrt()) / distance
    near = near - coulomb.lr_from_dist(distance)
    half = near.new_zeros(potential.numel()).index_add(0, (structure * n + first) * n + second, near)
    half = half.reshape(potential.shape)
    potential = potential + half + half.mT
    return potential.where(mask[:, :, None] & mask[:, None, :], potential.new_zeros(()))


def cell_volume(cell):
    """|a·(b×c)| in Å³: (n_structures, 3, 3) → (n_structures,). torch.linalg.det fails to differentiate float32 where
    float64 is torch's default precision."""
    a, b, c = cell.unbind(1)
    return (a * torch.linalg.cross(b, c)).sum(-1).abs()


def _long_range(fractional, inverse, mask, splitting, coulomb):
    """Σ_{k≠0} v(k) cos k·r_ij, with torch-pme's v(k) of the smooth part: (n_structures, n_max, n_max) in V·Å³/e."""
    _, weights, cosine, sine = waves(fractional, inverse, mask, splitting, coulomb)
    both = torch.cat([cosine, sine], dim=1)
    return both.mT @ (weights.repeat(1, 2)[:, :, None] * both)


def waves(fractional, inverse, mask, splitting, coulomb):
    """Reciprocal vectors k ≠ 0 up to where the smooth part ends, one of each pair ±k, and their waves at the atoms.

    Parameters
    ----------
    fractional: (n_structures, n_max, 3); inverse: (n_structures, 3, 3), inverse of the cells; mask: (n_structures,
        n_max); splitting: s in Å; coulomb: torch-pme's potential of that smearing

    Returns
    -------
    vectors: k (n_structures, n_k, 3) in 1/Å, filled up with zeros
    weights: 2 v(k) (n_structures, n_k) in V·Å³/e: one of k and −k stands for both
    cosine, sine: of k·r (n_structures, n_k, n_max), zero where there is no atom
    """
    indices = reciprocal_indices(REACH[fractional.dtype] / splitting, inverse.detach())  # (n_structures, n_k, 3)
    vectors = 2 * math.pi * indices @ inverse.mT
    # Whole cells do not change a wave, but large arguments would lose digits.
    phase = 2 * math.pi * indices @ (fractional - fractional.detach().round()).mT  # (n_structures, n_k, n_max)
    # torch-pme's kernel is zero at k = 0, with which shorter lists are filled up.
    weights = 2 * coulomb.lr_from_k_sq(vectors.square().sum(-1))
    return vectors, weights, phase.cos() * mask[:, None, :], phase.sin() * mask[:, None, :]


@torch.no_grad()
def reciprocal_indices(k_max, inverse):
    """Whole numbers m of the reciprocal vectors 0 < |2π m A⁻ᵀ| < k_max, one of each pair ±m, zeros to fill up.

    Parameters
    ----------
    k_max: 1/Å
    inverse: (n_structures, 3, 3), inverse of the cells A

    Returns
    -------
    (n_structures, n_k, 3), in the precision of ``inverse``
    """
    lists = []
    for one in inverse:
        lengths = torch.linalg.inv(one).norm(dim=1)  # of the cell vectors
        a, b, c = (torch.arange(-m, m + 1, device=one.device) for m in (k_max * lengths / (2 * math.pi)).int().tolist())
        grid = torch.cartesian_prod(a[a >= 0], b, c)
        x, y, z = grid.unbind(1)
        grid = grid[(x > 0) | ((x == 0) & ((y > 0) | ((y == 0) & (z > 0))))].to(one.dtype)
        lists.append(grid[(2 * math.pi * grid @ one.mT).norm(dim=1) < k_max])
    return torch.nn.utils.rnn.pad_sequence(lists, batch_first=True)
