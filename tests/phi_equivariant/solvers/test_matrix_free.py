"""Structures above ``dense_limit``: computed without matrices, with the results of dense algebra (float64)."""

import copy
import functools
import itertools

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import molecule
from ase.md.verlet import VelocityVerlet
from systems import ELEMENTS, R_MAX, batch_of, distorted, enlarge_dipoles, ethanol, mace_host, potential, structures_of

from phi_equivariant import PhiCalculator, PhiConfig
from phi_equivariant.errors import ConvergenceError, InputError
from phi_equivariant.operators.free_space import FreeSpaceMatrix
from phi_equivariant.operators.kinds import OPERATORS
from phi_equivariant.operators.lattice import LatticeSum
from phi_equivariant.operators.waves import Waves
from phi_equivariant.solvers.iterative import conjugate_gradients, solve
from phi_equivariant.solvers.spectral import LowPass

pytestmark = pytest.mark.usefixtures("double")


@functools.cache
def host():
    return mace_host("4x0e", num_interactions=1)


@functools.cache
def host_with_vectors():
    return mace_host("4x0e+4x1o")


def pair(limit=20, **config):
    """The same potential twice: dense, and without matrices above so many atoms."""
    base = copy.deepcopy(host_with_vectors() if config.get("multipoles") else host())
    torch.manual_seed(1)
    dense = potential(host=base, **config)
    enlarge_dipoles(dense)
    return dense, limited(copy.deepcopy(dense), limit, **config)


def limited(model, limit, **config):
    """A potential that makes no matrices of more atoms."""
    model.phi.config = PhiConfig(**config, dense_limit=limit)
    model.phi.operator = OPERATORS[model.phi.config.operator].build(ELEMENTS, R_MAX, model.phi.config)
    return model


def chain(n=3):
    """Ethanol molecules side by side, each another way round."""
    atoms = Atoms()
    for i in range(n):
        part = ethanol()
        part.rotate(70 * i, "xyz"[i % 3])
        part.translate([4.5 * i, 0, 0])
        atoms += part
    return atoms


def crystal(copies=(2, 2, 1)):
    """Ethanol molecules in a skewed cell, unlike one another."""
    atoms = molecule("CH3CH2OH")
    atoms.set_cell([[5.2, 0, 0], [0.5, 5.6, 0.1], [-0.3, 0.2, 6.0]])
    atoms.pbc = True
    return distorted(atoms * copies)


def gradients(model, loss):
    """∂ loss/∂ every parameter of Φ and of the host, as one vector."""
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return torch.cat([g.flatten() for g in found if g is not None])


@pytest.mark.parametrize(
    ("operator", "poisson", "low_pass", "multipoles"),
    [
        *itertools.product(("graph", "coulomb"), ("exact", "learned"), (None, 0.2), (0,)),
        *itertools.product(("coulomb",), ("exact",), (None, 0.2), (1,)),
    ],
)
@pytest.mark.parametrize("atoms", [chain(), crystal()], ids=["open", "periodic"])
def test_equals_dense_algebra(operator, poisson, low_pass, multipoles, atoms):
    """All results, and the gradient of a loss on forces and stress to every parameter."""
    config = dict(operator=operator, poisson=poisson, low_pass=low_pass, multipoles=multipoles)
    models = pair(**config, channels=1 if low_pass else 2)
    outputs, slopes = [], []
    for model in models:
        out = model(batch_of(atoms), training=True, compute_stress=True)
        loss = out["forces"].square().sum() + out["pde_residual"].sum() + out["energy"].sum()
        if out["stress"] is not None:
            loss = loss + 1e3 * out["stress"].square().sum()
        outputs.append(out)
        slopes.append(gradients(model, loss))
    for key in ("phi_energy", "forces", "stress", "charges", "potential", "pde_residual", "net_charge", "dipole"):
        want, got = (out[key] for out in outputs)
        if want is not None:
            scale = max(1.0, want.abs().max().item())
            np.testing.assert_allclose(got.detach(), want.detach(), rtol=0, atol=1e-7 * scale, err_msg=key)
    np.testing.assert_allclose(slopes[1], slopes[0], rtol=0, atol=1e-7 * slopes[0].abs().max().item())


@pytest.mark.parametrize(
    "config",
    [dict(operator="coulomb"), dict(operator="graph", poisson="learned", low_pass=0.2), dict(multipoles=1)],
    ids=["coulomb", "graph", "multipoles"],
)
def test_large_and_small_structures_in_one_batch(config):
    """Each has the results it has alone; total charges too."""
    dense, free = pair(**config)
    structures = [ethanol(), chain(), molecule("H2O"), crystal(), chain(4)]
    if config.get("operator") != "graph":
        structures[1].info["total_charge"] = 1.0
        structures[2].info["total_charge"] = -1.0
    out, start = free(batch_of(*structures), compute_stress=True), 0
    for index, atoms in enumerate(structures):
        alone, end = dense(batch_of(atoms), compute_stress=True), start + len(atoms)
        for key in ("energy", "pde_residual", "net_charge", "charge_penalty"):
            np.testing.assert_allclose(out[key][index].item(), alone[key][0].item(), rtol=1e-9, atol=1e-9, err_msg=key)
        for key in ("forces", "charges", "potential"):
            np.testing.assert_allclose(out[key][start:end].detach(), alone[key].detach(), atol=1e-7, err_msg=key)
        start = end


@pytest.mark.parametrize(
    ("config", "atoms"),
    [
        (dict(operator="graph", low_pass=0.3), chain()),
        (dict(low_pass=0.3), chain()),
        (dict(low_pass=0.3), crystal()),
        (dict(multipoles=1), chain()),
        (dict(multipoles=1), crystal()),
    ],
    ids=["graph", "open", "mesh", "dipoles", "dipoles on a mesh"],
)
def test_forces_equal_finite_differences(config, atoms):
    _, model = pair(**config)
    direction = np.random.default_rng(0).normal(size=atoms.positions.shape)
    forces = model.eval()(batch_of(atoms))["forces"].detach().numpy()
    energies, step = [], 1e-3
    for factor in (-2, -1, 1, 2):
        moved = atoms.copy()
        moved.positions += factor * step * direction
        energies.append(model(batch_of(moved), compute_force=False)["energy"].item())
    a, b, c, d = energies
    slope = (a - 8 * b + 8 * c - d) / (12 * step)
    assert abs((forces * direction).sum() + slope) < 1e-6 * max(1.0, np.abs(forces).max())


def symmetric(seed=0, n=30):
    """A positive definite matrix with condition number 1e3, and a right-hand side."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.linalg.qr(torch.randn(n, n, generator=generator))[0]
    return vectors @ torch.diag(torch.logspace(-1, 2, n)) @ vectors.mT, torch.randn(n, 2, generator=generator)


def test_conjugate_gradients_equal_a_direct_solve():
    matrix, rhs = symmetric()
    want = torch.linalg.solve(matrix, rhs)
    np.testing.assert_allclose(conjugate_gradients(lambda v: matrix @ v, rhs), want, rtol=0, atol=1e-8)
    rhs[:, 1] = 0.0  # a column with nothing to solve for, whatever the guess
    got = conjugate_gradients(lambda v: matrix @ v, rhs, start=torch.ones_like(rhs))
    np.testing.assert_allclose(got, torch.stack([want[:, 0], torch.zeros(30)], 1), rtol=0, atol=1e-8)


def test_the_solution_is_twice_differentiable():
    torch.manual_seed(0)
    factor, rhs = torch.randn(4, 4, requires_grad=True), torch.randn(4, 2, requires_grad=True)

    def solution(factor, rhs):
        matrix = factor @ factor.mT + torch.eye(4)
        return solve(lambda v: matrix @ v, rhs, order=2)

    assert torch.autograd.gradcheck(solution, (factor, rhs), atol=1e-5)
    assert torch.autograd.gradgradcheck(solution, (factor, rhs), atol=1e-5)


@pytest.mark.parametrize(("low_pass", "dtype"), [(1e-12, torch.float64), (1e-6, torch.float32)])
def test_a_solve_that_does_not_converge_is_an_error(low_pass, dtype):
    _, model = pair(operator="graph", low_pass=low_pass)
    message = r"low-pass of a structure of 27 atoms.* was asked for, .* was reached after 20\d\d steps.*dense_limit=27"
    with pytest.raises(ConvergenceError, match=message):
        model.to(dtype)(batch_of(chain(), dtype=dtype))


def test_molecular_dynamics_starts_from_the_last_solution(monkeypatch):
    """Fewer products than from zero, and the same forces; training never looks back."""
    _, model = pair(operator="graph", low_pass=0.05)
    count = 0
    kind = type(model.phi.operator.at(structures_of(chain(), r_max=R_MAX)).parts[0][1])
    product = kind.product

    def counted(*arguments):
        nonlocal count
        count += 1
        return product(*arguments)

    monkeypatch.setattr(kind, "product", counted)
    atoms = chain()
    atoms.calc = PhiCalculator(model)
    atoms.get_forces()
    cold = count
    VelocityVerlet(atoms, 0.2 * units.fs).run(1)
    count = 0
    atoms.rattle(1e-4)
    forces = atoms.get_forces()
    assert count < 0.85 * cold
    fresh = copy.deepcopy(model)
    fresh.phi.spectral_filter = LowPass(0.05, inverse=False)
    np.testing.assert_allclose(forces, fresh(batch_of(atoms))["forces"].detach(), atol=1e-8)
    count = 0
    model.train()(batch_of(atoms))
    again, count = count, 0
    model(batch_of(atoms))
    assert count == again


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (dict(operator="graph", num_modes=5), "num_modes is 5.*27 atoms.*dense_limit=20.*low_pass"),
        (dict(num_modes=5), "num_modes is 5.*27 atoms.*dense_limit=20.*low_pass"),
    ],
)
def test_what_needs_a_matrix_is_refused_by_name(config, message):
    model = potential(host=copy.deepcopy(host()), dense_limit=20, **config)
    with pytest.raises(InputError, match=message):
        model(batch_of(chain()))
    model(batch_of(ethanol()))


def test_a_window_with_room_for_all_modes_needs_no_matrix():
    (_, model), (plain, _) = pair(num_modes=30), pair()
    np.testing.assert_allclose(
        model(batch_of(chain()))["energy"].detach(), plain(batch_of(chain()))["energy"].detach(), rtol=1e-12
    )


@pytest.mark.parametrize("limit", [0, 2.5, True, None])
def test_a_limit_that_is_no_number_of_atoms(limit):
    with pytest.raises(InputError, match="dense_limit is .*whole number"):
        PhiConfig(dense_limit=limit)


@pytest.mark.slow
@pytest.mark.parametrize("periodic", [True, False])
def test_the_matrix_is_left_out_by_itself_above_2000_atoms(periodic, monkeypatch):
    """2,016 atoms: no matrix is made, and the results are those of one, of the repeated cell's if periodic."""
    dense, free = pair(limit=PhiConfig().dense_limit, low_pass=0.2)
    atoms = crystal((1, 1, 1)) * (7, 8, 4)
    atoms.pbc = periodic
    assert free.phi.operator.dense_limit == 2000 < len(atoms)
    limited(dense, len(atoms), low_pass=0.2)
    compare_without_matrix(dense, free, atoms, monkeypatch)


@pytest.mark.parametrize(("periodic", "copies"), [(True, (3, 3, 2)), (False, (4, 4, 4))])
def test_the_matrix_is_left_out_earlier_where_it_is_only_applied(periodic, copies, monkeypatch):
    dense, free = pair(limit=PhiConfig().dense_limit)
    free.eval()
    atoms = crystal((1, 1, 1)) * copies
    atoms.pbc = periodic
    dense.phi.operator.tiles_from = len(atoms)
    compare_without_matrix(dense, free, atoms, monkeypatch)


def compare_without_matrix(dense, free, atoms, monkeypatch):
    """Results of ``dense``, for one unit cell if periodic, and of ``free``, which may make no matrix."""
    periodic = bool(atoms.pbc.all())
    want = dense(batch_of(crystal((1, 1, 1)) if periodic else atoms), compute_stress=True)
    for kind in (FreeSpaceMatrix, LatticeSum):
        monkeypatch.delattr(kind, "matrix")
    monkeypatch.delattr(Waves, "__init__")
    got = free(batch_of(atoms), compute_stress=True)
    repeats = len(atoms) // len(want["charges"])
    np.testing.assert_allclose(got["energy"].item(), repeats * want["energy"].item(), rtol=1e-9)
    for key in ("forces", "charges", "potential"):
        values = want[key].detach()
        np.testing.assert_allclose(got[key].detach(), torch.cat([values] * repeats), rtol=0, atol=1e-7, err_msg=key)
    if periodic:
        np.testing.assert_allclose(got["stress"].detach(), want["stress"].detach(), rtol=0, atol=1e-8)
