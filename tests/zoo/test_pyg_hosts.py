"""SchNet and ViSNet of PyTorch Geometric as hosts, against the networks as they come.

What every host must do is in test_contract.py.
"""

import sys

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from checks import run
from systems import ELEMENTS, R_MAX, batch_of, distorted, ethanol

from phi_equivariant import PhiConfig, attach_phi
from phi_equivariant.errors import InputError
from phi_equivariant.weights import load_model, read_saved, save_model
from zoo import create_model, list_models, model_info, parameter_groups
from zoo.pyg_hosts import SchNet, ViSNet
from zoo.store import limits

models = pytest.importorskip("torch_geometric.nn").models
pytestmark = pytest.mark.usefixtures("double")


def schnet(**given):
    torch.manual_seed(0)
    return SchNet(ELEMENTS, [0.0] * 4, R_MAX, **{"hidden_channels": 8, "num_filters": 8, "num_gaussians": 12, **given})


def visnet(**given):
    torch.manual_seed(0)
    return ViSNet(ELEMENTS, [0.0] * 4, R_MAX, **{"hidden_channels": 8, "num_heads": 2, "num_rbf": 8, **given})


def pairs(pos, batch, loops):
    """All pairs of atoms of one structure within the cut-off, as ``radius_graph`` would find them."""
    near = (torch.cdist(pos, pos) < R_MAX) & (batch[:, None] == batch)
    return (near if loops else near.fill_diagonal_(False)).nonzero().T


class OwnDistance(torch.nn.Module):
    """ViSNet's neighbour list: edges, lengths and vectors, with an edge from every atom to itself."""

    def forward(self, pos, batch):
        edges = pairs(pos, batch, loops=True)
        vectors = pos[edges[0]] - pos[edges[1]]
        return edges, vectors.norm(dim=-1), vectors


def inputs():
    structures = [ethanol(), molecule("H2O")]
    numbers = torch.tensor(np.concatenate([atoms.numbers for atoms in structures]))
    positions = torch.tensor(np.concatenate([atoms.positions for atoms in structures]))
    return structures, numbers, positions, torch.tensor([0] * 9 + [1] * 3)


def test_schnet_is_pytorch_geometrics():
    def graph(pos, batch):
        edges = pairs(pos, batch, loops=False)
        return edges, (pos[edges[0]] - pos[edges[1]]).norm(dim=-1)

    torch.manual_seed(0)
    theirs = models.SchNet(8, 8, 3, 12, R_MAX, interaction_graph=graph)
    structures, *arguments = inputs()
    want = theirs(*arguments).flatten().tolist()
    np.testing.assert_allclose(run(schnet(), *structures)["energy"], want, rtol=1e-12)


@pytest.mark.parametrize("max_ell", [1, 2])
def test_visnet_is_pytorch_geometrics(max_ell):
    """As it comes: with biases that are zero, and but for the ε that makes its readout smooth."""
    torch.manual_seed(0)
    theirs = models.ViSNet(
        lmax=max_ell, num_heads=2, num_layers=3, hidden_channels=8, num_rbf=8, cutoff=R_MAX
    )  # fmt: skip
    theirs.representation_model.distance = OwnDistance()
    structures, *arguments = inputs()
    want = theirs(*arguments)[0].flatten().tolist()
    ours = visnet(max_ell=max_ell)
    close = run(ours, *structures)["energy"]
    for block in ours.network.output_model.output_network:
        block.vec1_proj.epsilon = 0.0
    np.testing.assert_allclose(run(ours, *structures)["energy"], want, rtol=1e-12)
    np.testing.assert_allclose(close, want, atol=2e-3)


def test_taps_add_up_to_what_the_readout_gets():
    seen = {}

    def keep(module, arguments):
        seen[module] = arguments[0].detach()

    model = attach_phi(schnet())
    model.host.network.lin1.register_forward_pre_hook(keep)
    features = torch.as_tensor(run(model, ethanol())["node_feats"])
    torch.testing.assert_close(features[:, 16:], seen[model.host.network.lin1], rtol=1e-13, atol=1e-13)

    model = attach_phi(visnet(max_ell=2))
    block = model.host.network.representation_model
    for module in (block.out_norm, block.vec_out_norm):
        module.register_forward_pre_hook(keep)
    scalars, vectors, tensors = torch.as_tensor(run(model, ethanol())["node_feats"])[:, 144:].split([8, 24, 40], dim=1)
    torch.testing.assert_close(scalars, seen[block.out_norm], rtol=1e-13, atol=1e-13)
    wanted = seen[block.vec_out_norm]  # (n_atoms, 3 + 5, channels)
    torch.testing.assert_close(vectors.reshape(9, 8, 3).mT, wanted[:, :3], rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(tensors.reshape(9, 8, 5).mT, wanted[:, 3:], rtol=1e-13, atol=1e-13)


def test_vectors_of_visnet_make_dipoles():
    model = attach_phi(visnet(max_ell=2), PhiConfig(multipoles=1))
    atoms, turned = ethanol(), ethanol()
    turned.rotate(50, (1, 2, 3))
    turned.positions *= -1
    matrix = np.linalg.lstsq(atoms.positions, turned.positions, rcond=None)[0]
    want, got = run(model, atoms), run(model, turned)
    assert np.abs(want["atomic_dipoles"]).max() > 1e-3
    np.testing.assert_allclose(got["atomic_dipoles"], want["atomic_dipoles"] @ matrix, atol=1e-9)
    with pytest.raises(InputError, match="no tapped layer has 1o channels"):
        attach_phi(schnet(), PhiConfig(multipoles=1))


def test_a_bias_that_visnet_comes_with_jumps_at_the_cutoff():
    """Why ours has none: the contract test of the cut-off would see it."""
    model = visnet()
    atoms = [molecule("H2O") + Atoms("C", [molecule("H2O").positions[0] + [0, 0, R_MAX + x]]) for x in (-1e-6, 1e-6)]
    assert abs(np.diff(run(model, *atoms)["energy"])[0]) < 1e-9
    for layer in model.network.representation_model.vis_mp_layers:
        layer.s_proj.bias = torch.nn.Parameter(torch.full((16,), 0.3))
    assert abs(np.diff(run(model, *atoms)["energy"])[0]) > 1e-4


def test_many_neighbours_are_all_counted():
    """PyTorch Geometric's own list would keep 32."""
    crystal = distorted(bulk("CO", "rocksalt", a=3.0))  # 2 atoms, 80 neighbours
    for made in (schnet, visnet):
        model, cell = made(), crystal * 3
        neighbours = np.bincount(batch_of(cell)["edge_index"][1].numpy())
        assert neighbours.min() > 64
        want = run(model, cell)["energy"][0] / 27 if made is visnet else run(model, crystal)["energy"][0]
        np.testing.assert_allclose(run(model, crystal * (3, 3, 4))["energy"][0], 36 * want, rtol=1e-9)


def test_visnet_refuses_atoms_that_neighbour_themselves():
    with pytest.raises(InputError, match="within the cut-off of its own image.*repeat the cell"):
        visnet()(batch_of(bulk("CO", "rocksalt", a=3.9)))


def test_saved_and_loaded_with_trained_scale(tmp_path):
    host = visnet(max_ell=2, train_scale_shift=True, atomic_inter_scale=np.float64(2.0))
    with torch.no_grad():
        host.scale.mul_(1.5)
    model = attach_phi(host, PhiConfig(channels=2))
    save_model(model, tmp_path)
    twin = load_model(tmp_path)
    assert twin.taps == model.taps and torch.equal(twin.host.scale, host.scale)
    np.testing.assert_array_equal(run(twin, ethanol())["forces"], run(model, ethanol())["forces"])
    limits.check(read_saved(tmp_path))
    decayed = next(group for group in parameter_groups(model) if group["name"] == "linear")
    assert decayed["decay"] and host.network.representation_model.embedding.weight not in set(decayed["params"])


@pytest.mark.parametrize(
    ("name", "elements", "overrides", "match"),
    [
        ("phi-schnet-small", [1, 100], {}, r"atomic_numbers has \[100\].* up to 99"),
        ("phi-schnet-small", [1], {"hidden_channels": 10**6}, "hidden_channels is 1000000"),
        ("phi-schnet-small", [1], {"avg_num_neighbors": 9.0}, "'avg_num_neighbors' is not a setting"),
        ("phi-schnet-small", [1], {"hidden_irreps": "8x0e"}, "'hidden_irreps' is not a setting"),
        ("phi-visnet-small", [1], {"max_ell": 3}, "max_ell is 3; ViSNet has"),
        ("phi-visnet-small", [1], {"num_heads": 7}, "divisible"),
    ],
)
def test_what_cannot_be_created(name, elements, overrides, match):
    with pytest.raises(InputError, match=match):
        create_model(name, elements, **overrides)


def test_without_pytorch_geometric(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_geometric", None)
    assert list_models("phi-*net-*") == [] and list_models("nequip") != []
    assert model_info("phi-schnet-small")["extra"] == "pyg"
    with pytest.raises(InputError, match=r"phi-schnet-small needs torch_geometric.*phi-equivariant\[pyg\]"):
        create_model("phi-schnet-small", [1])
    with pytest.raises(InputError, match=r"cannot be imported.*phi-equivariant\[pyg\]"):
        monkeypatch.setitem(sys.modules, "torch_geometric.nn", None)
        schnet()
