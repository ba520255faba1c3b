import ase.units
import networkx
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.neighborlist import neighbor_list
from scipy.integrate import quad

from phi_equivariant.batching import PaddedLayout
from phi_equivariant.operators.coulomb import COULOMB_CONSTANT, GaussianCoulomb
from phi_equivariant.operators.graph import GraphLaplacian, smooth_cutoff

pytestmark = pytest.mark.usefixtures("double")


def layout_of(*sizes):
    batch = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return PaddedLayout(batch, torch.tensor([0, *np.cumsum(sizes)]))


def graph_of(atoms, r_max):
    i, j, lengths = neighbor_list("ijd", atoms, r_max)
    return torch.tensor(np.stack([i, j])), torch.tensor(lengths)


def laplacian(atoms, r_max):
    operator = GraphLaplacian(r_max)
    edge_index, lengths = graph_of(atoms, r_max)
    return operator, operator.edge_weights(lengths), edge_index


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
    operator, weights, edges = laplacian(Atoms(f"C{n}", [[spacing * i, 0, 0] for i in range(n)]), r_max)
    values = torch.linalg.eigvalsh(operator.matrix(weights, edges, layout_of(n)))[0]
    weight = float(smooth_cutoff(torch.tensor(spacing / r_max)))
    expected = weight * (2 - 2 * np.cos(np.pi * np.arange(n) / n))
    np.testing.assert_allclose(values.numpy(), np.sort(expected), atol=1e-13)


def test_spectrum_of_a_ring():
    n, radius = 10, 2.2
    angles = 2 * np.pi * np.arange(n) / n
    ring = Atoms(f"C{n}", np.c_[radius * np.cos(angles), radius * np.sin(angles), 0 * angles])
    bond = 2 * radius * np.sin(np.pi / n)
    r_max = 1.2 * bond
    operator, weights, edges = laplacian(ring, r_max)
    values = torch.linalg.eigvalsh(operator.matrix(weights, edges, layout_of(n)))[0]
    weight = float(smooth_cutoff(torch.tensor(bond / r_max)))
    expected = weight * (2 - 2 * np.cos(2 * np.pi * np.arange(n) / n))
    np.testing.assert_allclose(values.numpy(), np.sort(expected), atol=1e-13)


def test_laplacian_equals_networkx_and_its_edge_sum():
    atoms = molecule("C6H6")
    operator, weights, edges = laplacian(atoms, 3.0)
    graph = networkx.Graph()
    graph.add_nodes_from(range(len(atoms)))
    graph.add_weighted_edges_from(zip(*edges.tolist(), weights.tolist(), strict=True))
    expected = networkx.laplacian_matrix(graph).toarray()
    matrix = operator.matrix(weights, edges, layout_of(len(atoms)))[0].detach()
    np.testing.assert_allclose(matrix.numpy(), expected, atol=1e-13)
    field = torch.randn(len(atoms), 2)
    applied = operator.apply(weights, edges, field)
    np.testing.assert_allclose(applied.detach().numpy(), 0.07 * expected @ field.numpy(), atol=1e-12)


def test_null_space_is_one_constant_per_component():
    atoms = molecule("H2O") + Atoms(molecule("CH4").symbols, molecule("CH4").positions + [20, 0, 0])
    operator, weights, edges = laplacian(atoms, 4.0)
    values = torch.linalg.eigvalsh(operator.matrix(weights, edges, layout_of(len(atoms)))[0])
    assert (values.abs() < 1e-12).sum() == 2 and (values > -1e-12).all()
    charges = operator.apply(weights, edges, torch.randn(len(atoms), 1))
    assert abs(charges[:3].sum()) < 1e-13 and abs(charges[3:].sum()) < 1e-13


def test_coulomb_constant_is_ases():
    # ase.units uses CODATA 2014, the constant here has eight digits.
    assert pytest.approx(ase.units.Hartree * ase.units.Bohr, rel=1e-7) == COULOMB_CONSTANT


def test_gaussian_charges_interact_as_the_fourier_integral_says():
    operator = GaussianCoulomb([1, 8])
    sigma = operator.widths().detach().numpy()
    for r in (0.3, 1.0, 2.5):
        positions = torch.tensor([[0, 0, 0], [0, 0, r]])
        matrix = operator.matrix(positions, torch.tensor([0, 1]), layout_of(2))[0]
        gamma2 = sigma[0] ** 2 + sigma[1] ** 2
        integral, _ = quad(lambda k: np.sinc(k * r / np.pi) * np.exp(-(k**2) * gamma2 / 2), 0, 60, epsabs=1e-13)  # noqa: B023
        assert matrix[0, 1].item() == pytest.approx(COULOMB_CONSTANT * 2 / np.pi * integral, rel=1e-10)


def test_two_far_charges_obey_coulombs_law():
    operator = GaussianCoulomb([1])
    for r in (15.0, 100.0):
        matrix = operator.matrix(torch.tensor([[0, 0, 0], [0, r, 0]]), torch.tensor([0, 0]), layout_of(2))[0]
        assert matrix[0, 1].item() == pytest.approx(COULOMB_CONSTANT / r, rel=1e-12)


def test_own_potential_is_the_limit_of_a_pair_that_meets():
    operator = GaussianCoulomb([6])
    matrix = operator.matrix(torch.tensor([[0, 0, 0], [0, 0, 1e-4]]), torch.tensor([0, 0]), layout_of(2))[0]
    assert matrix[0, 1].item() == pytest.approx(matrix[0, 0].item(), rel=1e-7)


def test_potential_matrix_is_positive_definite_and_padding_stays_empty():
    water, benzene = molecule("H2O"), molecule("C6H6")
    species = torch.tensor([[1, 6, 8].index(z) for z in [*water.numbers, *benzene.numbers]])
    positions = torch.tensor(np.vstack([water.positions, benzene.positions]))
    matrix = GaussianCoulomb([1, 6, 8]).matrix(positions, species, layout_of(3, 12))
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


def test_potential_matrix_is_twice_differentiable():
    operator = GaussianCoulomb([1, 6])
    positions = torch.randn(5, 3, requires_grad=True)
    species = torch.tensor([0, 1, 1, 0, 1])
    assert torch.autograd.gradgradcheck(
        lambda x: operator.matrix(x, species, layout_of(2, 3)).square().sum(), positions
    )
