"""Potentials in i-PI, the real program: what it writes is what ase gives for the positions that it writes."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import units
from ase.build import molecule
from systems import distorted, gentle_potential

from phi_equivariant import PhiCalculator
from phi_equivariant.errors import InputError
from phi_equivariant.weights import save_model

pytest.importorskip("ipi", reason="i-PI is not installed: pip install 'phi-equivariant[ipi]'")
from phi_equivariant.engines.ipi import PhiDriver  # noqa: E402

pytestmark = pytest.mark.usefixtures("double")
EXAMPLES = Path(__file__).parents[3] / "examples" / "ipi"
BIN = Path(sys.executable).parent
VOIGT = [0, 1, 2, 5, 4, 3]  # i-PI writes xx, yy, zz, xy, xz, yz


@pytest.fixture(scope="module")
def model():
    """As ``gentle_potential``."""
    return gentle_potential()


@pytest.fixture
def folder(tmp_path, model):
    """The example with a run of ours."""
    shutil.copytree(EXAMPLES, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    save_model(model, tmp_path / "runs" / "my_run")
    return tmp_path


def driver(model, tmp_path, atoms, **arguments):
    """With a template of its own."""
    ase.io.write(tmp_path / "template.xyz", atoms, format="extxyz")
    return PhiDriver(model, str(tmp_path / "template.xyz"), verbosity="high", **arguments)


def in_atomic_units(atoms):
    """Cell and positions as i-PI gives them."""
    return atoms.cell.array.T / units.Bohr, atoms.positions / units.Bohr


def test_beads_and_their_virials(model, tmp_path):
    """A skewed cell: i-PI has its vectors in columns, and its virial is minus volume times stress."""
    first = distorted(ase.io.read(EXAMPLES / "water.xyz")[:12])
    first.set_cell([[6.2, 0, 0], [1.1, 6.4, 0], [-0.7, 0.9, 6.6]])
    beads = [first, distorted(first, 1)]
    found = driver(model, tmp_path, first)(*map(list, zip(*map(in_atomic_units, beads), strict=True)))
    for atoms, (energy, forces, virial, extras) in zip(beads, found, strict=True):
        atoms.calc = PhiCalculator(model)
        assert energy * units.Hartree == pytest.approx(atoms.get_potential_energy(), rel=1e-7)
        np.testing.assert_allclose(forces * units.Hartree / units.Bohr, atoms.get_forces(), rtol=1e-6, atol=1e-8)
        stress = -virial * units.Hartree / atoms.get_volume()
        np.testing.assert_allclose(stress, atoms.get_stress(voigt=False), rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(json.loads(extras)["charges"], atoms.get_charges(), rtol=1e-6)


def test_an_open_ion_has_its_charge_and_no_virial(model, tmp_path):
    atoms = distorted(molecule("OH"))
    atoms.info["total_charge"] = -1
    atoms.cell = [20, 20, 20]  # i-PI always has one
    energy, _, virial, extras = driver(model, tmp_path, atoms)(*in_atomic_units(atoms))
    atoms.calc = PhiCalculator(model)
    assert energy * units.Hartree == pytest.approx(atoms.get_potential_energy(), rel=1e-7)
    assert np.isnan(virial).all()
    np.testing.assert_allclose(json.loads(extras)["dipole"], atoms.get_dipole_moment(), rtol=1e-6)


@pytest.mark.parametrize(
    "change, arguments, message",
    [
        ({}, {"devise": "cpu"}, "Did you mean device"),
        ({}, {"model_path": "b"}, "the model is given twice"),
        ({}, {"head": "pbe"}, "head is 'pbe'"),
        ({"numbers": [18, 1, 1]}, {}, r"atomic numbers \[18\] of the template"),
        ({"charge": 11}, {}, "such an ion does not exist"),
    ],
)
def test_wrong_parameters(model, tmp_path, change, arguments, message):
    atoms = molecule("H2O")
    atoms.info.update({"total_charge": change["charge"]} if "charge" in change else {})
    atoms.numbers = change.get("numbers", atoms.numbers)
    with pytest.raises(InputError, match=message):
        driver(model, tmp_path, atoms, **arguments)


def test_templates_that_do_not_do(model, tmp_path):
    with pytest.raises(InputError, match="no template is given"):
        PhiDriver(model)
    with pytest.raises(InputError, match="the template nowhere.xyz cannot be read"):
        PhiDriver(model, "nowhere.xyz")
    atoms = molecule("H2O")
    with pytest.raises(InputError, match="i-PI has 2 atoms, the template 3"):
        driver(model, tmp_path, atoms)(np.eye(3), np.zeros((2, 3)))


def test_ipi_that_is_missing_is_named(monkeypatch):
    place = "phi_equivariant.engines.ipi"
    monkeypatch.delitem(sys.modules, place)
    monkeypatch.setitem(sys.modules, "ipi.utils.units", None)
    with pytest.raises(ImportError, match=r"pip install 'phi-equivariant\[ipi\]'"):
        __import__(place)


def run(folder, name, steps, **changes):
    """i-pi on an example with so many steps; its output."""
    text = (folder / name).read_text()
    for old, new in {"> 20 <": f"> {steps} <", **changes}.items():
        assert old in text
        text = text.replace(old, new)
    (folder / name).write_text(text)
    return subprocess.Popen(
        [BIN / "i-pi", name], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finished(program):
    """What a program said that went well."""
    said, _ = program.communicate(timeout=540)
    assert program.returncode == 0, said[-3000:]
    return said


def column(folder, prefix, quantity):
    """A column of the properties."""
    text = (folder / f"{prefix}.out").read_text()
    (number,) = re.findall(rf"column +(\d+) +--> {quantity}", text)
    return np.loadtxt(folder / f"{prefix}.out")[:, int(number) - 1]


def check(folder, prefix, model, beads=1):
    """Energies and virials of all steps, against ase at the positions."""
    frames = [ase.io.read(folder / f"{prefix}.pos_{bead}.extxyz", ":") for bead in range(beads)]
    energies, virials = [], []
    calculator = PhiCalculator(model)
    for of_step in zip(*frames, strict=True):
        for atoms in of_step:
            atoms.pbc, atoms.calc = True, calculator
        energies.append(np.mean([atoms.get_potential_energy() for atoms in of_step]))
        virials.append(-np.sum([atoms.get_stress() for atoms in of_step], axis=0))
    np.testing.assert_allclose(column(folder, prefix, "potential"), energies, rtol=1e-6)
    found = np.loadtxt(folder / f"{prefix}.virial")
    np.testing.assert_allclose(found, np.array(virials)[:, VOIGT], rtol=1e-4, atol=1e-6)
    assert np.ptp(column(folder, prefix, "volume")) > 1e-3
    return frames


@pytest.mark.slow
def test_constant_pressure(folder, model):
    finished(run(folder, "npt.xml", 20))
    ((*_, last),) = check(folder, "npt", model)
    charges = np.loadtxt(folder / "npt.charges_0", comments="#")
    last.calc = PhiCalculator(model)
    np.testing.assert_allclose(charges[-1], last.get_charges(), atol=1e-6)


@pytest.mark.slow
def test_a_ring_polymer_of_four_beads(folder, model):
    finished(run(folder, "beads.xml", 10))
    frames = check(folder, "beads", model, beads=4)
    assert np.ptp([of_bead[-1].positions for of_bead in frames], axis=0).max() > 0.01  # beads spread


BY_ASE = """
import ase.io
from ase.calculators.socketio import SocketClient
from phi_equivariant import PhiCalculator
atoms = ase.io.read("water.xyz")
atoms.calc = PhiCalculator("runs/my_run")
SocketClient(unixsocket="phi").run(atoms, use_stress=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("client", ["i-pi-py_driver", "ase"])
def test_over_a_socket(folder, model, client):
    text = (folder / "npt.xml").read_text()
    (direct,) = re.findall(r"<ffdirect.*?</ffdirect>", text, re.S)
    name = f"phi-{os.getpid()}-{client}"
    socket = f"<ffsocket mode='unix' name='phi'> <address> {name} </address> </ffsocket>"
    changes = {direct: socket}
    if client == "ase":  # which sends no extras
        changes |= {line: "" for line in text.splitlines() if "extras" in line}
    server = run(folder, "npt.xml", 5, **changes)
    words = [BIN / "i-pi-py_driver", "-u", "-a", name, "-m", "custom", "-P", "phi.py"]
    words += ["-o", "model=runs/my_run,template=water.xyz"]
    if client == "ase":
        words = [sys.executable, "-c", BY_ASE.replace('"phi"', f'"{name}"')]
    try:
        while not Path(f"/tmp/ipi_{name}").exists():
            assert server.poll() is None, server.communicate()[0][-3000:]
            time.sleep(0.2)
        time.sleep(1)  # it is bound, and listens next
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        finished(server)
    finally:
        server.kill()
        Path(f"/tmp/ipi_{name}").unlink(missing_ok=True)
    check(folder, "npt", model)


@pytest.mark.slow
def test_a_molecule_at_constant_volume(folder, model):
    """It has no virial, which nothing uses."""
    atoms = ase.io.read(folder / "water.xyz")[:3]
    atoms.pbc = False
    ase.io.write(folder / "water.xyz", atoms, format="extxyz")
    finished(run(folder, "npt.xml", 3, **{"mode='npt'": "mode='nvt'"}))
    frames = ase.io.read(folder / "npt.pos_0.extxyz", ":")
    for frame in frames:
        frame.pbc, frame.calc = False, PhiCalculator(model)
    assert np.isnan(np.loadtxt(folder / "npt.virial")).all()
    energies = [frame.get_potential_energy() for frame in frames]
    np.testing.assert_allclose(column(folder, "npt", "potential"), energies, rtol=1e-6)


@pytest.mark.slow
def test_an_error_ends_ipi_with_its_message(folder):
    program = run(folder, "npt.xml", 5, **{"template: water.xyz": "template: water.xyz, head: pbe"})
    said, _ = program.communicate(timeout=300)
    assert program.returncode != 0 and "head is 'pbe'; the model has the heads Default" in said
