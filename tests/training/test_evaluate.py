"""phi-mace-eval: what it writes, against ase's calculator and mace's own mace_eval_configs; what it refuses."""

import argparse
import copy
import gzip
import json
import pkgutil
import tomllib
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
import yaml
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from mace.cli import eval_configs
from systems import distorted, ethanol, mace_host, potential
from training_runs import keep_default_dtype  # noqa: F401

from phi_equivariant import PhiCalculator, commands
from phi_equivariant.errors import InputError
from phi_equivariant.inputs.state import reader_of
from phi_equivariant.weights import save_model
from training import evaluate, evaluation, run_folder
from training.data.placing import Accepted
from training.data.stream import FrameStream
from training.fit.predictions import Predictor
from training.options.evaluation import parse
from training.report.error_sums import ErrorSums
from training.run.evaluation import Predicted
from zoo.mace_host import accelerated

FORCES_IN_FILE = 6e-9  # ase writes arrays with eight decimals
ELEMENTS = [1, 6, 7, 8]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A saved folder with Φ, and the calculator that it gives."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        folder = tmp_path_factory.mktemp("models") / "phi"
        save_model(potential(host=small_host()), folder)
        yield folder, PhiCalculator(folder)
    finally:
        torch.set_default_dtype(before)


@pytest.fixture(scope="module")
def bare(models):
    """A bare host in double precision."""
    return small_host()


def small_host(**other):
    """A mace model that is quickly built."""
    return mace_host("4x0e+4x1o", correlation=1, **other)


@pytest.fixture(scope="module")
def structures(tmp_path_factory):
    """Molecules of several sizes, a charged one among them, with labels under other names than mace's."""
    rng = np.random.default_rng(0)
    frames = [ethanol(), molecule("H2O"), distorted(molecule("CH3CONH2")), Atoms("O"), distorted(molecule("NH3"), 3)]
    frames[2].info["total_charge"] = 1
    for index, atoms in enumerate(frames):
        atoms.info |= {"e": rng.normal() - 2.0 * len(atoms), "mu": rng.normal(size=3), "number": index}
        atoms.arrays |= {"f": rng.normal(size=(len(atoms), 3)), "q": rng.normal(size=len(atoms))}
        atoms.arrays["q"] += (atoms.info.get("total_charge", 0) - atoms.arrays["q"].sum()) / len(atoms)
    path = tmp_path_factory.mktemp("structures") / "in.xyz"
    ase.io.write(path, frames, format="extxyz")
    return path


def options(configs, output, *others, model="model"):
    """A command line."""
    return [str(word) for word in ("--configs", configs, "--model", model, "--output", output, *others)]


def run(configs, model, output, *others):
    """Evaluate with a model that is in memory: the frames of the output."""
    evaluation.evaluate_file(parse(options(configs, output, *others)), model)
    return ase.io.read(output, ":")


def refused(capsys, *words):
    """A command line that must be refused: its one paragraph."""
    assert evaluate.main([str(word) for word in words]) == 2
    message = capsys.readouterr().err
    assert message.startswith("phi-mace-eval: ") and message.count("\n") == 1
    return message


def test_predictions_are_the_calculators(models, structures, tmp_path, capsys):
    """The command: every quantity, of a charged molecule and an isolated atom too, whatever shares the batch."""
    folder, calculator = models
    output = tmp_path / "out.xyz"
    words = options(structures, output, "--return_node_energies", "--batch_size", 3, model=folder / "model.safetensors")
    assert evaluate.main(words) == 0
    assert "evaluated 5 structures (26 atoms)" in capsys.readouterr().out
    found = ase.io.read(output, ":")
    for atoms, original in zip(found, ase.io.read(structures, ":"), strict=True):
        original.calc = calculator
        energy, parts = original.get_potential_energy(), calculator.phi_results
        assert atoms.info["MACE_energy"] == pytest.approx(energy, rel=1e-12)
        for name in ("host_energy", "phi_energy", "net_charge"):
            assert atoms.info[f"MACE_{name}"] == pytest.approx(parts[name], rel=1e-10, abs=1e-12)
        np.testing.assert_allclose(atoms.info["MACE_dipole"], original.get_dipole_moment(), atol=1e-10)
        for name, expected in {
            "forces": original.get_forces(),
            "charges": original.get_charges(),
            "potential": parts["potential"],
            "node_energies": original.get_potential_energies(),
        }.items():
            np.testing.assert_allclose(atoms.arrays[f"MACE_{name}"], expected, atol=FORCES_IN_FILE)
    assert found[2].arrays["MACE_charges"].sum() == pytest.approx(1.0, abs=1e-7)


@pytest.mark.usefixtures("double")
def test_forces_before_they_are_rounded(models, structures):
    """In memory: forces to 1e-10 of the calculator's."""
    calculator = models[1]
    predictor = Predictor(calculator.model)
    frames = list(FrameStream(structures, {}, Accepted(ELEMENTS)))
    batch = predictor.batch([frame.labelled for frame in frames])
    for frame, (_, arrays) in zip(frames, predictor.split(predictor(batch), batch), strict=True):
        frame.atoms.calc = calculator
        np.testing.assert_allclose(arrays["forces"], frame.atoms.get_forces(), atol=1e-10)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    ("scale_shift", "option", "name"),
    [(True, "compute_stress", "stress"), (False, "return_contributions", "BO_contributions")],
)
def test_bare_hosts_give_what_mace_eval_configs_gives(tmp_path, capsys, scale_shift, option, name):
    """mace's own command on the same file: same names, same numbers."""
    crystal = bulk("C", "diamond", a=3.6, cubic=True)
    frames = [distorted(crystal, 1), distorted(crystal, 2)] if name == "stress" else [ethanol(), molecule("H2O")]
    ase.io.write(tmp_path / "in.xyz", frames, format="extxyz")
    host = small_host(scale_shift=scale_shift)
    torch.save(host, tmp_path / "host.model")
    settings = {
        "configs": str(tmp_path / "in.xyz"), "model": str(tmp_path / "host.model"),
        "output": str(tmp_path / "theirs.xyz"), "device": "cpu", "enable_cueq": False, "default_dtype": "float64",
        "batch_size": 64, "compute_stress": False, "compute_bec": False, "return_contributions": False,
        "return_descriptors": True, "descriptor_num_layers": -1, "descriptor_aggregation_method": None,
        "descriptor_invariants_only": True, "return_node_energies": False, "info_prefix": "own_", "head": None,
    }  # fmt: skip
    eval_configs.run(argparse.Namespace(**{**settings, option: True}))
    words = ["--info_prefix", "own_", "--return_descriptors", f"--{option}"]
    if scale_shift:
        line = options(tmp_path / "in.xyz", tmp_path / "ours.xyz", *words, model=tmp_path / "host.model")
        assert "--trust_pickle" in refused(capsys, *line)  # a pickle is read only where it is trusted
        assert not (tmp_path / "ours.xyz").exists()
        assert evaluate.main([*line, "--trust_pickle"]) == 0
        ours = ase.io.read(tmp_path / "ours.xyz", ":")
    else:
        ours = run(tmp_path / "in.xyz", host, tmp_path / "ours.xyz", *words)
    for mine, expected in zip(ours, ase.io.read(settings["output"], ":"), strict=True):
        assert {*mine.info} == {*expected.info} and {*mine.arrays} == {*expected.arrays}
        assert f"own_{name}" in mine.info and "own_charges" not in mine.arrays
        for key, value in expected.info.items():
            np.testing.assert_allclose(mine.info[key], value, rtol=1e-10, atol=1e-12)
        for key in ("own_forces", "own_descriptors"):
            np.testing.assert_allclose(mine.arrays[key], expected.arrays[key], atol=1.1e-8)


@pytest.mark.usefixtures("double")
def test_descriptors_of_few_layers_and_of_all_components(bare):
    structure, (scalars, all_components) = ethanol(), (4, 16)
    features = {}
    for name, wanted in {
        "all": Predicted(return_descriptors=True, descriptor_invariants_only=False),
        "first": Predicted(return_descriptors=True, descriptor_num_layers=1),
        "mean": Predicted(return_descriptors=True, descriptor_aggregation_method="mean"),
        "elements": Predicted(return_descriptors=True, descriptor_aggregation_method="per_element_mean"),
    }.items():
        predictor, atoms = Predictor(bare, wanted=wanted), structure.copy()
        batch = predictor.batch([atoms])
        output = predictor(batch)
        (prediction,) = predictor.split(output, batch)
        predictor.add_to(atoms, prediction, "")
        features[name] = atoms.arrays.get("descriptors", atoms.info.get("descriptors"))
    np.testing.assert_array_equal(features["all"], output["node_feats"].detach())
    np.testing.assert_array_equal(features["first"], features["all"][:, :scalars])
    invariant = np.r_[0:scalars, all_components : all_components + scalars]
    np.testing.assert_allclose(features["mean"], features["all"][:, invariant].mean(0), rtol=1e-12)
    oxygen = structure.numbers == 8
    np.testing.assert_allclose(features["elements"]["O"], features["all"][oxygen][0, invariant], rtol=1e-12)


def test_everything_else_of_a_frame_is_kept(models, tmp_path):
    """Labels that ase reads into a calculator, constraints, cell, strings, arrays; earlier predictions are replaced."""
    atoms = ethanol()
    results = {"energy": -3.5, "forces": np.arange(27.0).reshape(9, 3), "dipole": np.array([1.0, 2, 3])}
    atoms.calc = SinglePointCalculator(atoms, **results)
    atoms.set_cell([9, 9, 9])
    atoms.set_constraint(FixAtoms([0, 2]))
    atoms.info |= {"name": "some words", "config_type": "dimer", "flag": True, "MACE_energy": 12.0}
    atoms.arrays |= {"tags": np.arange(9), "q": np.linspace(-1, 1, 9), "MACE_forces": np.zeros((9, 3))}
    ase.io.write(tmp_path / "in.xyz", [atoms, molecule("H2O")], format="extxyz")
    found, other = run(tmp_path / "in.xyz", models[1].model, tmp_path / "out.xyz.gz", "--energy_key", "energy")
    assert gzip.decompress((tmp_path / "out.xyz.gz").read_bytes()).startswith(b"9\n")
    before = ase.io.read(tmp_path / "in.xyz", 0)
    for name, value in before.calc.results.items():
        np.testing.assert_array_equal(found.calc.results[name], value)
    assert {key: found.info[key] for key in before.info if key != "MACE_energy"} == {
        key: value for key, value in before.info.items() if key != "MACE_energy"
    }
    for name in ("numbers", "positions", "tags", "q"):
        np.testing.assert_array_equal(found.arrays[name], before.arrays[name])
    np.testing.assert_array_equal(found.constraints[0].index, [0, 2])
    assert not found.pbc.any() and (found.cell.array == before.cell.array).all()
    assert found.info["MACE_energy"] < 0 and np.abs(found.arrays["MACE_forces"]).max() > 0.01
    assert len(other) == 3


def test_errors_are_those_of_the_labels(models, structures, tmp_path):
    """MAE and RMSE by numpy from what was written; a structure without a label does not count."""
    frames = ase.io.read(structures, ":")
    del frames[1].info["e"], frames[0].arrays["q"]
    ase.io.write(tmp_path / "in.xyz", frames, format="extxyz")
    keys = ("--energy_key", "e", "--forces_key", "f", "--charges_key", "q", "--dipole_key", "mu")
    found = run(tmp_path / "in.xyz", models[1].model, tmp_path / "o.xyz", *keys, "--errors", tmp_path / "errors.json")
    summary = json.loads((tmp_path / "errors.json").read_text())
    assert summary["structures"] == 5 and summary["atoms"] == sum(map(len, frames)) and summary["skipped"] == []
    energy = [1e3 * (a.info["MACE_energy"] - a.info["e"]) / len(a) for a in found if "e" in a.info]
    expected = {
        "energy_per_atom": np.array(energy),
        "forces": 1e3 * np.concatenate([(a.arrays["MACE_forces"] - a.arrays["f"]).ravel() for a in found]),
        "charges": np.concatenate([a.arrays["MACE_charges"] - a.arrays["q"] for a in found[1:]]),
        "dipole": np.concatenate([a.info["MACE_dipole"] - a.info["mu"] for a in found]),
    }
    for name, errors in expected.items():
        row = summary["errors"][name]
        assert row["mae"] == pytest.approx(np.abs(errors).mean(), rel=1e-6)
        assert row["rmse"] == pytest.approx(np.sqrt((errors**2).mean()), rel=1e-6)
        assert row["count"] == errors.size


def test_labels_are_read_under_the_keys_of_the_run(structures, tmp_path, capsys):
    """A run's folder says what its labels are called; the command line may call single ones otherwise."""
    folder = tmp_path / "run"
    save_model(potential(host=small_host()), folder)
    keys = {"energy_key": "e", "forces_key": "f", "charges_key": "q", "dipole_key": "mu"}
    (folder / run_folder.CONFIG).write_text(yaml.safe_dump(keys | {"name": "run", "phi": {"operator": "coulomb"}}))
    words = options(structures, tmp_path / "o.xyz", "--errors", tmp_path / "errors.json", model=folder)
    assert evaluate.main(words) == 0
    assert "energy_key: e\n" in capsys.readouterr().out
    found = json.loads((tmp_path / "errors.json").read_text())["errors"]
    assert evaluate.main([*words, *(word for key, name in keys.items() for word in (f"--{key}", name))]) == 0
    assert json.loads((tmp_path / "errors.json").read_text())["errors"] == found
    assert set(found) == {"energy", "energy_per_atom", "forces", "charges", "dipole", "dipole_per_atom"}
    assert "'REF_energy'" in refused(capsys, *words, "--energy_key", "REF_energy")  # mace's name, said aloud, counts
    (folder / run_folder.CONFIG).write_text(yaml.safe_dump(keys | {"energy_key": "MACE_energy"}))
    assert "--info_prefix" in refused(capsys, *words)


def test_labels_are_read_under_the_keys_of_the_head(structures, tmp_path, capsys):
    folder = tmp_path / "run"
    save_model(small_host(heads=["low", "high"]), folder)
    heads = {"low": {"train_file": "low.xyz"}, "high": {"train_file": "high.xyz", "info_keys": {"energy": "e"}}}
    (folder / run_folder.CONFIG).write_text(yaml.safe_dump({"heads": heads, "forces_key": "f"}))
    for head, energies in (("low", 0), ("high", 5)):
        assert evaluate.main(options(structures, tmp_path / "o.xyz", "--head", head, model=folder)) == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert f"energies {energies} energy_key" in shown and "forces 5 forces_key: f" in shown
    (folder / run_folder.CONFIG).write_text("heads: {")
    words = options(structures, tmp_path / "o.xyz", "--head", "low", model=folder)
    assert "--model" in (message := refused(capsys, *words)) and "config.yaml is not valid YAML" in message


@pytest.mark.usefixtures("double")
def test_heads(tmp_path):
    host = small_host(heads=["low", "high"])
    with torch.no_grad():
        host.atomic_energies_fn.atomic_energies[1] -= 1.0
    ase.io.write(tmp_path / "in.xyz", ethanol(), format="extxyz")
    (frame,) = FrameStream(tmp_path / "in.xyz", {}, Accepted(ELEMENTS))
    for head in ("low", "high"):
        predictor = Predictor(host, head=head)
        batch = predictor.batch([frame.labelled])
        ((info, _),) = predictor.split(predictor(batch), batch)
        atoms = frame.atoms.copy()
        atoms.calc = PhiCalculator(host, head=head)
        assert info["energy"] == pytest.approx(atoms.get_potential_energy(), rel=1e-13)
    with pytest.raises(InputError, match="--head is None.*low, high"):
        Predictor(host)


def bad(change):
    """A change of the second of three frames."""

    def apply(frames):
        change(frames[1])

    return apply


@pytest.fixture
def broken(models):
    """A model whose energy of two nitrogen atoms overflows: nothing is wrong with a frame before it is computed."""
    model = copy.deepcopy(models[1].model)
    with torch.no_grad():
        model.host.atomic_energies_fn.atomic_energies[..., ELEMENTS.index(7)] = 1.5e308
    return model


BAD = {
    "coincide": (bad(lambda a: a.positions.__setitem__(1, a.positions[0])), "atoms that coincide"),
    "weight": (bad(lambda a: a.info.update(config_weight="high")), "config_weight is 'high'"),
    "element": (bad(lambda a: a.numbers.__setitem__(0, 79)), "Au.*does not know"),
    "positions": (bad(lambda a: a.positions.__setitem__((0, 0), np.nan)), "positions that are not finite"),
    "no atoms": (bad(lambda a: a.__delitem__(slice(None))), "no atoms"),
    "charge": (bad(lambda a: a.info.update(total_charge="plus one")), "'plus one'.*finite number"),
    "two charges": (bad(lambda a: a.info.update(total_charge=1, charge=0)), "given twice"),
    "slab": (bad(lambda a: a.set_cell([9, 9, 9]) or a.set_pbc([True, True, False])), "slab.*pbc T T F"),
    "label": (bad(lambda a: a.info.update(REF_energy=np.inf)), "energy label is not finite"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_frames_are_named_or_left_out(tmp_path, case):
    change, message = BAD[case]
    frames = [ethanol(), ethanol(), molecule("H2O")]
    change(frames)
    path = tmp_path / "in.xyz"
    ase.io.write(path, frames, format="extxyz")
    with pytest.raises(InputError, match=rf"frame 1 of {path}.*{message}.*--skip_bad"):
        FrameStream(path, {}, Accepted(ELEMENTS, periodicities={0, 3})).take_census()
    stream = FrameStream(path, {}, Accepted(ELEMENTS, periodicities={0, 3}), skip_bad=True)
    census = stream.take_census()
    assert (census.frames, list(stream.bad)) == (2, [1])
    assert [frame.index for frame in stream] == [0, 2]


def test_frames_that_ase_cannot_read(tmp_path):
    """One is left out like any other bad frame; a file that is not a list of frames is refused."""
    path = tmp_path / "in.xyz"
    ase.io.write(path, [molecule("H2O")] * 4, format="extxyz")
    lines = path.read_text().splitlines()
    lines[7] = "O 0.0 ****** 0.1"  # of frame 1, as Fortran writes what does not fit
    lines[17] = "Qq 0.0 0.0 0.1"
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match=r"frame 1 .* cannot be read.*\*\*\*"):
        FrameStream(path, {}, Accepted(ELEMENTS)).take_census()
    stream = FrameStream(path, {}, Accepted(ELEMENTS), skip_bad=True)
    stream.take_census()
    assert list(stream.bad) == [1, 3] and [frame.index for frame in stream] == [0, 2]
    path.write_text("\n".join([*lines, "three atoms follow"]) + "\n")
    with pytest.raises(InputError, match="ase cannot read .*three atoms follow"):
        FrameStream(path, {}, Accepted(ELEMENTS), skip_bad=True).take_census()


def test_charged_frames_and_the_graph_operator(tmp_path):
    atoms = ethanol()
    atoms.info["charge"] = -1
    ase.io.write(tmp_path / "in.xyz", atoms, format="extxyz")
    with pytest.raises(InputError, match="frame 0 .*total_charge -1 e.*coulomb"):
        FrameStream(tmp_path / "in.xyz", {}, Accepted(ELEMENTS, charged=False)).take_census()


def test_batches_are_limited_and_read_as_they_are_needed(tmp_path):
    frames = [molecule("H2O")] * 5 + [ethanol()] + [molecule("H2O")]
    path = tmp_path / "in.xyz"
    ase.io.write(path, frames, format="extxyz")
    sizes = [[len(f.atoms) for f in batch] for batch in FrameStream(path, {}, Accepted(ELEMENTS)).batches(3, 100)]
    assert sizes == [[3, 3, 3], [3, 3, 9], [3]]
    sizes = [[len(f.atoms) for f in batch] for batch in FrameStream(path, {}, Accepted(ELEMENTS)).batches(64, 7)]
    assert sizes == [[3, 3], [3, 3], [3], [9], [3]]
    text = path.read_text().splitlines()
    text[-1] = "O 0.0 ****** 0.1"
    path.write_text("\n".join(text) + "\n")
    batches = FrameStream(path, {}, Accepted(ELEMENTS)).batches(3, 100)
    assert len(next(batches)) == 3 and len(next(batches)) == 3  # the last frame has not been looked at
    with pytest.raises(InputError, match="frame 6"):
        next(batches)


def test_nothing_is_written_on_error_and_bad_frames_are_skipped_on_request(broken, tmp_path, capsys):
    """Found out only when the model gives no finite energy, in the middle of the work."""
    model = broken
    frames = [molecule("H2O"), molecule("N2"), molecule("CH4"), molecule("C2H6")]
    for atoms in frames:
        atoms.info["REF_energy"] = 0.0
    path, output = tmp_path / "in.traj", tmp_path / "out.xyz"
    ase.io.write(path, frames)
    with pytest.raises(InputError, match=r"frame 1 of .*not finite.*trained\? With --skip_bad"):
        run(path, model, output, "--batch_size", 1)
    frames[2].numbers[0] = 16
    ase.io.write(path, frames)
    with pytest.raises(InputError, match="frame 2 of .*does not know"):
        run(path, model, output)
    assert [entry.name for entry in tmp_path.iterdir()] == ["in.traj"]

    run_folder.start_console("INFO")
    found = run(path, model, output, "--skip_bad", "--errors", tmp_path / "errors.json")
    assert [atoms.get_chemical_formula() for atoms in found] == ["H2O", "C2H6"]
    log = capsys.readouterr().out
    assert "2 structures (11 atoms, 2 left out)" in log and log.count("left out: frame") == 2
    summary = json.loads((tmp_path / "errors.json").read_text())
    assert [entry["frame"] for entry in summary["skipped"]] == [1, 2]
    own = [abs(atoms.info["MACE_energy"]) / len(atoms) for atoms in found]
    assert summary["errors"]["energy_per_atom"]["mae"] == pytest.approx(1e3 * np.mean(own), rel=1e-10)


def test_a_file_without_usable_frames(broken, tmp_path):
    ase.io.write(tmp_path / "in.traj", molecule("N2"))
    with pytest.raises(InputError, match="no structure could be evaluated"):
        run(tmp_path / "in.traj", broken, tmp_path / "out.xyz", "--skip_bad")
    assert [entry.name for entry in tmp_path.iterdir()] == ["in.traj"]


def test_single_precision(models, structures, tmp_path):
    """Energies agree with those of the double model to what float32 holds."""
    calculator = models[1]
    single = copy.deepcopy(calculator.model).float()
    found = run(structures, single, tmp_path / "out.xyz", "--default_dtype", "float32")
    for atoms, original in zip(found, ase.io.read(structures, ":"), strict=True):
        original.calc = calculator
        assert atoms.info["MACE_energy"] == pytest.approx(original.get_potential_energy(), rel=3e-6)
    assert next(single.parameters()).dtype == torch.float32


@pytest.mark.usefixtures("double")
def test_models_that_read_other_entries_of_the_frames(tmp_path):
    """mace's embedding_specs: the total spin, here under another name, changes the energy."""
    specs = {"total_spin": {"type": "continuous", "per": "graph", "key": "spin", "in_dim": 1, "emb_dim": 4}}
    host = small_host(embedding_specs=specs)
    frames = [ethanol(), ethanol()]
    for spin, atoms in zip((1.0, 3.0), frames, strict=True):
        atoms.info["spin"] = spin
    ase.io.write(tmp_path / "in.xyz", frames, format="extxyz")
    predictor = Predictor(host)
    usual = reader_of(host).keys
    read = list(FrameStream(tmp_path / "in.xyz", {}, Accepted(ELEMENTS, embeddings=predictor.embeddings), usual=usual))
    batch = predictor.batch([frame.labelled for frame in read])
    assert batch["total_spin"].flatten().tolist() == [1.0, 3.0]
    (one, _), (other, _) = predictor.split(predictor(batch), batch)
    assert abs(one["energy"] - other["energy"]) > 1e-6


@pytest.mark.usefixtures("double")
def test_a_model_with_phi_heads_and_embeddings_through_the_command(tmp_path, capsys):
    """Saved, read again and evaluated for one head: energies are the calculator's, which reads a frame's charge."""
    specs = {"total_charge": {"type": "categorical", "per": "graph", "num_classes": 3, "offset": 1, "emb_dim": 4}}
    save_model(potential(host=small_host(heads=["low", "high"], embedding_specs=specs)), tmp_path / "model")
    frames = [ethanol() for _ in range(4)]
    for charge, atoms in zip((-1, 0, 1, 2), frames, strict=True):
        atoms.info["charge"] = charge
    ase.io.write(tmp_path / "in.xyz", frames, format="extxyz")
    line = options(tmp_path / "in.xyz", tmp_path / "out.xyz", model=tmp_path / "model")
    assert "--head is None" in refused(capsys, *line)
    message = refused(capsys, *line, "--head", "high")
    assert "frame 3 of" in message and "expected whole numbers from -1 to 1" in message
    assert evaluate.main([*line, "--head", "high", "--skip_bad"]) == 0
    calculator = PhiCalculator(tmp_path / "model", head="high")
    energies = []
    for atoms in ase.io.read(tmp_path / "out.xyz", ":"):
        energies.append(atoms.info["MACE_energy"])
        atoms.calc = calculator
        assert energies[-1] == pytest.approx(atoms.get_potential_energy(), rel=1e-12)
        assert atoms.arrays["MACE_charges"].sum() == pytest.approx(atoms.info["charge"], abs=1e-7)
    assert len(energies) == 3 and min(np.diff(sorted(energies))) > 1e-6


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda(models, structures, tmp_path):
    assert evaluate.main(options(structures, tmp_path / "there.xyz", "--device", "cuda", model=models[0])) == 0
    there, here = ase.io.read(tmp_path / "there.xyz", ":"), run(structures, models[1].model, tmp_path / "here.xyz")
    for one, other in zip(there, here, strict=True):
        assert one.info["MACE_energy"] == pytest.approx(other.info["MACE_energy"], rel=1e-10)
        np.testing.assert_allclose(one.arrays["MACE_forces"], other.arrays["MACE_forces"], atol=1.1e-8)


def test_cuequivariance(models, structures, tmp_path, capsys):
    """The host on its kernels, Φ attached after: the same numbers; without it installed, how to install it."""
    line = options(structures, tmp_path / "there.xyz", "--enable_cueq", "--return_descriptors", model=tmp_path)
    try:
        import cuequivariance_torch  # noqa: F401
    except ImportError:
        assert "pip install cuequivariance" in refused(capsys, *line)
        return
    plain = potential(host=mace_host("4x0e+4x1o"))  # its kernels take correlation 2 and more
    save_model(plain, tmp_path)
    args = parse(line)
    fast = evaluation.read_model(args)
    assert accelerated(fast.host) == "cueq"
    evaluation.evaluate_file(args, fast)
    there = ase.io.read(tmp_path / "there.xyz", ":")
    here = run(structures, plain, tmp_path / "here.xyz", "--return_descriptors")
    for one, other in zip(there, here, strict=True):
        assert one.info["MACE_energy"] == pytest.approx(other.info["MACE_energy"], rel=1e-12)
        for name in ("forces", "charges", "descriptors"):
            np.testing.assert_allclose(one.arrays[f"MACE_{name}"], other.arrays[f"MACE_{name}"], atol=1.1e-8)


REFUSED = {
    "unknown": (["--out_put", "x"], "--out_put.*--output"),
    "batch": (["--batch_size", "0"], "--batch_size.*1 or more.*0"),
    "prefix": (["--info_prefix", ""], "--info_prefix"),
    "labels": (["--info_prefix", "REF_"], "--info_prefix.*over the labels REF_energy"),
    "named labels": (["--energy_key", "MACE_energy"], "--info_prefix.*MACE_energy"),
    "format": (["--output", "out.traj"], r"--output.*out\.traj.*extended XYZ"),
    "npz": (["--output", "out.npz"], r"--output.*out\.npz"),
    "no folder": (["--output", "nowhere/out.xyz"], "--output.*nowhere"),
    "input": (["--output", "in.xyz"], "different files"),
    "configs": (["--configs", "nowhere.xyz"], "--configs: there is no file nowhere.xyz"),
    "word": (["--descriptor_invariants_only", "maybe"], "True or False"),
    "device": (["--device", "mps"], "--device.*mps"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_options_that_are_refused(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.xyz").touch()
    words, message = REFUSED[case]
    with pytest.raises(InputError, match=message):
        parse(["--configs", "in.xyz", "--model", "run", "--output", "out.xyz", *words])


def test_what_is_not_there_is_refused(models, structures, tmp_path, capsys):
    model = models[1].model
    for wanted, message in (
        (Predicted(return_contributions=True), "--return_contributions"),
        (Predicted(return_descriptors=True, descriptor_num_layers=3), "--descriptor_num_layers is 3.*1 to 2"),
    ):
        with pytest.raises(InputError, match=message):
            Predictor(model, wanted=wanted)
    output = tmp_path / "out.xyz"
    with pytest.raises(InputError, match="--energy_key: .*'Energie'.*keys.* e, mu"):
        run(structures, model, output, "--energy_key", "Energie")
    with pytest.raises(InputError, match="--errors: .*no labels"):
        run(structures, model, output, "--errors", tmp_path / "errors.json")
    assert "there is no" in refused(capsys, *options(structures, output, model=tmp_path / "nothing"))
    assert "model.safetensors" in refused(capsys, *options(structures, output, model=tmp_path))
    with pytest.raises(InputError, match="no file nowhere.xyz"):
        run("nowhere.xyz", model, output)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("double")
def test_contributions_of_a_class_without_them(bare):
    predictor = Predictor(bare, wanted=Predicted(return_contributions=True))
    with pytest.raises(InputError, match="--return_contributions.*ScaleShiftMACE"):
        predictor(predictor.batch([ethanol()]))


@pytest.mark.usefixtures("double")
def test_stress_is_of_crystals_only(bare):
    """The cell of an open direction is made up: neither a stress nor an error of one."""
    slab = distorted(bulk("C", "diamond", a=3.6, cubic=True))
    slab.pbc = (True, True, False)
    crystal = distorted(bulk("C", "diamond", a=3.6, cubic=True))
    for atoms in (slab, crystal):
        atoms.info["REF_stress"] = np.zeros((3, 3))
    predictor = Predictor(bare, wanted=Predicted(compute_stress=True))
    batch = predictor.batch([slab, crystal])
    output = predictor(batch)
    (first, _), (second, _) = predictor.split(output, batch)
    assert "stress" not in first and second["stress"].shape == (3, 3)
    errors = ErrorSums()
    errors.update(output, batch)
    assert errors.table()["stress"]["rmse"] == pytest.approx(1e3 * np.sqrt((second["stress"] ** 2).mean()), rel=1e-9)


def test_crystals_and_molecules_in_one_batch(models, tmp_path):
    """With Φ: a crystal has a stress and no dipole, a molecule a dipole and no stress, and only these have errors."""
    model, calculator = models[1].model, models[1]
    crystal, water = distorted(bulk("C", "diamond", a=3.6, cubic=True)), molecule("H2O")
    for atoms in (crystal, water):
        atoms.info |= {"REF_stress": np.zeros((3, 3)), "mu": np.zeros(3)}
    ase.io.write(tmp_path / "in.xyz", [crystal, water], format="extxyz")
    words = ("--compute_stress", "--dipole_key", "mu", "--errors", tmp_path / "errors.json")
    solid, gas = run(tmp_path / "in.xyz", model, tmp_path / "out.xyz", *words)
    assert "MACE_dipole" not in solid.info and "MACE_stress" not in gas.info
    crystal, water = ase.io.read(tmp_path / "in.xyz", ":")  # with eight decimals, as the model saw them
    for atoms in (crystal, water):
        atoms.calc = calculator
    stress, dipole = crystal.get_stress(voigt=False), water.get_dipole_moment()
    np.testing.assert_allclose(solid.info["MACE_stress"], stress, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(gas.info["MACE_dipole"], dipole, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(solid.arrays["MACE_charges"], crystal.get_charges(), atol=1.1e-8)
    errors = json.loads((tmp_path / "errors.json").read_text())["errors"]
    assert errors["stress"]["count"] == 9 and errors["dipole"]["count"] == 3
    assert errors["stress"]["mae"] == pytest.approx(1e3 * np.abs(stress).mean())
    assert errors["dipole"]["mae"] == pytest.approx(np.abs(dipole).mean())


@pytest.mark.usefixtures("double")
def test_slabs_have_a_step_of_the_potential(tmp_path):
    """It is written, read back, and taken out again; molecules in the same batch have none."""
    model = potential(host=small_host())
    film = molecule("H2O", cell=[5.0, 6.0, 0.0], pbc=(True, True, False))
    ase.io.write(tmp_path / "in.xyz", [film, molecule("H2O")], format="extxyz")
    found, gas = run(tmp_path / "in.xyz", model, tmp_path / "out.xyz", "--compute_stress")
    film = ase.io.read(tmp_path / "in.xyz", 0)
    film.calc = PhiCalculator(model)
    assert found.info["MACE_energy"] == pytest.approx(film.get_potential_energy(), abs=1e-9)
    expected = film.calc.phi_results["surface_potential_step"]
    assert abs(expected) > 1e-3 and found.info["MACE_surface_potential_step"] == pytest.approx(expected, rel=1e-9)
    assert "MACE_dipole" not in found.info and "MACE_stress" not in found.info
    assert "MACE_surface_potential_step" not in gas.info and "MACE_dipole" in gas.info


@pytest.mark.usefixtures("double")
def test_atomic_dipoles_are_written(tmp_path):
    model = potential(host=small_host(), multipoles=1)
    ase.io.write(tmp_path / "in.xyz", molecule("H2O"), format="extxyz")
    (found,) = run(tmp_path / "in.xyz", model, tmp_path / "out.xyz")
    atoms = molecule("H2O")
    atoms.calc = PhiCalculator(model)
    atoms.get_potential_energy()
    expected = atoms.calc.phi_results["atomic_dipoles"]
    assert np.abs(expected).max() > 1e-6
    np.testing.assert_allclose(found.arrays["MACE_atomic_dipoles"], expected, atol=1.1e-8)


def test_periodic_frames_need_a_cell(tmp_path):
    atoms = bulk("C", "diamond", a=3.6)
    atoms.set_cell(np.diag([4.0, 4.0, 0.0]))
    ase.io.write(tmp_path / "in.xyz", atoms, format="extxyz")
    with pytest.raises(InputError, match="cell of frame 0 .*singular.*pbc T T T"):
        FrameStream(tmp_path / "in.xyz", {}, Accepted(ELEMENTS)).take_census()


def test_the_command_is_installed():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert pkgutil.resolve_name(project["scripts"]["phi-mace-eval"]) is commands.evaluate
