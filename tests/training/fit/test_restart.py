"""Interrupted runs go on exactly, and a checkpoint that does not fit is refused."""

import json
import os
import random
import signal
import time

import pytest
import torch
from training_runs import (  # noqa: F401
    keep_default_dtype,
    metrics,
    refused,
    run,
    run_and_kill,
    start_process,
    words,
    write_molecules,
)

from phi_equivariant.errors import InputError
from training import results
from training.fit.checkpoints import read_last
from training.train import main

START = 6  # of stage two
FAST = {"num_interactions": 1, "plot": False}
PHI = {"phi": ["operator=coulomb", "channels=2"], "max_num_epochs": 10, "ema": True, "seed": 5, "scheduler_patience": 0}
PHI |= {"swa": True, "start_swa": START, "patience": 8, "valid_fraction": 0.2, **FAST}


def state(folder):
    """Everything in the last checkpoint that training goes on from."""
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def same(a, b):
    """Bitwise equality of nested containers of tensors and plain values; times may differ."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a if key != "seconds")
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    data = write_molecules(folder / "train.xyz")
    before = torch.get_default_dtype()
    finished = run(folder, name="run", train_file=data, **PHI)
    torch.set_default_dtype(before)
    return data, finished


def wait_for_rows(process, folder, rows):
    """Wait until so many epochs are in the metrics."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError(f"the run ended early: {process.communicate()}")
        table = folder / "metrics.csv"
        if table.is_file() and len(table.read_text().splitlines()) > rows:
            return
        time.sleep(0.002)
    raise AssertionError("no epoch was finished")


def assert_equal_runs(folder, whole):
    """Weights, optimiser, moving average, random state, metrics and errors are the same bit for bit."""
    assert same(state(folder), state(whole))
    assert metrics(folder) == metrics(whole)
    mine, theirs = (sorted(path.relative_to(run) for path in run.rglob("*.safetensors")) for run in (folder, whole))
    assert mine == theirs
    for name in mine:
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    for name in ("errors.json", "stage_one/errors.json"):
        if (whole / name).is_file():
            mine, theirs = (json.loads((run / name).read_text()) for run in (folder, whole))
            assert mine["best_epoch"] == theirs["best_epoch"] and mine["epochs"] == theirs["epochs"]
            for split, table in theirs["sets"].items():
                assert mine["sets"][split]["errors"] == table["errors"]


#: In which epoch a process is killed, between which bounds; and at which moments, of which there are so many an epoch.
KILLS = (
    (0, 1, "training_step", 4),
    (2, 3, "half last.ckpt", 1),
    (4, 5, "validation_step", 2),
    (START, START + 1, "training_step", 4),
    (8, 8, "before last.ckpt", 1),
)


@pytest.mark.slow
@pytest.mark.honours("restart_latest")
def test_killed_and_restarted_equals_uninterrupted(uninterrupted, tmp_path):
    """SIGKILL at five random moments of both stages, and once more after training, until the run is through."""
    data, whole = uninterrupted
    rng = random.Random(3)
    how = {"name": "run", "train_file": data, "restart_latest": True, **PHI}
    line, folder, done = words(tmp_path, **how), tmp_path / "run", 0
    for first, last, moment, each in KILLS:
        epoch = rng.randint(first, last)
        run_and_kill(line, moment, each * (epoch - done) + rng.randint(1, each))
        done = state(folder)["epochs_done"] if epoch else 0
        assert done == epoch
    run_and_kill(line, "before model.safetensors", 2)  # stage two's, after that of stage one
    assert (folder / "stage_one" / "errors.json").is_file() and not (folder / "errors.json").exists()
    run(tmp_path, **how)
    assert_equal_runs(folder, whole)


def test_interrupted_command_says_how_to_go_on(uninterrupted, tmp_path):
    """Ctrl-C on the command itself: status 130, the words to go on with, and they do."""
    data, _ = uninterrupted
    how = {"train_file": data, "ema": True, **FAST}
    process = start_process(words(tmp_path, name="run", max_num_epochs=100_000, **how))
    folder = tmp_path / "run"
    wait_for_rows(process, folder, 2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "--restart_latest" in errors
    before, done = metrics(folder), state(folder)["epochs_done"]
    assert f"{done} epochs are safe" in errors
    run(tmp_path, name="run", restart_latest=True, max_num_epochs=done + 1, **how)
    assert metrics(folder)[:done] == before[:done] and len(metrics(folder)) == done + 1


def test_interrupted_while_testing(uninterrupted, tmp_path, monkeypatch, capsys):
    """Ctrl-C after the last epoch: nothing but the test has to be done again."""
    how, evaluate = {"name": "run", "train_file": uninterrupted[0], "max_num_epochs": 1, **FAST}, results.evaluate

    def interrupted(*given):
        os.kill(os.getpid(), signal.SIGINT)
        return evaluate(*given)

    with monkeypatch.context() as patch:
        patch.setattr(results, "evaluate", interrupted)
        assert main(words(tmp_path, **how)) == 130
    assert "interrupted; 1 epochs are safe" in capsys.readouterr().err
    before = metrics(tmp_path / "run")
    assert metrics(run(tmp_path, restart_latest=True, **how)) == before


@pytest.mark.slow
def test_cosine_schedule_restarts_exactly(uninterrupted, tmp_path):
    """The schedule's progress is part of the checkpoint: three epochs at once equal one and then two."""
    how = {"scheduler": "CosineAnnealingLR", "warmup_epochs": 1, "max_num_epochs": 3, **FAST}
    how |= {"train_file": uninterrupted[0]}
    whole = run(tmp_path, name="whole", **how)
    run_and_kill(words(tmp_path, name="cut", **how), "training_step", 6)
    cut = run(tmp_path, name="cut", restart_latest=True, **how)
    assert same(state(cut)["model"], state(whole)["model"])
    assert [row["lr"] for row in metrics(cut)] == [row["lr"] for row in metrics(whole)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("epochs", "how"),
    [(3, {"optimizer": "schedulefree", "ema": True}), (2, {"lbfgs": True, "clip_grad": "None", "batch_size": 18})],
)
def test_states_of_other_optimisers_restart_exactly(uninterrupted, tmp_path, epochs, how):
    """Averages of schedule-free weights and the history of L-BFGS go on from the checkpoint."""
    if "optimizer" in how:
        pytest.importorskip("schedulefree")
    how = {"train_file": uninterrupted[0], "max_num_epochs": epochs, "eval_interval": 2, **FAST, **how}
    whole = run(tmp_path, name="whole", **how)
    run_and_kill(words(tmp_path, name="run", **how), "before last.ckpt", epochs)
    assert_equal_runs(run(tmp_path, name="run", restart_latest=True, **how), whole)


def test_lbfgs_goes_on_from_another_optimiser(uninterrupted, tmp_path):
    """As in mace: weights and moving average are taken over, the optimiser begins anew."""
    how = {"train_file": uninterrupted[0], "ema": True, "batch_size": 9, **FAST}
    folder = run(tmp_path, name="run", max_num_epochs=2, **how)
    before = metrics(folder)
    run(tmp_path, name="run", max_num_epochs=3, lbfgs=True, restart_latest=True, **how)
    after = metrics(folder)
    assert after[:2] == before and len(after) == 3
    assert state(folder)["ema"]["num_updates"] == 2 * 2 + 1
    assert list(state(folder)["optimizer"]["state"]) == [0]


def test_more_epochs_go_on_exactly(uninterrupted, tmp_path):
    """A finished run goes on in stage two with a larger max_num_epochs, and ends where one without a break does."""
    data, whole = uninterrupted
    folder = run(tmp_path, name="run", train_file=data, **PHI | {"max_num_epochs": START + 1})
    early = metrics(folder)
    assert early == metrics(whole)[: START + 1]
    run(tmp_path, name="run", train_file=data, restart_latest=True, **PHI)
    assert_equal_runs(folder, whole)


def test_checkpoint_of_other_options_or_data_is_refused(uninterrupted, tmp_path, capsys):
    """The message names what differs; nothing in the folder changes."""
    data = uninterrupted[0]
    folder = run(tmp_path, name="run", train_file=data, max_num_epochs=1, **FAST)
    before = (folder / "checkpoints" / "last.ckpt").read_bytes()
    capsys.readouterr()
    same_run = {"name": "run", "train_file": data, "restart_latest": True, **FAST}
    message = refused(capsys, words(tmp_path, hidden_irreps="8x0e", **{**same_run}))
    assert "hidden_irreps was '4x0e' and is '8x0e'" in message
    message = refused(capsys, words(tmp_path, **same_run | {"r_max": 3.5}))
    assert "r_max was" in message and "data was" not in message
    message = refused(capsys, words(tmp_path, phi=["operator=graph"], **same_run))
    assert "phi was None" in message
    other = write_molecules(data.with_name("other.xyz"), seed=2)
    other.rename(data.with_name("swap.xyz"))
    data_before = data.read_bytes()
    try:
        data.write_bytes(data.with_name("swap.xyz").read_bytes())
        assert "data was" in refused(capsys, words(tmp_path, **same_run))
    finally:
        data.write_bytes(data_before)
    assert (folder / "checkpoints" / "last.ckpt").read_bytes() == before


def test_other_settings_of_phi_are_named_one_by_one(uninterrupted):
    _, whole = uninterrupted
    saved = state(whole)["identity"]
    assert read_last(whole / "checkpoints", saved)["epochs_done"] == PHI["max_num_epochs"]
    with pytest.raises(InputError, match="phi: channels was 2 and is 3"):
        read_last(whole / "checkpoints", {**saved, "phi": {**saved["phi"], "channels": 3}})


def test_damaged_checkpoint_is_refused(uninterrupted, tmp_path, capsys):
    """Half a checkpoint is not a silent start from zero."""
    data = uninterrupted[0]
    folder = run(tmp_path, name="run", train_file=data, max_num_epochs=1, **FAST)
    path = folder / "checkpoints" / "last.ckpt"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    capsys.readouterr()
    message = refused(capsys, words(tmp_path, name="run", train_file=data, restart_latest=True, **FAST))
    assert "cannot be read as a checkpoint" in message


def test_runs_that_lost_files_are_refused(uninterrupted, tmp_path, capsys):
    """A finished run is not trained and written anew because its checkpoint is elsewhere; nor one without its best."""
    data = uninterrupted[0]
    folder = run(tmp_path, name="run", train_file=data, max_num_epochs=1, **FAST)
    best, last = (folder / "checkpoints" / name for name in ("best.safetensors", "last.ckpt"))
    line = words(tmp_path, name="run", train_file=data, max_num_epochs=1, restart_latest=True, **FAST)
    model, weights = (folder / "model.safetensors").read_bytes(), best.read_bytes()
    capsys.readouterr()
    message = refused(capsys, [*line, "--checkpoints_dir", str(tmp_path / "new")])
    assert "is of a finished run, but its checkpoint is not in" in message and not (tmp_path / "new").exists()
    for damage in (lambda: best.write_bytes(weights[:50]), best.unlink):
        damage()
        assert f"{best}, the best weights so far, cannot be read" in refused(capsys, line)
    best.write_bytes(weights)
    last.unlink()
    assert "its checkpoint is not in" in refused(capsys, line)
    last.mkdir()
    assert "cannot be read as a checkpoint" in refused(capsys, line)
    assert (folder / "model.safetensors").read_bytes() == model


def test_restart_without_a_checkpoint_says_so(uninterrupted, tmp_path, capsys):
    """--restart_latest may stand in every submission of a job script."""
    run(tmp_path, name="run", train_file=uninterrupted[0], max_num_epochs=1, restart_latest=True, **FAST)
    assert "has no checkpoint, starting from zero" in capsys.readouterr().out


def test_a_run_that_patience_stopped_stays_stopped(uninterrupted, tmp_path):
    """Restarting it trains no further epoch."""
    # With a learning rate of almost zero the validation loss cannot get better after the first epoch.
    how = {"train_file": uninterrupted[0], "lr": 1e-300, "patience": 2, "max_num_epochs": 9, **FAST}
    folder = run(tmp_path, name="run", **how)
    rows = metrics(folder)
    assert len(rows) == 3
    run(tmp_path, name="run", restart_latest=True, **how)
    assert metrics(folder) == rows
