"""What must hold for every host and every operator (float64)."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from systems import R_MAX, batch_of, distorted, ethanol, ideal_ring, mace_host, potential, regular_tetrahedron

from e3nn import o3  # isort: skip

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
    "scalars": dict(hidden_irreps="8x0e", num_interactions=1),
    "vectors": dict(hidden_irreps="8x0e+8x1o"),
    "l2-three-layers": dict(hidden_irreps="4x0e+4x1o+4x2e", num_interactions=3, scale_shift=False),
}


@pytest.fixture(params=CONFIGS, scope="module")
def model(request):
    torch.set_default_dtype(torch.float64)
    return potential(**CONFIGS[request.param])


@pytest.fixture(params=HOSTS, scope="module")
def model_on_host(request):
    torch.set_default_dtype(torch.float64)
    return potential(host=mace_host(**HOSTS[request.param]), operator="coulomb", poisson="learned", channels=2)


def run(model, *structures):
    return {k: v.detach().numpy() for k, v in model(batch_of(*structures)).items() if torch.is_tensor(v)}


def check_symmetries(model):
    atoms = ethanol()
    want = run(model, atoms)
    rotation = -o3.rand_matrix().numpy()  # improper: a reflection too
    order = np.random.default_rng(0).permutation(len(atoms))
    moved = atoms[order]
    moved.positions = moved.positions @ rotation.T + [3.0, -2.0, 1.0]
    got = run(model, moved)
    np.testing.assert_allclose(got["energy"], want["energy"], rtol=1e-10)
    np.testing.assert_allclose(got["phi_energy"], want["phi_energy"], rtol=1e-9)
    np.testing.assert_allclose(got["forces"], want["forces"][order] @ rotation.T, atol=1e-9)
    np.testing.assert_allclose(got["charges"], want["charges"][order], atol=1e-10)
    np.testing.assert_allclose(got["dipole"], want["dipole"] @ rotation.T, atol=1e-9)


def check_forces(model, atoms, n_components=4, step=1e-4):
    """Forces against a fourth-order central difference of the total energy."""
    forces = run(model, atoms)["forces"]
    for index in np.random.default_rng(1).permutation(3 * len(atoms))[:n_components]:
        i, c = divmod(int(index), 3)
        energies = []
        for factor in (-2, -1, 1, 2):
            moved = atoms.copy()
            moved.positions[i, c] += factor * step
            energies.append(run(model, moved)["energy"][0])
        slope = (energies[0] - 8 * energies[1] + 8 * energies[2] - energies[3]) / (12 * step)
        assert abs(forces[i, c] + slope) < 1e-6 * max(1.0, np.abs(forces).max())


def test_symmetries(model):
    check_symmetries(model)


def test_symmetries_on_every_kind_of_host(model_on_host):
    check_symmetries(model_on_host)
    check_forces(model_on_host, ethanol(), n_components=2)


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


def test_second_derivatives_train_through_forces(model):
    """d(loss on forces and residual)/d(parameter) against a central difference, on a degenerate structure."""
    atoms = ideal_ring()

    def loss():
        out = model(batch_of(atoms), training=True)
        return out["forces"].square().sum() + out["pde_residual"].sum()

    model.zero_grad()
    loss().backward()
    for name, parameter in model.phi.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        flat, gradient = parameter.data.view(-1), parameter.grad.view(-1)
        index, kept, values = int(gradient.abs().argmax()), None, []
        kept = flat[index].item()
        for change in (1e-5, -1e-5):
            flat[index] = kept + change
            values.append(loss().item())
        flat[index] = kept
        slope = (values[0] - values[1]) / 2e-5
        assert abs(slope - gradient[index].item()) < 1e-5 * max(1.0, abs(slope)), name


def test_every_parameter_of_phi_gets_a_gradient(model):
    model.zero_grad()
    out = model(batch_of(molecule("CH3CONH2"), ethanol()), training=True)
    (out["energy"].sum() + out["forces"].square().sum() + out["pde_residual"].sum()).backward()
    assert [n for n, p in model.phi.named_parameters() if p.grad is None or p.grad.abs().max() == 0] == []


@pytest.mark.parametrize("poisson", ["exact", "learned"])
def test_crossing_eigenvalues_give_neither_jump_nor_kink(poisson):
    """One triatomic is stretched past an equal one, so that eigenvalues cross at the edge of the kept modes."""
    model = potential(operator="graph", poisson=poisson, num_modes=3)

    def second_differences(n):
        energies = []
        for factor in np.linspace(0.95, 1.05, n):
            line = 1.16 * np.array([[-1, 0, 0], [0, 0, 0], [1, 0, 0.0]])
            atoms = Atoms("OCN", factor * line) + Atoms("NCH", line + [0, 0, 40.0])
            energies.append(run(model, atoms)["phi_energy"][0])
        return np.abs(np.diff(energies, 2)).max()

    coarse, fine = second_differences(41), second_differences(161)
    assert coarse < 5e-3
    assert fine / coarse < 0.1, "second differences of a smooth function fall as the square of the step (1/16)"
