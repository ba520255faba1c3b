"""Potentials of Gaussian charges in free space without their matrix: rows of it, a few at a time."""

import math

import torch

from phi_equivariant.solvers.partwise import sum_of_parts

_TILE = 2**16  # pairs of atoms at a time: half a megabyte for each of the arrays that a tile takes


def open_potential(positions, width_squared, charges, coulomb_constant):
    """Pq of one structure in free space, in memory proportional to its number of atoms.

        (Pq)_i = k_e q_i/(√π σ_i) + k_e Σ_{j≠i} erf(r_ij/√2γ_ij)/r_ij q_j,   γ_ij² = σ_i² + σ_j²

    Parameters
    ----------
    positions: (n_atoms, 3) in Å; width_squared: (n_atoms,), σ² in Å²; charges: (n_atoms, c) in e
    coulomb_constant: k_e in eV·Å/e²

    Returns
    -------
    (n_atoms, c) in V; differentiable to any order, in the same memory
    """
    own = charges * (math.pi * width_squared).rsqrt()[:, None]
    if len(positions) > 1:
        own = own + sum_of_parts(_rows, _tiles(len(positions)), positions, width_squared, charges)[0]
    return coulomb_constant * own


def _tiles(n):
    """[first, last) rows whose part of the upper triangle has about _TILE entries."""
    tiles, first = [], 0
    while first < n - 1:
        last = min(n, first + max(1, _TILE // (n - first)))
        tiles.append((first, last))
        first = last
    return tiles


def _rows(tile, positions, width_squared, charges):
    """What the pairs i < j with i in a tile add to the potential: of j at i, and of i at j."""
    first, last = tile
    inside, beyond = positions[first:last], positions[first:]
    squared = sum((inside[:, None, axis] - beyond[None, :, axis]).square() for axis in range(3))  # (n_rows, n_rest)
    upper = torch.ones_like(squared, dtype=torch.bool).triu(1)
    # A root has no derivative at zero: entries that are no pair i < j get a distance that is not used.
    distance = squared.where(upper, squared.new_ones(())).sqrt()
    spread = width_squared[first:last, None] + width_squared[None, first:]
    kernel = (torch.erf(distance * (2 * spread).rsqrt()) / distance).triu(1)
    at_rows, at_rest = kernel @ charges[first:], kernel.mT @ charges[first:last]
    potential = torch.nn.functional.pad(at_rest, (0, 0, first, 0))
    return (potential + torch.nn.functional.pad(at_rows, (0, 0, first, len(positions) - last)),)
