import ase.units
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.fd import calculate_numerical_forces
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.md.verlet import VelocityVerlet
from systems import batch_of, ethanol, mace_host, potential

from phi_equivariant import PhiCalculator
from phi_equivariant.errors import InputError
from phi_equivariant.weights import save_model

pytestmark = pytest.mark.usefixtures("double")


def test_results_are_the_potentials():
    model, atoms = potential(), ethanol()
    atoms.info["charge"] = -1
    atoms.calc = PhiCalculator(model)
    labelled = atoms.copy()
    labelled.info["total_charge"] = -1
    want = {k: v.detach().numpy() for k, v in model(batch_of(labelled)).items() if torch.is_tensor(v)}
    assert atoms.get_potential_energy() == pytest.approx(want["energy"][0], rel=1e-12)
    assert atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()
    np.testing.assert_allclose(atoms.get_forces(), want["forces"], atol=1e-10)
    np.testing.assert_allclose(atoms.get_charges(), want["charges"], atol=1e-12)
    np.testing.assert_allclose(atoms.get_dipole_moment(), want["dipole"][0], atol=1e-10)
    np.testing.assert_allclose(atoms.get_potential_energies(), want["node_energy"], atol=1e-10)
    parts = atoms.calc.phi_results
    assert parts["host_energy"] + parts["phi_energy"] == pytest.approx(atoms.calc.results["energy"], rel=1e-14)
    np.testing.assert_allclose(parts["potential"], want["potential"], atol=1e-12)
    assert set(atoms.calc.export_properties()) >= {"energy", "forces", "charges", "dipole"}
    assert atoms.get_charges().sum() == pytest.approx(-1, abs=1e-12)


def test_forces_equal_ases_finite_differences():
    atoms = Atoms("CO", [[0, 0, 0], [0.1, 0.2, 1.2]])
    atoms.calc = PhiCalculator(potential())
    np.testing.assert_allclose(atoms.get_forces(), calculate_numerical_forces(atoms, eps=1e-4), atol=1e-6)


def test_changing_the_charge_recalculates():
    atoms = ethanol()
    atoms.calc = PhiCalculator(potential())
    neutral = atoms.get_potential_energy()
    atoms.info["total_charge"] = 1
    assert atoms.get_potential_energy() != neutral
    assert atoms.get_charges().sum() == pytest.approx(1, abs=1e-12)


def test_a_kept_neighbour_list_gives_the_energies_of_a_fresh_one():
    model, atoms = potential(), molecule("CH3CONH2") + Atoms("O", [[3.9, 0, 0]])
    atoms.calc = PhiCalculator(model, skin=0.5)
    rng = np.random.default_rng(0)
    builds = []
    for _ in range(12):
        atoms.positions += 0.04 * rng.normal(size=atoms.positions.shape)
        energy = atoms.get_potential_energy()
        builds.append(id(atoms.calc.input.lists[0].built_at))
        fresh = atoms.copy()
        fresh.calc = PhiCalculator(model, skin=0.0)
        assert energy == pytest.approx(fresh.get_potential_energy(), rel=1e-13)
    assert 1 < len(set(builds)) < 12


def test_energy_is_conserved():
    atoms = molecule("CH3OH")
    model = potential(host=mace_host("8x0e"))
    with torch.no_grad():  # an untrained host pushes atoms apart: keep its forces small beside Φ's
        model.host.scale_shift.scale.mul_(0.05)
    atoms.calc = PhiCalculator(model)
    MaxwellBoltzmannDistribution(atoms, temperature_K=100, rng=np.random.default_rng(0))
    energies = {}
    for step in (0.5, 0.25):
        copy = atoms.copy()
        copy.calc = atoms.calc
        dynamics = VelocityVerlet(copy, step * ase.units.fs)
        track = []
        dynamics.attach(lambda c=copy, t=track: t.append(c.get_total_energy()))
        dynamics.run(int(10 / step))
        energies[step] = np.ptp(track)
    # The error of velocity Verlet falls as the square of the step if, and only if, forces are the energy's derivative.
    assert energies[0.25] < 0.4 * energies[0.5]


def test_saved_folder(tmp_path):
    model, atoms = potential(), ethanol()
    save_model(model, tmp_path)
    atoms.calc = PhiCalculator(tmp_path, dtype="float64")
    assert atoms.get_potential_energy() == pytest.approx(model(batch_of(atoms))["energy"].item(), rel=1e-14)


def test_bare_host():
    atoms = ethanol()
    atoms.calc = PhiCalculator(mace_host())
    assert atoms.get_potential_energy() == pytest.approx(mace_host()(batch_of(atoms))["energy"].item(), rel=1e-13)
    assert "charges" not in atoms.calc.implemented_properties


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.positions.__setitem__((0, 0), np.nan), "positions are not finite"),
        (lambda a: a.numbers.__setitem__(0, 79), r"does not know atomic numbers \[79\]"),
        (lambda a: a.info.update(total_charge="plus one"), "total_charge.*'plus one'.*finite number"),
        (lambda a: a.info.update(total_charge=1, charge=0), "given twice and differs"),
        (lambda a: a.info.update(total_charge=np.True_), "finite number"),
        (lambda a: a.__delitem__(slice(None)), "no atoms"),
        (lambda a: a.set_pbc([True, True, False]), "pbc T T F.*three periodic directions or none"),
        (lambda a: a.set_pbc(True) or a.set_cell([20, 20, 0]), "singular.*pbc T T T"),
        (lambda a: a.set_pbc(True) or a.set_cell([[9, 0, 0], [0, 9, 0], [9, 9, 0]]), "singular"),
        (lambda a: a.set_pbc(True) or a.set_cell([9, 9, 0.2]), "too small.*0.2 Å apart.*at least 0.5"),
        (lambda a: a.set_pbc(True) or a.set_cell([9, 9, np.nan]), "cell of structure 0 is not finite"),
    ],
)
def test_bad_input(change, message):
    atoms = ethanol()
    atoms.set_cell([20, 20, 20])
    change(atoms)
    atoms.calc = PhiCalculator(potential())
    with pytest.raises(InputError, match=message):
        atoms.get_potential_energy()


def test_settings_that_make_no_sense():
    with pytest.raises(InputError, match="dtype is 'single'"):
        PhiCalculator(potential(), dtype="single")
    with pytest.raises(InputError, match="skin is -1"):
        PhiCalculator(potential(), skin=-1)


def test_a_charge_as_files_give_it():
    atoms = ethanol()
    atoms.info["charge"] = np.array([1.0])
    atoms.calc = PhiCalculator(potential())
    assert atoms.get_charges().sum() == pytest.approx(1, abs=1e-12)


def test_unknown_head():
    with pytest.raises(InputError, match="head is 'top'.*low, high"):
        PhiCalculator(mace_host(heads=["low", "high"]), head="top")
    with pytest.raises(InputError, match="name one"):
        PhiCalculator(mace_host(heads=["low", "high"]))
