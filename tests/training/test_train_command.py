"""phi-mace-train as a command: options, presets, the phi: section, and everything that it refuses."""

import ase.io
import numpy as np
import pytest
import yaml
from training_runs import TINY, keep_default_dtype, metrics, refused, run, words, write_molecules  # noqa: F401


@pytest.fixture(scope="module")
def molecules(tmp_path_factory):
    return write_molecules(tmp_path_factory.mktemp("molecules") / "train.xyz")


def altered(molecules, tmp_path, change):
    """The molecules with one frame changed."""
    frames = ase.io.read(molecules, ":")
    change(frames[3])
    ase.io.write(tmp_path / "altered.xyz", frames, format="extxyz")
    return tmp_path / "altered.xyz"


def put(name, value):
    """A change of one entry of ``info``."""
    return lambda atoms: atoms.info.__setitem__(name, value)


def make_nan(atoms):
    atoms.positions[0, 0] = np.nan


def make_slab(atoms):
    atoms.set_cell(8.0 * np.eye(3))
    atoms.pbc = [True, True, False]


def make_wire(atoms):
    atoms.set_cell(8.0 * np.eye(3))
    atoms.pbc = [True, False, False]


BAD = {
    "neither data nor file": ({"train_file": None}, ("--dataset", "--train_file", "neither")),
    "unknown data set": ({"train_file": None, "dataset": "ala3_gfn1"}, ("ala3_gfn1", "ala3_gfn2")),
    "both": ({"dataset": "ala3_gfn2"}, ("both",)),
    "missing file": ({"train_file": "nowhere.xyz"}, ("nowhere.xyz",)),
    "missing validation": ({"valid_file": "nowhere.xyz"}, ("nowhere.xyz",)),
    "missing test": ({"test_file": "nowhere.xyz"}, ("nowhere.xyz",)),
    "zero batch": ({"batch_size": 0}, ("--batch_size", "above zero", "0")),
    "large batch": ({"batch_size": 500}, ("--batch_size", "500", "18 training structures")),
    "negative cut-off": ({"r_max": -1.0}, ("--r_max", "above zero", "-1.0")),
    "no number": ({"lr": "fast"}, ("--lr", "fast")),
    "wrong fraction": ({"valid_fraction": 1.5}, ("--valid_fraction", "1.5")),
    "unknown option": ({"max_ephocs": 3}, ("--max_ephocs", "--max_num_epochs")),
    "unknown key": ({"energy_key": "Energie"}, ("Energie", "energy")),
    "charges without label": ({"phi": ["operator=coulomb"], "charges_weight": 1}, ("REF_charges",)),
    "charges without Φ": ({"charges_weight": 1}, ("--charges_weight", "bare host")),
    "dipole without Φ": ({"dipole_weight": 1}, ("--dipole_weight", "bare host")),
    "pde of exact": ({"phi": ["pde_weight=0.1"]}, ("pde_weight", "exact")),
    "Φ and no Φ": ({"phi": ["channels=2"], "no_phi": True}, ("--no_phi",)),
    "a comparison without Φ": ({"compare": True, "no_phi": True}, ("--compare", "--no_phi")),
    "misspelt setting": ({"phi": ["chanels=2"]}, ("chanels", "channels")),
    "scheduler": ({"scheduler": "StepLR"}, ("StepLR", "ReduceLROnPlateau")),
    "width told twice": ({"num_channels": 2}, ("--num_channels", "hidden_irreps 4x0e", "contradict")),
    "width of mace's three": ({"num_channels": 2, "max_L": 0}, ("--hidden_irreps", "contradict")),
    "factors of other layers": (
        {"lr_params_factors": '{"readout_lr_factor": 1}'},
        ("--lr_params_factors", "readouts_"),
    ),
    "factors in no JSON": ({"lr_params_factors": "{readouts"}, ("--lr_params_factors", "JSON")),
    "negative seed": ({"seed": -1}, ("--seed", "-1")),
    "beta of one": ({"beta": 1.0}, ("--beta", "less than 1")),
    "growing rate": ({"lr_factor": 1.5}, ("--lr_factor", "less than 1")),
    "endless rate": ({"lr": "inf"}, ("--lr", "inf")),
    "name with a slash": ({"name": "a/b"}, ("--name", "a/b")),
    "name of the parent": ({"name": ".."}, ("--name", "'..'")),
    "long name": ({"name": 300 * "n"}, ("--name", "nnn")),
    "setting that is not YAML": ({"phi": ["channels=["]}, ("--phi", "channels=[")),
    "no stage two": ({"start_swa": 0}, ("--start_swa", "0")),
    "stage two of forces": ({"swa": True, "loss": "forces_only"}, ("--swa", "forces_only")),
    "negative weight": ({"swa_energy_weight": -1.0}, ("--swa_energy_weight", "-1.0")),
    "cosine of L-BFGS": ({"lbfgs": True, "scheduler": "CosineAnnealingLR"}, ("--scheduler", "lbfgs")),
    "comparison by L-BFGS": ({"lbfgs": True, "compare": True}, ("--lbfgs", "--compare")),
    "zero clipping": ({"clip_grad": 0.0}, ("--clip_grad", "above zero")),
    "dipole in stage two": ({"swa_dipole_weight": 1.0}, ("--swa_dipole_weight", "bare host")),
    "warm-up": ({"warmup_epochs": 2}, ("--warmup_epochs", "CosineAnnealingLR")),
    "other model": ({"model": "PolarMACE"}, ("--model", "PolarMACE")),
    "other loss": ({"loss": "dipole"}, ("--loss", "dipole")),
    "stress without label": ({"loss": "stress", "phi": ["channels=1"]}, ("stress", "REF_stress")),
    "irreps": ({"hidden_irreps": "8x0e + 4x1o"}, ("same dimension",)),
    "E0s": ({"E0s": "{1: -1.0}"}, ("--E0s", "6, 8")),
    "no E0s": ({"E0s": None}, ("--E0s",)),
    "elements": ({"atomic_numbers": "[1, 8]"}, ("--atomic_numbers", "6")),
    "level": ({"log_level": "LOUD"}, ("--log_level", "LOUD")),
    "missing configuration": ({"config": "nowhere.yaml"}, ("--config", "nowhere.yaml")),
    "foundation": ({"foundation_model": "small"}, ("--foundation_model",)),
    "low rank": ({"lora": "True"}, ("--lora", "freeze_host")),
    "too little time": ({"time_limit": -1}, ("--time_limit",)),
    "compare": ({"compare": True, "phi": ["channels=2"]}, ("--compare", "--phi")),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_options_are_refused(molecules, tmp_path, capsys, case):
    """One paragraph that names the argument, status 2, and nothing is written."""
    given, expected = BAD[case]
    message = refused(capsys, words(tmp_path, **{"train_file": molecules, **given}))
    for word in expected:
        assert word in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "phi", "expected"),
    [
        (make_nan, None, ("frame 3", "finite")),
        (make_wire, ["operator=coulomb"], ("frame 3", "wire", "T F F")),
        (make_slab, ["charge_constraint=penalty"], ("frame 3", "slab", "T T F", "charge_constraint: project")),
        (put("total_charge", "plus one"), ["operator=coulomb"], ("frame 3", "total charge", "plus one")),
    ],
)
def test_bad_frames_are_refused(molecules, tmp_path, capsys, change, phi, expected):
    """The message names the frame; no run folder is made."""
    path = altered(molecules, tmp_path, change)
    message = refused(capsys, words(tmp_path, train_file=path, phi=phi))
    for word in expected:
        assert word in message
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["altered.xyz"]


def test_empty_file_is_refused(tmp_path, capsys):
    (tmp_path / "empty.xyz").touch()
    assert "empty" in refused(capsys, words(tmp_path, train_file=tmp_path / "empty.xyz"))


def test_charged_structures_and_the_graph_operator_are_refused(molecules, tmp_path, capsys):
    """The graph operator cannot carry a net charge."""
    path = altered(molecules, tmp_path, put("total_charge", 1.0))
    message = refused(capsys, words(tmp_path, train_file=path, phi=["operator=graph"]))
    assert "total_charge" in message and "graph" in message
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["altered.xyz"]


def test_unknown_element_in_the_test_set_is_refused(molecules, tmp_path, capsys):
    def change(atoms):
        atoms.numbers[0] = 16

    path = altered(molecules, tmp_path, change)
    assert "S" in refused(capsys, words(tmp_path, train_file=molecules, test_file=path))


def test_more_modes_than_atoms_are_all_modes(molecules, tmp_path):
    """Not an error."""
    given = {"train_file": molecules, "max_num_epochs": 1, "plot": False}
    few = run(tmp_path, name="few", phi=["num_modes=50"], **given)
    assert np.isfinite(metrics(few)[0]["train_loss"])


def test_resolved_configuration_repeats_the_run(molecules, tmp_path):
    """config.yaml of a run, given as --config, is the same run."""
    given = {"train_file": molecules, "max_num_epochs": 2, "ema": True, "plot": False}
    first = run(tmp_path, name="first", phi=["operator=graph", "poisson=learned", "pde_weight=0.5"], **given)
    resolved = yaml.safe_load((first / "config.yaml").read_text())
    assert resolved["phi"]["pde_weight"] == 0.5 and resolved["hidden_irreps"] == TINY["hidden_irreps"]
    from training.train import main

    assert main(["--config", str(first / "config.yaml"), "--name", "second"]) == 0
    assert metrics(tmp_path / "second") == metrics(first)


def test_a_diverging_run_says_so(molecules, tmp_path, capsys):
    """A loss that is never finite is an error that names the learning rate, not an empty model."""
    line = words(tmp_path, train_file=molecules, name="run", lr=1e300, max_num_epochs=3, clip_grad="None")
    assert "lower the learning rate" in refused(capsys, line)
    assert not (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.honours("dry_run")
def test_dry_run_writes_nothing(molecules, tmp_path, capsys):
    from training.train import main

    assert main(words(tmp_path, train_file=molecules, name="run", dry_run=True)) == 0
    assert "dry run" in capsys.readouterr().out and list(tmp_path.iterdir()) == []


@pytest.mark.honours("time_limit")
def test_time_limit_stops_at_an_epoch_end_and_tests(molecules, tmp_path, capsys):
    """A run that would take hours ends in time, with its error table; stage two has its share of the epochs."""
    given = {"train_file": molecules, "max_num_epochs": 100_000, "time_limit": 0.2, "plot": False, "start_swa": 50_000}
    folder = run(tmp_path, name="run", scheduler="CosineAnnealingLR", swa_lr=0.005, num_interactions=1, **given)
    rows = metrics(folder)
    assert 1 <= len(rows) < 1000 and (folder / "errors.json").is_file()
    first = [row["lr"] == 0.005 for row in rows].index(True) if len(rows) > 8 else None
    assert first is None or 0.2 * len(rows) < first < 0.8 * len(rows)  # a very busy machine fits fewer
    assert "time limit: stopping after epoch" in (folder / "log.txt").read_text()
