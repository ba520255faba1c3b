"""An inverse that is kept: how near it is to that of another matrix, and when it is made anew."""

import pytest
import torch

from phi_equivariant.solvers.kept_inverse import KeptInverse, Last

pytestmark = pytest.mark.usefixtures("double")


def matrices():
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(12, 12, generator=generator)
    change = torch.randn(12, 12, generator=generator)
    first = first @ first.T + 12 * torch.eye(12)
    return first, first + 0.1 * (change + change.T)


def kept_for(matrix, made, last, rows=540):
    def make():
        made.append(matrix)
        return lambda residual: torch.linalg.solve(matrix, residual)

    return KeptInverse(make, lambda vector: matrix @ vector, lambda residual: residual, rows, last)


def test_an_old_one_is_improved_to_second_order():
    first, second = matrices()
    made, last = [], Last(torch.zeros(12, 1))
    kept = kept_for(first, made, last)
    one = torch.eye(12)
    torch.testing.assert_close(kept(first), one, rtol=0, atol=1e-12)
    kept.took(2)
    kept = kept_for(second, made, last)
    assert kept.is_old and len(made) == 1
    error = torch.linalg.solve(first, second) - one
    assert 0.01 < torch.linalg.matrix_norm(error, 2) < 0.5
    torch.testing.assert_close(kept(second), one - error @ error, rtol=0, atol=1e-12)


def test_it_is_made_anew_once_it_has_cost_more_than_that():
    """Of 1620 rows, which are worth nine steps."""
    first, second = matrices()
    made, last = [], Last(torch.zeros(12, 1))
    kept_for(first, made, last, 1620).took(3)
    for taken, times in ((2, 1), (6, 1), (2, 1), (5, 1), (4, 1), (2, 2), (2, 2)):
        kept_for(second, made, last, 1620).took(taken)
        assert len(made) == times
    assert not kept_for(second, made, Last(), 1620).is_old
    assert not kept_for(second, made, None, 1620).is_old
    assert not kept_for(second, made, last, 1621).is_old  # of other structures
    kept = kept_for(second, made, last, 1620)
    kept.renew()
    assert not kept.is_old and made[-1] is second


def test_one_of_a_first_solve_is_not_kept():
    """Which starts from nothing, and takes more steps than those that follow."""
    first, second = matrices()
    made, last = [], Last()
    kept_for(first, made, last).took(3)
    assert last.made is None
    last.solution = torch.zeros(12, 1)
    kept_for(first, made, last).took(2)
    assert kept_for(second, made, last).is_old and len(made) == 2


def test_a_small_one_is_always_made_anew():
    """It takes less than a step."""
    first, second = matrices()
    made, last = [], Last(torch.zeros(12, 1))
    for matrix in (first, second):
        kept_for(matrix, made, last, 192).took(2)
    assert len(made) == 2


def test_where_none_can_be_made_there_is_another():
    last = Last()
    kept = KeptInverse(lambda: None, lambda vector: vector, lambda residual: 3 * residual, 5, last)
    kept.took(1)
    torch.testing.assert_close(kept(torch.ones(5, 1)), 3 * torch.ones(5, 1), rtol=0, atol=0)
    assert last.made is None
