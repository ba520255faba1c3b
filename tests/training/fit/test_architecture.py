"""Every option of the host's architecture, on models that the command would train: built, saved, loaded, with Φ."""

import ase.io
import numpy as np
import pytest
import torch
from training_runs import batch_of, build, keep_default_dtype, write_molecules  # noqa: F401

from phi_equivariant import PhiCalculator, PhiPotential, attach_phi
from phi_equivariant.errors import InputError
from phi_equivariant.inputs.graphs import collate
from phi_equivariant.weights import load_model, save_model
from training.data.labelled_graphs import GraphMaker

SPECS = {
    "total_charge": {"type": "categorical", "per": "graph", "num_classes": 9, "emb_dim": 3, "offset": 4},
    "total_spin": {"type": "continuous", "per": "graph", "in_dim": 1, "emb_dim": 2},
}


@pytest.fixture(scope="module")
def molecules(tmp_path_factory):
    return write_molecules(tmp_path_factory.mktemp("architecture") / "train.xyz", count=9, seed=3)


# Options → what they make of the model, each judged by mace's own modules. Options without influence on each other
# share a model, since each takes a second.
CASES = {
    "radial": (
        {
            "r_max": 2.5,
            "radial_type": "gaussian",
            "num_radial_basis": 4,
            "num_cutoff_basis": 3,
            "distance_transform": "Agnesi",
            "pair_repulsion": True,
            "radial_MLP": "[5, 7]",
        },
        lambda host: {
            "r_max": float(host.r_max) == 2.5 and float(host.radial_embedding.cutoff_fn.r_max) == 2.5,
            "radial_type": type(host.radial_embedding.bessel_fn).__name__ == "GaussianBasis",
            "num_radial_basis": host.radial_embedding.bessel_fn.gaussian_weights.shape == (4,),
            "num_cutoff_basis": int(host.radial_embedding.cutoff_fn.p) == 3,
            "distance_transform": type(host.radial_embedding.distance_transform).__name__ == "AgnesiTransform",
            "pair_repulsion": type(host.pair_repulsion_fn).__name__ == "ZBLBasis",
            "radial_MLP": host.interactions[1].conv_tp_weights.hs[:-1] == [4, 5, 7],
        },
    ),
    "chebyshev": (
        {
            "radial_type": "chebyshev",
            "distance_transform": "Soft",
            "apply_cutoff": "False",
            "interaction": "RealAgnosticDensityResidualInteractionBlock",
            "interaction_first": "RealAgnosticDensityInteractionBlock",
            "use_last_readout_only": "True",
            "use_agnostic_product": "True",
            "gate": "tanh",
            "MLP_irreps": "6x0e",
        },
        lambda host: {
            "radial_type": host.radial_embedding.bessel_fn.n.shape == (1, 3),
            "distance_transform": type(host.radial_embedding.distance_transform).__name__ == "SoftTransform",
            "apply_cutoff": host.radial_embedding.apply_cutoff is False,
            "interaction": type(host.interactions[1]).__name__ == "RealAgnosticDensityResidualInteractionBlock",
            "interaction_first": type(host.interactions[0]).__name__ == "RealAgnosticDensityInteractionBlock",
            "use_last_readout_only": len(host.readouts) == 1,
            "use_agnostic_product": host.products[0].symmetric_contractions.contractions[0].weights_max.shape[0] == 1,
            "gate": host.readouts[0].non_linearity.acts[0].f is torch.tanh,
            "MLP_irreps": str(host.readouts[0].hidden_irreps) == "6x0e",
        },
    ),
    "layers": (
        {
            "model": "ScaleShiftMACE",
            "hidden_irreps": "3x0e+3x1o",
            "max_ell": 2,
            "correlation": 2,
            "edge_irreps": "2x0e+2x1o",
            "use_edge_irreps_first": "True",
            "interaction_first": "RealAgnosticResidualInteractionBlock",
        },
        lambda host: {
            "model": bool(host.scale_shift.shift != 0),
            "hidden_irreps": str(host.products[0].linear.irreps_out) == "3x0e+3x1o",
            "max_ell": str(host.spherical_harmonics.irreps_out) == "1x0e+1x1o+1x2e",
            "correlation": [len(p.symmetric_contractions.contractions[0].weights) for p in host.products] == [1, 1],
            "edge_irreps": str(host.interactions[1].linear_up.irreps_out) == "2x0e+2x1o",
            "use_edge_irreps_first": str(host.interactions[0].linear_up.irreps_out) == "2x0e",
            "interaction_first": host.products[0].use_sc,
        },
    ),
    "channels": (
        {"hidden_irreps": None, "num_channels": 2, "max_L": 1, "use_so3": "True", "radial_type": "bessel"},
        lambda host: {
            "num_channels": host.products[0].linear.irreps_out.count("0e") == 2,
            "max_L": host.products[0].linear.irreps_out.lmax == 1,
            "use_so3": str(host.spherical_harmonics.irreps_out) == "1x0e+1x1e",
            "radial_type": type(host.radial_embedding.bessel_fn).__name__ == "BesselBasis",
        },
    ),
    "one layer": (
        {"num_interactions": 1, "gate": "abs"},
        lambda host: {"num_interactions": len(host.interactions) == len(host.readouts) == 1},
    ),
    "embeddings": (
        {"embedding_specs": repr(SPECS), "use_embedding_readout": "True"},
        lambda host: {
            "embedding_specs": host.joint_embedding.embedders["total_charge"].weight.shape == (9, 3),
            "use_embedding_readout": hasattr(host, "embedding_readout"),
        },
    ),
}


@pytest.mark.honours(
    *("model", "r_max", "radial_type", "num_radial_basis", "num_cutoff_basis", "pair_repulsion", "distance_transform"),
    *("apply_cutoff", "use_last_readout_only", "interaction", "interaction_first", "max_ell", "correlation", "use_so3"),
    *("use_agnostic_product", "num_interactions", "MLP_irreps", "radial_MLP", "hidden_irreps", "edge_irreps"),
    *("use_edge_irreps_first", "num_channels", "max_L", "gate", "embedding_specs", "use_embedding_readout"),
)
@pytest.mark.parametrize("case", CASES)
def test_options_shape_the_host_and_survive_saving(molecules, tmp_path, case):
    given, effects = CASES[case]
    host, data, run = build(molecules, **given)
    wrong = [name for name, holds in effects(host).items() if not holds]
    assert not wrong
    batch = batch_of(data)
    bare = host(batch, compute_force=False)
    potential = attach_phi(host, {"operator": "coulomb"})
    both = potential(batch)
    torch.testing.assert_close(both["host_energy"], bare["energy"], rtol=1e-12, atol=1e-12)
    save_model(potential, tmp_path)
    loaded = load_model(tmp_path)
    assert isinstance(loaded, PhiPotential) and type(loaded.host) is type(host)
    again = loaded(batch)
    assert torch.equal(again["energy"], both["energy"]) and torch.equal(again["forces"], both["forces"])
    assert both["phi_energy"].abs().min() > 0


@pytest.mark.honours("embedding_specs", "total_charge_key", "total_spin_key")
def test_embedded_charge_and_spin_reach_the_host(molecules):
    host, data, run = build(molecules, embedding_specs=repr(SPECS))
    batch = batch_of(data)
    energies = [host({**batch, name: batch[name] + 1.0})["energy"] for name in SPECS]
    for changed in energies:
        assert (changed - host(batch)["energy"]).abs().min() > 1e-6
    ion = ase.io.read(molecules, "1")
    ion.info.update(total_charge=1, total_spin=2)
    ion.calc = PhiCalculator(host)
    graph = collate([GraphMaker(data.atomic_numbers, run.host.r_max, specs=SPECS)(ion)])
    assert graph["total_charge"].tolist() == [1.0] and graph["total_spin"].tolist() == [2.0]
    cation = ion.get_potential_energy()
    assert cation == pytest.approx(float(host(graph)["energy"]), rel=1e-12)
    ion.info["total_spin"] = 4
    assert abs(ion.get_potential_energy() - cation) > 1e-6


@pytest.mark.honours("scaling", "mean", "std", "avg_num_neighbors", "compute_avg_num_neighbors")
def test_statistics_of_the_training_set_scale_the_host(molecules):
    """Against numpy on the labels themselves, less the isolated atoms."""

    def built(**given):
        host, data, run = build(molecules, model="ScaleShiftMACE", **given)
        return host, [data.train[i] for i in range(len(data.train) // run.data.batch_size * run.data.batch_size)], data

    e0s = {1: -1.0, 6: -2.0, 8: -3.0}
    host, _, data = built(E0s=repr(e0s), scaling="std_scaling", batch_size=8)
    graphs = [data.train[i] for i in range(len(data.train))]
    per_atom = []
    forces = []
    neighbours = []
    for graph in graphs:
        atomic = graph["node_attrs"].double() @ torch.tensor(list(e0s.values()))
        per_atom.append(float((graph["energy"] - atomic.sum()) / len(atomic)))
        forces.append(graph["forces"].numpy())
        neighbours.append(np.unique(graph["edge_index"][1].numpy(), return_counts=True)[1])
    assert len(graphs) == 8  # all of them in one full batch
    assert float(host.scale_shift.shift) == pytest.approx(np.mean(per_atom))
    assert float(host.scale_shift.scale) == pytest.approx(np.std(per_atom, ddof=1))
    assert float(host.interactions[0].avg_num_neighbors) == pytest.approx(np.concatenate(neighbours).mean())
    host, *_ = built(E0s=repr(e0s), batch_size=8, mean=-0.25, compute_avg_num_neighbors="False", avg_num_neighbors=7.5)
    assert float(host.scale_shift.shift) == -0.25
    assert float(host.scale_shift.scale) == pytest.approx(np.sqrt(np.mean(np.concatenate(forces) ** 2)))
    assert float(host.interactions[0].avg_num_neighbors) == 7.5
    host, *_ = built(std=1.75, mean=0.5)
    assert (float(host.scale_shift.scale), float(host.scale_shift.shift)) == (1.75, 0.5)
    host, *_ = built(scaling="no_scaling")
    assert (float(host.scale_shift.scale), float(host.scale_shift.shift)) == (1.0, 0.0)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"num_interactions": 1, "use_last_readout_only": "True"}, "no readout would be left"),
        ({"hidden_irreps": "4x0e+2x1o"}, "mace refuses these options"),
        ({"freeze": -1}, "--freeze: expected 0"),
        ({"freeze": 8}, r"--freeze: expected 0 \(nothing\) to 7, got 8"),
    ],
)
def test_combinations_without_meaning_are_refused(molecules, given, message):
    with pytest.raises(InputError, match=message):
        build(molecules, **given)
