import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import torch

from phi_equivariant.batching import PaddedLayout
from phi_equivariant.solvers.spectral import LowPass, ModeWindow

pytestmark = pytest.mark.usefixtures("double")


def layout_of(*sizes):
    batch = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return PaddedLayout(batch, torch.tensor([0, *np.cumsum(sizes)]))


def complete_graph(n):
    return n * torch.eye(n) - torch.ones(n, n)


def ring(n):
    matrix = 2 * torch.eye(n)
    for i in range(n):
        matrix[i, (i + 1) % n] = matrix[(i + 1) % n, i] = -1.0
    return matrix


def random_symmetric(n, seed=0):
    matrix = torch.randn(n, n, generator=torch.Generator().manual_seed(seed))
    return matrix @ matrix.T / n


def window_by_scipy(matrix, k, width):
    """The Fermi function of a matrix through scipy's expm and root finder."""
    n = len(matrix)

    def function(level):
        return np.linalg.inv(np.eye(n) + scipy.linalg.expm((matrix - level * np.eye(n)) / width))

    level = scipy.optimize.brentq(lambda m: np.trace(function(m)) - k, -20, 20, xtol=1e-14)
    return function(level)


def test_window_equals_scipys_matrix_function():
    matrix, fields = random_symmetric(6), torch.randn(6, 2)
    out = ModeWindow(3, 0.4).apply(matrix[None], fields[None], layout_of(6), True)[0]
    np.testing.assert_allclose(out.numpy(), window_by_scipy(matrix.numpy(), 3, 0.4) @ fields.numpy(), atol=1e-10)


def test_window_keeps_k_modes_and_narrow_windows_project():
    matrix = random_symmetric(7)
    full = ModeWindow(3, 0.2).apply(matrix[None], torch.eye(7)[None], layout_of(7), False)[0]
    assert torch.trace(full).item() == pytest.approx(3, abs=1e-10)
    values, vectors = torch.linalg.eigh(matrix)
    width = float(values[3] - values[2]) / 100
    narrow = ModeWindow(3, width).apply(matrix[None], torch.eye(7)[None], layout_of(7), False)[0]
    np.testing.assert_allclose(narrow.numpy(), (vectors[:, :3] @ vectors[:, :3].T).numpy(), atol=1e-9)


@pytest.mark.parametrize("matrix", [complete_graph(4), ring(6), random_symmetric(5)], ids=["K4", "ring", "random"])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_window_has_two_exact_derivatives(matrix, k):
    """Finite differences of value and gradient, for threefold and pairwise degenerate spectra too."""
    n = len(matrix)
    window, fields = ModeWindow(k, 0.3), torch.randn(n, 1)

    def function(change):
        symmetric = matrix + 0.5 * (change + change.T)
        return window.apply(symmetric[None], fields[None], layout_of(n), True)

    change = torch.zeros(n, n, requires_grad=True)
    assert torch.autograd.gradcheck(function, change, atol=1e-7)
    assert torch.autograd.gradgradcheck(function, change, atol=1e-6)


@pytest.mark.parametrize("size", [1e-9, 1e-7, 1e-5, 1e-3])
def test_derivatives_are_right_for_nearly_degenerate_spectra(size):
    matrix = ring(6) + size * random_symmetric(6, seed=3)
    window, fields = ModeWindow(3, 0.3), torch.randn(6, 1)

    def function(change):
        symmetric = matrix + 0.5 * (change + change.T)
        return window.apply(symmetric[None], fields[None], layout_of(6), True)

    assert torch.autograd.gradgradcheck(function, torch.zeros(6, 6, requires_grad=True), atol=1e-6)


def test_structures_do_not_see_each_other_or_their_padding():
    window = ModeWindow(2, 0.3)
    small, large = random_symmetric(4), random_symmetric(7, seed=1)
    padded = torch.zeros(2, 7, 7)
    padded[0, :4, :4], padded[1] = small, large
    fields = torch.randn(2, 7, 2)
    fields[0, 4:] = 0
    out = window.apply(padded, fields, layout_of(4, 7), True)
    alone = window.apply(small[None], fields[:1, :4], layout_of(4), True)
    np.testing.assert_allclose(out[0, :4].numpy(), alone[0].numpy(), atol=1e-13)
    assert (out[0, 4:] == 0).all()


def test_at_most_k_atoms_keep_all_modes():
    fields = torch.randn(1, 4, 2)
    assert torch.equal(ModeWindow(4, 0.3).apply(ring(4)[None], fields, layout_of(4), True), fields)
    padded = torch.zeros(2, 6, 6)
    padded[0, :3, :3], padded[1] = complete_graph(3), ring(6)
    fields = torch.randn(2, 6, 1)
    fields[0, 3:] = 0
    out = ModeWindow(4, 0.3).apply(padded, fields, layout_of(3, 6), True)
    np.testing.assert_allclose(out[0].numpy(), fields[0].numpy(), atol=1e-13)
    assert not torch.allclose(out[1], fields[1])


def test_single_precision_window_is_close_to_double():
    matrix, fields = ring(30), torch.randn(30, 1)
    double = ModeWindow(5, 0.05).apply(matrix[None], fields[None], layout_of(30), True)
    single = ModeWindow(5, 0.05).apply(matrix[None].float(), fields[None].float(), layout_of(30), True)
    np.testing.assert_allclose(single.numpy(), double.numpy(), atol=2e-4)


@pytest.mark.parametrize("inverse", [False, True])
def test_low_pass_equals_the_eigenvalue_formula(inverse):
    laplacian = random_symmetric(6) + torch.eye(6)
    values, vectors = np.linalg.eigh(laplacian.numpy())
    fields = torch.randn(6, 2)
    expected = vectors @ np.diag(1 / (1 + values / 0.7)) @ vectors.T @ fields.numpy()
    matrix = torch.linalg.inv(laplacian) if inverse else laplacian
    out = LowPass(0.7, inverse).apply(matrix[None], fields[None], layout_of(6), True)
    np.testing.assert_allclose(out[0].numpy(), expected, atol=1e-12)
