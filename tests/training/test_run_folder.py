"""The folder that a run leaves, what happens when it cannot be written, and the comparison of three rows."""

import csv
import json
import os
from pathlib import Path

import pytest
import yaml
from PIL import Image
from training_runs import keep_default_dtype, refused, run, words, write_molecules  # noqa: F401

from training import compare, run_folder
from training.train import main


@pytest.fixture(scope="module")
def molecules(tmp_path_factory):
    return write_molecules(tmp_path_factory.mktemp("molecules") / "train.xyz", charges=True)


FILES = (
    ".lock",
    "charges.png",
    "checkpoints/best.safetensors",
    "checkpoints/last.ckpt",
    "config.json",
    "config.yaml",
    "data.json",
    "errors.json",
    "errors.md",
    "learning_curve.png",
    "log.txt",
    "metrics.csv",
    "metrics.json",
    "model.safetensors",
    "parity.png",
    "report.html",
)


def contents(folder):
    """{relative path: bytes}."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_leaves_a_complete_folder(molecules, tmp_path, capsys):
    """All files, readable by others; one plain line per epoch where there is no terminal."""
    given = {"charges_key": "q", "dipole_key": "mu", "phi": ["poisson=learned"], "plot": "True"}
    folder = run(tmp_path, name="run", train_file=molecules, test_file=molecules, max_num_epochs=3, **given)
    assert sorted(contents(folder)) == sorted(FILES)
    output = capsys.readouterr().out
    assert sum(line.startswith("epoch ") for line in output.splitlines()) == 3 and "\x1b" not in output
    assert all(word in output for word in ("energies", "energy_key: energy", "charges_key: q", "dipole_key: mu"))
    rows = json.loads((folder / "metrics.json").read_text())
    with open(folder / "metrics.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [{key: float(value) for key, value in row.items()} for row in table] == rows
    assert {"lr", "seconds", "train_loss", "valid_loss", "train_rmse_forces", "valid_rmse_forces"} <= set(rows[0])
    assert rows[0]["valid_pde_residual"] > 0
    about = json.loads((folder / "data.json").read_text())
    split = about["split"]
    assert sorted(split["train_indices"] + split["valid_indices"]) == list(range(20))
    assert about["labels"][0]["labels"]["charges"] == {"key": "q", "count": 20} and len(about["sha256"]) == 64
    errors = json.loads((folder / "errors.json").read_text())["sets"]
    assert list(errors) == ["train", "valid", "test"]
    for table in errors.values():
        assert set(table["errors"]) >= {"energy_per_atom", "forces", "charges", "dipole"}
    assert (folder / "errors.md").read_text().count("|") > 20
    for name in ("parity.png", "learning_curve.png", "charges.png"):
        with Image.open(folder / name) as image:
            assert image.width > 1000 and len(image.convert("L").getcolors()) > 20


@pytest.mark.honours("log_level")
def test_an_existing_run_is_never_overwritten(molecules, tmp_path, capsys):
    """Without --restart_latest a folder that holds anything is refused and stays as it is; quiet runs log to a file."""
    folder = run(tmp_path, name="run", train_file=molecules, max_num_epochs=1, log_level="WARNING")
    before = contents(folder)
    assert "epoch 1/1" not in capsys.readouterr().out and "epoch 1/1" in (folder / "log.txt").read_text()
    message = refused(capsys, words(tmp_path, name="run", train_file=molecules, max_num_epochs=1))
    assert "--restart_latest" in message and "--name" in message
    assert contents(folder) == before


PLACES = ("log_dir", "model_dir", "checkpoints_dir", "results_dir")


@pytest.mark.honours("name", "work_dir", "log_dir", "model_dir", "checkpoints_dir", "results_dir")
def test_files_go_where_options_say(molecules, tmp_path, capsys, monkeypatch):
    """Each kind of file under the run's name in the folder named, relative to where the command runs; restart, too."""
    monkeypatch.chdir(tmp_path)
    shared = {place: f"elsewhere/{place}" for place in PLACES} | {"results_dir": str(tmp_path / "absolute")}
    given = {"train_file": molecules, "num_interactions": 1, **shared}
    for name, plot in (("first", "True"), ("second", "False")):  # which share the folders
        run(Path("work"), name=name, max_num_epochs=1, plot=plot, **given)
    expected = {
        "absolute/first": (
            "errors.json",
            "errors.md",
            "learning_curve.png",
            "metrics.csv",
            "metrics.json",
            "parity.png",
            "report.html",
        ),
        "elsewhere/checkpoints_dir/first": ("best.safetensors", "last.ckpt"),
        "elsewhere/log_dir": ("first.log", "second.log"),
        "elsewhere/model_dir/first": ("config.json", "model.safetensors"),
        "work/first": (".lock", "config.yaml", "data.json"),
    }
    for place, names in expected.items():
        assert sorted(contents(tmp_path / place)) == list(names)
    assert yaml.safe_load(Path("work/first/config.yaml").read_text())["log_dir"] == "elsewhere/log_dir"
    before = contents(tmp_path)
    capsys.readouterr()
    for place in PLACES:  # a run of that name in any of them
        others = {other: None for other in PLACES if other != place}
        line = words(tmp_path / "new", name="first", **{**given, **others})
        assert "already holds a run" in refused(capsys, line)
    assert contents(tmp_path) == before
    run(Path("work"), name="first", max_num_epochs=2, restart_latest=True, **given)
    assert len(json.loads(Path("absolute/first/metrics.json").read_text())) == 2
    assert "going on after epoch 1" in Path("elsewhere/log_dir/first.log").read_text()


def test_a_file_in_the_folders_place_is_refused(molecules, tmp_path, capsys):
    (tmp_path / "run").write_text("mine")
    assert "is a file" in refused(capsys, words(tmp_path, name="run", train_file=molecules))
    assert "cannot be written" in refused(capsys, words(tmp_path / "run", name="run", train_file=molecules))
    assert (tmp_path / "run").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_unwritable_folder_is_refused(molecules, tmp_path, capsys):
    tmp_path.chmod(0o500)
    try:
        assert "cannot be written" in refused(capsys, words(tmp_path, name="run", train_file=molecules))
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, the device without space")
@pytest.mark.parametrize("victim", ["checkpoints/.last.ckpt.part", ".metrics.csv.part", ".errors.json.part"])
def test_full_disk_loses_nothing(molecules, tmp_path, capsys, victim):
    """A write that finds no space ends the run with one paragraph; what was complete stays and can go on later."""
    given = {"name": "run", "train_file": molecules, "plot": False}
    folder = run(tmp_path, max_num_epochs=1, **given)
    before = contents(folder)
    (folder / victim).symlink_to("/dev/full")
    capsys.readouterr()
    message = refused(capsys, words(tmp_path, max_num_epochs=2, restart_latest=True, **given))
    assert "No space left on device" in message and "--restart_latest" in message
    after = contents(folder)
    assert after["errors.json"] == before["errors.json"]
    run(tmp_path, max_num_epochs=2, restart_latest=True, **given)
    assert len(json.loads((folder / "metrics.json").read_text())) == 2


@pytest.mark.slow
@pytest.mark.honours("compare", "compare_pde_weight")
def test_comparison_of_three_rows(molecules, tmp_path, capsys):
    """Same epochs, seed and data for each; finished rows are kept, a missing one is trained, the table is the same."""
    given = {"charges_key": "q", "dipole_key": "mu", "charges_weight": 10, "dipole_weight": 1, "compare": True}
    given |= {"train_file": molecules, "test_file": molecules, "max_num_epochs": 2, "plot": "True"}
    folder = run(tmp_path, name="three", **given)
    output = capsys.readouterr().out
    assert all(title in output for title in ("plain MACE", "Φ learned (graph)", "Φ exact (coulomb)"))
    content = json.loads((folder / "comparison.json").read_text())
    assert list(content["rows"]) == ["mace", "phi_learned", "phi_exact"]
    for name, row in content["rows"].items():
        assert row["epochs"] == 2
        assert ("charges" in row["sets"]["test"]["errors"]) == (name != "mace")
    assert (folder / "comparison.md").is_file() and (folder / "comparison.png").is_file()
    metrics = json.loads((folder / "phi_learned" / "metrics.json").read_text())
    assert metrics[0]["train_term_pde"] > 0.0

    kept = contents(folder / "mace")
    (folder / "phi_exact" / "errors.json").unlink()
    run(tmp_path, name="three", restart_latest=True, **given)
    assert contents(folder / "mace") == kept
    again = json.loads((folder / "comparison.json").read_text())["rows"]
    for name, row in content["rows"].items():
        for split, found in row["sets"].items():
            assert again[name]["sets"][split]["errors"] == found["errors"]
    refused(capsys, words(tmp_path, name="three", **given))
    again = {"name": "three", "restart_latest": True, **given}
    assert "hidden_irreps was '4x0e'" in refused(capsys, words(tmp_path, **{**again, "hidden_irreps": "8x0e"}))
    assert "--max_num_epochs: the rows" in refused(capsys, words(tmp_path, **{**again, "max_num_epochs": 3}))
    assert contents(folder / "mace") == kept
    assert yaml.safe_load((folder / "mace" / "config.yaml").read_text())["compare"] is False  # it repeats the row


@pytest.mark.slow
@pytest.mark.honours("time_limit")
def test_comparison_shares_a_time_limit(molecules, tmp_path, monkeypatch):
    """No row gets more epochs than the one before, and all of them are tested."""
    # What is measured here on a busy machine may leave no time for a single epoch, which is another test's matter.
    monkeypatch.setattr(compare, "seconds_per_epoch", lambda *_: (0.05, 0.001))
    given = {"train_file": molecules, "max_num_epochs": 100_000, "time_limit": 0.4, "plot": False, "compare": True}
    folder = run(tmp_path, name="three", **given)
    assert not list(folder.rglob("*.png"))
    epochs = [row["epochs"] for row in json.loads((folder / "comparison.json").read_text())["rows"].values()]
    # Equal on a quiet machine; on a busy one a later row can be cut short, and the table says so.
    assert 1000 > epochs[0] >= epochs[1] >= epochs[2] >= 1


def test_two_processes_do_not_write_one_run(molecules, tmp_path, capsys):
    """Of several that a batch system starts, one trains; the lock of one that is gone does not stand in the way."""
    given = {"train_file": molecules, "max_num_epochs": 1, "plot": False, "name": "shared"}
    folders = run_folder.Folders(tmp_path / "shared", *4 * [tmp_path / "shared"])
    with run_folder.held(folders):
        message = refused(capsys, words(tmp_path, **given))
    assert all(word in message for word in ("--name", "another process", "--distributed"))
    assert [path.name for path in (tmp_path / "shared").iterdir()] == [".lock"]
    assert (run(tmp_path, **given) / "model.safetensors").is_file()


def test_help(capsys):
    """mace's options and ours."""
    with pytest.raises(SystemExit) as finished:
        main(["--help"])
    assert finished.value.code == 0
    output = capsys.readouterr().out
    assert "--max_num_epochs" in output and "--phi" in output and "--compare" in output
