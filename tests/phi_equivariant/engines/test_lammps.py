"""LAMMPS, domain-decomposed: on any number of processes what PhiCalculator gives for the same positions."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import ase.units
import lammps_cases
import numpy as np
import pytest
import torch
from ase import Atoms
from lammps_cases import CASES, made, schnet
from systems import mace_host, nequip_host, potential

from phi_equivariant import PhiCalculator, commands
from phi_equivariant.engines.inference import ModelInput
from phi_equivariant.engines.lammps.cli import main
from phi_equivariant.engines.lammps.fix_external import in_turn
from phi_equivariant.engines.lammps.receptive_field import layers_seen
from phi_equivariant.errors import InputError
from phi_equivariant.lammps import LammpsPotential, run_script
from phi_equivariant.weights import save_model

ROOT = Path(__file__).parents[3]
CASES_FILE = ROOT / "tests" / "support" / "lammps_cases.py"
MPIRUN = Path(sys.executable).with_name("mpirun")
#: Few enough for every run; the others are ``slow``.
QUICK = ["mace", "nequip open", "dipoles", "embedded", "float32"]


def under_mpirun(processes, *words):
    """Python under mpirun, as arguments of ``subprocess``."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support"), os.environ.get("PYTHONPATH", "")])
    command = [str(MPIRUN), "-np", str(processes), sys.executable, "-W", "ignore", *map(str, words)]
    # Processes that wait for each other give way to those that compute, of this test and of others.
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MPIR_CVAR_POLLS_BEFORE_YIELD": "1"}
    return {"args": command, "env": env, "text": True}


def mpirun(processes, *words, cwd=None, timeout=300):
    """Run Python under mpirun."""
    return subprocess.run(**under_mpirun(processes, *words), capture_output=True, timeout=timeout, cwd=cwd)


def forked(function, folder, timeout=300):
    """Call a function in a fork of this process, which has imported what takes seconds: one process without mpirun."""

    def child():
        os.chdir(folder)
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(f"{name}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            setattr(sys, name, os.fdopen(number, "w", closefd=False))
        torch.set_default_dtype(torch.float32)
        sys.exit(function())

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(timeout)
    process.kill()
    said = {name: (folder / f"{name}.txt").read_text() for name in ("stdout", "stderr")}
    return SimpleNamespace(returncode=process.exitcode, **said)


def ran(tmp_path_factory, processes, names):
    """What LAMMPS found for cases, {name: array}."""
    folder = tmp_path_factory.mktemp("lammps")
    place = folder / "found.npz"
    if processes == 1:
        done = forked(lambda: lammps_cases.main(place, names), folder)
    else:
        done = mpirun(processes, CASES_FILE, place, *names, "refused")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return dict(np.load(place))


@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_sums_are_shared_exactly(tmp_path, processes):
    place = tmp_path / "deviations.json"
    done = mpirun(processes, CASES_FILE.with_name("shared_sums.py"), place)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    deviations = json.loads(place.read_text())
    assert set(deviations) == {"edges", "open", "crystal", "thin", "small", "slab", "waves in parts"}
    assert max(deviations.values()) < 1e-12, deviations


def expected(case, positions, cell):
    """LAMMPS' positions with a PhiCalculator that has computed them."""
    atoms = case.atoms()
    atoms = Atoms(atoms.numbers, positions.reshape(-1, 3), cell=cell, pbc=atoms.pbc)
    atoms.info["total_charge"] = case.total_charge
    if case.field is not None:
        atoms.info["external_field"] = case.field
    calculator = PhiCalculator(made(case), dtype=case.dtype)
    atoms.calc = calculator
    calculator.calculate(atoms)
    return atoms


def slope_across(atoms, size=1e-4):
    """∂E/∂ε_zz in eV by a central difference: atoms of a slab are moved, its cell stays."""
    energies = []
    for change in (size, -size):
        moved = atoms.copy()
        moved.positions[:, 2] *= 1 + change
        energies.append(atoms.calc.get_potential_energy(moved))
    return (energies[0] - energies[1]) / (2 * size)


def compare(case, found, when, precise=True):
    """LAMMPS' numbers against PhiCalculator's."""
    unit = {"metal": 1.0, "real": ase.units.kcal / ase.units.mol}[case.units]
    pressure = {"metal": 1e-4 * ase.units.GPa, "real": 1.01325e-4 * ase.units.GPa}[case.units]
    atoms = expected(case, found[f"{when}/x"], found[f"{when}/cell"])
    calculator = atoms.calc
    single = case.dtype == "float32"
    results, phi = dict(calculator.results), dict(calculator.phi_results)
    energy = found[f"{when}/tpe"] * unit
    assert energy == pytest.approx(results["energy"], rel=1e-6 if single else 1e-9)
    forces = found[f"{when}/f"].reshape(-1, 3) * unit
    assert np.abs(forces - results["forces"]).max() < (2e-5 if single else 1e-8)
    assert np.abs(results["forces"]).max() > 0.1
    if atoms.pbc.sum() > 1 and when.endswith("start"):  # no velocities
        names = ("tpxx", "tpyy", "tpxy", "tpzz", "tpyz", "tpxz")
        stress = -pressure * np.array([found[f"{when}/{name}"] for name in names])
        known = [0, 1, 5, 2, 3, 4] if atoms.pbc.all() else [0, 1, 5]  # of a slab, the components in its plane
        assert np.abs(stress[: len(known)] - results["stress"][known]).max() < (1e-6 if single else 1e-8)
        if not atoms.pbc.all():
            assert stress[3] * atoms.get_volume() == pytest.approx(slope_across(atoms), rel=1e-5)
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
    """Runs of cases, made once for each number of processes."""
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
    for name in ("embedded", "float32"):
        assert 0 in found[f"{name}/owned"]


CLI = "import sys; from phi_equivariant.commands import lammps; sys.exit(lammps())"
EXAMPLES = ROOT / "examples" / "lammps"
CELL = """
units metal
boundary p p p
atom_modify map yes
region box block 0 9 0 8 0 8
create_box 2 box
create_atoms 1 single 4 1 1
create_atoms 2 single 4.9 1.1 1.2
create_atoms 2 single 3.9 1.8 1.5
create_atoms 1 single 8 5 1
create_atoms 2 single 8.9 5.1 1.2
create_atoms 2 single 7.9 5.8 1.5
mass 1 16
mass 2 1
"""
FIX = "fix phi all external pf/callback 1 1\n"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folder of a saved model."""
    previous = torch.get_default_dtype()
    folder = tmp_path_factory.mktemp("model") / "model"
    save_model(made(CASES["nequip open"]), folder)  # which starts faster than mace
    torch.set_default_dtype(previous)
    return folder


def called(*words):
    """The command in this process."""
    sys.argv = ["phi-lammps", *map(str, words)]
    return commands.lammps()


def command(processes, folder, model, *words, text=None, timeout=300):
    """Run phi-lammps in a folder, with an input of that text or by the words."""
    if text is not None:
        (folder / "in.run").write_text(text)
        words = ("-in", "in.run", *words)
    options = ("--model", model, "--elements", "O", "H", "-screen", "none")
    if processes == 1:
        return forked(lambda: called(*words, *options), folder, timeout)
    return mpirun(processes, "-c", CLI, *words, *options, cwd=folder, timeout=timeout)


def dumped(path):
    """Frames of a dump, {step: rows}."""
    frames = {}
    for part in path.read_text().split("ITEM: TIMESTEP\n")[1:]:
        rows = part.split("ITEM: ATOMS")[1].splitlines()[1:]
        frames[int(part.split("\n", 1)[0])] = np.array([row.split() for row in rows], dtype=float)
    return frames


DUMP = "dump d all custom 1 {} id x y z fx fy fz d_phi_charge\ndump_modify d sort id format float %.15g\n"


@pytest.mark.slow
def test_the_command_runs_loops_minimisers_barostats_and_restarts(tmp_path, saved, double):
    text = (
        CELL
        + "comm_modify cutoff 7\nvariable turn loop 2\nlabel again\n"
        + FIX  # the second turn makes it anew
        + "fix n all nve\ntimestep 0.0005\nrun 2\nunfix n\nnext turn\njump SELF again\n"
        + "minimize 1e-6 1e-6 2 10\nvariable i loop 2\nlabel shorter\nrun 1\nnext i\njump SELF shorter\n"
        + "reset_timestep 0\nvelocity all create 300 1 loop geom\nfix p all npt temp 300 300 0.05 aniso 1 1 0.5\n"
        + "run 3\nwrite_restart half\n"
        + DUMP.format("whole")
        + "run 3\n"
    )
    done = command(2, tmp_path, saved, text=text)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    # Another program goes on from the file; what an input does not keep in it is said again.
    text = (
        "read_restart half\ncomm_modify cutoff 7\n"
        + FIX
        + "timestep 0.0005\nfix p all npt temp 300 300 0.05 aniso 1 1 0.5\n"
        + DUMP.format("rest")
        + "run 3\n"
    )
    done = command(1, tmp_path, saved, text=text)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    whole, rest = dumped(tmp_path / "whole"), dumped(tmp_path / "rest")
    assert set(whole) == set(rest) == {3, 4, 5, 6}
    assert np.abs(whole[6] - rest[6]).max() < 1e-7
    assert np.abs(whole[6] - whole[3])[:, 1:].max() > 1e-4


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_from_its_last_restart_file(tmp_path, saved):
    comm, move = "comm_modify cutoff 7\n", FIX + "timestep 0.0005\nfix n all nve\n"
    start = CELL + comm + "velocity all create 300 1 loop geom\n" + move
    (tmp_path / "in.killed").write_text(start + "restart 4 state.*\nrun 100000\n")
    words = ["-in", "in.killed", "--model", saved, "--elements", "O", "H", "-screen", "none"]
    tell = "import os; open(f'process.{os.getpid()}', 'w').close(); "
    running = subprocess.Popen(**under_mpirun(2, "-c", tell + CLI, *words), cwd=tmp_path, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while not (tmp_path / "state.8").exists():
        assert running.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    (one, *_) = tmp_path.glob("process.*")
    os.kill(int(one.suffix[1:]), signal.SIGKILL)
    assert running.wait(30) != 0  # the other process does not stay behind
    # One that was being written is shorter.
    files = {int(path.suffix[1:]): path for path in tmp_path.glob("state.*")}
    last = max(step for step, path in files.items() if path.stat().st_size == files[4].stat().st_size)
    rest = f"read_restart state.{last}\n" + comm + move + DUMP.format("rest") + "run 6\n"
    whole = start + f"run {last}\n" + DUMP.format("whole") + "run 6\n"
    for text in (rest, whole):
        done = command(2, tmp_path, saved, text=text)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    rest, whole = dumped(tmp_path / "rest"), dumped(tmp_path / "whole")
    assert set(rest) == set(whole) == set(range(last, last + 7))
    assert np.abs(rest[last + 6] - whole[last + 6])[:, :4].max() < 1e-9  # Å
    assert np.abs(whole[last + 6] - whole[last])[:, 1:4].max() > 1e-3


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_example_runs(tmp_path, saved, processes):
    shutil.copy(EXAMPLES / "water.data", tmp_path)
    done = command(processes, tmp_path, saved, "-in", EXAMPLES / "in.npt", "-var", "steps", 10)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    frames = dumped(tmp_path / "water.lammpstrj")
    assert set(frames) == {0, 10} and len(frames[10]) == 24
    assert abs(frames[10][:, 5].sum()) < 1e-4 < np.abs(frames[10][:, 5]).max()  # neutral, as far as it is written
    log = (tmp_path / "log.lammps").read_text()
    assert "f_phi[1]" in log and (tmp_path / "water.restart").stat().st_size > 0


def test_a_process_that_fails_ends_all_with_its_message(tmp_path, saved):
    """One atom flies off to infinity; the process that owns it says so while the other waits for it."""
    text = (
        CELL
        + "comm_modify cutoff 7\nneigh_modify delay 100 every 100\n"
        + FIX
        + "group one id 1\nvariable far equal 1e308*10\nvelocity one set v_far 0 0\nfix n all nve\nrun 5\n"
    )
    begin = time.monotonic()
    done = command(2, tmp_path, saved, text=text, timeout=120)
    assert done.returncode != 0 and time.monotonic() - begin < 100
    assert "atom 1 among them" in done.stderr and "not finite" in done.stderr


@pytest.mark.slow
def test_copies_that_have_grown_stale_end_the_run(tmp_path, saved):
    """Between two exchanges of atoms all drift by more than the communication cut-off has to spare."""
    text = (
        CELL
        + "comm_modify cutoff 4.5\nneigh_modify delay 100 every 100\n"
        + FIX
        + "group half type 1\nvelocity half set 200 0 0\nvelocity all set -100 0 0 sum yes\nfix n all nve\n"
        + "timestep 0.0005\nrun 20\n"
    )
    done = command(2, tmp_path, saved, text=text)
    assert done.returncode != 0
    assert "add the line 'comm_modify cutoff 6'" in done.stderr and "come nearer by" in done.stderr


def test_an_error_of_lammps_is_its_message(tmp_path, saved):
    done = command(1, tmp_path, saved, text=CELL + FIX + "fix n all nvee\nrun 5\n")
    assert done.returncode == 2
    assert "phi-lammps: LAMMPS stopped with ERROR: Unrecognized fix style 'nvee'" in done.stderr
    assert "Traceback" not in done.stderr


def test_lost_atoms_are_counted(tmp_path, saved):
    text = (
        CELL.replace("p p p", "f f f")
        + FIX
        + "neigh_modify every 1 delay 0\nthermo_modify lost ignore\ngroup one id 5\nvelocity one set 5000 0 0\n"
        + "fix n all nve\nrun 20\n"
    )
    done = command(1, tmp_path, saved, text=text)
    assert done.returncode != 0
    assert "there were 6 and are 5" in done.stderr, done.stderr[-1000:]


def test_what_an_input_lacks_is_said_with_the_line_to_add(runs):
    said = json.loads(str(runs(2, QUICK)["refused"]))
    assert "the line 'comm_modify cutoff 6' before" in said["cutoff"] and "is 3 Å" in said["cutoff"]
    assert "'units metal'" in said["units"] and "is lj" in said["units"]
    assert "num_modes=3" in said["num_modes"] and "run on one process" in said["num_modes"]
    assert "add the line 'fix phi all external pf/callback 1 1'" in said["fix"]
    assert "4 types" in said["types"] and "O H" in said["types"]


def test_processes_of_a_machine_take_its_devices_in_turn(runs):
    assert [in_turn("cuda", place, 4) for place in range(6)] == [f"cuda:{n}" for n in (0, 1, 2, 3, 0, 1)]
    assert [in_turn("cuda", place, 1) for place in range(3)] == ["cuda:0"] * 3  # shared
    assert in_turn("cuda:1", 0, 4) == "cuda:1" and in_turn("cpu", 3, 4) == "cpu"
    assert in_turn("cuda", 1, 0) == "cuda"  # refused with the name that was asked for
    assert json.loads(str(runs(2, QUICK)["refused"]))["places"] == [0, 1]


def test_elements_are_those_of_the_model(double):
    model = made(CASES["bare"])
    with pytest.raises(InputError, match="elements holds Si, but the model was made for H C N O"):
        LammpsPotential(model, ["Si", "H"])
    with pytest.raises(InputError, match="'Xx', which is not an element"):
        LammpsPotential(model, ["Xx"])


def test_the_line_is_looked_for_before_anything_runs(tmp_path):
    (tmp_path / "in.run").write_text("units metal\n")
    with pytest.raises(InputError, match="has no line 'fix phi all external pf/callback 1 1'"):
        run_script(None, tmp_path / "in.run", print)
    (tmp_path / "in.run").write_text("fix phi some external pf/callback 1 1  # those\n")
    with pytest.raises(InputError, match="has the line 'fix phi some external pf/callback 1 1'; write it as"):
        run_script(None, tmp_path / "in.run", print)
    with pytest.raises(InputError, match="cannot be read"):
        run_script(None, tmp_path / "nowhere", print)


def test_an_mpi_that_cannot_be_loaded_is_named_with_what_to_install(tmp_path):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "MPI4PY_LIBMPI": str(tmp_path / "libmpi.so")}
    (tmp_path / "in.run").touch()
    words = ["-in", str(tmp_path / "in.run"), "--model", "none", "--elements", "O"]
    done = subprocess.run([sys.executable, "-c", CLI, *words], capture_output=True, text=True, env=env)
    assert done.returncode == 2
    assert "MPI" in done.stderr and "pip install 'phi-equivariant[lammps]'" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "none", "--total_chrage", "1"], "no option --total_chrage. Did you mean --total_charge"),
        (["--model", "none"], "no input in.absent"),
    ],
)
def test_a_wrong_command_line_is_refused_before_anything_is_loaded(words, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["-in", "in.absent", "--elements", "O", *words])
    shown = capsys.readouterr()
    assert message in shown.err and shown.err.count("\n") == 1 and shown.out == ""


@pytest.mark.parametrize(
    ("host", "layers"), [(mace_host, 2), (nequip_host, 3), (schnet, 3)], ids=["mace", "nequip", "schnet"]
)
def test_how_far_a_host_sees_is_found_from_its_derivatives(host, layers, double):
    model = potential(host=host())
    assert layers_seen(model, ModelInput(model), {}) == layers
