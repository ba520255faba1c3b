"""Error tables in mace's forms, and what goes to Weights and Biases and to TensorBoard."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import ase.io
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from mace.tools import evaluate as mace_evaluate
from mace.tools import tables_utils, torch_geometric
from training_runs import (  # noqa: F401  (a fixture)
    keep_default_dtype,
    mace_graphs,
    metrics,
    parsed,
    refused,
    run,
    words,
    write_molecules,
)

from training import build as building
from training import mace_interface
from training.fit.predict import evaluate
from training.quantities import FORMS
from training.report import tables

DEBYE_PER_ELECTRON_ANGSTROM = 4.80320471


@pytest.fixture(scope="module")
def molecules(tmp_path_factory):
    return write_molecules(tmp_path_factory.mktemp("molecules") / "train.xyz", count=12, charges=True)


@pytest.fixture(scope="module")
def crystals(tmp_path_factory):
    """Strained and shaken copper cells with EMT energies, forces and stresses."""
    rng, frames = np.random.default_rng(0), []
    for _ in range(6):
        atoms = bulk("Cu", cubic=True)
        atoms.set_cell(atoms.cell @ (np.eye(3) + rng.normal(scale=0.02, size=(3, 3))), scale_atoms=True)
        atoms.rattle(0.05, rng=rng)
        atoms.calc = EMT()
        atoms.info["energy"], atoms.arrays["forces"] = atoms.get_potential_energy(), atoms.get_forces()
        atoms.info["s"], atoms.calc = atoms.get_stress(voigt=False), None
        frames.append(atoms)
    path = tmp_path_factory.mktemp("crystals") / "train.xyz"
    ase.io.write(path, frames, format="extxyz")
    return path


def built(work_dir, **given):
    chosen, run_data = building.load(parsed(work_dir, name="run", **given))
    return chosen, run_data, building.build(chosen, run_data)


def validation_frames(path, run_data, **others):
    """The structures of the validation set with their labels where mace reads them."""
    frames = [ase.io.read(path, index) for index in run_data.provenance["split"]["valid_indices"]]
    for atoms in frames:
        atoms.info["REF_energy"], atoms.arrays["REF_forces"] = atoms.get_potential_energy(), atoms.get_forces()
        for name, key in others.items():
            atoms.info[f"REF_{name}"] = atoms.info[key]
    return frames


def mace_table(form, model, objective, outputs, frames, numbers, r_max):
    """mace's own error table and metrics of a model on frames."""
    data = mace_graphs(frames, numbers, r_max)
    loader = torch_geometric.dataloader.DataLoader(data, batch_size=3, shuffle=False)
    given = {"model": model, "loss_fn": objective.host_loss, "output_args": outputs, "device": "cpu"}
    found = tables_utils.create_error_table(form, {"valid": loader}, log_wandb=False, **given)
    return found, mace_evaluate(data_loader=loader, **given)[1]


def test_every_form_of_maces_has_a_table():
    choices = next(a.choices for a in mace_interface.argument_parser()._actions if a.dest == "error_table")
    assert {form for form in choices if "Polar" not in form} == set(FORMS)


FORMS_OF_A_HOST = ["PerAtomRMSE", "TotalRMSE", "PerAtomMAE", "TotalMAE", "PerAtomRMSEstressvirials"]
FORMS_OF_A_HOST += ["PerAtomMAEstressvirials"]
THEIRS = {"energy": "e", "energy_per_atom": "e_per_atom", "forces": "f", "stress": "stress"}


@pytest.mark.honours("error_table")
def test_errors_of_a_periodic_host_equal_maces(crystals, tmp_path):
    """All numbers to 1e-9, and every form to the digits that mace prints."""
    given = {"train_file": crystals, "valid_fraction": 0.5, "stress_key": "s", "loss": "stress", "batch_size": 2}
    chosen, run_data, made = built(tmp_path, **given)
    errors = evaluate(made.model, run_data.loader("valid")["Default"], made.outputs, "cpu").table()
    frames = validation_frames(crystals, run_data, stress="s")
    for form in FORMS_OF_A_HOST:
        their_table, numbers = mace_table(form, made.model, made.objective, made.outputs, frames, [29], 3.0)
        header, ((_, count, *cells),) = tables.error_rows({"valid": {"structures": 3, "errors": errors}}, form)
        assert count == "3" and len(header) == 2 + len(cells) == 1 + len(their_table.field_names)
        for ours, theirs in zip(cells, their_table.rows[0][1:], strict=True):
            assert float(ours) == pytest.approx(float(theirs), rel=6e-4, abs=0.051)
    for name, key in THEIRS.items():
        for kind in ("mae", "rmse"):
            assert errors[name][kind] == pytest.approx(1e3 * numbers[f"{kind}_{key}"], rel=1e-9)
    for kind in ("mae", "rmse"):
        assert errors["forces"][f"rel_{kind}"] == pytest.approx(numbers[f"rel_{kind}_f"], rel=1e-9)


@pytest.mark.honours("error_table")
def test_errors_of_dipoles_equal_maces(molecules, tmp_path):
    """mace reads Φ's dipoles as its own models'; it takes labels for Debye, where the trainer's are e·Å."""
    given = {"train_file": molecules, "phi": ["operator=coulomb"], "dipole_key": "mu", "charges_key": "q"}
    chosen, run_data, made = built(tmp_path, valid_fraction=0.5, **given)
    errors = evaluate(made.model, run_data.loader("valid")["Default"], made.outputs, "cpu").table()
    frames = validation_frames(molecules, run_data, dipole="mu")
    for form in ("DipoleRMSE", "DipoleMAE", "EnergyDipoleRMSE"):
        theirs, _ = mace_table(form, made.model, made.objective, made.outputs, frames, [1, 6, 8], 3.0)
        header, ((_, _, *cells),) = tables.error_rows({"valid": {"structures": 6, "errors": errors}}, form)
        *_, dipole, relative, charges, own = cells
        assert header[-4] == f"{form[-4:].removeprefix('e')} μ / mD/atom"
        assert float(dipole) == pytest.approx(DEBYE_PER_ELECTRON_ANGSTROM * float(theirs.rows[0][-2]), abs=0.3)
        assert float(relative) == pytest.approx(float(theirs.rows[0][-1]), abs=0.06)
        assert header[-2:] == [f"{header[-4][:4].strip()} q / e", f"{header[-4][:4].strip()} μ / e·Å"]
        assert float(charges) > 0 and float(own) > 0


@pytest.mark.honours("error_table")
def test_the_epoch_line_follows_the_form():
    row = {"epoch": 1, "seconds": 2.0, "train_loss": 0.5}
    for head, factor in (("", 1.0), ("hot_", 2.0), ("cold_", 1.0)):
        for number, name in enumerate(("energy", "energy_per_atom", "forces", "stress", "charges", "dipole_per_atom")):
            row |= {f"valid_{head}rmse_{name}": factor * (number + 1), f"valid_{head}mae_{name}": 10 * factor}
    assert tables.epoch_line(row, 9).startswith("epoch 2/9     2.0 s  loss 0.5  valid RMSE E 2.00 meV/atom  F 3.0 ")
    total = tables.epoch_line(row, 9, "TotalMAE")
    assert "valid MAE E 10.0 meV  F 10.0 meV/Å  q 10.0000 e" in total and "atom" not in total
    assert "σ 4.00 meV/Å³" in tables.epoch_line(row, 9, "PerAtomRMSEstressvirials")
    assert "RMSE q 5.0000 e  μ 6.00 mD/atom" in tables.epoch_line(row, 9, "DipoleRMSE")
    several = tables.epoch_line(row, 9, heads=("hot", "cold"))
    assert "valid hot RMSE E 4.00 meV/atom  F 6.0" in several and "valid cold RMSE E 2.00 meV/atom" in several


@pytest.mark.honours("error_table", "plot", "plot_frequency", "wandb", "tensorboard")
def test_reports_that_cannot_be_are_refused(molecules, tmp_path, capsys, monkeypatch):
    given = {"name": "none", "train_file": molecules}
    for more, parts in (
        ({"error_table": "DipolePolarRMSE"}, ["--error_table", "DipolePolarRMSE", "PerAtomRMSE"]),
        ({"error_table": "DipoleMAE"}, ["--error_table", "bare host", "--phi"]),
        ({"plot_frequency": -1}, ["--plot_frequency", "-1"]),
        ({"wandb": True, "wandb_log_hypers": ["lr", "lrr"]}, ["--wandb_log_hypers", "lrr"]),
        ({"wandb": True}, ["--wandb", "pip install 'phi-equivariant[wandb]'"]),
        ({"tensorboard": True}, ["--tensorboard", "pip install 'phi-equivariant[tensorboard]'"]),
    ):
        hidden = more if set(more) <= {"wandb", "tensorboard"} else ()
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "wandb", None if "wandb" in hidden else SimpleNamespace(__spec__=True))
            patch.setitem(
                sys.modules, "tensorboard", None if "tensorboard" in hidden else SimpleNamespace(__spec__=True)
            )
            text = refused(capsys, words(tmp_path, **given, **more))
        assert all(part in text for part in parts), text
    assert not list(tmp_path.iterdir())


TRACKED = {"max_num_epochs": 2, "plot": "False", "swa_lr": 0.5}


@pytest.mark.honours("tensorboard", "plot")
def test_tensorboard_has_the_rows_of_the_metrics(molecules, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = run(tmp_path, name="tracked", train_file=molecules, tensorboard=True, **TRACKED)
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert not [*folder.glob("*.png"), *folder.glob("*.html")]
    for number, row in enumerate(json.loads((folder / "metrics.json").read_text())):
        for name, value in row.items():
            if name != "epoch":
                event = events.Scalars(name)[number]
                assert (event.step, event.value) == (number + 1, pytest.approx(value, rel=1e-6))
    errors = json.loads((folder / "errors.json").read_text())["sets"]["valid"]["errors"]
    assert events.Scalars("final/valid_rmse_forces")[0].value == pytest.approx(errors["forces"]["rmse"], rel=1e-6)


def log_records(data, header, block=32768):
    """Records of a file in LevelDB's log format: in blocks, pieces of checksum, length, kind and content."""
    position, record = header, b""
    while position + 7 <= len(data):
        if block - position % block < 7:
            position += block - position % block
        length, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield record
            record = b""


def wandb_records(file):
    """(kind, {name: value}) of what an offline run has kept to be sent."""
    from wandb.proto import wandb_internal_pb2

    for data in log_records(file.read_bytes(), header=7):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            config = {item.key: json.loads(item.value_json) for item in record.run.config.update}
            where = {name: getattr(record.run, name) for name in ("run_id", "display_name", "project", "entity")}
            yield kind, {**config, **where}
        elif kind in ("history", "summary"):
            items = record.history.item if kind == "history" else record.summary.update
            yield kind, {"/".join((*i.nested_key,)) or i.key: json.loads(i.value_json) for i in items}


@pytest.mark.slow
@pytest.mark.honours("wandb", "wandb_dir", "wandb_project", "wandb_entity", "wandb_name", "wandb_log_hypers")
def test_wandb_has_the_rows_of_the_metrics_and_goes_on(molecules, tmp_path, monkeypatch):
    """Offline; a restart goes on with the same run."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    (tmp_path / "kept").mkdir()
    given = {"name": "tracked", "train_file": molecules, "wandb": True, "wandb_dir": tmp_path / "kept", **TRACKED}
    given |= {
        "wandb_project": "fields",
        "wandb_name": "first",
        "wandb_entity": "us",
        "wandb_log_hypers": ["lr", "r_max"],
    }
    folder = run(tmp_path, **given)
    run(tmp_path, **{**given, "max_num_epochs": 3, "restart_latest": True})
    files = sorted(Path(tmp_path / "kept").glob("wandb/offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime)
    assert len(files) == 2
    found = [list(wandb_records(file)) for file in files]
    starts = [next(values for kind, values in records if kind == "run") for records in found]
    assert starts[0]["run_id"] == starts[1]["run_id"] == (folder / "wandb_id.txt").read_text()
    named = {"display_name": "first", "project": "fields", "entity": "us"}
    assert {"lr": 0.01, "r_max": 3.0, **named}.items() <= starts[0].items() and "batch_size" not in starts[0]
    logged = [values for records in found for kind, values in records if kind == "history"]
    rows = json.loads((folder / "metrics.json").read_text())
    assert len(logged) == len(rows) == 3
    for row, sent in zip(rows, logged, strict=True):
        assert {name: value for name, value in row.items() if name != "epoch"}.items() <= sent.items()
    summary = {name: value for kind, values in found[1] if kind == "summary" for name, value in values.items()}
    errors = json.loads((folder / "errors.json").read_text())["sets"]["valid"]["errors"]
    assert summary["final/valid_rmse_forces"] == pytest.approx(errors["forces"]["rmse"], rel=1e-9)
    assert json.loads(summary["params"])["max_num_epochs"] == 3
