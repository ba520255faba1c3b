import numpy as np
import pytest
import torch

from phi_equivariant import batching
from phi_equivariant.batching import PaddedLayout, segment_sum

BATCH = torch.tensor([0, 0, 0, 1, 2, 2])
PTR = torch.tensor([0, 3, 4, 6])


@pytest.mark.parametrize("library", ["torch_scatter", "index_add"])
def test_segment_sum_equals_numpy(library, monkeypatch):
    if library == "torch_scatter":
        pytest.importorskip("torch_scatter")
    else:
        monkeypatch.setattr(batching, "scatter_sum", None)
    values = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    expected = np.zeros((3, 3))
    np.add.at(expected, BATCH.numpy(), values.detach().numpy())
    np.testing.assert_allclose(segment_sum(values, BATCH, 3).detach().numpy(), expected, rtol=1e-14)
    assert torch.autograd.gradgradcheck(lambda v: segment_sum(v, BATCH, 3) ** 2, values)


def test_padding_keeps_every_atom_in_its_structure():
    layout = PaddedLayout(BATCH, PTR)
    values = torch.arange(6.0)[:, None]
    padded = layout.pad(values)
    assert padded.shape == (3, 3, 1)
    assert padded[..., 0].tolist() == [[0, 1, 2], [3, 0, 0], [4, 5, 0]]
    assert layout.mask.tolist() == [[True, True, True], [True, False, False], [True, True, False]]
    assert torch.equal(layout.unpad(padded), values)
    assert layout.sum(values)[:, 0].tolist() == [3, 3, 9]
    assert not layout.is_full


def test_equal_structures_need_no_padding():
    layout = PaddedLayout(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 2, 4]))
    values = torch.randn(4, 2)
    assert layout.is_full
    assert torch.equal(layout.unpad(layout.pad(values)), values)
