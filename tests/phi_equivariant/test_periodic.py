"""What must hold for periodic structures, whole potential: host and Φ, every setting (float64)."""

import copy
import functools
import warnings

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, make_supercell, molecule
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS
from ase.stress import voigt_6_to_full_3x3_stress
from checks import check_slopes
from mace.calculators import MACECalculator
from systems import batch_of, distorted, enlarge_dipoles, ethanol, mace_host, potential

from phi_equivariant import PhiCalculator
from phi_equivariant.errors import InputError

from e3nn import o3  # isort: skip

pytestmark = pytest.mark.usefixtures("double")

CONFIGS = {
    "graph-learned-k3": dict(operator="graph", poisson="learned", num_modes=3),
    "graph-exact-low-pass": dict(operator="graph", poisson="exact", low_pass=0.2),
    "coulomb-exact": dict(operator="coulomb", poisson="exact", channels=2),
    "coulomb-learned-k3": dict(operator="coulomb", poisson="learned", num_modes=3),
    "coulomb-exact-low-pass": dict(operator="coulomb", poisson="exact", low_pass=0.2),
    "coulomb-learned-penalty": dict(operator="coulomb", poisson="learned", charge_constraint="penalty"),
    "coulomb-dipoles": dict(operator="coulomb", multipoles=1, channels=2),
}


@pytest.fixture(params=CONFIGS, scope="module")
def model(request):
    torch.set_default_dtype(torch.float64)
    return made(**CONFIGS[request.param])


@functools.cache
def small_host(irreps, layers):
    return mace_host(irreps, num_interactions=layers)


def made(irreps="4x0e+4x1o", layers=2, **config):
    """A potential on a copy of a host that is built once: building takes longer than most tests here."""
    model = potential(host=copy.deepcopy(small_host(irreps, layers)), **config)
    enlarge_dipoles(model)
    return model


def run(model, *structures, **asked):
    asked = {"compute_stress": True, **asked}
    return {k: v.detach().numpy() for k, v in model(batch_of(*structures), **asked).items() if torch.is_tensor(v)}


def crystal(seed=0, size=0.1):
    """A skewed cell thinner than the cut-off: every atom neighbours its own images."""
    atoms = Atoms("CONH", positions=[[0, 0, 0], [1.7, 0.2, 0.1], [0.3, 1.6, 1.8], [1.9, 1.7, 1.4]], pbc=True)
    atoms.set_cell([[3.6, 0, 0], [0.7, 3.4, 0.2], [-0.4, 0.3, 3.8]])
    return distorted(atoms, seed, size)


def rocksalt():
    """An ideal crystal: degenerate modes, and by symmetry all but no charge where atoms are alike."""
    return bulk("CO", "rocksalt", a=4.4, cubic=True)


def strained(atoms, strain):
    """x → x (1 + ε) for positions and cell."""
    atoms = atoms.copy()
    atoms.set_cell(atoms.cell @ (np.eye(3) + strain), scale_atoms=True)
    return atoms


def slope(model, moved, step=2e-4):
    """dE/dx of a path of structures, by a fourth-order difference."""
    a, b, c, d = run(model, *(moved(factor * step) for factor in (-2, -1, 1, 2)), compute_force=False)["energy"]
    return (a - 8 * b + 8 * c - d) / (12 * step)


@pytest.mark.parametrize("atoms", [crystal(), rocksalt()], ids=["skewed", "rocksalt"])
def test_forces_and_stress_equal_finite_differences(model, atoms):
    out = run(model, atoms, compute_virials=True)
    rng = np.random.default_rng(3)
    for _ in range(2):
        strain = rng.normal(size=(3, 3))
        strain = (strain + strain.T) / 2
        want = slope(model, lambda x, e=strain: strained(atoms, x * e))
        got = (out["stress"][0] * strain).sum() * atoms.get_volume()
        assert abs(got - want) < 1e-6 * max(1.0, abs(want))
    np.testing.assert_allclose(out["virials"][0], -out["stress"][0] * atoms.get_volume(), rtol=1e-12, atol=1e-12)
    direction = rng.normal(size=atoms.positions.shape)

    def moved(x):
        copy = atoms.copy()
        copy.positions += x * direction
        return copy

    assert abs((out["forces"] * direction).sum() + slope(model, moved)) < 1e-6 * max(1.0, np.abs(out["forces"]).max())


def test_rotation_translation_and_atoms_moved_across_a_face(model):
    atoms = crystal()
    want = run(model, atoms)
    rotation = -o3.rand_matrix().numpy()  # improper: a reflection too
    order = np.random.default_rng(0).permutation(len(atoms))
    moved = atoms[order]
    moved.positions += [0.4, -3.0, 0.2]
    moved.wrap()
    moved.positions[0] += moved.cell[1] - 2 * moved.cell[2]
    moved.set_cell(moved.cell @ rotation.T, scale_atoms=False)
    moved.positions = moved.positions @ rotation.T
    got = run(model, moved)
    np.testing.assert_allclose(got["energy"], want["energy"], rtol=1e-10)
    np.testing.assert_allclose(got["phi_energy"], want["phi_energy"], rtol=1e-8)
    np.testing.assert_allclose(got["forces"], want["forces"][order] @ rotation.T, atol=1e-8)
    np.testing.assert_allclose(got["charges"], want["charges"][order], atol=1e-9)
    np.testing.assert_allclose(got["stress"][0], rotation @ want["stress"][0] @ rotation.T, atol=1e-9)


def test_a_supercell_has_n_times_the_energy(model):
    if model.phi.config.num_modes is not None:
        pytest.skip("a fixed number of modes cannot be size-extensive")
    one = crystal()
    large = make_supercell(one, [[2, 1, 0], [0, 1, 0], [-1, 0, 2]])
    copies = len(large) // len(one)
    want, got = run(model, one), run(model, large)
    for key in ("energy", "phi_energy", "host_energy"):
        np.testing.assert_allclose(got[key], copies * want[key], rtol=1e-9)
    np.testing.assert_allclose(got["stress"], want["stress"], atol=1e-9)
    for key in ("charges", "potential", "forces"):
        shape = (copies, *want[key].shape)
        np.testing.assert_allclose(got[key].reshape(shape), np.broadcast_to(want[key], shape), atol=1e-8)


def test_open_and_periodic_structures_in_one_batch(model):
    structures = [ethanol(), crystal(), molecule("H2O"), distorted(rocksalt())]
    mixed, start = run(model, *structures), 0
    for index, atoms in enumerate(structures):
        alone, end = run(model, atoms), start + len(atoms)
        for key in ("energy", "phi_energy", "pde_residual", "net_charge"):
            np.testing.assert_allclose(mixed[key][index], alone[key][0], atol=1e-9)
        for key in ("forces", "charges", "potential"):
            np.testing.assert_allclose(mixed[key][start:end], alone[key], atol=1e-9)
        missing, there = ("dipole", "stress") if atoms.pbc.any() else ("stress", "dipole")
        np.testing.assert_allclose(mixed[there][index], alone[there][0], atol=1e-9)
        assert missing not in alone and np.isnan(mixed[missing][index]).all()
        start = end


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_gradients_of_a_loss_on_forces_and_stress(config):
    """d(loss)/d(parameter) against a central difference, for the largest entry of every tensor of Φ."""
    irreps, layers = ("4x0e+4x1o", 2) if "multipoles" in config else ("4x0e", 1)  # the last layer has scalars only
    model, batch = made(irreps, layers, **config), batch_of(crystal(), molecule("H2O"), crystal(1))

    def loss():
        out = model(dict(batch), training=True, compute_stress=True)
        stress = out["stress"][[0, 2]]
        return out["forces"].square().sum() + 1e3 * stress.square().sum() + out["pde_residual"].sum()

    model.zero_grad()
    loss().backward()
    check_slopes(dict(model.phi.named_parameters()), loss, floor=1e-2)


@pytest.mark.parametrize(
    "config", [dict(operator="coulomb"), dict(operator="coulomb", low_pass=0.2)], ids=["all", "low"]
)
def test_the_splitting_does_not_matter(config):
    model, outputs = made(**config), []
    for splitting in (1.0, 1.5, 2.2):
        model.phi.operator.splitting.fixed = splitting
        outputs.append(run(model, crystal()))
    for other in outputs[1:]:
        for key in ("phi_energy", "forces", "stress", "charges"):
            np.testing.assert_allclose(other[key], outputs[0][key], rtol=1e-8, atol=1e-8)


def test_without_charges_stress_and_virials_are_maces():
    model = made()
    with torch.no_grad():
        model.phi.alpha_net.scale.zero_()
    structures = crystal(), distorted(rocksalt())
    asked = dict(compute_force=True, compute_stress=True, compute_virials=True)
    want, got = model.host(batch_of(*structures), **asked), run(model, *structures, **asked)
    for key in ("energy", "forces", "stress", "virials"):
        np.testing.assert_allclose(got[key], want[key].detach().numpy(), rtol=1e-10, atol=1e-12)


def test_a_strain_of_ones_own():
    model, atoms = made(), crystal()
    out = model(batch_of(atoms), compute_force=False, compute_displacement=True)
    (gradient,) = torch.autograd.grad(out["energy"].sum(), out["displacement"])
    want = run(model, atoms)["stress"] * atoms.get_volume()
    assert out["forces"] is None and out["stress"] is None
    np.testing.assert_allclose(gradient.numpy(), want, atol=1e-10)


def test_a_molecule_in_a_large_box_is_an_open_one():
    model, atoms = made(), ethanol()
    want = run(model, atoms)
    errors = []
    for edge in (15.0, 30.0):
        boxed = atoms.copy()
        boxed.set_cell([edge] * 3)
        boxed.pbc = True
        got = run(model, boxed)
        np.testing.assert_allclose(got["charges"], want["charges"], atol=1e-12)
        errors.append(got["energy"][0] - want["energy"][0])
    # Dipoles of a cubic lattice (Makov and Payne, Phys. Rev. B 51, 4014, 1995).
    expected = -2 * np.pi / 3 * 14.399645 * (want["dipole"] ** 2).sum() / np.array([15.0, 30.0]) ** 3
    np.testing.assert_allclose(errors, expected, rtol=0.1)
    assert abs(errors[1] / errors[0] * 8 - 1) < 0.1


@pytest.mark.parametrize("operator", ["coulomb", "graph"])
def test_ase_calculator(operator):
    atoms = crystal()
    atoms.calc = PhiCalculator(made(operator=operator))
    np.testing.assert_allclose(atoms.get_stress(), calculate_numerical_stress(atoms, eps=1e-4), atol=1e-6)
    want = run(atoms.calc.model, atoms)
    np.testing.assert_allclose(atoms.get_stress(voigt=False), want["stress"][0], atol=1e-10)
    np.testing.assert_allclose(atoms.get_forces(), want["forces"], atol=1e-9)
    with pytest.raises(NotImplementedError, match="dipole"):
        atoms.get_dipole_moment()
    other = atoms.copy()
    other.calc = MACECalculator(models=[atoms.calc.model], device="cpu", default_dtype="float64")
    np.testing.assert_allclose(other.get_stress(), atoms.get_stress(), atol=1e-10)
    np.testing.assert_allclose(other.get_forces(), atoms.get_forces(), atol=1e-9)


@pytest.mark.parametrize("config", [dict(multipoles=1), dict(operator="graph")], ids=["coulomb", "graph"])
def test_kept_neighbours_give_the_energies_and_forces_of_a_fresh_list(config):
    """A walk in a cell thinner than the cut-off, across faces, with another cell half-way."""
    model, atoms = made(**config), crystal()
    atoms.calc = PhiCalculator(model, skin=0.5)
    rng, lists = np.random.default_rng(0), []
    for step in range(8):
        atoms.positions += 0.03 * rng.normal(size=atoms.positions.shape)
        if step == 4:
            atoms.set_cell(0.85 * atoms.cell)
        forces = atoms.get_forces()
        lists.append(atoms.calc.input.lists[0].built_at)
        fresh = atoms.copy()
        fresh.calc = PhiCalculator(copy.deepcopy(model), skin=0.0)
        np.testing.assert_allclose(forces, fresh.get_forces(), rtol=0, atol=1e-11)
        assert atoms.get_potential_energy() == pytest.approx(fresh.get_potential_energy(), rel=1e-13)
    assert lists[4] is not lists[3], "the cell changed"
    assert len({id(one) for one in lists}) < 6


def test_an_open_structure_has_no_stress():
    atoms = ethanol()
    atoms.calc = PhiCalculator(made())
    with pytest.raises(NotImplementedError, match="stress"):
        atoms.get_stress()
    assert model_output(atoms)["stress"] is None and model_output(atoms)["virials"].shape == (1, 3, 3)


def model_output(atoms):
    return atoms.calc.model(batch_of(atoms), compute_stress=True, compute_virials=True)


def test_cell_relaxation():
    atoms = crystal()
    atoms.calc = PhiCalculator(made())
    relaxed, energies = FrechetCellFilter(atoms), []
    dynamics = BFGS(relaxed, logfile=None, maxstep=0.05)
    dynamics.attach(lambda: energies.append(atoms.get_potential_energy()))
    dynamics.run(fmax=1e-3, steps=10)
    assert len(energies) == 11 and (np.diff(energies) < 0).all()


def test_slabs_and_wires_with_the_graph_operator():
    slab = crystal()
    for pbc in ([True, True, False], [False, False, True]):
        slab.pbc = pbc
        cell = slab.cell.array * np.array(pbc)[:, None]
        slab.set_cell(cell)
        slab.calc = PhiCalculator(made(operator="graph"))
        forces = calculate_numerical_forces(slab, eps=1e-4, iatoms=[0], icarts=[2])
        np.testing.assert_allclose(slab.get_forces()[0, 2], forces[0, 0], atol=1e-6)
        results = slab.calc.results
        if sum(pbc) == 1:
            assert "stress" not in results and "dipole" not in results
        else:
            # Without a third vector the volume is A times 1 Å.
            thick, normal = slab.copy(), np.cross(*slab.cell[:2])
            normal /= np.linalg.norm(normal)
            thick.cell[2], thick.calc, inside = 9 * normal, slab.calc, np.eye(3) - np.outer(normal, normal)
            strained = 9 * inside @ calculate_numerical_stress(thick, eps=1e-5, voigt=False) @ inside
            np.testing.assert_allclose(voigt_6_to_full_3x3_stress(results["stress"]), strained, atol=1e-6)
            assert "surface_potential_step" not in slab.calc.phi_results  # there is no potential in space
        slab.set_cell(crystal().cell)


def pbc_of(pbc):
    atoms = crystal()
    atoms.pbc = pbc
    return batch_of(atoms)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (lambda: pbc_of([True, False, False]), "pbc T F F.*two or three periodic directions or none.*operator='graph'"),
        (lambda: pbc_of([False, False, True]), "pbc F F T"),
        (lambda: pbc_of(True) | {"cell": torch.zeros(3, 3)}, "singular"),
        (lambda: pbc_of(True) | {"cell": torch.eye(3) * 0.1}, "too small.*0.1 Å"),
        (lambda: pbc_of(True) | {"cell": torch.full((3, 3), torch.nan)}, "not finite"),
        (lambda: pbc_of([True, True, False]) | {"cell": torch.tensor([4, 4, torch.nan]).diag()}, "not finite"),
        (lambda: pbc_of(True) | {"cell": torch.eye(3)[:2]}, r"cell has shape \(2, 3\) for 1 structures"),
        (lambda: pbc_of(True) | {"cell": "cubic"}, "cell is 'cubic'; give a tensor of real numbers"),
        (lambda: pbc_of(True) | {"pbc": torch.ones(2, 3)}, r"pbc has shape \(2, 3\) for 1 structures"),
        (lambda: pbc_of(True) | {"pbc": "TTT"}, "pbc is 'TTT'; give True or False for each direction"),
        (lambda: pbc_of(True) | {"pbc": torch.tensor([[1, 2, 1]])}, "pbc is .*; give True or False for each direction"),
        (lambda: pbc_of(False) | {"total_charge": "neutral"}, "total_charge is 'neutral'; give a tensor"),
        (lambda: pbc_of(True) | {"cell": None}, "no cell"),
        (lambda: pbc_of(True) | {"pbc": None}, "no pbc"),
        (lambda: pbc_of(True) | {"positions": torch.full((4, 3), torch.nan)}, "positions are not finite"),
    ],
)
def test_what_cannot_be_computed_is_said(batch, message):
    with pytest.raises(InputError, match=message):
        made()(batch(), compute_stress=True)


@pytest.mark.parametrize("kind", [torch.int64, torch.float32, torch.uint8])
def test_periodic_directions_may_be_zeros_and_ones(kind):
    batch, model = batch_of(crystal(), crystal()), made()
    batch["pbc"] = torch.tensor([[True, True, True], [True, True, False]])
    want = model(batch)["energy"]
    torch.testing.assert_close(model({**batch, "pbc": batch["pbc"].to(kind)})["energy"], want, rtol=0, atol=0)


def test_a_charged_cell_gets_a_background_and_a_warning():
    atoms, model = crystal(), made()
    atoms.info["total_charge"] = 1.0
    with pytest.warns(UserWarning, match="uniform background"):
        out = run(model, atoms)
    assert out["charges"].sum() == pytest.approx(1.0, abs=1e-12)
    # The potential is relative to the cell's mean, which a charge on every atom does not change.
    want = slope(model, lambda x: strained(atoms, x * np.eye(3)))
    assert np.trace(out["stress"][0]) * atoms.get_volume() == pytest.approx(want, abs=1e-6 * max(1, abs(want)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(batch_of(ethanol()))


@pytest.mark.parametrize("config", [dict(low_pass=0.2), dict(num_modes=3)], ids=["low-pass", "k3"])
def test_the_uniform_charge_is_the_smoothest_mode(config):
    """An added constant passes f unchanged, so that charges are projected along it, in ideal crystals too."""
    model, atoms = made(charge_constraint="none", **config), rocksalt()
    given = torch.randn(len(atoms), 1, 1)
    fields = [given, given + 0.3]
    charges = []
    for field in fields:
        handle = model.phi.alpha_net.register_forward_hook(lambda module, arguments, output, f=field: f)
        out = run(model, atoms)
        handle.remove()
        np.testing.assert_allclose(out["net_charge"], field.sum().item(), rtol=1e-9)
        charges.append(out["charges"])
    np.testing.assert_allclose(charges[1] - charges[0], 0.3, atol=1e-10)
    assert np.abs(charges[0] - given.flatten().numpy()).max() > 0.05, "f must change something"


def test_single_precision_forces_and_stress_are_close_to_double():
    model = made()
    want = run(model, crystal())
    got = model.float()(batch_of(crystal(), dtype=torch.float32), compute_stress=True)
    assert got["stress"].dtype == torch.float32
    np.testing.assert_allclose(got["forces"].numpy(), want["forces"], atol=1e-4 * np.abs(want["forces"]).max())
    np.testing.assert_allclose(got["stress"].numpy(), want["stress"], atol=1e-4 * np.abs(want["stress"]).max())
