import numpy as np
import pytest
import torch

from phi_equivariant.alpha_net import AlphaNet, ScalarHead
from phi_equivariant.errors import InputError

from e3nn import o3  # isort: skip

pytestmark = pytest.mark.usefixtures("double")


@pytest.mark.parametrize("irreps", ["4x0e", "4x0e+4x1o", "3x0e+2x0o+4x1o+1x1e+2x2e"])
def test_output_is_invariant_under_rotation_and_reflection(irreps):
    irreps = o3.Irreps(irreps)
    head = ScalarHead(irreps, 8, 2)
    features = irreps.randn(5, -1)
    rotation = -o3.rand_matrix()  # an improper rotation
    moved = features @ irreps.D_from_matrix(rotation).T
    np.testing.assert_allclose(head(moved).detach().numpy(), head(features).detach().numpy(), atol=1e-12)


def test_features_without_scalars_are_refused():
    with pytest.raises(InputError, match="2x0o\\+3x1o.*0e"):
        ScalarHead(o3.Irreps("2x0o+3x1o"), 8, 1)
    with pytest.raises(InputError, match="taps"):
        AlphaNet([], [1], 1, 1, 8, 0.5, 1.0)


def test_layers_accumulate_and_element_term_goes_to_channel_0():
    net = AlphaNet(
        ["4x0e", "4x0e+2x1o"], [1, 6, 8], n_fields=2, channels=3, hidden=8, element_scale=0.5, start_scale=2.0
    )
    layers = [torch.randn(3, 4), torch.randn(3, 10)]
    species = torch.tensor([0, 1, 2])
    out = net(layers, species)
    assert out.shape == (3, 2, 3)
    heads = sum(head(x) for head, x in zip(net.heads, layers, strict=True)).reshape(3, 2, 3)
    expected = 2.0 * heads
    # Pauling: H 2.20, C 2.55, O 3.44
    expected[:, :, 0] += 2.0 * 0.5 * (2.55 - torch.tensor([2.20, 2.55, 3.44]))[:, None]
    np.testing.assert_allclose(out.detach().numpy(), expected.detach().numpy(), atol=1e-12)
