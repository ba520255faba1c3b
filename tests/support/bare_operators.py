"""Operators of charges and dipoles without a host: what they are at structures, as a matrix or an energy."""

import dataclasses

import numpy as np
import torch
from ase import Atoms
from systems import structures_of

from phi_equivariant.operators.coulomb import GaussianCoulomb
from phi_equivariant.operators.free_space import FreeSpaceMatrix


def operator_of(*widths, splitting=None):
    """An operator whose elements 1, 2, … have these widths in Å; 0.3 stands for the narrowest."""
    operator = GaussianCoulomb(list(range(1, len(widths) + 1)))
    fraction = (torch.tensor(widths) - operator.narrowest) / (operator.widest - operator.narrowest)
    with torch.no_grad():
        operator.width_logit.copy_(torch.logit(fraction.clamp(1e-12, 1 - 1e-12)))
    operator.splitting.fixed = splitting
    return operator


def matrix_of(operator, *structures):
    """P of structures whose atomic numbers are the operator's elements: (n_structures, n_max, n_max)."""
    found = structures_of(*structures, elements=list(range(1, 10)))
    n, matrix = found.layout.n_max, []
    for number, (atoms, part) in enumerate(operator.at(found, matrix=True).parts):
        chosen = range(len(found)) if atoms is None else found.batch[atoms].unique().tolist()
        pad = n - part.structures.layout.n_max
        padded = torch.nn.functional.pad(part.matrix(), (0, pad, 0, pad))
        matrix += list(zip(chosen, padded, strict=True))
        assert number == 0 or atoms is not None
    return torch.stack([one for _, one in sorted(matrix, key=lambda both: both[0])])


def triclinic(seed=0, n=5, numbers=(1, 2, 3, 4, 5)):
    """Atoms anywhere in and out of a skewed cell that is thinner than every sum reaches."""
    rng = np.random.default_rng(seed)
    cell = np.array([[4.0, 0, 0], [1.3, 3.5, 0.2], [-0.8, 0.5, 5.0]])
    return Atoms(numbers=numbers[:n], positions=rng.uniform(-1, 2, (n, 3)) @ cell, cell=cell, pbc=True)


def energy_of(place, width, charges, dipoles):
    """½ Σ (qφ + μ·∇φ) of one structure."""
    structures = structures_of(Atoms("H" * len(place), positions=place.detach().numpy()))
    operator = FreeSpaceMatrix(dataclasses.replace(structures, positions=place), width.square())
    potential, gradient = operator.joint(charges[:, None], dipoles[:, None])
    return 0.5 * (charges @ potential[:, 0] + (dipoles * gradient[:, 0]).sum())
