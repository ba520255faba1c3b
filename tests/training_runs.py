"""Small real trainings that several test files use."""

import json
import subprocess
import sys

import ase.io
import numpy as np
import pytest
import torch
from ase.build import molecule
from ase.calculators.emt import EMT

from training.train import main

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


def metrics(folder):
    """Rows of metrics.json without the times."""
    rows = json.loads((folder / "metrics.json").read_text())
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


@pytest.fixture(autouse=True)
def keep_default_dtype():
    """Training sets torch's default precision; give it back."""
    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)
