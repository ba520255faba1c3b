"""Ewald summation: the potential matrix of Gaussian charges in a periodic cell with a neutralising background."""

import math

import torch
from torchpme import CoulombPotential

# Both sums end where a Gaussian has fallen to e^(−reach²/2): 2e-11 of its height in double precision, 3e-7 in single.
REACH = {torch.float64: 7.0, torch.float32: 5.5}
_CHUNK = 2_000_000  # distances looked at together while neighbours are searched


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
    find_pairs: ``pairs_within`` or a ``KeptPairs``

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


@torch.no_grad()
def pairs_within(radius, fractional, mask, cell):
    """Every pair of atoms, and of an atom and its own images, closer than ``radius``, once.

    The list of the host does not reach far enough.

    Parameters
    ----------
    radius: Å
    fractional: (n_structures, n_max, 3); mask: (n_structures, n_max); cell: (n_structures, 3, 3)

    Returns
    -------
    structure, first, second (n_pairs,) and images (n_pairs, 3), the cell vectors to add to ``second``
    """
    found = []
    for index, (positions, vectors) in enumerate(zip(fractional, cell, strict=True)):
        positions = positions[mask[index]]
        n = len(positions)
        heights = 1 / torch.linalg.inv(vectors).norm(dim=0)  # between opposite faces
        # Differences of coordinates are brought to ±½, so that a cell more than radius + ½ height away has none near.
        a, b, c = (torch.arange(-m, m + 1, device=cell.device) for m in (radius / heights + 0.5).int().tolist())
        images = torch.cartesian_prod(a, b, c)
        first, second = torch.triu_indices(n, n, device=cell.device)
        differences = positions[second] - positions[first]  # (n_half, 3)
        nearest = differences.round()
        differences = (differences - nearest) @ vectors
        x, y, z = images.unbind(1)
        positive = (x > 0) | ((x == 0) & ((y > 0) | ((y == 0) & (z > 0))))
        for part, forward in zip(*(t.split(max(1, _CHUNK // len(first))) for t in (images, positive)), strict=True):
            shifts = part.to(cell.dtype) @ vectors
            near = (differences + shifts[:, None]).square().sum(-1) < radius**2  # (n_images, n_half)
            near = near & ((first != second) | forward[:, None])
            image, pair = near.nonzero(as_tuple=True)
            which = torch.full_like(pair, index)
            found.append((which, first[pair], second[pair], part[image].to(cell.dtype) - nearest[pair]))
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


def vectors_between(place, cell, pairs):
    """Vectors from the first to the second atom of every pair: (n_pairs, 3) in Å."""
    structure, first, second, images = pairs
    return place[structure, second] - place[structure, first] + (images[:, None, :] @ cell[structure])[:, 0]


class KeptPairs:
    """``pairs_within`` for simulations: a list that reaches further is kept while atoms move less than half the excess.

    Each call gives the pairs that a fresh search would find.
    """

    skin = 0.5  # Å

    def __init__(self):
        self._kept = None

    def __getstate__(self):
        """Copies and files do without the list."""
        return {"_kept": None}

    @torch.no_grad()
    def __call__(self, radius, fractional, mask, cell):
        """As ``pairs_within``."""
        kept = self._kept
        if kept is None or not self._serves(kept, radius, fractional, mask, cell):
            pairs = pairs_within(radius + self.skin, fractional, mask, cell)
            self._kept = kept = (radius, fractional.clone(), mask, cell.clone(), pairs)
        pairs = kept[-1]
        near = vectors_between(fractional @ cell, cell, pairs).square().sum(-1) < radius**2
        return tuple(part[near] for part in pairs)

    def _serves(self, kept, radius, fractional, mask, cell):
        built_radius, built_at, built_mask, built_cell, _ = kept
        same_kind = (
            fractional.shape == built_at.shape and cell.dtype == built_cell.dtype and cell.device == built_cell.device
        )
        if radius != built_radius or not same_kind:
            return False
        if not (torch.equal(mask, built_mask) and torch.equal(cell, built_cell)):
            return False
        moved = ((fractional - built_at) @ cell).norm(dim=-1)[mask]
        return bool(moved.max() < self.skin / 2)
