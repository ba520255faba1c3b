"""LAMMPS, domain-decomposed: on any number of processes what PhiCalculator gives for the same positions."""

import os
import subprocess
import sys
from pathlib import Path

import ase.units
import numpy as np
import pytest
from ase import Atoms
from lammps_cases import CASES, ELEMENTS, made

from phi_equivariant import PhiCalculator

ROOT = Path(__file__).parents[2]
CASES_FILE = ROOT / "tests" / "support" / "lammps_cases.py"
MPIRUN = Path(sys.executable).with_name("mpirun")
#: Few enough for every run; the others are ``slow``.
QUICK = ["mace", "nequip open", "dipoles", "schnet"]


def mpirun(processes, *words, cwd=None, timeout=300):
    """Run Python under mpirun."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support"), os.environ.get("PYTHONPATH", "")])
    command = [str(MPIRUN), "-np", str(processes), sys.executable, "-W", "ignore", *map(str, words)]
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=timeout, cwd=cwd)


def ran(tmp_path_factory, processes, names):
    """What LAMMPS found for cases, {name: array}."""
    place = tmp_path_factory.mktemp("lammps") / "found.npz"
    done = mpirun(processes, CASES_FILE, place, *names)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return dict(np.load(place))


def expected(case, positions, cell):
    """PhiCalculator's results at LAMMPS' positions."""
    atoms = case.atoms()
    atoms = Atoms(atoms.numbers, positions.reshape(-1, 3), cell=cell, pbc=atoms.pbc)
    atoms.info["total_charge"] = case.total_charge
    calculator = PhiCalculator(made(case), dtype=case.dtype)
    calculator.calculate(atoms)
    return calculator


def compare(case, found, when, precise=True):
    """LAMMPS' numbers against PhiCalculator's."""
    unit = {"metal": 1.0, "real": ase.units.kcal / ase.units.mol}[case.units]
    pressure = {"metal": 1e-4 * ase.units.GPa, "real": 1.01325e-4 * ase.units.GPa}[case.units]
    calculator = expected(case, found[f"{when}/x"], found[f"{when}/cell"])
    single = case.dtype == "float32"
    results, phi = calculator.results, calculator.phi_results
    energy = found[f"{when}/tpe"] * unit
    assert energy == pytest.approx(results["energy"], rel=1e-6 if single else 1e-9)
    forces = found[f"{when}/f"].reshape(-1, 3) * unit
    assert np.abs(forces - results["forces"]).max() < (2e-5 if single else 1e-8)
    assert np.abs(results["forces"]).max() > 0.1
    if "stress" in results and when.endswith("start"):  # no velocities
        names = ("tpxx", "tpyy", "tpzz", "tpyz", "tpxz", "tpxy")
        stress = -pressure * np.array([found[f"{when}/{name}"] for name in names])
        assert np.abs(stress - results["stress"]).max() < (1e-6 if single else 1e-8)
    if "charges" in results:
        assert np.abs(found[f"{when}/d_phi_charge"][:, 0] - results["charges"]).max() < (1e-5 if single else 1e-9)
        assert np.abs(found[f"{when}/d_phi_potential"][:, 0] - phi["potential"]).max() < (1e-3 if single else 1e-8)
        host, of_phi, net = found[f"{when}/energies"]
        assert [host * unit, of_phi * unit, net] == pytest.approx(
            [phi["host_energy"], phi["phi_energy"], phi["net_charge"]], rel=1e-6, abs=1e-5 if single else 1e-9
        )
    if f"{when}/d2_phi_dipole" in found:
        assert np.abs(found[f"{when}/d2_phi_dipole"] - phi["atomic_dipoles"]).max() < 1e-9


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of the quick cases and of all, made once for each number of processes."""
    kept = {}

    def get(processes, names):
        key = processes, tuple(names)
        if key not in kept:
            kept[key] = ran(tmp_path_factory, processes, names)
        return kept[key]

    return get


def check(found, name, processes):
    compare(CASES[name], found, f"{name}/start")
    assert len(found[f"{name}/owned"]) == processes
    if CASES[name].run:
        compare(CASES[name], found, f"{name}/end")


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("processes", [1, 2])
def test_any_number_of_processes_gives_what_the_calculator_gives(runs, processes, name, double):
    check(runs(processes, QUICK), name, processes)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name not in QUICK])
@pytest.mark.parametrize("processes", [1, 2])
def test_other_models_too(runs, processes, name, double):
    check(runs(processes, [name for name in CASES if name not in QUICK]), name, processes)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CASES))
@pytest.mark.parametrize("processes", [3, 4])
def test_more_processes(runs, processes, name, double):
    check(runs(processes, list(CASES)), name, processes)


def test_atoms_change_processes_and_some_processes_have_none(runs):
    found = runs(2, QUICK)
    assert not np.array_equal(found["mace/owned"], found["mace/owned_later"])
