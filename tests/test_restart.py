"""Interrupted runs go on exactly, and a checkpoint that does not fit is refused."""

import signal
import time

import pytest
import torch
from training_runs import keep_default_dtype, metrics, refused, run, start_process, words, write_molecules  # noqa: F401

PHI = {"phi": ["operator=coulomb", "channels=2"], "max_num_epochs": 12, "ema": True, "seed": 5, "scheduler_patience": 1}


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


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_and_restarted_equals_uninterrupted(uninterrupted, tmp_path, how):
    """Weights, optimiser, moving average, random state and metrics are bit for bit those of the whole run."""
    data, whole = uninterrupted
    line = words(tmp_path, name="run", train_file=data, **PHI)
    process = start_process(line)
    folder = tmp_path / "run"
    wait_for_rows(process, folder, 2)
    time.sleep(0.03)  # somewhere in the next epoch
    process.send_signal(how)
    _, errors = process.communicate(timeout=60)
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert "--restart_latest" in errors
    done = state(folder)["epochs_done"]
    assert 1 <= done < PHI["max_num_epochs"]
    run(tmp_path, name="run", train_file=data, restart_latest=True, **PHI)
    assert same(state(folder), state(whole))
    assert metrics(folder) == metrics(whole)
    for name in ("model.safetensors", "checkpoints/best.safetensors"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()


def test_cosine_schedule_restarts_exactly(tmp_path):
    """The schedule's progress is part of the checkpoint: three epochs at once equal one and then two."""
    data = write_molecules(tmp_path / "train.xyz")
    how = {"train_file": data, "scheduler": "CosineAnnealingLR", "warmup_epochs": 1, "max_num_epochs": 3}
    whole = run(tmp_path, name="whole", **how)
    cut = tmp_path / "cut"
    process = start_process(words(tmp_path, name="cut", **how))
    wait_for_rows(process, cut, 1)
    process.kill()
    process.communicate()
    run(tmp_path, name="cut", restart_latest=True, **how)
    assert same(state(cut)["model"], state(whole)["model"])
    assert [row["lr"] for row in metrics(cut)] == [row["lr"] for row in metrics(whole)]


def test_more_epochs_go_on(uninterrupted, tmp_path):
    """A finished run is continued by a larger max_num_epochs."""
    data = uninterrupted[0]
    first = run(tmp_path, name="run", train_file=data, max_num_epochs=1)
    early = metrics(first)
    run(tmp_path, name="run", train_file=data, max_num_epochs=2, restart_latest=True)
    assert metrics(first)[:1] == early and len(metrics(first)) == 2


def test_checkpoint_of_other_options_or_data_is_refused(uninterrupted, tmp_path, capsys):
    """The message names what differs; nothing in the folder changes."""
    data = uninterrupted[0]
    folder = run(tmp_path, name="run", train_file=data, max_num_epochs=1)
    before = (folder / "checkpoints" / "last.ckpt").read_bytes()
    capsys.readouterr()
    same_run = {"name": "run", "train_file": data, "restart_latest": True}
    message = refused(capsys, words(tmp_path, hidden_irreps="8x0e", **{**same_run}))
    assert "hidden_irreps was '4x0e' and is '8x0e'" in message
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


def test_damaged_checkpoint_is_refused(uninterrupted, tmp_path, capsys):
    """Half a checkpoint is no silent start from zero."""
    data = uninterrupted[0]
    folder = run(tmp_path, name="run", train_file=data, max_num_epochs=1)
    path = folder / "checkpoints" / "last.ckpt"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    capsys.readouterr()
    message = refused(capsys, words(tmp_path, name="run", train_file=data, restart_latest=True))
    assert "cannot be read as a checkpoint" in message


def test_restart_without_a_checkpoint_says_so(uninterrupted, tmp_path, capsys):
    """--restart_latest may stand in every submission of a job script."""
    run(tmp_path, name="run", train_file=uninterrupted[0], max_num_epochs=1, restart_latest=True)
    assert "has no checkpoint, starting from zero" in capsys.readouterr().out


def test_a_run_that_patience_stopped_stays_stopped(uninterrupted, tmp_path):
    """Restarting it trains no further epoch."""
    # With a learning rate of almost zero the validation loss cannot get better after the first epoch.
    how = {"train_file": uninterrupted[0], "lr": 1e-300, "patience": 2, "max_num_epochs": 9}
    folder = run(tmp_path, name="run", **how)
    rows = metrics(folder)
    assert len(rows) == 3
    run(tmp_path, name="run", restart_latest=True, **how)
    assert metrics(folder) == rows
