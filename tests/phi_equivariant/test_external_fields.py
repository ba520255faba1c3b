"""External fields: what acts on a field's charges, how all responds, polarisabilities, what is refused."""

import copy
import functools

import ase.db
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from checks import check_slopes
from systems import batch_of, enlarge_dipoles, ethanol, mace_host, potential

from phi_equivariant import PhiCalculator, polarizability
from phi_equivariant.errors import InputError
from phi_equivariant.inputs.frames import read_frames

pytestmark = pytest.mark.usefixtures("double")

CONFIGS = {
    "direct": dict(),
    "dipoles": dict(multipoles=1, channels=2),
    "learned": dict(poisson="learned", low_pass=0.2),
    "graph": dict(operator="graph"),
    "qeq": dict(charge_model="qeq"),
    "sqe": dict(charge_model="sqe"),
    "polarizable": dict(polarizable=True, multipoles=1),
    "everything": dict(charge_model="sqe", polarizable=True, multipoles=1, channels=2),
}
EACH = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
RESPONDING = pytest.mark.parametrize(
    "config", [CONFIGS[name] for name in ("qeq", "sqe", "polarizable", "everything")], ids=str
)
FIELD = np.array([0.12, -0.3, 0.21])


@functools.cache
def host():
    return mace_host()


def made(**config):
    model = potential(host=copy.deepcopy(host()), **config)
    enlarge_dipoles(model)
    return model.eval()


def in_field(atoms, field, charge=None):
    atoms = atoms.copy()
    atoms.info["external_field"] = field
    if charge is not None:
        atoms.info["total_charge"] = charge
    return atoms


def results(model, atoms, field=None):
    calculator = PhiCalculator(model, external_field=field)
    atoms = atoms.copy()
    atoms.calc = calculator
    atoms.get_forces()
    return calculator.results | calculator.phi_results


#: None of the axes, so that every component shows.
DIRECTION = np.array([0.5, -0.7, 0.9])


def slope(function, step=1e-3):
    """∂function/∂F·DIRECTION at FIELD by fourth-order differences."""
    a, b, c, d = (function(FIELD + factor * step * DIRECTION) for factor in (-2, -1, 1, 2))
    return (a - 8 * b + 8 * c - d) / (12 * step)


@EACH
@pytest.mark.parametrize("charge", [0, 1])
def test_the_slope_of_the_energy_is_the_dipole(config, charge):
    """−∂E/∂F is the dipole about the centre of mass plus Q times that centre, ions too."""
    if charge and config.get("operator") == "graph":
        pytest.skip("the graph carries no charge")
    model, atoms = made(**config), ethanol()
    atoms.positions += [1.0, -2.0, 0.5]
    atoms.info["total_charge"] = charge
    out = results(model, atoms, FIELD)
    found = -slope(lambda field: results(model, atoms, field)["energy"])
    wanted = out["dipole"] + out["charges"].sum() * atoms.get_center_of_mass()
    np.testing.assert_allclose(found, wanted @ DIRECTION, atol=1e-8)
    assert out["charges"].sum() == pytest.approx(charge, abs=1e-10) or config.get("poisson") == "learned"


@EACH
def test_forces_in_a_field_equal_finite_differences(config, monkeypatch):
    model, atoms = made(**config), in_field(ethanol(), FIELD)
    calculator = PhiCalculator(model)
    atoms.calc = calculator
    forces = atoms.get_forces()
    for i, axis in ((0, 1), (5, 2)):
        energies = []
        for factor in (-2, -1, 1, 2):
            moved = atoms.copy()
            moved.positions[i, axis] += factor * 1e-4
            moved.calc = calculator
            energies.append(moved.get_potential_energy())
        slope = (energies[0] - 8 * energies[1] + 8 * energies[2] - energies[3]) / (12 * 1e-4)
        assert abs(forces[i, axis] + slope) < 1e-6 * max(1.0, np.abs(forces).max())
    np.testing.assert_allclose(forces.sum(0), 0, atol=1e-10)  # of a neutral structure


def test_a_charged_structure_is_pulled():
    atoms = in_field(ethanol(), FIELD, 1)
    np.testing.assert_allclose(results(made(charge_model="sqe"), atoms)["forces"].sum(0), FIELD, atol=1e-10)


def test_the_torque_on_a_rigid_dipole():
    """Σ r × f = μ × F, and the energy is −F·μ beside that without a field."""
    model, atoms = made(multipoles=1), ethanol()
    free, out = results(model, atoms), results(model, atoms, FIELD)
    np.testing.assert_allclose(out["dipole"], free["dipole"], atol=1e-12)
    assert out["energy"] - free["energy"] == pytest.approx(-FIELD @ free["dipole"], abs=1e-11)
    # The atoms' dipoles turn with the molecule, so that forces alone hold all of the torque.
    torque = np.cross(atoms.positions, out["forces"]).sum(0)
    np.testing.assert_allclose(torque, np.cross(free["dipole"], FIELD), atol=1e-9)


@EACH
def test_a_field_turns_with_the_structure(config):
    model, atoms = made(**config), ethanol()
    rotation = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
    turned = atoms.copy()
    turned.positions = atoms.positions @ rotation.T
    one, other = results(model, atoms, FIELD), results(model, turned, rotation @ FIELD)
    assert one["energy"] == pytest.approx(other["energy"], abs=1e-9)
    np.testing.assert_allclose(other["forces"], one["forces"] @ rotation.T, atol=1e-9)
    np.testing.assert_allclose(other["charges"], one["charges"], atol=1e-10)


@RESPONDING
def test_the_polarisability_is_that_of_finite_fields(config):
    model, atoms = made(**config), ethanol()
    found = PhiCalculator(model, external_field=FIELD).get_polarizability(atoms)
    np.testing.assert_allclose(found, found.T, atol=1e-9)
    assert (np.linalg.eigvalsh(found) > 0).all()
    wanted = slope(lambda field: results(model, atoms, field)["dipole"])
    np.testing.assert_allclose(found @ DIRECTION, wanted, atol=1e-7 * np.abs(found).max())


@RESPONDING
def test_a_training_step_through_the_polarisability(config):
    """Its gradient to every parameter of Φ that it depends on against differences of the polarisability itself."""
    model = made(**config).train()
    batch = batch_of(ethanol(), molecule("H2O"))

    def loss(training):
        out = model(batch, training=training, compute_force=training, compute_polarizability=True)
        return out["polarizability"].square().sum() * 100

    model.zero_grad()
    loss(True).backward()
    depended_on = {name: p for name, p in model.phi.named_parameters() if p.grad is not None and p.grad.any()}
    assert len(depended_on) > 5
    check_slopes(depended_on, lambda: loss(False), precision=1e-4, step=1e-4)


def test_methane_is_isotropic():
    """And what does not respond has no polarisability."""
    for config in (dict(charge_model="qeq"), dict(charge_model="sqe", polarizable=True)):
        found = PhiCalculator(made(**config)).get_polarizability(molecule("CH4"))
        np.testing.assert_allclose(found, found[0, 0] * np.eye(3), atol=1e-8)
        assert found[0, 0] > 1e-3
    assert not PhiCalculator(made()).get_polarizability(molecule("CH4")).any()


def test_structures_of_a_batch_have_fields_of_their_own():
    model, structures = made(charge_model="sqe", polarizable=True), [ethanol(), molecule("H2O"), molecule("CH3OH")]
    fields = [FIELD, np.zeros(3), -FIELD]
    batch = batch_of(*structures)
    batch["external_field"] = torch.tensor(np.array(fields))
    out = model(batch, compute_polarizability=True)
    alone = [results(model, atoms, field) for atoms, field in zip(structures, fields, strict=True)]
    np.testing.assert_allclose(out["energy"].detach(), [one["energy"] for one in alone], atol=1e-10)
    np.testing.assert_allclose(out["forces"].detach(), np.concatenate([one["forces"] for one in alone]), atol=1e-9)
    np.testing.assert_allclose(out["dipole"].detach(), [one["dipole"] for one in alone], atol=1e-9)
    np.testing.assert_allclose(
        out["polarizability"][1].detach(), PhiCalculator(model).get_polarizability(structures[1]), atol=1e-9
    )


def test_without_matrices_as_with_them():
    model = made(charge_model="sqe", polarizable=True)
    iterated = copy.deepcopy(model)
    iterated.phi.operator.dense_limit = iterated.phi.operator.tiles_from = 2
    atoms = in_field(ethanol(), FIELD, 1)
    one, other = results(model, atoms), results(iterated, atoms)
    for name in ("energy", "forces", "dipole", "charges"):
        np.testing.assert_allclose(other[name], one[name], atol=1e-8)
    np.testing.assert_allclose(
        PhiCalculator(iterated).get_polarizability(atoms), PhiCalculator(model).get_polarizability(atoms), atol=1e-8
    )


def test_a_calculator_sees_that_the_field_changed():
    atoms = in_field(ethanol(), [0, 0, 0.1])
    atoms.calc = PhiCalculator(made())
    first = atoms.get_potential_energy()
    atoms.info["external_field"] = [0, 0, 0.2]
    second = atoms.get_potential_energy()
    del atoms.info["external_field"]
    assert first - second == pytest.approx(atoms.get_potential_energy() - first, abs=1e-10) and first != second


def test_a_mixed_batch_has_a_polarisability_where_it_is_open():
    model = made(polarizable=True)
    crystal = bulk("CO", "rocksalt", a=4.4, cubic=True)
    found = model(batch_of(crystal, ethanol()), compute_polarizability=True)["polarizability"]
    assert torch.isnan(found[0]).all()
    np.testing.assert_allclose(found[1].detach(), PhiCalculator(model).get_polarizability(ethanol()), atol=1e-9)
    assert model(batch_of(crystal), compute_polarizability=True)["polarizability"] is None
    with pytest.raises(InputError, match="periodic.*only open structures have"):
        polarizability(model, batch_of(crystal))


def test_what_is_refused():
    model, crystal = made(), bulk("CO", "rocksalt", a=4.4, cubic=True)
    with pytest.raises(InputError, match=r"along a periodic direction \(pbc T T T\).*vacuum.*pbc that is False"):
        results(model, crystal, [0, 0, 0.1])
    slab = crystal.copy()
    slab.pbc = [True, True, False]
    with pytest.raises(InputError, match=r"pbc T T F.*perpendicular"):
        results(made(operator="graph"), slab, [0.1, 0, 0.1])
    results(made(operator="graph"), slab, [0, 0, 0.1])
    results(model, crystal, [0, 0, 0])
    for wrong in ([1, 2], "strong", [0, 0, np.nan], 3.0, ["0", "0", "1"], [True, False, True], [1j, 0, 0], [[1], 2, 3]):
        with pytest.raises(InputError, match=r"info\['external_field'\] is .*three finite numbers"):
            results(model, in_field(ethanol(), wrong))
        with pytest.raises(InputError, match="external_field is .*three finite numbers"):
            PhiCalculator(model, external_field=wrong)
    with pytest.raises(InputError, match="given twice and differs"):
        results(model, in_field(ethanol(), [0, 0, 0.1]), [0, 0, 0.2])
    for name in ("External-Field", "ExternalField", "EXTERNAL_FIELD"):
        with pytest.raises(InputError, match=rf"info has '{name}'.*put it into info\['external_field'\]"):
            atoms = ethanol()
            atoms.info[name] = [0, 0, 0.1]
            results(model, atoms)
    with pytest.raises(InputError, match=r"arrays has 'external_field'.*put it into info"):
        atoms = ethanol()
        atoms.arrays["external_field"] = np.ones((9, 3))
        results(model, atoms)
    bare = in_field(ethanol(), [0, 0, 0.1])
    bare.calc = PhiCalculator(copy.deepcopy(host()))
    with pytest.raises(InputError, match="bare host.*not have charges for a field to act on"):
        bare.get_potential_energy()
    batch = batch_of(ethanol(), ethanol())
    with pytest.raises(InputError, match="for 2 structures; give three finite numbers for each"):
        model({**batch, "external_field": torch.zeros(1, 3)})
    for wrong in ("strong", [[0, 1], [2]], torch.ones(2, 3, dtype=torch.complex128)):
        with pytest.raises(InputError, match="external_field is .*; give a tensor of real numbers"):
            model({**batch, "external_field": wrong})


@pytest.mark.parametrize("suffix", ["db", "json"])
def test_a_field_among_the_data_of_a_database(tmp_path, suffix):
    """For data that ase's databases do not take as key-value pairs, which arrays are not."""
    field = [0.1, -0.2, 0.3]
    with ase.db.connect(tmp_path / f"a.{suffix}") as database:
        database.write(ethanol(), data={"external_field": field})
    ((_, atoms),) = read_frames(tmp_path / f"a.{suffix}")
    model = made()
    assert results(model, atoms)["energy"] == results(model, in_field(ethanol(), field))["energy"]
    other = ethanol()
    other.info["data"] = {"ExternalField": field, "Total-Charge": 1}
    with pytest.raises(InputError, match=r"info\['data'\] has '(ExternalField|Total-Charge)', from which"):
        results(model, other)
    atoms.info["external_field"] = [0, 0, 0.1]
    with pytest.raises(InputError, match=r"given twice.*info\['data'\]\['external_field'\] = \[0.1, -0.2, 0.3\]"):
        results(model, atoms)


def test_what_rounding_leaves_along_a_plane_does_nothing():
    """An atom that enters the next cell takes nothing with it."""
    layer = Atoms("CO", [[0, 0, 0], [0.2, 0.1, 1.1]], cell=[[7, 0, 0], [1, 8, 0], [0, 0, 9]], pbc=[True, True, False])
    model, field = made(charge_model="sqe"), [6e-6, -4e-6, 1.0]
    before = results(model, in_field(layer, field))
    layer.positions[0] += 10 * layer.cell[0]
    after = results(model, in_field(layer, field))
    assert after["energy"] == pytest.approx(before["energy"], abs=1e-10)
    np.testing.assert_allclose(after["forces"], before["forces"], atol=1e-10)
