"""Small real trainings that several test files use."""

import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase.build import molecule
from ase.calculators.emt import EMT
from mace import data as mace_data
from mace import tools as mace_tools
from mace.cli import preprocess_data

from training import build as building
from training import mace_interface
from training.fit.lightning_module import PotentialModule
from training.options import command_line
from training.quantities import LABELS
from training.train import main

#: Processes that are forks of one that has imported the trainer: each is a run of its own, without seconds of imports.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["training.train"])

#: A host of a few hundred parameters; everything else are mace's defaults.
TINY = {
    "hidden_irreps": "4x0e",
    "r_max": 3.0,
    "max_ell": 1,
    "correlation": 1,
    "num_radial_basis": 3,
    "radial_MLP": "[8]",
    "MLP_irreps": "4x0e",
    "E0s": "average",
    "batch_size": 4,
    "valid_batch_size": 3,
    "default_dtype": "float64",
    "energy_key": "energy",
    "forces_key": "forces",
    "plot": "False",  # half the time of so short a run
}


def write_molecules(path, count=20, seed=1, charges=False):
    """Shaken methanol and water with EMT energies and forces, and, if asked for, charges and the dipole they make."""
    rng = np.random.default_rng(seed)
    frames = []
    for index in range(count):
        atoms = molecule("CH3OH" if index % 2 else "H2O")
        atoms.positions += rng.normal(scale=0.05, size=atoms.positions.shape)
        atoms.calc = EMT()
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        atoms.calc = None
        atoms.info["energy"], atoms.arrays["forces"] = energy, forces
        if charges:
            q = np.where(atoms.numbers == 8, -0.4, 0.1) + 0.1 * np.exp(-atoms.get_all_distances()).sum(1)
            atoms.arrays["q"] = q - q.mean()
            atoms.info["mu"] = (atoms.arrays["q"][:, None] * atoms.positions).sum(0)
        frames.append(atoms)
    ase.io.write(path, frames, format="extxyz")
    return path


def words(work_dir, **given):
    """Command line of a tiny run; ``None`` leaves an option out, ``True`` makes a flag, a list several words."""
    line = []
    for name, value in {**TINY, "work_dir": work_dir, **given}.items():
        if value is True:
            line.append(f"--{name}")
        elif isinstance(value, list):
            line += [f"--{name}", *map(str, value)]
        elif value is not None:
            line += [f"--{name}", str(value)]
    return line


def parsed(work_dir, **given):
    """The run that a command line of a tiny run asks for."""
    return command_line.parse(words(work_dir, **given))


def as_namespace(run):
    """A run's options as mace's functions take them."""
    return mace_interface.namespace(**run.values())


def build(file, **given):
    """What the command trains with these options, and its data."""
    run = parsed(file.parent, **{"name": "run", "train_file": file, **given})
    building.check_machine(run)
    run, data = building.load(run)
    return building.build(run, data).model, data, run


def batch_of(data):
    """The first batch of the validation set."""
    return next(iter(data.loader("valid")["Default"]))


def run(work_dir, **given):
    """Train in this process; asserts success and returns the run's folder."""
    status = main(words(work_dir, **given))
    assert status == 0
    return work_dir / given["name"]


def refused(capsys, line):
    """Run a command line that must be refused: the message, after checking that it is one paragraph with status 2."""
    assert main(line) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("phi-mace-train: ") and captured.err.count("\n") == 1
    return captured.err


def start_process(line):
    """The command in a process of its own."""
    command = [sys.executable, "-m", "training.train", *line]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run_and_kill(line, moment, count):
    """Run a command line in another process, which kills itself when it comes to a moment for the count-th time.

    ``moment`` is ``training_step`` or ``validation_step``, or ``half``, ``before`` or ``after`` with the name of a
    file: when half of it is written, before it is moved to its place, or after that.
    """
    process = PROCESSES.Process(target=_kill_at, args=(line, moment, count))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL, f"the process ended with status {process.exitcode}"


def _kill_at(line, moment, count):
    visits = itertools.count(1)

    def visit(prepare=lambda: None):
        if next(visits) == count:
            prepare()
            os.kill(os.getpid(), signal.SIGKILL)

    if moment in ("training_step", "validation_step"):
        step = getattr(PotentialModule, moment)

        def visited_step(*given):
            visit()
            return step(*given)

        setattr(PotentialModule, moment, visited_step)
    else:
        how, name = moment.split()
        move = os.replace

        def visited_move(source, target):
            chosen = Path(target).name == name
            if chosen and how == "half":
                visit(lambda: os.truncate(source, os.path.getsize(source) // 2))
            elif chosen and how == "before":
                visit()
            move(source, target)
            if chosen and how == "after":
                visit()

        os.replace = visited_move
    sys.exit(main(line))


def metrics(folder):
    """Rows of metrics.json without the times."""
    rows = json.loads((folder / "metrics.json").read_text())
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def mace_prepare_data(folder, **given):
    """Run mace_prepare_data: HDF5 files and statistics.json in a folder."""
    given = {"h5_prefix": f"{folder}/", "r_max": 3.0, "E0s": "average", "batch_size": 5, "work_dir": folder, **given}
    line = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    preprocess_data.run(mace_tools.build_preprocess_arg_parser().parse_args([*line, "--compute_statistics"]))


def mace_graphs(frames, numbers, r_max, **how):
    """What mace's own data pipeline makes of structures whose labels are under the canonical keys."""
    keys = mace_data.KeySpecification()
    for label in LABELS.values():
        (keys.arrays_keys if label.per_atom else keys.info_keys)[label.name] = label.canonical
    configurations = mace_data.config_from_atoms_list(frames, keys, how.get("config_type_weights"))
    table = mace_tools.AtomicNumberTable(numbers)
    return [mace_data.AtomicData.from_config(one, z_table=table, cutoff=r_max) for one in configurations]


def mace_epochs(work_dir, **given):
    """What mace_run_train logs of a tiny run: of each epoch the mean loss of its steps and {head: validation}."""
    command = [sys.executable, "-m", "mace.cli.run_train", *words(work_dir, name="theirs", plot="False", **given)]
    done = subprocess.run(command, capture_output=True, cwd=work_dir, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (log,) = (work_dir / "results").glob("theirs*_train.txt")
    epochs = {}
    for row in map(json.loads, log.read_text().splitlines()):
        if row["epoch"] is not None:
            steps, heads = epochs.setdefault(row["epoch"], ([], {}))
            if row["mode"] == "opt":
                steps.append(row["loss"])
            else:
                heads[row["head"]] = row
    return [(float(np.mean(steps)), heads) for steps, heads in epochs.values()]


@pytest.fixture(autouse=True)
def keep_default_dtype():
    """Training sets torch's default precision; give it back."""
    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)
