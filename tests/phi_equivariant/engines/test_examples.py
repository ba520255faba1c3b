"""The examples for ase and torch-sim run as they stand; those for LAMMPS, OpenMM and i-PI have tests beside theirs."""

import subprocess
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
from systems import mace_host, potential

from phi_equivariant.weights import save_model

EXAMPLES = Path(__file__).parents[3] / "examples"
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("double")]


def said_by(script, folder):
    """What an example prints with a run of ours."""
    save_model(potential(host=mace_host("8x0e")), folder / "run")
    words = [sys.executable, str(EXAMPLES / script), "--model", "run", "--steps", "20"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_ase(tmp_path):
    assert "charges of oxygen" in said_by("ase/water.py", tmp_path)
    first, *_, last = ase.io.read(tmp_path / "water.traj", ":")
    assert abs(last.get_volume() / first.get_volume() - 1) > 1e-6
    assert np.isfinite(last.get_potential_energy())


def test_torch_sim(tmp_path):
    pytest.importorskip("torch_sim", reason="torch-sim is not installed: pip install 'phi-equivariant[torch-sim]'")
    energies = said_by("torch_sim/batch.py", tmp_path).split(":")[-1].split()
    assert len(energies) == 3 and np.isfinite([float(energy) for energy in energies]).all()
