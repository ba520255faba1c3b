"""Heads with data, keys and E0s of their own, weights of structures, and the files they come from."""

import json
from dataclasses import replace

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from mace import data as mace_data
from mace import tools as mace_tools
from mace.tools import scripts_utils
from training_runs import (  # noqa: F401
    keep_default_dtype,
    mace_epochs,
    mace_prepare_data,
    metrics,
    parsed,
    run,
    words,
    write_molecules,
)

from phi_equivariant.errors import InputError
from phi_equivariant.inputs.graphs import collate
from phi_equivariant.weights import save_model
from training import build as building
from training import mace_interface
from training.data.named_files import DATASETS
from training.fit.predict import predict
from training.options import command_line

ENERGIES = {1: -1.5, 6: -4.0, 8: -3.0}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two training files, of methanol and water and of water alone, whose labels have other names."""
    folder = tmp_path_factory.mktemp("heads")
    write_molecules(folder / "a.xyz", count=10, seed=1)
    frames = ase.io.read(write_molecules(folder / "both.xyz", count=12, seed=2), "::2")
    for atoms in frames:
        atoms.info["mp2_energy"], atoms.arrays["mp2_forces"] = atoms.get_potential_energy(), atoms.get_forces()
        atoms.calc = None
    ase.io.write(folder / "b.xyz", frames, format="extxyz")
    return folder


def two_heads(files, first=None, second=None):
    """mace's form: the second head has keys of its own, and no carbon."""
    keys = {"info_keys": {"energy": "mp2_energy"}, "arrays_keys": {"forces": "mp2_forces"}}
    dft = {"train_file": str(files / "a.xyz"), "valid_fraction": 0.2, **(first or {})}
    mp2 = {"train_file": str(files / "b.xyz"), "valid_fraction": 0.34, **keys, **(second or {})}
    return str({"dft": dft, "mp2": mp2})


def prepared(folder, **given):
    return building.load(parsed(folder, **{"name": "run", **given}))


@pytest.mark.honours("heads")
def test_each_head_has_its_data_keys_energies_and_scale(files, tmp_path):
    """The joined set is in the heads' order, and the model's tables are per head."""
    given = {"dft": {"E0s": str(ENERGIES)}, "mp2": {"E0s": "average", "std": 2.5, "mean": 0.5}}
    text = two_heads(files, given["dft"], given["mp2"])
    chosen, run_data = prepared(tmp_path, heads=text, E0s=None, model="ScaleShiftMACE")
    built = building.build(chosen, run_data)
    assert run_data.heads == built.model.heads == ["dft", "mp2"]
    assert [int(run_data.train[i]["head"]) for i in range(len(run_data.train))] == [0] * 8 + [1] * 4
    assert {name: len(part) for name, part in run_data.valid.items()} == {"dft": 2, "mp2": 2}
    frames = ase.io.read(files / "b.xyz", ":")
    energies = sorted(atoms.info["mp2_energy"] for atoms in frames)
    found = [
        float(part[i]["energy"])
        for part in (run_data.train_sets["mp2"], run_data.valid["mp2"])
        for i in range(len(part))
    ]
    assert sorted(found) == pytest.approx(energies)
    assert run_data.e0s["dft"] == ENERGIES and run_data.e0s["mp2"][6] == 0.0  # no carbon in the second head
    table = built.model.atomic_energies_fn.atomic_energies
    assert table.tolist() == [[run_data.e0s[head][z] for z in (1, 6, 8)] for head in run_data.heads]
    forces = torch.cat([part["forces"] for part in run_data.train_sets["dft"].graphs])
    assert float(built.model.scale_shift.scale[0]) == pytest.approx(float(forces.square().mean().sqrt()), rel=0.3)
    assert float(built.model.scale_shift.scale[1]) == 2.5 and float(built.model.scale_shift.shift[1]) == 0.5


@pytest.mark.slow
def test_two_heads_train_as_with_mace_run_train(files, tmp_path):
    """One of xyz and one of HDF5: losses of all steps and of both validation sets agree, with a moving average."""
    keys = {"energy_key": "mp2_energy", "forces_key": "mp2_forces"}
    mace_prepare_data(tmp_path, num_process=1, train_file=files / "b.xyz", valid_file=files / "b.xyz", **keys)
    stored = {"train_file": str(tmp_path / "train"), "valid_file": str(tmp_path / "val"), "atomic_numbers": "[1, 8]"}
    dft = {
        "train_file": str(files / "a.xyz"),
        "valid_fraction": 0.2,
        "test_file": str(files / "a.xyz"),
        "E0s": "average",
    }
    dft["config_type_weights"] = "{'Default': 2.0}"  # as text: mace ignores a dictionary in a head
    given = {"heads": str({"dft": dft, "mp2": stored}), "E0s": str(ENERGIES), "ema": True, "max_num_epochs": 2}
    given |= {"seed": 3, "model": "ScaleShiftMACE", "batch_size": 3}
    folder = run(tmp_path, name="ours", plot=False, **given)
    for mine, (train_loss, heads) in zip(metrics(folder), mace_epochs(tmp_path, **given), strict=True):
        assert mine["train_loss"] == pytest.approx(train_loss, rel=1e-9)
        assert list(heads) == ["dft", "mp2"]
        for head, row in heads.items():
            assert mine[f"valid_{head}_loss_mace"] == pytest.approx(row["loss"], rel=1e-9)
            assert mine[f"valid_{head}_rmse_forces"] == pytest.approx(1e3 * row["rmse_f"], rel=1e-9)
        assert mine["valid_loss_mace"] == mine["valid_mp2_loss_mace"]
    rows = json.loads((folder / "errors.json").read_text())["sets"]
    assert list(rows) == ["train_dft", "train_mp2", "valid_dft", "valid_mp2", "test"]


def test_charges_are_common_to_all_heads(files, tmp_path):
    """A structure's Φ energy is the same under each head; the host's differs."""
    chosen, run_data = prepared(tmp_path, heads=two_heads(files), phi=["operator=coulomb"])
    built = building.build(chosen, run_data)
    batches = [collate([{**run_data.train[0], "head": torch.tensor(head)}]) for head in (0, 1)]
    one, two = (predict(built.model.eval(), batch, built.outputs) for batch in batches)
    assert torch.equal(one["charges"], two["charges"]) and torch.equal(one["phi_energy"], two["phi_energy"])
    assert float((one["energy"] - two["energy"]).abs()) > 1e-3


@pytest.mark.honours("E0s")
def test_forms_of_isolated_energies(files, tmp_path):
    """Dictionary, JSON file, least squares, isolated atoms; text as mace's parser passes it on."""
    (tmp_path / "e0s.json").write_text(json.dumps(ENERGIES))
    frames = ase.io.read(files / "a.xyz", ":")
    atoms = [Atoms([z], info={"config_type": "IsolatedAtom", "energy": e}) for z, e in ENERGIES.items()]
    ase.io.write(tmp_path / "atoms.xyz", [*frames, *atoms], format="extxyz")
    same = {"train_file": files / "a.xyz", "valid_file": files / "a.xyz"}
    for given in (
        {"E0s": str(ENERGIES)},
        {"E0s": json.dumps(ENERGIES)},  # keys are text
        {"E0s": tmp_path / "e0s.json"},
        {"E0s": "average", "train_file": tmp_path / "atoms.xyz"},  # atoms in the file come first, as in mace
    ):
        assert prepared(tmp_path, **{**same, **given})[1].e0s == {"Default": ENERGIES}, given
    counts = [[np.count_nonzero(atoms.numbers == z) for z in ENERGIES] for atoms in frames]
    fitted = np.linalg.lstsq(np.array(counts), [atoms.get_potential_energy() for atoms in frames], rcond=None)[0]
    (found,) = prepared(tmp_path, **same, E0s="average")[1].e0s.values()
    assert list(found.values()) == pytest.approx(fitted, rel=1e-9)


def built_outputs():
    return {"forces": False, "stress": False, "virials": False}


@pytest.mark.honours(
    "config_type_weights", "energy_key", "forces_key", "stress_key", "virials_key", "dipole_key", "charges_key",
    "total_charge_key", "total_spin_key", "elec_temp_key", "atomic_numbers",
)  # fmt: skip
def test_labels_and_weights_are_those_that_mace_reads(tmp_path, double):
    """Field by field, with every label under a key of the user's and all weights that a structure can have."""
    rng, frames = np.random.default_rng(5), []
    for index in range(4):
        atoms = Atoms("OH2", rng.normal(size=(3, 3)), cell=5 * np.eye(3), pbc=True)
        atoms.info |= {"e": rng.normal(), "s": rng.normal(size=(3, 3)), "v": rng.normal(size=(3, 3))}
        atoms.info |= {"mu": rng.normal(size=3), "Q": index - 1, "S": index + 1, "T": 0.1 * index}
        atoms.info |= {"config_type": "hot" if index % 2 else "cold", "config_weight": 1.0 + index}
        atoms.info |= {f"config_{name}_weight": rng.uniform() for name in ("energy", "forces", "stress", "charges")}
        atoms.arrays |= {"f": rng.normal(size=(3, 3)), "q": rng.normal(size=3), "field": rng.normal(size=(3, 2))}
        atoms.arrays["q"] += (atoms.info["Q"] - atoms.arrays["q"].sum()) / 3
        frames.append(atoms)
    ase.io.write(tmp_path / "train.xyz", frames, format="extxyz")
    keys = {"energy": "e", "forces": "f", "stress": "s", "virials": "v", "dipole": "mu", "charges": "q"}
    keys |= {"total_charge": "Q", "total_spin": "S", "elec_temp": "T"}
    given = {f"{name}_key": key for name, key in keys.items()}
    specs = {"total_spin": {"type": "categorical", "per": "graph", "num_classes": 9, "emb_dim": 4}}
    specs["elec_temp"] = {"type": "continuous", "per": "graph", "in_dim": 1, "emb_dim": 4}
    specs["local"] = {"type": "continuous", "per": "atom", "in_dim": 2, "emb_dim": 4, "key": "field"}
    weights = "{'hot': 3.0, 'cold': 0.5}"
    given |= {"config_type_weights": weights, "embedding_specs": str(specs), "atomic_numbers": "[8, 6, 1]"}
    both = {"train_file": tmp_path / "train.xyz", "valid_file": tmp_path / "train.xyz", "E0s": str(ENERGIES)}
    _, run_data = prepared(tmp_path, **both, **given)
    assert run_data.atomic_numbers == [1, 6, 8]

    # In mace the name of an embedding takes the place of total_spin_key, so that it must be told the keys again.
    given["embedding_specs"] = str({name: {"key": keys.get(name), **spec} for name, spec in specs.items()})
    args = mace_interface.argument_parser().parse_args(["--name", "x", *words(tmp_path, **given)])
    args, _ = mace_tools.check_args(args)
    spec = mace_data.update_keyspec_from_kwargs(mace_data.KeySpecification(), vars(args))
    (_, theirs) = mace_data.load_from_xyz(
        str(tmp_path / "train.xyz"), spec, config_type_weights=scripts_utils.get_config_type_weights(weights)
    )
    table = mace_tools.AtomicNumberTable([1, 6, 8])
    for ours, configuration in zip(run_data.train.graphs, theirs, strict=True):
        other = mace_data.AtomicData.from_config(configuration, z_table=table, cutoff=3.0)
        assert {"stress", "virials", "total_spin", "elec_temp", "local", "weight"} <= set(ours)
        for key, value in ours.items():
            torch.testing.assert_close(value, other[key], rtol=1e-7, atol=1e-7, msg=key)
    assert [float(graph["weight"]) for graph in run_data.train.graphs] == [0.5, 6.0, 1.5, 12.0]
    assert float(run_data.train.graphs[2]["total_spin"]) == 3.0


TEMPERATURE = {"type": "continuous", "per": "graph", "in_dim": 1, "emb_dim": 4}
METHOD = {"type": "categorical", "per": "graph", "num_classes": 2, "emb_dim": 4}


def with_entry(files, tmp_path, value):
    """The first file with an entry ``x`` in its second structure, and the number 1 there in others."""
    frames = ase.io.read(files / "a.xyz", ":")
    for index, atoms in enumerate(frames):
        atoms.info["x"] = value if index == 1 else 1
    ase.io.write(tmp_path / "x.xyz", frames, format="extxyz")
    return tmp_path / "x.xyz"


@pytest.mark.honours("embedding_specs")
def test_embeddings_read_whole_numbers_and_floats_alike(files, tmp_path):
    """Some of a temperature's values are written without a point; mace's own tensors would not fit together."""
    _, run_data = prepared(
        tmp_path, train_file=with_entry(files, tmp_path, 1.5), embedding_specs=f"{{'x': {TEMPERATURE}}}"
    )
    assert sorted({float(graph["x"]) for graph in (*run_data.train.graphs, *run_data.valid["Default"].graphs)}) == [
        1,
        1.5,
    ]
    assert {graph["x"].dtype for graph in run_data.train.graphs} == {torch.float64}


@pytest.mark.parametrize(
    ("spec", "value", "message"),
    [
        (TEMPERATURE, None, "has no entry 'y' per structure"),
        (TEMPERATURE, "hot", "'x' that x reads is 'hot'; expected finite numbers"),
        (TEMPERATURE, np.nan, "is .*nan.*; expected finite numbers"),
        (TEMPERATURE, np.ones(3), r"has shape \(3,\); expected \(\)"),
        (METHOD, 2, "expected whole numbers from 0 to 1, the 2 classes"),
        (METHOD, 0.5, "expected whole numbers"),
        (METHOD | {"offset": 1}, -2, "expected whole numbers from -1 to 0"),
        (TEMPERATURE | {"in_dim": 2}, 1, "in_dim is 2, but mace reads one number per structure"),
        (TEMPERATURE | {"type": "cont"}, 1, "x: type is 'cont'; expected categorical or continuous"),
        (TEMPERATURE | {"per": None}, 1, "x: per is None; expected graph or atom"),
        (METHOD | {"num_classes": None}, 1, "x: num_classes is None; expected a whole number above zero"),
        (3, 1, "expected a specification by name"),
    ],
)
def test_embeddings_that_cannot_be(files, tmp_path, spec, value, message):
    specs = {"y" if value is None else "x": spec}
    with pytest.raises(InputError, match=f"embedding_specs: .*{message}"):
        prepared(
            tmp_path, train_file=with_entry(files, tmp_path, 1 if value is None else value), embedding_specs=str(specs)
        )


def test_energies_of_a_trained_model(files, tmp_path):
    """``foundation`` takes them over; ``estimated`` corrects them so that the model's energies fit best.

    The model reads an entry of the structures beside their atoms, and so must both.
    """
    path = with_entry(files, tmp_path, 2)
    given = {"train_file": path, "valid_file": path, "E0s": str(ENERGIES), "embedding_specs": f"{{'x': {TEMPERATURE}}}"}
    chosen, run_data = prepared(tmp_path, **given)
    model = building.build(chosen, run_data).model
    save_model(model, tmp_path / "trained")
    given["foundation_model"] = tmp_path / "trained"
    keep = {
        name: None for name in ("hidden_irreps", "r_max", "max_ell", "correlation", "num_radial_basis", "radial_MLP")
    }
    keep |= {"MLP_irreps": None, "embedding_specs": None}
    found = {}
    for choice in ("foundation", "estimated"):
        found[choice] = prepared(tmp_path, **{**given, **keep, "E0s": choice})[1].e0s["Default"]
    assert found["foundation"] == pytest.approx(ENERGIES, rel=1e-12)
    frames = ase.io.read(files / "a.xyz", ":")
    batch = collate([run_data.train[i] for i in range(len(frames))])
    missing = batch["energy"] - predict(model.eval(), batch, built_outputs())["energy"]
    counts = np.array([[np.count_nonzero(atoms.numbers == z) for z in ENERGIES] for atoms in frames])
    correction = np.linalg.lstsq(counts, missing.detach().numpy(), rcond=None)[0]
    assert list(found["estimated"].values()) == pytest.approx(np.array(list(ENERGIES.values())) + correction, rel=1e-6)


def test_numbers_that_mace_would_compute_with_in_silence(files, tmp_path):
    """Energies that are not finite, negative weights, isolated atoms of some elements, no neighbours at all."""
    (tmp_path / "nan.json").write_text('{"1": NaN, "6": -4.0, "8": -3.0}')
    frames = ase.io.read(files / "a.xyz", ":")
    atom = Atoms("H", info={"config_type": "IsolatedAtom", "energy": -1.5})
    ase.io.write(tmp_path / "hydrogen.xyz", [*frames, atom], format="extxyz")
    for given, message in (
        ({"E0s": tmp_path / "nan.json"}, "--E0s: expected energies .*nan"),
        ({"config_type_weights": "{'Default': -1.0}"}, "--config_type_weights: expected numbers, zero or more"),
        ({"train_file": tmp_path / "hydrogen.xyz", "E0s": str(ENERGIES)}, "isolated atoms of the training data, which"),
    ):
        with pytest.raises(InputError, match=message):
            prepared(tmp_path, **{"train_file": files / "a.xyz", **given})
    chosen, run_data = prepared(tmp_path, train_file=files / "a.xyz", r_max=0.5)
    with pytest.raises(InputError, match="^--r_max: no two atoms of the training set are within 0.5 Å"):
        building.build(chosen, run_data)


@pytest.mark.honours("valid_fraction", "keep_isolated_atoms", "test_file")
def test_files_splits_and_isolated_atoms(files, tmp_path):
    """Several files are joined; isolated atoms stay if they shall; test sets are by config_type, as in mace."""
    frames = ase.io.read(files / "a.xyz", ":")
    for index, atoms in enumerate(frames):
        atoms.info["config_type"] = "hot" if index < 3 else "cold"
    atoms = [Atoms([z], info={"config_type": "IsolatedAtom", "energy": e}) for z, e in ENERGIES.items()]
    ase.io.write(tmp_path / "typed.xyz", [*frames, *atoms], format="extxyz")
    (tmp_path / "run.yaml").write_text(
        f"train_file:\n  - {files}/both.xyz\n  - {tmp_path}/typed.xyz\nvalid_fraction: 0.25\n"
    )
    sizes = {}
    for keep in ("False", "True"):
        given = {"train_file": None, "test_file": tmp_path / "typed.xyz", "keep_isolated_atoms": keep, "E0s": None}
        line = ["--config", str(tmp_path / "run.yaml"), *words(tmp_path, name="run", **given)]
        _, run_data = building.load(command_line.parse(line))
        sizes[keep] = (run_data.size("train"), run_data.size("valid"))
        assert {name: len(part) for name, part in run_data.test.items()} == {
            "hot_Default": 3, "cold_Default": 7, "IsolatedAtom_Default": 3,
        }  # fmt: skip
    assert sizes == {"False": (17, 5), "True": (19, 6)}
    assert list(run_data.evaluated())[:3] == ["train", "valid", "test_hot_Default"]


@pytest.mark.honours("head_key", "skip_evaluate_heads")
def test_structures_that_name_a_head_and_heads_left_out(files, tmp_path):
    """A file may hold several heads' structures; tables leave out the heads that they shall."""
    frames = ase.io.read(files / "a.xyz", ":")
    for index, atoms in enumerate(frames):
        atoms.info["level"] = "dft" if index % 2 else "mp2"
    ase.io.write(tmp_path / "mixed.xyz", frames, format="extxyz")
    both = {"train_file": str(tmp_path / "mixed.xyz"), "valid_fraction": 0.2, "test_file": str(tmp_path / "mixed.xyz")}
    given = {"heads": str({"dft": both, "mp2": both}), "head_key": "level", "skip_evaluate_heads": "mp2"}
    _, run_data = prepared(tmp_path, **given)
    energies = {
        name: {round(float(part[i]["energy"]), 6) for i in range(4)} for name, part in run_data.train_sets.items()
    }
    assert not energies["dft"] & energies["mp2"] and len(run_data.train) == 8
    assert list(run_data.evaluated()) == ["train_dft", "valid_dft", "test_Default_dft"]


@pytest.mark.honours("mean", "std", "avg_num_neighbors", "compute_avg_num_neighbors")
def test_given_statistics_take_the_place_of_the_training_sets(files, tmp_path):
    given = {"mean": 0.25, "std": 1.25, "compute_avg_num_neighbors": "False", "avg_num_neighbors": 3.5}
    chosen, run_data = prepared(tmp_path, train_file=files / "a.xyz", model="ScaleShiftMACE", **given)
    model = building.build(chosen, run_data).model
    assert float(model.scale_shift.scale) == 1.25 and float(model.scale_shift.shift) == 0.25
    assert model.interactions[0].avg_num_neighbors == 3.5


@pytest.mark.honours("pin_memory")
def test_loaders_pin_memory_on_cuda_only(files, tmp_path):
    for device, pin, pinned in (("cpu", "True", False), ("cuda", "True", True), ("cuda", "False", False)):
        chosen, run_data = prepared(tmp_path, train_file=files / "a.xyz", pin_memory=pin)
        there = replace(run_data, machine=chosen.changed(device=device).machine)
        assert there.loader("valid")["Default"].pin_memory is pinned


@pytest.mark.honours("downloads_dir")
def test_downloads_go_to_a_folder_of_the_users(monkeypatch, tmp_path):
    from local_server import LocalServer

    rng, server = np.random.default_rng(0), LocalServer()
    arrays = {"E": rng.normal(size=(40, 1)), "F": rng.normal(size=(40, 3, 3)), "R": rng.normal(size=(40, 3, 3))}
    np.savez(tmp_path / "water.npz", z=np.array([8, 1, 1]), e_unit=np.array("kcal/mol"), **arrays)
    server.files["md22_water.npz"] = (tmp_path / "water.npz").read_bytes()
    monkeypatch.setenv("PHI_MD22_URL", server.url)
    monkeypatch.setenv("PHI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    small = replace(
        DATASETS["md22_dha"], name="md22_water", formula="H2O", frames=40, train_size=20, file="md22_water.npz"
    )
    monkeypatch.setitem(DATASETS, "md22_water", small)
    line = ["--dataset", "md22_water", "--downloads_dir", str(tmp_path / "mine"), "--batch_size", "2"]
    try:
        _, run_data = building.load(command_line.parse(line))
    finally:
        server.stop()
    assert list((tmp_path / "mine").rglob("md22_water.npz")) and not (tmp_path / "cache").exists()
    assert (run_data.size("train"), run_data.size("valid")) == (19, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{'a': {'train_file': 'x'}, 'a': {'train_file': 'y'}}", "--heads: a is given twice"),
        ("{'a': {'train_fil': 'x'}}", "unknown setting 'train_fil'. Did you mean train_file"),
        ("{'a': {'valid_file': 'x'}}", "head 'a': there are no structures to train on"),
        ("{'a': {'train_file': 'x', 'valid_fraction': 2}}", "head 'a': expected a fraction between 0 and 1, got 2"),
        ("{'a': 'x.xyz'}", "head 'a' is 'x.xyz'; expected its settings"),
        ("{'a': {'train_file': 'x', 'info_keys': {'forces': 'f'}}}", "forces belongs into arrays_keys"),
        ("{'a': {'train_file': 'x', 'info_keys': {'enrgy': 'f'}}}", "'enrgy_key' does not name a label.*energy_key"),
        ("{'a': {'train_file': 'x', 'E0s': 'averge'}}", "--E0s: head 'a': 'averge' cannot be read"),
        ("{'a': {'train_file': 'x', 'atomic_numbers': 'H'}}", "--atomic_numbers: head 'a'"),
        ("a: x.xyz", "--heads: 'a: x.xyz' cannot be read"),
        ("{}", "--heads: expected heads with their settings"),
    ],
)
def test_heads_that_cannot_be_understood(tmp_path, text, message):
    with pytest.raises(InputError, match=message) as caught:
        parsed(tmp_path, heads=text)
    assert "\n" not in str(caught.value)


def test_what_does_not_fit_heads(files, tmp_path):
    """A file's double keys, options that mace drops beside heads, heads without energies, and unknown ones."""
    (tmp_path / "run.yaml").write_text("train_file: a.xyz\nheads:\n  a: {train_file: x}\n  a: {train_file: y}\n")
    with pytest.raises(InputError, match="a is given twice in .*run.yaml, in lines 3 and 4"):
        command_line.parse(["--config", str(tmp_path / "run.yaml")])
    for given, message in (
        ({"E0s": None}, "--E0s: energies of the isolated atoms are needed for head 'dft'"),
        ({"E0s": "{1: -1.0, 8: -2.0}"}, "no isolated-atom energy for head 'dft' for atomic number 6"),
        ({"E0s": "foundation"}, "give --foundation_model"),
        ({"skip_evaluate_heads": "dft,mp2"}, "no head would be evaluated"),
    ):
        with pytest.raises(InputError, match=message):
            prepared(tmp_path, heads=two_heads(files), **given)
    given = {"test_file": "t.xyz", "skip_evaluate_heads": "pm2"}
    lines = prepared(tmp_path, heads=two_heads(files), E0s=str(ENERGIES), **given)[1].lines
    named = [line.split(":")[0] for line in lines]
    assert [line for line in named if line.startswith("--")][:2] == [f"--{name} does not act" for name in given]

    one = {"train_file": str(files / "a.xyz")}
    ase.io.write(tmp_path / "single.xyz", ase.io.read(files / "b.xyz", 0), format="extxyz")
    for second, message in (
        ({"train_file": str(tmp_path / "none.xyz")}, "--train_file: there is no .*none.xyz of head 'mp2'"),
        ({"train_file": str(tmp_path / "single.xyz")}, "a validation set cannot be split off"),
        ({"energy_key": "missing", "info_keys": {}}, "none of the 4 .* has energy under the key 'missing'"),
    ):
        with pytest.raises(InputError, match=message):
            prepared(tmp_path, heads=two_heads(files, one, second))
