"""Induced dipoles: closed forms far away, in a lattice and up close."""

import math

import numpy as np
import pytest
import torch
from ase import Atoms
from charged import BoundCoulomb, case, random_cluster, reference_matrix

from phi_equivariant.charge_models.energy import ChargeEnergy
from phi_equivariant.charge_models.induced import polarise
from phi_equivariant.charge_models.sqe import split_charges
from phi_equivariant.operators.coulomb import COULOMB_CONSTANT as K

pytestmark = pytest.mark.usefixtures("double")

WAYS = pytest.mark.parametrize("dense", [True, False], ids=["dense", "iterated"])


def of(atoms, charges, alpha, field=None, **other):
    """ChargeEnergy with charges that do not respond, the charges, and α_eff = α/(1 + αS) of every atom."""
    given = case(atoms)
    shared, n = given.shared, len(atoms)
    operator = BoundCoulomb(
        shared["operator"], given.positions, shared["species"], shared["layout"], given.cell, shared["periodic"]
    )
    alpha = torch.as_tensor(alpha, dtype=torch.float64).expand(n).clone()
    field = None if field is None else torch.as_tensor(field, dtype=torch.float64).expand(n, 3)
    energy = ChargeEnergy(operator, shared["layout"], polarisability=alpha, field=field, **other)
    effective = alpha / (1 + alpha * operator.dipole_diagonal())
    return energy, torch.as_tensor(charges, dtype=torch.float64), effective.detach()


@WAYS
def test_a_far_charge_and_a_polarisable_atom(dense):
    """E = −α_eff k_e² q²/2r⁴ with the polarisability that an atom has after its own field."""
    charge, distance = 0.8, 12.0
    energy, charges, effective = of(Atoms("OC", [[0, 0, 0], [0, 0, distance]]), [charge, 0.0], [1e-12, 0.12])
    got = polarise(energy, charges, 0, dense)
    own = 0.5 * K * charge**2 / (math.sqrt(math.pi) * energy.operator.width[0])
    want = -effective[1] * (K * charge) ** 2 / (2 * distance**4)
    assert (got.node_energy.sum() - own).item() == pytest.approx(want.item(), rel=1e-8)
    torch.testing.assert_close(got.dipoles[1, 2], effective[1] * K * charge / distance**2, rtol=1e-9, atol=0)


@WAYS
def test_a_cubic_lattice_obeys_clausius_and_mossotti(dense):
    """(ε − 1)/(ε + 2) = 4π k_e α_eff/3V, with the lattice inside a conductor, where the applied field is the mean."""
    for length, alpha in ((6.0, 0.1), (7.0, 0.5), (6.0, 100.0)):
        field = [0.0, 0.03, 0.04]
        energy, charges, effective = of(Atoms("C", cell=[length] * 3, pbc=True), [0.0], alpha, field)
        got = polarise(energy, charges, 0, dense)
        ratio = 4 * math.pi * K / length**3 * effective.item() / 3
        want = effective * torch.tensor(field) / (1 - ratio)
        torch.testing.assert_close(got.dipoles[0], want, rtol=1e-6, atol=1e-12)
        epsilon = 1 + 4 * math.pi * K / length**3 * (got.dipoles[0, 2] / field[2]).item()
        assert (epsilon - 1) / (epsilon + 2) == pytest.approx(ratio, rel=1e-6)


@pytest.mark.parametrize("distance", [0.01, 0.05, 0.5, 1.0])
def test_positive_definite_however_close(distance):
    """No catastrophe: with the dipoles' own field, touching atoms of any polarisability have a least energy."""
    energy, charges, _ = of(Atoms("CO", [[0, 0, 0], [0, 0, distance]]), [0.4, -0.3], 1e4, [0.1, 0.2, 0.3])
    widths = energy.operator.width.detach().numpy()
    matrix = reference_matrix(np.array([[0, 0, 0], [0, 0, distance]]), widths)
    assert np.linalg.eigvalsh(matrix).min() > 0
    for dense in (True, False):
        got = polarise(energy, charges, 0, dense)
        still = 0.5 * got.charges @ energy.operator.product(got.charges[:, None])[:, 0]
        assert torch.isfinite(got.dipoles).all() and got.node_energy.sum() < still


@WAYS
@pytest.mark.parametrize("distance", [0.5, 1.1])
def test_two_touching_atoms_against_a_direct_solve(dense, distance):
    """In numpy, with permanent dipoles and a field, by closed forms of the interactions."""
    atoms, field = Atoms("CO", [[0, 0, 0], [0.6 * distance, 0, 0.8 * distance]]), np.array([0.1, -0.2, 0.3])
    alpha, permanent = np.array([0.05, 0.2]), np.random.default_rng(0).normal(size=(2, 3))
    energy, charges, _ = of(atoms, [0.6, -0.2], alpha, field, dipoles=torch.tensor(permanent))
    got = polarise(energy, charges, 0, dense)
    matrix = reference_matrix(atoms.positions, energy.operator.width.detach().numpy()).reshape(2, 4, 2, 4)
    inner = matrix[:, 1:, :, 1:].reshape(6, 6)
    source = np.einsum("iajb,j->ia", matrix[:, 1:, :, :1], charges.numpy()).ravel() + inner @ permanent.ravel()
    induced = np.linalg.solve(inner + np.diag(np.repeat(1 / alpha, 3)), np.tile(field, 2) - source)
    np.testing.assert_allclose(got.dipoles.detach(), permanent + induced.reshape(2, 3), atol=1e-9)
    z = np.concatenate([charges.numpy()[:, None], permanent + induced.reshape(2, 3)], axis=1).ravel()
    want = 0.5 * z @ matrix.reshape(8, 8) @ z - field @ z.reshape(2, 4)[:, 1:].sum(0)
    want += 0.5 * (induced**2 / np.repeat(alpha, 3)).sum()
    assert got.node_energy.sum().item() == pytest.approx(want, abs=1e-10)


@WAYS
def test_charges_that_cannot_flow_are_given_charges(dense):
    """sqe with no conductance and induced dipoles is direct with induced dipoles, but for χ and η."""
    given = case(random_cluster(6), random_cluster(3, 2))
    energy, graph = given.parts(dipoles=True, polarisable=True)
    graph.half = 0 * graph.half
    want = polarise(energy, given.start, 0, dense)
    got = split_charges(energy, graph, given.start, 0, dense)
    torch.testing.assert_close(got.dipoles, want.dipoles, rtol=0, atol=1e-9)
    torch.testing.assert_close(got.node_energy, want.node_energy, rtol=0, atol=1e-8)


def test_without_polarisabilities_nothing_is_solved():
    """The energy is ½ Σ (ρφ + μ·∇φ) of what is given."""
    given = case(random_cluster(5))
    energy, _ = given.parts()
    plain = ChargeEnergy(energy.operator, energy.layout, dipoles=given.dipoles)
    got = polarise(plain, given.start, 0)
    widths = energy.operator.width.detach().numpy()
    z = np.concatenate([given.start[:, None], given.dipoles], axis=1).ravel()
    want = 0.5 * z @ reference_matrix(given.positions.numpy(), widths) @ z
    assert got.node_energy.sum().item() == pytest.approx(want, rel=1e-11)
    assert got.charges is not None and torch.equal(got.charges, given.start) and torch.equal(got.dipoles, given.dipoles)
