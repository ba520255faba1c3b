"""Taps: how node features are read from what submodules return."""

import json

import numpy as np
import pytest
import torch
from checks import run
from systems import ELEMENTS, R_MAX, batch_of, ethanol

from phi_equivariant import PhiConfig, Tap, attach_phi
from phi_equivariant.errors import InputError
from phi_equivariant.taps import read_layers, read_taps, write_taps
from zoo import GenericModel

pytestmark = pytest.mark.usefixtures("double")


class Layer(torch.nn.Module):
    """Increments of scalars and vectors, and something that is not a feature."""

    def __init__(self, width):
        super().__init__()
        self.linear = torch.nn.Linear(width, width)
        self.filter = torch.nn.Linear(1, width)

    def forward(self, h, v, graph):
        sender, receiver = graph.edge_index
        weight = (1 - graph.lengths / R_MAX).square()[:, None] * self.filter(graph.lengths[:, None])  # (n_edges, width)
        message = torch.tanh(self.linear(h))[sender] * weight
        towards = message[:, None, :] * (graph.vectors / graph.lengths[:, None])[:, :, None]  # (n_edges, 3, width)
        return {
            "scalars": torch.zeros_like(h).index_add(0, receiver, message),
            "vectors": torch.zeros_like(v).index_add(0, receiver, towards),
            "edges": weight,
        }


class Residual(torch.nn.Module):
    """h ← h + layer(h), v ← v + layer(h); remembers what its features were after each layer."""

    def __init__(self, width=6, layers=2, times=1):
        super().__init__()
        self.embedding = torch.nn.Embedding(100, width)
        self.layers = torch.nn.ModuleList(Layer(width) for _ in range(layers))
        self.readout = torch.nn.Linear(width, 1)
        self.times = times

    def forward(self, graph):
        h = self.embedding(graph.numbers)
        v, self.seen = h.new_zeros(len(h), 3, h.shape[1]), []
        for layer in list(self.layers) * self.times:
            out = layer(h, v, graph)
            h, v = h + out["scalars"], v + out["vectors"]
            self.seen.append((h, v))
        return self.readout(h + v.square().sum(1))


def energies(network, graph):
    return network(graph)


def host(**given):
    torch.manual_seed(0)
    return GenericModel(Residual(**given), energies, ELEMENTS, r_max=R_MAX, periodic=True)


SCALARS = Tap(6, element="scalars", increment=True, start="network.embedding")
VECTORS = Tap("6x1o", element="vectors", layout="ir_mul", increment=True)
BOTH = {f"network.layers.{i}": [SCALARS, VECTORS] for i in range(2)}


def test_increments_add_up_to_the_networks_own_features():
    model = attach_phi(host(), PhiConfig(), taps=BOTH)
    features = model(batch_of(ethanol()))["node_feats"].split([24, 24], dim=1)
    for got, (h, v) in zip(features, model.host.network.seen, strict=True):
        torch.testing.assert_close(got[:, :6], h, rtol=1e-14, atol=1e-14)
        for channel in range(6):  # e3nn's layout: the components of a channel side by side
            where = slice(6 + 3 * channel, 9 + 3 * channel)
            torch.testing.assert_close(got[:, where], v[:, :, channel], rtol=1e-14, atol=1e-14)


def test_without_start_increments_begin_at_zero_and_other_starts_are_other_sums():
    plain = Tap(6, element="scalars", increment=True)
    model = attach_phi(host(), taps={"network.layers.0": [plain, SCALARS], "network.layers.1": [plain, SCALARS]})
    out = model(batch_of(ethanol()))["node_feats"].split(6, dim=1)
    start = model.host.network.embedding(torch.tensor(ethanol().numbers))
    for first, second in (out[:2], out[2:]):
        torch.testing.assert_close(first + start, second)
    assert (out[2] - out[0]).abs().max() > 1e-3


def test_dipoles_of_tapped_vectors_turn_with_the_molecule():
    model = attach_phi(host(), PhiConfig(multipoles=1), taps=BOTH)
    atoms, turned = ethanol(), ethanol()
    turned.rotate(70, (1, 2, 3))
    turned.positions *= -1
    matrix = np.linalg.lstsq(atoms.positions, turned.positions, rcond=None)[0]
    want, got = run(model, atoms), run(model, turned)
    assert np.abs(want["atomic_dipoles"]).max() > 1e-3
    np.testing.assert_allclose(got["atomic_dipoles"], want["atomic_dipoles"] @ matrix, atol=1e-9)
    np.testing.assert_allclose(got["energy"], want["energy"], rtol=1e-10)


def test_several_l_in_one_tensor():
    """(n_atoms, 3 + 5, channels) → channels of l = 1, then channels of l = 2."""
    tensor = torch.arange(2 * 8 * 4.0).reshape(2, 8, 4)
    got = Tap("4x1o+4x2e", layout="ir_mul").read(tensor, "name")
    vectors, tensors = got.split([12, 20], dim=1)
    for channel in range(4):
        assert torch.equal(vectors.reshape(2, 4, 3)[:, channel], tensor[:, :3, channel])
        assert torch.equal(tensors.reshape(2, 4, 5)[:, channel], tensor[:, 3:, channel])


def test_plain_features_are_handed_on_as_they_are():
    features = torch.randn(3, 7)
    (layer,) = read_layers(read_taps({"a": "4x0e+1x1o"}), {"a": features})
    assert layer is features


def test_taps_survive_json():
    taps = read_taps({**BOTH, "a": "4x0e+1x1o", "b": 3, "c": {"irreps": "2x0e", "element": 1}, "d": Tap("1x1o")})
    assert read_taps(json.loads(json.dumps(write_taps(taps)))) == taps
    assert write_taps(taps)["a"] == "4x0e+1x1o" and write_taps(taps)["b"] == "3x0e"


@pytest.mark.parametrize(
    ("taps", "match"),
    [
        ("a", "taps is 'a'; give a dictionary"),
        ({"a": []}, "nothing to read in 'a'"),
        ({"a": "hello"}, "not irreps"),
        ({"a": True}, "not irreps"),
        ({"a": {"element": 0}}, "give irreps and, where needed, element"),
        ({"a": {"irreps": 3, "elment": 0}}, "give irreps and, where needed, element"),
        ({"a": {"irreps": 3, "element": [0]}}, "element is .*, a list"),
        ({"a": {"irreps": 3, "increment": 1}}, "increment is 1, a int"),
        ({"a": {"irreps": 3, "layout": "C_3"}}, "layout is 'C_3'; give one of mul_ir, ir_mul"),
        ({"a": {"irreps": "3x0e+4x1o", "layout": "ir_mul"}}, "every l has as many channels"),
        ({"a": {"irreps": 3, "start": "b"}}, "without increment=True"),
    ],
)
def test_taps_that_are_none(taps, match):
    with pytest.raises(InputError, match=match):
        read_taps(taps)


@pytest.mark.parametrize(
    ("taps", "match"),
    [
        ({"network.layers.0": 6}, "gave dict; expected a tensor .* name its element"),
        ({"network.layers.0": Tap(6, element="scalar")}, "no element 'scalar'"),
        ({"network.layers.0": Tap(5, element="scalars")}, r"shape \(9, 6\); irreps 5x0e have width 5"),
        ({"network.layers.0": [6, Tap("6x1o", element="vectors")]}, "gave dict"),
        ({"network.layers.0": [SCALARS, Tap("6x1o", element="vectors")]}, r"\(9, 3, 6\); .* 'mul_ir'"),
        ({"network.layers.0": Tap(6, element="scalars", increment=True, start="network")}, r"'network' .*\(9, 1\)"),
        ({"network.layers": 6}, "'network.layers' ran 0 times"),
    ],
)  # fmt: skip
def test_outputs_that_do_not_fit(taps, match):
    model = attach_phi(host(), taps=taps)
    with pytest.raises(InputError, match=match):
        model(batch_of(ethanol()))


def test_submodules_that_run_twice_or_carry_phi_already():
    with pytest.raises(InputError, match=r"'network.layers.0' ran 2 times in one pass"):
        attach_phi(host(times=2), taps=BOTH)(batch_of(ethanol()))
    model = attach_phi(host(), taps=BOTH)
    with pytest.raises(InputError, match="already carries Φ"):
        attach_phi(model.host, taps={"network.embedding": 6})
    with pytest.raises(InputError, match="'network.embeding' is not a submodule"):
        attach_phi(host(), taps={"network.layers.0": Tap(6, increment=True, start="network.embeding")})
    with pytest.raises(InputError, match="declares no phi_taps"):
        attach_phi(host())
