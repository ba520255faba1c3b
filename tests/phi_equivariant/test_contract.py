"""What must hold for every host and every operator (float64, but for one test)."""

import copy

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from checks import check_forces, check_gradients, check_symmetries, force_loss, phi_forces, residual_loss, run
from systems import (
    R_MAX,
    batch_of,
    distorted,
    ethanol,
    ideal_ring,
    mace_host,
    nequip_host,
    potential,
    regular_tetrahedron,
)

pytestmark = pytest.mark.usefixtures("double")

CONFIGS = {
    "graph-learned-k3": dict(operator="graph", poisson="learned", num_modes=3),
    "graph-exact": dict(operator="graph", poisson="exact", channels=2),
    "graph-learned": dict(operator="graph", poisson="learned"),
    "graph-exact-low-pass": dict(operator="graph", poisson="exact", low_pass=0.2),
    "coulomb-exact": dict(operator="coulomb", poisson="exact"),
    "coulomb-learned-k5": dict(operator="coulomb", poisson="learned", num_modes=5, channels=2),
    "coulomb-exact-low-pass": dict(operator="coulomb", poisson="exact", low_pass=0.2),
    "coulomb-exact-penalty": dict(operator="coulomb", poisson="exact", charge_constraint="penalty"),
}
HOSTS = {
    "mace-scalars": lambda: mace_host("8x0e", 1),
    "mace-vectors": lambda: mace_host("8x0e+8x1o"),
    "mace-l2-three-layers": lambda: mace_host("4x0e+4x1o+4x2e", 3, scale_shift=False),
    "nequip": lambda: nequip_host("8x0e+8x1o+4x2e"),
}
ON_HOSTS = {
    "graph": dict(operator="graph", poisson="learned", num_modes=3, channels=2),
    "coulomb": dict(operator="coulomb", poisson="learned", channels=2),
}


@pytest.fixture(params=CONFIGS, scope="module")
def model(request):
    torch.set_default_dtype(torch.float64)
    return potential(**CONFIGS[request.param])


@pytest.fixture(params=[(host, config) for host in HOSTS for config in ON_HOSTS], ids="-".join, scope="module")
def model_on_host(request):
    torch.set_default_dtype(torch.float64)
    host, config = request.param
    return potential(host=HOSTS[host](), **ON_HOSTS[config])


def test_symmetries(model):
    check_symmetries(model)


def test_symmetries_forces_and_gradients_on_every_kind_of_host(model_on_host):
    check_symmetries(model_on_host)
    check_forces(model_on_host, ethanol(), n_components=2)
    check_gradients(model_on_host, force_loss, ethanol())


@pytest.mark.parametrize(
    "atoms",
    [
        ethanol(),
        ideal_ring(),
        regular_tetrahedron(),
        distorted(ideal_ring(), size=1e-6),
        molecule("H2O") + Atoms(molecule("CH3OH").symbols, molecule("CH3OH").positions + [25, 0, 0]),
        Atoms("CO", [[0, 0, 0], [0, 0, 1.2]]),
    ],
    ids=["ethanol", "ring", "tetrahedron", "nearly-degenerate", "disconnected", "two-atoms"],
)
def test_forces_equal_finite_differences(model, atoms):
    check_forces(model, atoms)


def test_other_structures_in_the_batch_change_nothing(model):
    atoms, benzene, water = ethanol(), molecule("C6H6"), molecule("H2O")
    alone, mixed = run(model, atoms), run(model, benzene, atoms, water)
    inside = slice(12, 12 + len(atoms))
    for key in ("energy", "pde_residual", "net_charge"):
        np.testing.assert_allclose(mixed[key][1], alone[key][0], atol=1e-10)
    for key in ("forces", "charges", "potential"):
        np.testing.assert_allclose(mixed[key][inside], alone[key], atol=1e-10)


def test_one_atom_and_an_isolated_last_atom(model):
    out = run(model, Atoms("O", [[0, 0, 0.0]]))
    assert np.isfinite(out["energy"]).all() and (out["forces"] == 0).all()
    out = run(model, molecule("H2O") + Atoms("O", [[0, 0, 50.0]]))
    assert np.isfinite(out["forces"]).all() and len(out["charges"]) == 4


def test_copies_far_apart_add_up(model):
    if model.phi.config.num_modes is not None:
        pytest.skip("a fixed number of modes cannot be size-extensive")
    one = ethanol()
    far = one.copy()
    distance = 100.0
    far.positions += [0, 0, distance]
    a, b = run(model, one), run(model, one + far)
    # What is left is the copies' interaction: between dipoles, and between net charges where those are not projected.
    charge = a["charges"].sum()
    allowed = 1e-9 + 14.4 * (4 * (a["dipole"] ** 2).sum() / distance**3 + 1.1 * charge**2 / distance)
    assert abs(b["energy"][0] - 2 * a["energy"][0]) < allowed
    np.testing.assert_allclose(b["charges"][: len(one)], a["charges"], atol=1e-4)


def test_nothing_jumps_when_an_atom_crosses_the_cutoff(model):
    energies, forces = [], []
    for step in range(-4, 5):
        atoms = molecule("H2O") + Atoms("C", [[0.0, 0.0, 0.0]])
        atoms.positions[3] = atoms.positions[0] + [0, 0, R_MAX + step * 1e-6]
        out = run(model, atoms)
        energies.append(out["energy"][0])
        forces.append(out["forces"][3, 2])
    assert np.abs(np.diff(energies, 2)).max() < 1e-9
    assert np.abs(np.diff(forces)).max() < 1e-5


@pytest.mark.parametrize("atoms", [ideal_ring(), ethanol()], ids=["ring", "ethanol"])
def test_second_derivatives_train_through_forces(model, atoms):
    check_gradients(model, force_loss, atoms)
    if model.phi.config.poisson == "learned":
        check_gradients(model, residual_loss, atoms)


@pytest.mark.parametrize("training", [True, False], ids=["training", "energy-only"])
@pytest.mark.parametrize("atoms", [ideal_ring(), ethanol()], ids=["ring", "ethanol"])
def test_hessian_times_vector_equals_differences_of_forces(model, atoms, training):
    """Second derivatives in positions alone; those above see a window's second order only through σ of ``coulomb``."""
    direction = torch.randn(len(atoms), 3, generator=torch.Generator().manual_seed(2))

    def forces(change=0.0):
        batch = batch_of(atoms)
        batch["positions"] = (batch["positions"] + change * direction).requires_grad_(True)
        if training:
            return phi_forces(model, batch)[0], batch["positions"]
        energy = model(batch, compute_force=False)["phi_energy"].sum()
        return -torch.autograd.grad(energy, batch["positions"], create_graph=True)[0], batch["positions"]

    here, positions = forces()
    (got,) = torch.autograd.grad((here * direction).sum(), positions)
    a, b, c, d = (forces(factor * 1e-4)[0].detach() for factor in (-2, -1, 1, 2))
    expected = (a - 8 * b + 8 * c - d) / (12 * 1e-4)
    np.testing.assert_allclose(got.numpy(), expected.numpy(), rtol=0, atol=1e-7 * expected.abs().max())


def test_gradients_of_a_mixed_batch_are_the_sum_over_its_structures(model):
    """Second derivatives too keep to their own structure, next to larger ones, smaller ones and padding."""
    structures = [ethanol(), molecule("H2O"), molecule("C6H6"), ideal_ring()]

    def gradients(*some):
        """To every parameter, and to the positions, which a window's second order enters for every operator."""
        model.zero_grad()
        batch = batch_of(*some)
        forces, out = phi_forces(model, batch)
        (forces.square().sum() + out["pde_residual"].sum()).backward()
        to_parameters = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        return to_parameters, batch["positions"].grad

    together, to_positions = gradients(*structures)
    alone, to_positions_alone = zip(*(gradients(atoms) for atoms in structures), strict=True)
    difference = to_positions - torch.cat(to_positions_alone)
    assert difference.norm() < 1e-10 * to_positions.norm()
    assert set(together) >= {f"phi.{name}" for name, _ in model.phi.named_parameters()}
    largest = max(gradient.norm() for gradient in together.values())
    for name, gradient in together.items():
        expected = sum(one[name] for one in alone if name in one)
        # The host's readouts cancel from Φ's forces: what they get is rounding.
        assert (gradient - expected).norm() < 1e-10 * expected.norm() + 1e-13 * largest, name


def test_every_parameter_of_phi_gets_a_gradient(model):
    model.zero_grad()
    out = model(batch_of(molecule("CH3CONH2"), ethanol()), training=True)
    (out["energy"].sum() + out["forces"].square().sum() + out["pde_residual"].sum()).backward()
    assert [n for n, p in model.phi.named_parameters() if p.grad is None or p.grad.abs().max() == 0] == []


def far_triatomics(stretch):
    """One is stretched past its like: two modes of the graph Laplacian cross as the third and fourth lowest."""
    line = 1.16 * np.array([[-1, 0, 0], [0, 0, 0], [1, 0, 0.0]])
    return Atoms("OCN", stretch * line) + Atoms("NCH", line + [0, 0, 40.0])


def rectangle(stretch):
    """Unlike atoms on a rectangle that passes through the square, where two modes are equal by symmetry."""
    corners = np.array([[1, 1, 0], [1, -1, 0], [-1, -1, 0], [-1, 1, 0.0]])
    return Atoms("CNOH", 0.7 * corners * [stretch, 1.0, 1.0])


@pytest.mark.parametrize("poisson", ["exact", "learned"])
@pytest.mark.parametrize(
    ("operator", "path", "k"),
    [("graph", far_triatomics, 3), ("graph", rectangle, 2), ("coulomb", rectangle, 2)],
    ids=["graph-triatomics", "graph-rectangle", "coulomb-rectangle"],
)
def test_crossing_eigenvalues_give_neither_jump_nor_kink(operator, path, k, poisson):
    """Two eigenvalues cross at the edge of the kept modes; energy and force stay smooth along the path."""
    model = potential(operator=operator, poisson=poisson, num_modes=k)
    if operator == "coulomb":
        with torch.no_grad():
            model.phi.operator.width_logit.fill_(0.0)  # equal widths, so that the square is symmetric

    tangent = path(2.0).positions - path(1.0).positions
    batches = [batch_of(*(path(stretch) for stretch in np.linspace(0.95, 1.05, n))) for n in (41, 161)]

    def differences(batch):
        """Largest second difference of Φ's energy and largest first difference of its force along the path."""
        n = len(batch["ptr"]) - 1
        forces, out = phi_forces(model, batch)
        along = (forces.detach().numpy().reshape(n, *tangent.shape) * tangent).sum((1, 2))
        energies = out["phi_energy"].detach().numpy()
        assert np.ptp(energies) > 1e-4
        return np.abs(np.diff(energies, 2)).max(), np.abs(np.diff(along)).max()

    (energy_coarse, force_coarse), (energy_fine, force_fine) = map(differences, batches)
    assert energy_fine / energy_coarse < 0.08, "second differences of a smooth energy fall as the step squared, 1/16"
    assert force_fine / force_coarse < 0.28, "first differences of a continuous force fall as the step, 1/4"
    model.phi.response.width = 1e-6
    hard_coarse, hard_fine = map(differences, batches)
    assert hard_fine[0] / hard_coarse[0] > 0.5, "a sharp window must jump, or the path does not cross what it should"


@pytest.mark.parametrize(
    "config",
    [
        dict(operator="graph", poisson="learned", num_modes=3),
        dict(operator="graph", poisson="exact"),
        dict(operator="coulomb", poisson="exact", low_pass=0.2),
    ],
    ids=["graph-learned-k3", "graph-exact", "coulomb-exact-low-pass"],
)
def test_single_precision_forces_are_close_to_double(config):
    double = potential(**config)
    single = copy.deepcopy(double).float()
    wanted = double(batch_of(ethanol()))["forces"].numpy()
    got = single(batch_of(ethanol(), dtype=torch.float32))["forces"]
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), wanted, rtol=0, atol=1e-5)
