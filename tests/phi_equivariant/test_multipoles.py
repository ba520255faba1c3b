"""Atomic dipoles: closed forms, finite differences, symmetries, Born effective charges."""

import copy
import functools
import math

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from bare_operators import energy_of
from checks import check_slopes
from scipy.integrate import quad
from systems import batch_of, distorted, enlarge_dipoles, ethanol, mace_host, potential
from training_runs import keep_default_dtype, metrics, write_molecules  # noqa: F401
from training_runs import run as train

from phi_equivariant import PhiCalculator, PhiConfig, attach_phi
from phi_equivariant.born_charges import born_effective_charges
from phi_equivariant.errors import InputError
from phi_equivariant.operators.coulomb import COULOMB_CONSTANT
from phi_equivariant.operators.gaussians import boys
from phi_equivariant.weights import load_model, save_model

from e3nn import o3  # isort: skip

pytestmark = pytest.mark.usefixtures("double")

CONFIGS = {
    "plain": dict(multipoles=1),
    "channels": dict(multipoles=1, channels=2),
    "k4": dict(multipoles=1, num_modes=4),
    "penalty-low-pass": dict(multipoles=1, charge_constraint="penalty", low_pass=0.2),
}


@functools.cache
def host():
    return mace_host()


def made(**config):
    model = potential(host=copy.deepcopy(host()), **{"multipoles": 1, **config})
    enlarge_dipoles(model)
    return model


def run(model, *structures, **asked):
    return {k: v.detach().numpy() for k, v in model(batch_of(*structures), **asked).items() if torch.is_tensor(v)}


@pytest.mark.parametrize("order", [0, 1, 2, 4])
def test_boys_functions_are_their_integrals(order):
    x = torch.tensor([0.0, 1e-6, 0.3, 0.999, 1.0, 1.5, 8.0, 60.0])
    want = [quad(lambda t, s=s: t ** (2 * order) * math.exp(-s * t * t), 0, 1, epsabs=1e-15)[0] for s in x.tolist()]
    for highest in (order, order + 2):
        np.testing.assert_allclose(boys(highest, x)[order], want, rtol=1e-12)
        np.testing.assert_allclose(boys(highest, x.float())[order], want, rtol=1e-5)
    inner = x[1:].clone().requires_grad_(True)
    assert torch.autograd.gradgradcheck(lambda y: boys(order, y), inner)


def test_a_dipole_is_the_limit_of_two_opposite_charges():
    """The energy of charges and dipoles equals that of the same charges with every dipole as a close pair ±|μ|/h."""
    rng = np.random.default_rng(0)
    place, width = torch.tensor(2 * rng.normal(size=(4, 3))), torch.tensor([0.3, 0.5, 0.8, 1.2])
    charges, dipoles = torch.tensor(rng.normal(size=4)), torch.tensor(rng.normal(size=(4, 3)))
    got = energy_of(place, width, charges, dipoles).item()
    errors = []
    for h in (0.04, 0.02):
        direction = dipoles / dipoles.norm(dim=1, keepdim=True)
        both = torch.cat([place, place + h / 2 * direction, place - h / 2 * direction])
        size = dipoles.norm(dim=1) / h
        pairs = energy_of(both, width.repeat(3), torch.cat([charges, size, -size]), torch.zeros(12, 3)).item()
        errors.append(pairs - got)
    assert abs(errors[1]) < 2e-2 * abs(got) and errors[0] / errors[1] == pytest.approx(4, rel=0.02)


def test_far_charges_and_dipoles_obey_the_laws_of_point_ones():
    r, q = 40.0, 0.7
    mu = torch.tensor([[0.2, -0.1, 0.5], [0.3, 0.4, -0.6]])
    place, width = torch.tensor([[0, 0, 0], [0, 0, r]]), torch.tensor([0.5, 0.9])
    none = torch.zeros(2)

    def interaction(charges, dipoles):
        alone = [energy_of(place[[i]], width[[i]], charges[[i]], dipoles[[i]]) for i in range(2)]
        return (energy_of(place, width, charges, dipoles) - sum(alone)).item()

    dipole_dipole = COULOMB_CONSTANT * ((mu[0] @ mu[1]) - 3 * mu[0, 2] * mu[1, 2]) / r**3
    assert interaction(none, mu) == pytest.approx(dipole_dipole.item(), rel=1e-9)
    charge_dipole = COULOMB_CONSTANT * q * -mu[1, 2] / r**2  # the positive end towards the charge costs energy
    assert interaction(torch.tensor([q, 0.0]), mu * torch.tensor([[0.0], [1.0]])) == pytest.approx(
        charge_dipole.item(), rel=1e-9
    )


def test_a_dipole_in_its_own_field():
    width, mu = torch.tensor([0.6]), torch.tensor([[0.3, -0.2, 0.7]])
    want = COULOMB_CONSTANT * mu.square().sum().item() / (12 * math.sqrt(math.pi) * 0.6**3)
    assert energy_of(torch.zeros(1, 3), width, torch.zeros(1), mu).item() == pytest.approx(want, rel=1e-12)


def test_the_energy_is_that_of_a_field_and_never_negative():
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        place = 1.5 * torch.randn(4, 3, generator=generator)
        width = 0.3 + 0.9 * torch.rand(4, generator=generator)
        charges, dipoles = torch.randn(4, generator=generator), torch.randn(4, 3, generator=generator)
        assert energy_of(place, width, charges, dipoles) > 0


def test_terms_are_twice_differentiable():
    place = torch.randn(3, 3, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
    width = torch.tensor([0.4, 0.7, 1.1], requires_grad=True)
    charges, dipoles = torch.tensor([0.4, -0.3, 0.2]), torch.randn(3, 3)

    def energy(x, sigma):
        return energy_of(x, sigma, charges, dipoles)

    assert torch.autograd.gradcheck(energy, (place, width))
    assert torch.autograd.gradgradcheck(energy, (place, width))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_forces_and_gradients_equal_finite_differences(config):
    model, atoms = made(**config), ethanol()
    assert np.abs(run(model, atoms)["atomic_dipoles"]).max() > 0.01
    forces, step = run(model, atoms)["forces"], 1e-4
    direction = np.random.default_rng(0).normal(size=forces.shape)
    energies = []
    for factor in (-2, -1, 1, 2):
        moved = atoms.copy()
        moved.positions += factor * step * direction
        energies.append(moved)
    a, b, c, d = run(model, *energies)["energy"]
    slope = (a - 8 * b + 8 * c - d) / (12 * step)
    assert abs((forces * direction).sum() + slope) < 1e-6 * max(1, abs(slope))

    def loss():
        return model(batch_of(atoms), training=True)["forces"].square().sum()

    model.zero_grad()
    loss().backward()
    names = [f"alpha_net.vector_heads.0.{name}" for name in ("vectors.weight", "mixing", "weights.out.weight")]
    parameters = {name: model.phi.get_parameter(name) for name in names}
    assert all(parameter.grad.any() for parameter in parameters.values())
    check_slopes(parameters, loss)


def test_symmetries_and_batch_mates():
    model, atoms = made(channels=2), ethanol()
    want = run(model, atoms)
    rotation = -o3.rand_matrix().numpy()  # improper: a reflection too
    moved = atoms.copy()
    moved.positions = moved.positions @ rotation.T + [3.0, -2.0, 1.0]
    got = run(model, molecule("C6H6"), moved, molecule("H2O"))
    inside = slice(12, 12 + len(atoms))
    np.testing.assert_allclose(got["phi_energy"][1], want["phi_energy"][0], rtol=1e-9)
    np.testing.assert_allclose(got["dipole"][1], rotation @ want["dipole"][0], atol=1e-9)
    for key in ("forces", "atomic_dipoles"):
        np.testing.assert_allclose(got[key][inside], want[key] @ rotation.T, atol=1e-9)


def test_the_dipole_is_of_charges_and_dipoles_and_needs_no_origin():
    atoms, model = ethanol(), made()
    out = run(model, atoms)
    for shift in (0.0, 30.0):
        dipole = out["charges"] @ (atoms.positions + shift) + out["atomic_dipoles"].sum(0)
        np.testing.assert_allclose(out["dipole"][0], dipole, atol=1e-9)


def test_the_energy_is_that_of_reported_charges_dipoles_and_widths():
    atoms, model = ethanol(), made()
    out = run(model, atoms)
    species = torch.tensor([[1, 6, 7, 8].index(z) for z in atoms.numbers])
    width = model.phi.operator.widths()[species].detach()
    want = energy_of(*map(torch.as_tensor, (atoms.positions, width, out["charges"], out["atomic_dipoles"])))
    assert out["phi_energy"][0] == pytest.approx(want.item(), rel=1e-8)


@pytest.mark.parametrize("charge", [0, 1])
def test_born_effective_charges(charge):
    atoms, model, step = ethanol(), made(), 1e-4
    atoms.info["total_charge"] = charge
    batch = batch_of(atoms, molecule("H2O"))
    got = born_effective_charges(model, batch).numpy()
    np.testing.assert_allclose(got[: len(atoms)].sum(0), charge * np.eye(3), atol=1e-9)
    np.testing.assert_allclose(got[len(atoms) :].sum(0), 0, atol=1e-9)
    ends = []
    for sign in (1, -1):
        moved = atoms.copy()
        moved.positions[2, 1] += sign * step
        out = run(model, moved)
        ends.append(out["charges"] @ moved.positions + out["atomic_dipoles"].sum(0))
    np.testing.assert_allclose(got[2, :, 1], (ends[0] - ends[1]) / (2 * step), atol=1e-6)
    atoms.calc = PhiCalculator(model)
    np.testing.assert_allclose(atoms.calc.get_born_effective_charges(atoms), got[: len(atoms)], atol=1e-9)
    atoms.get_potential_energy()
    assert atoms.calc.phi_results["atomic_dipoles"].shape == (len(atoms), 3)


def test_a_dimer_far_apart_adds_up():
    one = distorted(molecule("H2O"))  # about the origin, where mace's search for neighbours is quick
    far = Atoms(one.symbols, one.positions - [0, 0, 100.0]) + Atoms(one.symbols, one.positions + [0, 0, 100.0])
    model = made()
    np.testing.assert_allclose(run(model, far)["phi_energy"], 2 * run(model, one)["phi_energy"], atol=1e-5)


def test_saved_and_loaded(tmp_path):
    model, atoms = made(), ethanol()
    save_model(model, tmp_path)
    want = run(model, atoms)
    np.testing.assert_allclose(run(load_model(tmp_path), atoms)["energy"], want["energy"], rtol=1e-14)


def test_dipoles_start_small_and_all_of_phi_gets_a_gradient():
    atoms, start = ethanol(), attach_phi(copy.deepcopy(host()), PhiConfig(multipoles=1, channels=2))
    assert list(start.phi.alpha_net.vector_heads) == ["0"], "the last of mace's layers has scalars only"
    assert 1e-3 < np.abs(run(start, atoms)["atomic_dipoles"]).max() < 0.1
    out = start(batch_of(atoms), training=True)
    (out["energy"].sum() + out["forces"].square().sum()).backward()
    assert [name for name, p in start.phi.named_parameters() if p.grad is None or not p.grad.any()] == []
    small = attach_phi(copy.deepcopy(host()), PhiConfig(multipoles=1, init="small"))
    assert 0 < abs(run(small, atoms)["phi_energy"][0]) < 1e-5 * len(atoms)


def test_dipoles_train_from_the_command_line(tmp_path):
    data = write_molecules(tmp_path / "train.xyz", charges=True)
    given = {"hidden_irreps": "4x0e+4x1o", "dipole_key": "mu", "dipole_weight": 1e4, "forces_weight": 0.01}
    given |= {"energy_weight": 0.01, "max_num_epochs": 5}
    rows = metrics(train(tmp_path, name="run", train_file=data, phi=["multipoles=1"], **given))
    assert 0 < rows[-1]["train_term_dipole"] < 0.5 * rows[0]["train_term_dipole"]


def test_what_is_not_supported_is_said():
    for config in (dict(operator="graph"), dict(poisson="learned"), dict(multipoles=2), dict(multipoles=True)):
        with pytest.raises(InputError, match="multipoles is"):
            PhiConfig(**{"multipoles": 1, **config})
    with pytest.raises(InputError, match="no tapped layer has 1o channels: 8x0e"):
        attach_phi(mace_host("8x0e", num_interactions=1), PhiConfig(multipoles=1))
    with pytest.raises(InputError, match="bare host"):
        PhiCalculator(mace_host()).get_born_effective_charges(ethanol())
