"""Training by several processes: the same steps, losses and errors as one process with the larger batch."""

import contextlib
import io
import json
import multiprocessing
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.callbacks import Checkpoint
from safetensors.torch import load_file
from training_runs import keep_default_dtype, metrics, parsed, run, words, write_molecules  # noqa: F401

from phi_equivariant.errors import InputError
from training import build as building
from training import distribution
from training.data.order import DealtBatches, EpochOrder
from training.fit.lightning_module import PotentialModule
from training.one_run import _fit
from training.train import main

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
LABELS = {"charges_key": "q", "dipole_key": "mu", "charges_weight": 1, "dipole_weight": 1}

SUPPORT = Path(__file__).parents[2] / "support"


@pytest.fixture(scope="module")
def molecules(tmp_path_factory):
    folder = tmp_path_factory.mktemp("molecules")
    write_molecules(folder / "train.xyz", count=9, charges=True)
    write_molecules(folder / "valid.xyz", count=5, seed=2, charges=True)
    return folder


@pytest.fixture
def alone(monkeypatch):
    """No launcher's variables but those that a test sets."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "TORCHELASTIC_")) or name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
            monkeypatch.delenv(name)


def not_optimised():
    """A block without TorchScript's optimisation, which takes longer than a few steps."""
    return torch.jit.optimized_execution(False)


def in_two_processes(function, expected=(0, 1)):
    """What ``function(rank)`` returns in the expected ones of two processes, started as Open MPI would."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe(duplex=False) for _ in range(2)]

    def child(rank):
        names = {"RANK": rank, "SIZE": 2, "LOCAL_RANK": rank, "LOCAL_SIZE": 2}
        os.environ.update({f"OMPI_COMM_WORLD_{name}": str(value) for name, value in names.items()})
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        try:
            with not_optimised():
                pipes[rank][1].send(function(rank))
        except Exception as error:
            pipes[rank][1].send(error)

    processes = [context.Process(target=child, args=(rank,)) for rank in range(2)]
    for process in processes:
        process.start()
    try:
        assert all(pipes[rank][0].poll(60) for rank in expected), "a process hangs"
        found = [pipes[rank][0].recv() for rank in expected]
        assert not [value for value in found if isinstance(value, Exception)]
        return found
    finally:
        for process in processes:
            process.join(1)
            process.kill()


@pytest.mark.slow
@pytest.mark.honours("distributed", "launcher")
def test_two_processes_train_as_one_with_twice_the_batch(molecules, tmp_path):
    """The command, started by torchrun; only the first process may write, and the validation does not come out even."""
    given = {"train_file": molecules / "train.xyz", "valid_file": molecules / "valid.xyz", "max_num_epochs": 2}
    given |= {"phi": ["operator=coulomb", "poisson=learned", "pde_weight=1.0", "net_charge_weight=1.0"], **LABELS}
    given |= {"ema": True, "clip_grad": 1.0, "valid_batch_size": 2, "scheduler_patience": 0, "seed": 3, "plot": "False"}
    one = run(tmp_path, name="one", batch_size=4, **given)
    two = words(tmp_path, name="two", batch_size=2, distributed=True, launcher="torchrun", **given)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    command = [*torchrun, SUPPORT / "only_first_writes.py", tmp_path, *map(str, two)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("epoch 1/2") == found.stdout.count("done: ") == 1
    ours = metrics(tmp_path / "two")
    for alone, together in zip(metrics(one), ours, strict=True):
        assert set(alone) == set(together)
        for name, value in alone.items():
            assert together[name] == pytest.approx(value, rel=1e-6, abs=1e-12), name
    errors = [json.loads((tmp_path / name / "errors.json").read_text())["sets"] for name in ("one", "two")]
    for name, found in errors[0].items():
        for quantity, row in found["errors"].items():
            assert errors[1][name]["errors"][quantity]["count"] == row["count"]
            assert errors[1][name]["errors"][quantity]["rmse"] == pytest.approx(row["rmse"], rel=1e-6)
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("one", "two")]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-6, atol=1e-10)


class Gradients(Checkpoint):
    """Keep the gradients of the first step, and no checkpoint."""

    def __init__(self):
        self.found = None

    def on_before_optimizer_step(self, trainer, module, optimizer):
        if self.found is None:
            self.found = {name: p.grad for name, p in module.model.named_parameters()}
            self.found = {name: None if grad is None else grad.numpy().copy() for name, grad in self.found.items()}


def build(tmp_path, molecules, **given):
    files = {"train_file": molecules / "train.xyz", "valid_file": molecules / "valid.xyz"}
    run = parsed(tmp_path, **{"name": "steps", "phi": ["operator=coulomb"], **files, **given})
    run, run_data = building.load(run)
    return run, run_data, building.build(run, run_data)


def first_steps(run, run_data, built, callback, **changed):
    """This process's part of the first epoch, with the model as it was built."""
    run = run.changed(**changed)
    run_data = replace(run_data, part=run.data, machine=run.machine)
    distribution.start(run.machine)
    order = run_data.order()
    order.set_epoch(0)
    module = PotentialModule(built.model, built.objective, run.optimiser, run.stages, built.outputs, len(order))
    with not_optimised():
        _fit(module, run_data, order, run, 1, [callback])
    distribution.stop()
    return callback


@pytest.mark.parametrize(
    "settings",
    [
        *(
            [f"operator={operator}", f"poisson={poisson}"]
            for operator in ("graph", "coulomb")
            for poisson in ("exact", "learned")
        ),
        ["charge_model=qeq"],
        ["charge_model=sqe", "polarizable=true"],
    ],
    ids="-".join,
)
def test_every_parameter_has_the_gradient_of_the_joint_batch(molecules, tmp_path, alone, settings):
    """Through the hooks and the second derivatives of forces, on both processes."""
    phi = {"phi": settings, "charges_key": "q", "charges_weight": 1}
    parts = build(tmp_path, molecules, batch_size=8, clip_grad=None, **phi)
    shared = {"batch_size": 4, "distributed": True, "launcher": "mpi"}
    two = in_two_processes(lambda rank: first_steps(*parts, Gradients(), **shared).found)
    one = first_steps(*parts, Gradients()).found
    for name, expected in one.items():
        assert expected is not None and np.abs(expected).max() > 0, name
        for found in two:
            np.testing.assert_allclose(found[name], expected, rtol=1e-9, atol=1e-12 * np.abs(expected).max())


def test_what_one_process_cannot_read_stops_all(molecules, tmp_path, alone):
    """Both stop with status 2; the first says what happened to the second."""

    def command(rank):
        train_file = molecules / ("train.xyz" if rank == 0 else "elsewhere.xyz")
        with contextlib.redirect_stderr(io.StringIO()) as said:
            status = main(words(tmp_path, name="none", train_file=train_file, distributed=True, launcher="mpi"))
        return status, said.getvalue()

    (first, said), (second, silence) = in_two_processes(command)
    assert first == second == 2 and silence == ""
    assert said.startswith("phi-mace-train: process 1 of 2: ") and "elsewhere.xyz" in said
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_restart_of_two_processes(molecules, tmp_path, alone):
    """Two processes go on from the checkpoint of one with the same structures per step, and do what it would do."""
    given = {"train_file": molecules / "train.xyz", "valid_file": molecules / "valid.xyz", "ema": True}
    given |= {"scheduler": "ExponentialLR", "lr_scheduler_gamma": 0.5, "plot": "False", "loss": "universal"}
    shared = {"batch_size": 2, "distributed": True, "launcher": "mpi", "restart_latest": True}
    with not_optimised():
        run(tmp_path, name="two", batch_size=4, max_num_epochs=1, **given)
        line = words(tmp_path, name="two", max_num_epochs=3, **shared, **given)
        assert in_two_processes(lambda rank: main(line)) == [0, 0]
        one = run(tmp_path, name="one", batch_size=4, max_num_epochs=3, **given)
    for ours, theirs in zip(metrics(tmp_path / "two"), metrics(one), strict=True):
        for name, value in theirs.items():
            assert ours[name] == pytest.approx(value, rel=1e-6, abs=1e-12), name


class Death(Checkpoint):
    """End the process in the second step."""

    def on_before_optimizer_step(self, trainer, module, optimizer):
        if trainer.global_step == 1:
            os._exit(9)


def test_a_process_that_dies_does_not_leave_the_other_waiting(molecules, tmp_path, alone):
    run, run_data, built = build(tmp_path, molecules, batch_size=2, distributed=True, launcher="mpi")

    def train(rank):
        try:
            first_steps(run, run_data, built, Death() if rank == 1 else Gradients())
        except RuntimeError as error:
            return str(error)

    assert "by peer" in in_two_processes(train, expected=[0])[0]


@pytest.mark.parametrize("drop_last", [True, False])
def test_parts_of_batches_make_the_batches_of_one_process(drop_last):
    single = EpochOrder(25, 6, seed=5, drop_last=drop_last)
    parts = [EpochOrder(25, 2, seed=5, drop_last=drop_last, rank=rank, processes=3) for rank in range(3)]
    for epoch in (0, 1, 4):
        for order in (single, *parts):
            order.set_epoch(epoch)
        assert [sum(three, []) for three in zip(*parts, strict=True)] == list(single)
        assert {len(order) for order in (single, *parts)} == {len(list(single))}


@pytest.mark.parametrize("size, batch_size, processes", [(10, 3, 1), (10, 3, 2), (10, 3, 3), (2, 5, 4)])
def test_structures_to_evaluate_are_dealt_once_each(size, batch_size, processes):
    shares = [DealtBatches(size, batch_size, rank, processes) for rank in range(processes)]
    assert len({len(share) for share in shares}) == 1
    rounds = [list(batch) for batches in zip(*shares, strict=True) for batch in batches if batch]
    assert rounds == [list(range(size))[start : start + batch_size] for start in range(0, size, batch_size)]


SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_NAME": "phi",
    "SLURM_NODELIST": "gpu[07-08]",
    "SLURM_NNODES": "2",
    "SLURM_NTASKS": "8",
    "SLURM_NTASKS_PER_NODE": "4",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}


def machine(launcher="slurm", distributed=True):
    return parsed(".", train_file="x", launcher=launcher, distributed=distributed or None).machine


@pytest.mark.honours("launcher")
def test_the_launchers_variables_say_who_is_who(monkeypatch, alone):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    found = distribution.environment(machine())
    assert isinstance(found, SLURMEnvironment) and not found.auto_requeue
    assert (found.global_rank(), found.local_rank(), found.world_size(), found.node_rank()) == (5, 1, 8, 1)
    assert found.main_address == "gpu07"
    settings = distribution.trainer_settings(machine())
    assert (settings["devices"], settings["num_nodes"], settings["accelerator"]) == (4, 2, "cpu")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    for name in SLURM:
        monkeypatch.delenv(name)
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    for launcher in ("torchrun", "slurm"):  # slurm is mace's default, also for those who use torchrun
        found = distribution.environment(machine(launcher))
        assert isinstance(found, TorchElasticEnvironment) and (found.global_rank(), found.world_size()) == (1, 2)


@pytest.mark.honours("launcher")
def test_a_launcher_that_does_not_fit_is_refused(monkeypatch, alone):
    for launcher, expected in (
        ("slurm", "SLURM_PROCID"),
        ("torchrun", "RANK, WORLD_SIZE"),
        ("mpi", "OMPI_COMM_WORLD"),
        ("none", "starts no processes"),
    ):
        with pytest.raises(InputError, match=expected):
            distribution.start(machine(launcher))
    for name, value in {**SLURM, "SLURM_NTASKS": "7"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="7 processes do not spread evenly over 2 nodes"):
        distribution.start(machine())
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE")
    with pytest.raises(InputError, match="--ntasks-per-node"):
        distribution.start(machine())
    with pytest.raises(InputError, match="--compare"):
        parsed(".", train_file="x", distributed=True, compare=True)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="--distributed: torchrun started 2 processes"):
        distribution.start(machine(distributed=False))


def test_lbfgs_is_for_one_process(molecules, tmp_path):
    with pytest.raises(InputError, match="--lbfgs"):
        parsed(tmp_path, name="none", train_file=molecules / "train.xyz", lbfgs=True, distributed=True)


def test_float32_is_without_tf32(molecules, tmp_path):
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        building.load(parsed(tmp_path, train_file=molecules / "train.xyz", default_dtype="float32"))
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.gpu
@on_gpu
@pytest.mark.honours("device")
def test_a_gpu_trains_as_a_cpu(molecules, tmp_path):
    """Alone, and as the only process of a distributed run, by NCCL."""
    given = {"train_file": molecules / "train.xyz", "valid_file": molecules / "valid.xyz", "max_num_epochs": 2}
    given |= {"phi": ["operator=coulomb"], "ema": True, **LABELS}
    here = metrics(run(tmp_path, name="cpu", **given))
    there = metrics(run(tmp_path, name="gpu", device="cuda", **given))
    line = words(tmp_path, name="nccl", device="cuda", distributed=True, launcher="torchrun", **given)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "1", "--standalone"]
    subprocess.run([*torchrun, "-m", "training.train", *map(str, line)], check=True, timeout=300)
    for rows in (there, metrics(tmp_path / "nccl")):
        for ours, expected in zip(rows, here, strict=True):
            for name, value in expected.items():
                assert ours[name] == pytest.approx(value, rel=1e-6, abs=1e-10), name
