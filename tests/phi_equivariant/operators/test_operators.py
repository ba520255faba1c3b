import dataclasses

import ase.units
import networkx
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from scipy.integrate import quad
from systems import structures_of

from phi_equivariant.operators.coulomb import COULOMB_CONSTANT, GaussianCoulomb
from phi_equivariant.operators.graph import GraphLaplacian, smooth_cutoff

pytestmark = pytest.mark.usefixtures("double")


def laplacian(atoms, r_max):
    """L at a structure, and L/w₀ as a matrix."""
    bound = GraphLaplacian(r_max).at(structures_of(atoms, elements=[1, 6, 8], r_max=r_max), matrix=True)
    return bound, (bound.parts[0][1].matrix()[0] / bound.scale).detach()


def potential_matrix(operator, *structures, elements=(1, 6, 8)):
    """P of structures that are computed together: (n_structures, n_max, n_max)."""
    return operator.at(structures_of(*structures, elements=list(elements)), matrix=True).parts[0][1].matrix().detach()


def test_cutoff_has_two_continuous_derivatives():
    x = torch.tensor([0.999999, 1.0, 1.000001, 1.5], requires_grad=True)
    value = smooth_cutoff(x)
    (first,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert value.abs().max() < 1e-15 and first.abs().max() < 1e-9 and second.abs().max() < 1e-4
    assert smooth_cutoff(torch.tensor(0.0)) == 1
    assert (smooth_cutoff(torch.linspace(0, 1, 50)).diff() < 0).all(), "weights must fall with distance"


def test_spectrum_of_a_path():
    n, spacing, r_max = 9, 1.3, 2.0
    _, matrix = laplacian(Atoms(f"C{n}", [[spacing * i, 0, 0] for i in range(n)]), r_max)
    values = torch.linalg.eigvalsh(matrix)
    weight = float(smooth_cutoff(torch.tensor(spacing / r_max)))
    expected = weight * (2 - 2 * np.cos(np.pi * np.arange(n) / n))
    np.testing.assert_allclose(values.numpy(), np.sort(expected), atol=1e-13)


def test_spectrum_of_a_ring():
    n, radius = 10, 2.2
    angles = 2 * np.pi * np.arange(n) / n
    ring = Atoms(f"C{n}", np.c_[radius * np.cos(angles), radius * np.sin(angles), 0 * angles])
    bond = 2 * radius * np.sin(np.pi / n)
    r_max = 1.2 * bond
    values = torch.linalg.eigvalsh(laplacian(ring, r_max)[1])
    weight = float(smooth_cutoff(torch.tensor(bond / r_max)))
    expected = weight * (2 - 2 * np.cos(2 * np.pi * np.arange(n) / n))
    np.testing.assert_allclose(values.numpy(), np.sort(expected), atol=1e-13)


def test_laplacian_equals_networkx_and_its_edge_sum():
    atoms = molecule("C6H6")
    bound, matrix = laplacian(atoms, 3.0)
    edges, weights = bound.structures.edge_index, smooth_cutoff(bound.structures.edge_lengths() / 3.0)
    graph = networkx.Graph()
    graph.add_nodes_from(range(len(atoms)))
    graph.add_weighted_edges_from(zip(*edges.tolist(), weights.tolist(), strict=True))
    expected = networkx.laplacian_matrix(graph).toarray()
    np.testing.assert_allclose(matrix.numpy(), expected, atol=1e-13)
    field = torch.randn(len(atoms), 2)
    applied = bound.product(field)
    np.testing.assert_allclose(applied.detach().numpy(), 0.07 * expected @ field.numpy(), atol=1e-12)


def test_null_space_is_one_constant_per_component():
    atoms = molecule("H2O") + Atoms(molecule("CH4").symbols, molecule("CH4").positions + [20, 0, 0])
    bound, matrix = laplacian(atoms, 4.0)
    values = torch.linalg.eigvalsh(matrix)
    assert (values.abs() < 1e-12).sum() == 2 and (values > -1e-12).all()
    charges = bound.product(torch.randn(len(atoms), 1))
    assert abs(charges[:3].sum()) < 1e-13 and abs(charges[3:].sum()) < 1e-13


def test_coulomb_constant_is_ases():
    # ase.units uses CODATA 2014, the constant here has eight digits.
    assert pytest.approx(ase.units.Hartree * ase.units.Bohr, rel=1e-7) == COULOMB_CONSTANT


def test_gaussian_charges_interact_as_the_fourier_integral_says():
    operator = GaussianCoulomb([1, 8])
    sigma = operator.widths().detach().numpy()
    for r in (0.3, 1.0, 2.5):
        matrix = potential_matrix(operator, Atoms("HO", [[0, 0, 0], [0, 0, r]]), elements=(1, 8))[0]
        gamma2 = sigma[0] ** 2 + sigma[1] ** 2
        integral, _ = quad(lambda k: np.sinc(k * r / np.pi) * np.exp(-(k**2) * gamma2 / 2), 0, 60, epsabs=1e-13)  # noqa: B023
        assert matrix[0, 1].item() == pytest.approx(COULOMB_CONSTANT * 2 / np.pi * integral, rel=1e-10)


def test_two_far_charges_obey_coulombs_law():
    operator = GaussianCoulomb([1])
    for r in (15.0, 100.0):
        matrix = potential_matrix(operator, Atoms("HH", [[0, 0, 0], [0, r, 0]]))[0]
        assert matrix[0, 1].item() == pytest.approx(COULOMB_CONSTANT / r, rel=1e-12)


def test_own_potential_is_the_limit_of_a_pair_that_meets():
    operator = GaussianCoulomb([6])
    matrix = potential_matrix(operator, Atoms("CC", [[0, 0, 0], [0, 0, 1e-4]]), elements=(6,))[0]
    assert matrix[0, 1].item() == pytest.approx(matrix[0, 0].item(), rel=1e-7)


def test_potential_matrix_is_positive_definite_and_padding_stays_empty():
    water, benzene = molecule("H2O"), molecule("C6H6")
    matrix = potential_matrix(GaussianCoulomb([1, 6, 8]), water, benzene)
    assert (torch.linalg.eigvalsh(matrix[0, :3, :3]) > 0).all() and (torch.linalg.eigvalsh(matrix[1]) > 0).all()
    assert (matrix[0, 3:] == 0).all() and (matrix[0, :, 3:] == 0).all()


def test_widths_stay_within_their_bounds():
    operator = GaussianCoulomb(list(range(1, 90)))
    with torch.no_grad():
        operator.width_logit += 50 * torch.randn(89)
    assert ((operator.widths() >= 0.3) & (operator.widths() <= 1.2)).all()


@pytest.mark.parametrize("start", [0.35, 0.9, 1.15])
def test_widths_start_where_they_are_told(start):
    assert GaussianCoulomb([1, 6, 79], start).widths().tolist() == pytest.approx([start] * 3, rel=1e-6)


def test_widths_start_at_a_length_or_in_proportion_to_covalent_radii():
    """Of H, C, Au; hydrogen's is moved away from the lower bound, 0.3 Å."""
    assert GaussianCoulomb([1, 6, 79]).widths().tolist() == pytest.approx([0.7] * 3, rel=1e-6)
    hydrogen, carbon, gold = GaussianCoulomb([1, 6, 79], "covalent").widths().tolist()
    assert (carbon, gold) == pytest.approx((0.7 * 0.76, 0.7 * 1.36), rel=1e-6) and hydrogen == pytest.approx(0.345)


def test_potential_matrix_is_twice_differentiable():
    operator = GaussianCoulomb([1, 6])
    positions = torch.randn(5, 3, requires_grad=True)
    structures = structures_of(Atoms("HC"), Atoms("CHC"), elements=[1, 6])

    def squared(x):
        bound = operator.at(dataclasses.replace(structures, positions=x), matrix=True)
        return bound.parts[0][1].matrix().square().sum()

    assert torch.autograd.gradgradcheck(squared, positions)
