"""Slabs with the Coulomb operator: the sum in the plane, whatever the cell's third vector is, and all that follows."""

import copy
import dataclasses
import functools
import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from bare_operators import matrix_of, operator_of
from checks import run
from scipy.special import erf, erfcx
from systems import batch_of, enlarge_dipoles, ethanol, mace_host, potential, structures_of

from phi_equivariant import PhiCalculator
from phi_equivariant.engines.inference import ModelInput
from phi_equivariant.errors import InputError
from phi_equivariant.operators.coulomb import COULOMB_CONSTANT
from phi_equivariant.operators.slabs import SlabSum, uniform_part

pytestmark = pytest.mark.usefixtures("double")
WIDTHS = (0.45, 0.7, 0.9, 1.1, 1.15)
PLANES = {
    "skewed": [[8.0, 0.0], [1.5, 7.0]],
    "long": [[16.0, 0.0], [1.5, 6.0]],
    "thin": [[3.0, 0.0], [1.5, 2.6]],
    "far from reduced": [[20.0, 0.0], [43.0, 20.0]],
}


def layer(plane=PLANES["skewed"], n=12, thickness=6.0, seed=0, third=(0.0, 0.0, 0.0), pbc=(True, True, False)):
    """Atoms at random places of a slab in the plane z = 0."""
    rng = np.random.default_rng(seed)
    positions = rng.uniform(-1, 2, (n, 3))
    cell = np.zeros((3, 3))
    cell[:2, :2], cell[2] = plane, third
    positions[:, :2] = positions[:, :2] @ cell[:2, :2]
    positions[:, 2] *= thickness / 3
    return Atoms(rng.integers(1, 6, n), positions=positions, cell=cell, pbc=pbc)


def sum_in_the_plane(atoms):
    """P of Gaussian charges in a slab by its closed form in two dimensions: no splitting, no third vector.

    D. E. Parry, Surf. Sci. 49, 433 (1975), with Gaussian charges.
    """
    plane, places = atoms.cell.array[:2, :2], atoms.positions
    area, widths = abs(np.linalg.det(plane)), np.array(WIDTHS)[atoms.numbers - 1]
    gamma = np.sqrt(widths[:, None] ** 2 + widths**2)
    apart = places[:, None] - places
    z = apart[..., 2]
    matrix = -2 * math.pi / area * (
        z * erf(z / (math.sqrt(2) * gamma)) + gamma * math.sqrt(2 / math.pi) * np.exp(-((z / gamma) ** 2) / 2)
    )  # fmt: skip
    reciprocal, end = 2 * math.pi * np.linalg.inv(plane).T, 8 / gamma.min()
    limits = [int(end * np.linalg.norm(vector) / (2 * math.pi)) for vector in plane]
    for m in itertools.product(*(range(-limit, limit + 1) for limit in limits)):
        k = m @ reciprocal
        size = np.linalg.norm(k)
        if size == 0 or size > end:
            continue
        waves = np.zeros_like(z)
        for side in (z, -z):
            # e^{kz} erfc(a) = e^{−k²γ²/2 − z²/2γ²} erfcx(a); where a < 0, from erfc(a) = 2 − erfc(−a).
            a = size * gamma / math.sqrt(2) + side / (math.sqrt(2) * gamma)
            scaled = np.exp(-((size * gamma) ** 2) / 2 - (side / gamma) ** 2 / 2) * erfcx(np.abs(a))
            waves += np.where(a >= 0, scaled, 2 * np.exp(np.minimum(size * side, 0)) - scaled)
        matrix += math.pi / (area * size) * waves * np.cos(apart[..., :2] @ k)
    return COULOMB_CONSTANT * matrix


@pytest.mark.parametrize("plane", PLANES)
def test_p_is_the_sum_in_the_plane_and_a_constant(plane):
    expected = sum_in_the_plane(layer(PLANES[plane]))
    operator = operator_of(*WIDTHS)
    for third in ((0, 0, 0), (0, 0, 7.5), (3, 1, -20)):
        atoms = layer(PLANES[plane], third=third)
        structures = structures_of(atoms, elements=range(1, 10))
        constant = float(uniform_part(structures, operator.widths()[structures.species].square())[0])
        found = matrix_of(operator, atoms)[0].detach().numpy()
        np.testing.assert_allclose(found - constant, expected, atol=3e-10)
        assert np.linalg.eigvalsh(found).min() > 0 > np.linalg.eigvalsh(expected).min()
        part = operator.at(structures, matrix=True).parts[0][1]
        values = torch.randn(len(atoms), 2)
        np.testing.assert_allclose(part.product(values).detach(), found @ values.numpy(), atol=1e-11)
        np.testing.assert_allclose(part.diagonal().detach(), found.diagonal(), atol=1e-11)


@pytest.mark.parametrize("pbc", [(True, True, False), (True, False, True), (False, True, True)])
def test_any_two_directions_and_rotated_cells(pbc):
    flat = layer()
    expected = matrix_of(operator_of(*WIDTHS), flat)[0].detach()
    turned = flat.copy()
    turned.rotate(40, (1, 2, 3), rotate_cell=True)
    cell = np.zeros((3, 3))
    cell[list(pbc)] = turned.cell.array[:2]
    turned.set_cell(cell)
    turned.pbc = pbc
    torch.testing.assert_close(matrix_of(operator_of(*WIDTHS), turned)[0].detach(), expected, rtol=0, atol=1e-10)


def test_two_charged_sheets():
    """Atoms so near in a sheet that only its charge per area counts: φ = −(2π k_e/A) Σ_j q_j <|z − z_j|>, over
    Gaussians."""
    places = [[0, 0, 0], [0, 0, 30.0]]
    atoms = Atoms([1, 1], positions=places, cell=[1.5, 1.5, 0.0], pbc=(True, True, False))
    operator, charges = operator_of(1.15), torch.tensor([[0.1], [-0.1]])
    potentials = operator.at(structures_of(atoms, elements=[1])).product(charges).detach().numpy()[:, 0]
    within = math.sqrt(2) * 1.15 * math.sqrt(2 / math.pi)
    expected = 2 * math.pi * COULOMB_CONSTANT * 0.1 / 1.5**2 * (30 - within)
    np.testing.assert_allclose(potentials, [expected, -expected], rtol=1e-6)


def test_dipoles_are_the_limit_of_opposite_charges():
    atoms, operator, rng = layer(n=5), operator_of(*WIDTHS), np.random.default_rng(1)
    charges, dipoles = torch.tensor(rng.normal(size=5)), torch.tensor(rng.normal(size=(5, 3)))
    charges -= charges.mean()
    found = operator.at(structures_of(atoms, elements=range(1, 10))).joint(charges[:, None], dipoles[:, None])
    energy = 0.5 * (charges @ found[0][:, 0] + (dipoles * found[1][:, 0]).sum()).item()
    errors, size = [], dipoles.norm(dim=1).numpy()
    for h in (0.04, 0.02):
        step = h / 2 * dipoles.numpy() / size[:, None]
        many = Atoms(
            np.tile(atoms.numbers, 3),
            positions=np.concatenate([atoms.positions, atoms.positions + step, atoms.positions - step]),
            cell=atoms.cell,
            pbc=atoms.pbc,
        )
        q = torch.cat([charges, torch.tensor(size / h), torch.tensor(-size / h)])
        potential = operator.at(structures_of(many, elements=range(1, 10))).product(q[:, None])[:, 0]
        errors.append(0.5 * (q @ potential).item() - energy)
    assert abs(errors[1]) < 1e-3 * abs(energy) and errors[0] / errors[1] == pytest.approx(4, rel=0.02)


def test_second_derivatives():
    operator = operator_of(0.5, 0.8)
    operator.requires_grad_(True)
    atoms = Atoms([1, 2], positions=[[0.1, 0.2, 0.3], [1.2, 0.4, 1.5]], cell=[[3, 0, 0], [0.5, 2.8, 0], [0] * 3])
    atoms.pbc = (True, True, False)
    structures = structures_of(atoms, elements=[1, 2])
    cell = structures.cell

    def fields(positions, vectors, charges, dipoles):
        whole = dataclasses.replace(structures, positions=positions, cell=torch.cat([vectors, cell[:, 2:]], dim=1))
        bound = operator.at(whole)
        neutral = charges - charges.mean()  # c is a constant that acts on a net charge
        return *bound.joint(neutral, dipoles), bound.product(neutral)

    inputs = structures.positions, cell[:, :2], torch.randn(2, 1), torch.randn(2, 1, 3)
    inputs = tuple(one.clone().requires_grad_() for one in inputs)
    assert torch.autograd.gradcheck(fields, inputs, atol=1e-6)
    assert torch.autograd.gradgradcheck(fields, inputs, atol=1e-6, fast_mode=True)


@pytest.mark.parametrize("chunk", [None, 64])
def test_the_mesh_agrees_with_matrices(monkeypatch, chunk):
    """Potential, gradient and derivatives, with waves all at once and some at a time."""
    if chunk is not None:
        monkeypatch.setattr("phi_equivariant.operators.slabs._ENTRIES", chunk)
    atoms, operator, rng = layer(n=20), operator_of(*WIDTHS), np.random.default_rng(2)
    structures = structures_of(atoms, elements=range(1, 10))
    charges, dipoles = torch.tensor(rng.normal(size=(20, 1))), torch.tensor(0.3 * rng.normal(size=(20, 1, 3)))
    charges -= charges.mean()
    both = []
    for mesh_from in (1000, 0):
        operator.mesh_from = operator.mesh_from_in_training = mesh_from
        positions, cell = (values.clone().requires_grad_() for values in (structures.positions, structures.cell))
        bound = operator.at(dataclasses.replace(structures, positions=positions, cell=cell))
        part = bound.parts[0][1]
        assert isinstance(part, SlabSum) and part.dense == (mesh_from > 0)
        assert chunk is None or part.dense or len(part._chunks) > 3
        potential, gradient = bound.joint(charges, dipoles)
        energy = (charges * potential).sum() + (dipoles * gradient).sum() + (charges * bound.product(charges)).sum()
        slopes = torch.autograd.grad(energy, (positions, cell), create_graph=True)
        second = torch.autograd.grad(slopes[0].square().sum(), positions)
        both.append([potential, gradient, part.diagonal(), *slopes, *second])
    for found, expected in zip(*both, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=3e-7 * float(expected.detach().abs().max()))


def test_the_vacuum_that_is_chosen_does_not_matter(monkeypatch):
    """Also not where a layer that grows thicker makes the next length necessary."""
    operator, rng = operator_of(*WIDTHS), np.random.default_rng(3)
    charges = torch.tensor(rng.normal(size=(12, 1)))
    charges -= charges.mean()
    lengths, energies = [], []

    def energy(atoms):
        bound = operator.at(structures_of(atoms, elements=range(1, 10)))
        lengths.append(float(bound.parts[0][1].length))
        return 0.5 * (charges * bound.product(charges)).sum().item()

    atoms = layer()
    for apart in np.linspace(0, 3, 31):
        thicker = atoms.copy()
        thicker.positions[thicker.positions[:, 2].argmax(), 2] += apart
        energies.append(energy(thicker))
    steps = np.flatnonzero(np.diff(lengths[-31:]))
    assert len(steps) >= 2  # the length did change on the way
    # A cell that is made longer gives the same at each place.
    for factor in (2.0, 3.0):
        monkeypatch.setattr("phi_equivariant.operators.slabs._PERIODS_APART", factor)
        assert abs(energy(thicker) - energies[-1]) < 1e-9
    assert len(set(lengths[-3:])) == 3


CONFIGS = {
    "exact": {"channels": 2},
    "learned": {"poisson": "learned"},
    "dipoles": {"multipoles": 1},
    "low pass": {"low_pass": 0.3},
    "modes": {"num_modes": 4},
    "qeq": {"charge_model": "qeq"},
    "sqe, polarizable": {"charge_model": "sqe", "polarizable": True},
}


@functools.cache
def host():
    return mace_host("4x0e+4x1o")


@pytest.fixture(params=CONFIGS, scope="module")
def model(request):
    torch.set_default_dtype(torch.float64)
    return made(**CONFIGS[request.param])


def made(**config):
    model = potential(host=copy.deepcopy(host()), **config)
    enlarge_dipoles(model)
    return model


def water_film(third=(0.3, -0.4, 9.0), charge=0):
    """Two molecules of water in a skewed cell, one above the other."""
    rng, film = np.random.default_rng(0), Atoms(cell=[[4.5, 0, 0], [1.0, 5.0, 0], third], pbc=(True, True, False))
    for index in range(2):
        one = molecule("H2O")
        for axis in "xy":
            one.rotate(rng.uniform(0, 180), axis)
        one.translate([1.0 + 2 * index, 1.5 * index, 2.2 * index])
        film += one
    film.info["total_charge"] = charge
    return film


def calculated(atoms, model):
    atoms.calc = PhiCalculator(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress(voigt=False)


@pytest.mark.filterwarnings("ignore:total_charge is 1 e in a slab")
@pytest.mark.parametrize("charge", [0, 1])
def test_forces_and_stress_in_the_plane_are_derivatives(model, charge):
    film, rng, moved = water_film(charge=charge), np.random.default_rng(0), []
    _, forces, stress = calculated(film, model)
    direction, strain, step = rng.normal(size=forces.shape), np.zeros((3, 3)), 1e-4
    strain[:2, :2] = [[1.0, -0.4], [-0.4, 0.7]]
    for factor in (-2, -1, 1, 2):
        for change in ("positions", "strain"):
            moved.append(film.copy())
            if change == "positions":
                moved[-1].positions += factor * step * direction
            else:
                moved[-1].set_cell(film.cell @ (np.eye(3) + factor * step * strain), scale_atoms=False)
                moved[-1].positions = film.positions @ (np.eye(3) + factor * step * strain)
    slopes = np.array([1, -8, 8, -1]) @ run(model, *moved, compute_force=False)["energy"].reshape(4, 2) / (12 * step)
    assert (forces * direction).sum() == pytest.approx(-slopes[0], abs=1e-6)
    assert (stress * strain).sum() * film.get_volume() == pytest.approx(slopes[1], abs=1e-6)
    assert not stress[2].any() and not stress[:, 2].any() and abs(stress[:2, :2]).min() > 1e-6
    assert abs(forces.sum(0)).max() < 1e-9


@pytest.mark.parametrize("charge", [0, 1])
def test_nothing_depends_on_the_cell_across(model, charge):
    """Nor on where the film is along its normal, nor on how the cell in the plane is chosen."""
    film = water_film(charge=charge)
    energy, forces, stress = calculated(film, model)
    volume = film.get_volume()
    for third in ((0, 0, 0), (7, 3, 40.0)):
        other = water_film(third, charge)
        other.translate([0, 0, 33.0])
        other_energy, other_forces, other_stress = calculated(other, model)
        assert other_energy == pytest.approx(energy, abs=1e-9)
        np.testing.assert_allclose(other_forces, forces, atol=1e-9)
        np.testing.assert_allclose(other_stress * other.cell.complete().volume, stress * volume, atol=1e-9)
    sheared = film.copy()
    sheared.cell[1] += 2 * sheared.cell[0]
    sheared.info["total_charge"] = charge
    assert calculated(sheared, model)[0] == pytest.approx(energy, abs=1e-9)
    if model.phi.config.num_modes is None:
        double = film.repeat((1, 2, 1))
        double.info["total_charge"] = 2 * charge
        double_energy, double_forces, double_stress = calculated(double, model)
        assert double_energy == pytest.approx(2 * energy, abs=2e-9)
        np.testing.assert_allclose(double_forces[:6], forces, atol=1e-8)
        np.testing.assert_allclose(double_stress, stress, atol=1e-9)


def test_molecule_slab_and_crystal_in_one_batch(model):
    film, solid = water_film(), bulk("C", "diamond", a=3.6)
    solid.rattle(0.05, seed=0)
    alone = [calculated(film, model)[0], calculated(solid, model)[0]]
    out = model(batch_of(ethanol(), film, solid), compute_stress=True)
    np.testing.assert_allclose(out["energy"][1:].detach(), alone, atol=1e-9)
    assert torch.isfinite(out["stress"][1:]).all() and torch.isnan(out["stress"][0]).all()
    assert torch.isfinite(out["dipole"]).tolist() == [[True] * 3, [False, False, True], [False] * 3]
    assert torch.isfinite(out["surface_potential_step"]).tolist() == [False, True, False]


@pytest.mark.parametrize("charge_model", ["direct", "qeq", "sqe"])
def test_slabs_of_several_sizes_in_one_batch(charge_model):
    """A ribbon of few atoms in a long cell beside a larger one is as it is alone, induced dipoles too."""
    model = made(charge_model=charge_model, polarizable=True).eval()
    ribbon = Atoms("CNO", [[0, 0, 0], [0, 1.4, 0.1], [0.9, 0.4, 1.2]], cell=[2.5, 30, 0], pbc=(True, True, False))
    larger = water_film() + Atoms("O", [[2, 3, 6]])
    together, alone = run(model, larger, ribbon), run(model, ribbon)
    for name in ("energy", "surface_potential_step"):
        np.testing.assert_allclose(together[name][1:], alone[name], atol=1e-10)
    for name in ("forces", "charges", "atomic_dipoles"):
        np.testing.assert_allclose(together[name][len(larger) :], alone[name], atol=1e-10)


def test_the_step_of_the_potential():
    """Against the potential of the charges far above and below, and as a dipole that follows the normal."""
    model, film = made(multipoles=1), water_film()
    calculated(film, model)
    step, dipole = film.calc.phi_results["surface_potential_step"], film.calc.results["dipole"]
    area = abs(np.linalg.det(film.cell.array[:2, :2]))
    assert abs(step) > 0.05 and step == pytest.approx(4 * math.pi * COULOMB_CONSTANT * dipole[2] / area, rel=1e-12)
    charges, moments = film.calc.results["charges"], film.calc.phi_results["atomic_dipoles"]
    probe = film + Atoms("H2", positions=[[0, 0, 60.0], [0, 0, -60.0]])
    q = np.append(charges, [0, 0])[:, None]
    mu = np.concatenate([moments, np.zeros((2, 3))])[:, None]
    potential, _ = model.phi.operator.at(structures_of(probe)).joint(torch.tensor(q), torch.tensor(mu))
    assert (potential[-2] - potential[-1]).item() == pytest.approx(step, rel=1e-9)
    upside_down = film.copy()
    upside_down.rotate(180, "x", rotate_cell=True)
    calculated(upside_down, model)  # a×b has turned as well
    assert upside_down.calc.phi_results["surface_potential_step"] == pytest.approx(step, rel=1e-9)
    assert upside_down.calc.results["dipole"][2] == pytest.approx(-dipole[2], rel=1e-9)
    tilted = film.copy()
    tilted.rotate(30, "x", rotate_cell=True)
    calculated(tilted, model)
    assert np.isnan(tilted.calc.results["dipole"]).all()
    assert tilted.calc.phi_results["surface_potential_step"] == pytest.approx(step, rel=1e-9)


def test_kept_pairs_serve_a_slab_that_moves_and_thickens():
    model, film = made(), water_film(third=(0, 0, 0))
    film.calc = PhiCalculator(model)
    rng, places = np.random.default_rng(0), film.positions.copy()
    for step in range(12):
        film.positions = places + [0, 0, 1.5 * step] + 0.02 * rng.normal(size=places.shape)
        film.positions[3:, 2] += 0.4 * step
        fresh = film.copy()
        fresh.calc = PhiCalculator(model)
        assert film.get_potential_energy() == pytest.approx(fresh.get_potential_energy(), abs=1e-9)
        np.testing.assert_allclose(film.get_forces(), fresh.get_forces(), atol=1e-9)


def test_single_precision():
    film = water_film()
    model = made()
    single = copy.deepcopy(model).float()
    energy, forces, _ = calculated(film, model)
    rough, rough_forces, _ = calculated(film.copy(), single)
    assert rough == pytest.approx(energy, abs=2e-4)
    np.testing.assert_allclose(rough_forces, forces, atol=2e-4)


def test_training_through_forces():
    """The derivative of a loss on forces by the weights, against finite differences."""
    model = made(multipoles=1)
    batch = ModelInput(model)([water_film(), ethanol()])
    weight = next(p for name, p in model.named_parameters() if name.startswith("phi.") and p.ndim == 2)

    def loss():
        return model(dict(batch), training=True)["forces"].square().sum()

    (slope,) = torch.autograd.grad(loss(), weight)
    direction = torch.randn_like(weight)
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight += sign * 1e-5 * direction
        values.append(float(loss().detach()))
        with torch.no_grad():
            weight -= sign * 1e-5 * direction
    assert float((slope * direction).sum()) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-6)


def test_a_charged_slab_warns():
    with pytest.warns(UserWarning, match="total_charge is -1 e in a slab"):
        made()(batch_of(water_film(charge=-1)))


@pytest.mark.parametrize("constraint", ["penalty", "none"])
def test_what_is_refused(constraint):
    with pytest.raises(InputError, match="structure 0 is a slab .*T T F.*charge_constraint='project'"):
        made(charge_constraint=constraint)(batch_of(water_film()))
    wire = water_film()
    wire.pbc = (True, False, False)
    with pytest.raises(InputError, match="pbc T F F.*two or three periodic directions or none"):
        made()(batch_of(wire))
