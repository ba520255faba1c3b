"""The same files through the doors of training and evaluation, by their command lines."""

import logging
import resource
import time

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from systems import ethanol, mace_host, potential
from training_runs import keep_default_dtype, parsed, refused, run, words, write_molecules  # noqa: F401

from phi_equivariant.errors import InputError
from phi_equivariant.inputs.state import reader_of
from phi_equivariant.weights import save_model
from training import build as building
from training import evaluate
from training import evaluation as evaluating
from training.data.placing import Accepted
from training.data.stream import FrameStream
from training.fit.predict import evaluate as errors_of
from training.fit.predictions import Predictor
from training.options.evaluation import OPENERS, parse
from training.train import main as train

CELL = "9 0 0 0 9 0 0 0 9"
MISREAD = {
    "swallowed": ('config_type=bulk total_charge=0', 'config_type="" total_charge=0', "config_type has no value"),
    "lattice": (f'Lattice="{CELL}"', f'lattice="{CELL}"', "'lattice', which ase does not read"),
    "pbc": (f'Lattice="{CELL}" pbc="F F F"', f'Lattice="{CELL}" PBC="F F F"', "'PBC'"),
    "FFF": (f'Lattice="{CELL}" pbc="F F F"', f'Lattice="{CELL}" pbc="FFF"', "pbc is 'FFF'"),
    "twice": ("total_charge=0", "total_charge=0 total_charge=1", "total_charge twice"),
    "charge": ("total_charge=0", "Total_Charge=1", "Total_Charge"),
    "label": ("", "", "has 'Energy', but the energies are read from 'energy'"),
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        folder = tmp_path_factory.mktemp("models") / "phi"
        save_model(potential(host=mace_host("4x0e+4x1o", correlation=1)), folder)
        return folder
    finally:
        torch.set_default_dtype(before)


def molecules(path, count=12, **given):
    """Labelled molecules with a comment line that can be changed."""
    return write_molecules(path, count=count, **given)


def change(path, index, old, new):
    """Replace in the comment line of a frame, or put behind it what is new."""
    frames = path.read_text().splitlines(keepends=True)
    start = 0
    for _ in range(index):
        start += int(frames[start]) + 2
    line = frames[start + 1].rstrip("\n")
    assert old in line
    frames[start + 1] = (line.replace(old, new) if old else f"{line} {new}") + "\n"
    path.write_text("".join(frames))


def prepared(folder, **given):
    """The data of a run."""
    return building.load(parsed(folder, **given))[1]


def evaluation(folder, model, configs, *others):
    return [str(word) for word in ("--configs", configs, "--model", model, "--output", folder / "out.xyz", *others)]


@pytest.mark.parametrize("case", MISREAD)
@pytest.mark.parametrize("door", ["train_file", "valid_file", "test_file", "configs"])
def test_a_comment_line_that_ase_misreads_is_refused_at_every_door(tmp_path, capsys, model, door, case):
    good, bad, message = MISREAD[case]
    for name in ("good", "bad"):
        path = molecules(tmp_path / f"{name}.xyz")
        if case == "label":
            if name == "bad":
                change(path, 5, " energy=", " Energy=")
            continue
        change(path, 5, ' pbc="F F F"', "")
        change(path, 5, "", bad if name == "bad" else good)
    if door == "configs":
        line = evaluation(tmp_path, model, tmp_path / "bad.xyz", "--energy_key", "energy")
        assert evaluate.main(line) == 2
        error = capsys.readouterr().err
        assert evaluate.main(evaluation(tmp_path, model, tmp_path / "good.xyz", "--energy_key", "energy")) == 0
    else:
        files = {"train_file": tmp_path / "good.xyz", "valid_file": tmp_path / "good.xyz"}
        error = refused(capsys, words(tmp_path, name="run", **{**files, door: tmp_path / "bad.xyz"}))
        prepared(tmp_path, name="run", **{**files, door: tmp_path / "good.xyz"})
    assert f"frame 5 of {tmp_path / 'bad.xyz'}" in error and message in error


@pytest.mark.parametrize("door", ["train_file", "valid_file", "test_file", "configs"])
def test_atoms_at_one_place_are_refused_at_every_door(tmp_path, capsys, model, door):
    frames = ase.io.read(molecules(tmp_path / "good.xyz"), ":")
    for atoms in frames:
        atoms.info["energy"], atoms.arrays["forces"] = atoms.calc.results["energy"], atoms.calc.results["forces"]
        atoms.calc = None
    frames[3].set_cell([6, 6, 6])
    frames[3].pbc = True
    frames[3].positions[1] = frames[3].positions[0] + [6.0, 0, 0]
    ase.io.write(tmp_path / "bad.traj", frames)
    if door == "configs":
        assert evaluate.main(evaluation(tmp_path, model, tmp_path / "bad.traj")) == 2
        error = capsys.readouterr().err
    else:
        files = {"train_file": tmp_path / "good.xyz", "valid_file": tmp_path / "good.xyz"}
        error = refused(capsys, words(tmp_path, name="run", **{**files, door: tmp_path / "bad.traj"}))
    assert "frame 3 of" in error and "atoms that coincide: 0 (" in error


def test_blank_lines_and_a_truncated_file(tmp_path, capsys, model):
    """Two structures with a blank line between them are two; the end of a file that is cut is missed."""
    path = molecules(tmp_path / "in.xyz", count=2)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:5], "\n", *lines[5:], "\n\n"]))
    assert evaluate.main(evaluation(tmp_path, model, path)) == 0
    assert len(ase.io.read(tmp_path / "out.xyz", ":")) == 2
    path.write_text("".join(lines[:-1]))
    assert evaluate.main(evaluation(tmp_path, model, path)) == 2
    assert "frame 1 of" in (error := capsys.readouterr().err) and "ends after 5 of its 6 atoms" in error


def test_the_log_tells_of_charges_cells_and_outliers(tmp_path):
    """What the files were taken for, in words that can be checked."""
    frames = ase.io.read(molecules(tmp_path / "train.xyz", count=20), ":")
    for index, atoms in enumerate(frames):
        results = atoms.calc.results
        atoms.info |= {"energy": results["energy"] * (1 if index != 4 else 2300), "charge": (index % 3) - 1}
        atoms.arrays["forces"], atoms.calc = results["forces"], None
        atoms.set_cell([20, 20, 20])
        atoms.pbc = index < 5
    ase.io.write(tmp_path / "train.xyz", frames, format="extxyz")
    text = "\n".join(prepared(tmp_path, name="run", train_file=tmp_path / "train.xyz").lines)
    assert "total charge: 20 of 20 frames, −1…+1, key charge" in text
    assert "cells: 5 periodic in 3 directions, 15 open" in text
    assert f"frame 4 of {tmp_path / 'train.xyz'} (" in text and text.count("outlying energies") == 1
    keys = {"energy_key": "energy", "forces_key": "forces"}
    evaluated = "\n".join(FrameStream(tmp_path / "train.xyz", keys, Accepted([1, 6, 8])).take_census().lines())
    (line,) = [one for one in text.splitlines() if "outlying" in one]
    assert line.strip() in evaluated


@pytest.fixture
def ions(tmp_path):
    """Charged molecules under a key of the user's own."""
    frames = ase.io.read(molecules(tmp_path / "plain.xyz", count=14, charges=True), ":")
    for index, atoms in enumerate(frames):
        atoms.info |= {"Q": index % 2, "spin": 1 + index % 2}
        atoms.arrays["q"] += (index % 2) / len(atoms)
    ase.io.write(tmp_path / "ions.xyz", frames, format="extxyz")
    return tmp_path / "ions.xyz"


def test_a_model_is_evaluated_with_the_key_it_was_trained_with(tmp_path, ions, capsys):
    """Key Q: read in training, kept with the model, read in evaluation without being named again."""
    given = {"train_file": ions, "name": "run", "total_charge_key": "Q", "phi": ["operator=coulomb"]}
    chosen, run_data = building.load(parsed(tmp_path, **given))
    assert "total charge: 14 of 14 frames, 0…+1, key Q" in "\n".join(run_data.lines)
    assert {float(graph["total_charge"]) for graph in run_data.train} == {0.0, 1.0}
    built = building.build(chosen, run_data)
    reader = reader_of(built.model)
    assert reader.keys == {"total_charge": "Q"} and reader.seen["total_charge"] == (0.0, 1.0)
    asked = parse(evaluation(tmp_path, tmp_path, ions))
    evaluating.evaluate_file(asked, built.model)
    for atoms in ase.io.read(tmp_path / "out.xyz", ":"):
        assert atoms.arrays["MACE_charges"].sum() == pytest.approx(atoms.info["Q"], abs=1e-6)


@pytest.mark.parametrize("key", ["total_charge_key", "total_spin_key", "elec_temp_key"])
def test_a_key_that_no_frame_has_is_refused(tmp_path, ions, capsys, model, key):
    message = refused(capsys, words(tmp_path, name="run", train_file=ions, **{key: "nothing"}))
    assert f"{key} is 'nothing', but none of the 14 frames" in message
    assert evaluate.main(evaluation(tmp_path, model, ions, f"--{key}", "nothing")) == 2
    assert f"{key} is 'nothing'" in capsys.readouterr().err


def test_charges_that_contradict_the_total_charge(tmp_path, ions, capsys, model):
    """Labels of ions whose total charge stands under a key that nobody named."""
    message = refused(capsys, words(tmp_path, name="run", train_file=ions, charges_key="q"))
    assert f"frame 1 of {ions}: the charges sum to +1.000 e, but the total charge is +0 e" in message
    assert evaluate.main(evaluation(tmp_path, model, ions, "--charges_key", "q")) == 2
    assert "frame 1 of" in capsys.readouterr().err
    given = {"train_file": ions, "name": "run", "charges_key": "q", "total_charge_key": "Q"}
    assert len(prepared(tmp_path, **given).train) == 13


@pytest.mark.usefixtures("double")
def test_spin_is_read_the_same_way_by_all(tmp_path):
    """``spin=2`` is the multiplicity of a doublet in training, in evaluation and for the calculator."""
    specs = {"total_spin": {"type": "categorical", "per": "graph", "num_classes": 5, "emb_dim": 4}}
    frames = ase.io.read(molecules(tmp_path / "plain.xyz"), ":")
    for index, atoms in enumerate(frames):
        atoms.info[("spin", "multiplicity", "total_spin")[index % 3]] = 1 + index % 4
    ase.io.write(tmp_path / "in.xyz", frames, format="extxyz")
    given = {"train_file": tmp_path / "in.xyz", "valid_file": tmp_path / "in.xyz", "embedding_specs": str(specs)}
    run_data = prepared(tmp_path, name="run", **given)
    expected = [1.0 + index % 4 for index in range(12)]
    assert [float(graph["total_spin"]) for graph in run_data.train] == expected
    host = mace_host("4x0e", correlation=1, embedding_specs=specs)
    predictor = Predictor(host)
    stream = FrameStream(
        tmp_path / "in.xyz",
        {},
        Accepted(predictor.numbers, embeddings=predictor.embeddings),
        usual=reader_of(host).keys,
    )
    assert predictor.batch([frame.labelled for frame in stream])["total_spin"].flatten().tolist() == expected


def test_evaluating_an_output_again_leaves_nothing_of_the_first(tmp_path, model, capsys):
    """First with Φ, then its bare host under the same prefix; texts that ase's writer would garble stay."""
    atoms = ethanol()
    atoms.info |= {"note": "two\nlines", "path": "C:\\dir\\", "none": None, "nested": {"a": [1, {"b": "\\"}]}, "e": ""}
    ase.io.write(tmp_path / "in.traj", [atoms, molecule("H2O")])
    assert evaluate.main(evaluation(tmp_path, model, tmp_path / "in.traj")) == 0
    (tmp_path / "out.xyz").rename(tmp_path / "first.xyz")
    first, other = ase.io.read(tmp_path / "first.xyz", ":")
    assert {key: first.info[key] for key in atoms.info} == atoms.info and len(other) == 3
    assert {"MACE_phi_energy", "MACE_dipole"} <= set(first.info) and "MACE_charges" in first.arrays
    torch.set_default_dtype(torch.float64)
    asked = parse(evaluation(tmp_path, model, tmp_path / "first.xyz"))
    evaluating.evaluate_file(asked, mace_host("4x0e", correlation=1))
    second, _ = ase.io.read(tmp_path / "out.xyz", ":")
    left = [key for key in (*second.info, *second.arrays) if key.startswith("MACE_")]
    assert sorted(left) == ["MACE_energy", "MACE_forces"]
    assert {key: second.info[key] for key in atoms.info} == atoms.info


def test_outputs_that_were_not_stored_are_missed(tmp_path, model, monkeypatch, capsys):
    """A disk that forgets: the file is read again before it is called done."""
    ase.io.write(tmp_path / "in.xyz", ethanol())

    class Forgetful:
        def __init__(self, path, mode):
            self.file = open(path, mode)  # noqa: SIM115

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, content):
            self.file.write(content.replace(b"C", b"O", 1))

        def read(self, size):
            return self.file.read(size)

    monkeypatch.setitem(OPENERS, ".gz", Forgetful)
    line = evaluation(tmp_path, model, tmp_path / "in.xyz", "--output", tmp_path / "out.xyz.gz")
    assert evaluate.main(line) == 2
    assert "does not hold what was written" in capsys.readouterr().err and not (tmp_path / "out.xyz.gz").exists()


@pytest.mark.parametrize("moved", ["237", "500", "cell 400"])
def test_open_structures_far_away_cost_no_more(tmp_path, model, moved, capsys):
    """The energy is that at the origin; time and memory stay those of 60 atoms."""
    near = molecule("C60")
    far = near.copy()
    if moved.startswith("cell"):
        far.set_cell([400, 400, 400])
        far.center()
    else:
        far.positions += float(moved)
    ase.io.write(tmp_path / "near.xyz", near)
    ase.io.write(tmp_path / "far.xyz", far, format="extxyz")
    energies, seconds = [], []
    for name in ("near", "far", "near", "far"):
        begin, memory = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert evaluate.main(evaluation(tmp_path, model, tmp_path / f"{name}.xyz")) == 0
        seconds.append(time.process_time() - begin)
        energies.append(ase.io.read(tmp_path / "out.xyz").info["MACE_energy"])
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 500_000  # KiB
    assert np.ptp(energies) < 1e-6 * abs(energies[0])
    assert seconds[3] < 3 * seconds[2] + 0.5


def test_a_frame_that_the_model_has_no_energy_for_is_named_in_tests(tmp_path):
    """A prediction that overflows: the frame by file and number, not errors of NaN."""
    frames = ase.io.read(molecules(tmp_path / "train.xyz"), ":")
    ase.io.write(tmp_path / "test.xyz", frames[:4], format="extxyz")
    given = {"train_file": tmp_path / "train.xyz", "test_file": tmp_path / "test.xyz", "name": "run"}
    chosen, run_data = building.load(parsed(tmp_path, **given))
    built = building.build(chosen, run_data)
    (loader,) = run_data.loader("test").values()
    assert np.isfinite(errors_of(built.model, loader, built.outputs, "cpu").table()["energy"]["mae"])
    with torch.no_grad():
        built.model.atomic_energies_fn.atomic_energies[..., 0] = 0.5e308  # of hydrogen: methanol has four
    with pytest.raises(InputError, match=rf"not finite for frame 1 of {tmp_path / 'test.xyz'}"):
        errors_of(built.model, loader, built.outputs, "cpu")


@pytest.mark.parametrize("lbfgs", [None, True])
def test_a_step_whose_loss_is_not_finite_names_its_frames(tmp_path, capsys, lbfgs):
    """Labels of 1e200, whose square is not a number: the message names the frames, not a lower learning rate."""
    frames = ase.io.read(molecules(tmp_path / "train.xyz", count=8), ":")
    for index, atoms in enumerate(frames):
        forces = atoms.get_forces() * (1e200 if index == 5 else 1)
        atoms.info["energy"], atoms.calc = atoms.get_potential_energy(), None
        atoms.arrays["forces"] = forces
    ase.io.write(tmp_path / "broken.xyz", frames, format="extxyz")
    given = {"valid_file": tmp_path / "train.xyz", "lbfgs": lbfgs, "batch_size": 2, "name": "run", "plot": "False"}
    given |= {"std": 1.0, "mean": 0.0}
    message = refused(capsys, words(tmp_path, train_file=tmp_path / "broken.xyz", **given))
    assert "the training loss is not finite for the step of " in message and message.count("frame ") == 2
    assert f"frame 5 of {tmp_path / 'broken.xyz'}" in message


def test_a_run_stops_at_a_frame_without_an_energy(tmp_path, capsys, monkeypatch):
    """In validation too, and a model that diverged is still told of as that."""
    molecules(tmp_path / "train.xyz")
    frames = ase.io.read(tmp_path / "train.xyz", ":")
    apart = Atoms("H2", [[0, 0, 0], [0, 0, 0.3]], info={"energy": 1.0})
    apart.arrays["forces"] = np.zeros((2, 3))
    ase.io.write(tmp_path / "train.xyz", [*frames, apart], format="extxyz")
    logging.getLogger("phi_mace_train").handlers.clear()
    folder = run(tmp_path, train_file=tmp_path / "train.xyz", name="run", max_num_epochs=1)
    assert (folder / "model.safetensors").exists() or list(folder.rglob("model.safetensors"))
    assert train(words(tmp_path, name="diverged", train_file=tmp_path / "train.xyz", lr=1e200, max_num_epochs=2)) == 2
    assert "learning rate" in capsys.readouterr().err
