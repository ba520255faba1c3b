"""Atomic dipoles in periodic cells, without a host: limits, closed forms, derivatives."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from ase import Atoms
from bare_operators import energy_of
from systems import structures_of

from phi_equivariant.operators.coulomb import COULOMB_CONSTANT
from phi_equivariant.operators.lattice import LatticeSum
from phi_equivariant.operators.near import NearPairs
from phi_equivariant.operators.waves import REACH, Waves
from phi_equivariant.pairs import find_pairs

pytestmark = pytest.mark.usefixtures("double")

CELL = torch.tensor([[4.1, 0.0, 0.0], [0.6, 3.7, 0.2], [-0.5, 0.4, 4.4]], dtype=torch.float64)


def system(n=4, seed=0):
    """Positions, widths, charges and dipoles of a few atoms."""
    rng = np.random.default_rng(seed)
    place = torch.tensor(rng.uniform(size=(n, 3))) @ CELL
    return (
        place,
        torch.tensor([0.3, 0.5, 0.8, 1.2])[:n],
        torch.tensor(rng.normal(size=n)),
        torch.tensor(rng.normal(size=(n, 3))),
    )


def lattice_energy(place, width, charges, dipoles, cell, splitting=1.5):
    """½ Σ (qφ + μ·∇φ) of one cell."""
    potential, gradient = lattice_sum(place, width, cell, splitting).joint(charges[:, None], dipoles[:, None])
    return 0.5 * (charges @ potential[:, 0] + (dipoles * gradient[:, 0]).sum())


def lattice_sum(place, width, cell, splitting):
    """P by pairs and waves."""
    atoms = Atoms("H" * len(place), positions=place.detach().numpy(), cell=cell.detach().numpy(), pbc=True)
    structures = dataclasses.replace(structures_of(atoms), positions=place, cell=cell[None])
    radius = REACH[place.dtype] * max(splitting, math.sqrt(2) * float(width.detach().max()))
    pairs = find_pairs(radius, place.detach(), cell.detach(), structures.pbc[0])
    s = torch.tensor([splitting])
    near = NearPairs(pairs, None, s.expand(len(pairs.first)))
    return LatticeSum(structures, width.square(), s, near, Waves(structures, s), dense=True)


def test_a_dipole_is_the_limit_of_two_opposite_charges():
    place, width, charges, dipoles = system()
    got = lattice_energy(place, width, charges, dipoles, CELL).item()
    errors = []
    for h in (0.04, 0.02):
        direction = dipoles / dipoles.norm(dim=1, keepdim=True)
        both = torch.cat([place, place + h / 2 * direction, place - h / 2 * direction])
        size = dipoles.norm(dim=1) / h
        all_charges = torch.cat([charges, size, -size])
        errors.append(lattice_energy(both, width.repeat(3), all_charges, torch.zeros(12, 3), CELL).item() - got)
    assert abs(errors[1]) < 2e-2 * abs(got) and errors[0] / errors[1] == pytest.approx(4, rel=0.02)


def test_the_splitting_does_not_matter():
    energies = [lattice_energy(*system(), CELL, splitting).item() for splitting in (0.8, 1.5, 2.5)]
    np.testing.assert_allclose(energies, energies[1], rtol=1e-8)


def test_a_molecule_in_a_growing_box_becomes_an_open_one():
    place, width, charges, dipoles = system(3)
    charges = charges - charges.mean()
    whole = (charges @ place + dipoles.sum(0)).square().sum().item()
    for edge in (36.0, 72.0):
        error = lattice_energy(place, width, charges, dipoles, edge * torch.eye(3)) - energy_of(
            place, width, charges, dipoles
        )
        # Makov and Payne, Phys. Rev. B 51, 4014 (1995): dipoles of a cubic lattice interact by 2π k_e μ²/3V.
        assert error.item() == pytest.approx(-2 * math.pi / 3 * COULOMB_CONSTANT * whole / edge**3, rel=0.03)


def test_the_energy_is_that_of_a_field_and_never_negative():
    for seed in range(10):
        assert lattice_energy(*system(seed=seed), CELL) > 0


def test_twice_differentiable_in_positions_cell_and_widths():
    place, width, charges, dipoles = system(2)
    inputs = [x.clone().requires_grad_(True) for x in (place, width, CELL)]

    def energy(x, sigma, cell):
        return lattice_energy(x, sigma, charges, dipoles, cell)

    assert torch.autograd.gradcheck(energy, inputs)
    assert torch.autograd.gradgradcheck(energy, inputs)
