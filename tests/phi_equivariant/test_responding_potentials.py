"""Charges and dipoles that respond, in whole potentials: sums, limits, parts of a batch, starts, what is refused.

That these potentials keep what every potential does, ``test_contract.py`` says.
"""

import copy
import functools
import json
from math import erf, pi, sqrt

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from checks import run
from systems import batch_of, distorted, enlarge_dipoles, ethanol, mace_host, potential
from training_runs import keep_default_dtype, metrics, write_molecules  # noqa: F401
from training_runs import run as train

from phi_equivariant import PhiConfig, attach_phi
from phi_equivariant.errors import InputError
from phi_equivariant.solvers import batched
from phi_equivariant.weights import load_model, read_saved, save_model
from training.run import Phi

pytestmark = pytest.mark.usefixtures("double")

CONFIGS = {
    "qeq": dict(charge_model="qeq"),
    "sqe": dict(charge_model="sqe"),
    "polarizable": dict(polarizable=True),
    "everything": dict(charge_model="sqe", polarizable=True, multipoles=1, channels=2),
}
EACH = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


@functools.cache
def host():
    return mace_host("8x0e+8x1o", 2)


def made(**config):
    model = potential(host=copy.deepcopy(host()), **config)
    enlarge_dipoles(model)
    return model.eval()


def crystal(seed=0):
    return distorted(bulk("CO", "rocksalt", a=4.4, cubic=True), seed)


def charged(atoms, charge):
    atoms.info["total_charge"] = charge
    return atoms


@EACH
def test_charges_sum_to_the_total_charge(config):
    structures = ethanol(), charged(molecule("CH3OH"), 1), charged(distorted(molecule("H2O")), -1)
    out = run(made(**config), *structures)
    sums = np.add.reduceat(out["charges"], np.cumsum([0, *map(len, structures)])[:-1])
    np.testing.assert_allclose(sums, [0, 1, -1], atol=1e-12)
    if config.get("charge_model") == "qeq":
        np.testing.assert_array_equal(out["net_charge"], [0, 1, -1])


@EACH
def test_a_batch_of_what_is_solved_in_several_ways(config):
    """Molecules and crystals, some by factorising and one by iterating, are each as they are alone and dense."""
    model = made(**config)
    iterated = copy.deepcopy(model)
    iterated.phi.operator.dense_limit = iterated.phi.operator.tiles_from = 8
    structures = crystal(), ethanol(), molecule("H2O"), crystal(1)
    alone = [run(model, atoms, compute_stress=True) for atoms in structures]
    for one, tolerance in ((model, 1e-10), (iterated, 3e-8)):
        together = run(one, *structures, compute_stress=True)
        np.testing.assert_allclose(together["energy"], [out["energy"][0] for out in alone], atol=tolerance)
        for name in ("forces", "charges", "potential"):
            scale = np.abs(together[name]).max()
            np.testing.assert_allclose(
                together[name], np.concatenate([out[name] for out in alone]), rtol=0, atol=tolerance * scale
            )
        np.testing.assert_allclose(together["stress"][0], alone[0]["stress"][0], atol=tolerance)


@EACH
def test_gradients_of_a_loss_without_matrices_are_those_with_them(config):
    model = made(**config).train()
    found = []
    for limit in (2000, 4):
        model.phi.operator.dense_limit = model.phi.operator.tiles_from = limit
        model.zero_grad()
        out = model(batch_of(molecule("H2O"), ethanol()), training=True)
        (out["energy"].sum() + out["forces"].square().sum() + out["charges"].square().sum()).backward()
        found.append({name: p.grad.clone() for name, p in model.phi.named_parameters()})
    for name, want in found[0].items():
        assert (found[1][name] - want).norm() < 1e-7 * want.norm() + 1e-12, name


@EACH
def test_charges_that_are_not_to_be_differentiated_are_constants(config):
    """Where only energies are differentiated, the solution of a system has no graph: nor have dipoles made of it."""
    model, batch = made(**config), batch_of(ethanol())
    batch["positions"].requires_grad_(True)
    with_graph = {name for name, value in model(batch).items() if value is not None and value.requires_grad}
    assert with_graph <= {"energy", "host_energy", "phi_energy", "node_energy", "node_feats"}
    assert model(batch, compute_force=False)["dipole"].requires_grad
    assert model(batch, training=True)["charges"].requires_grad


def test_iterations_start_where_the_last_one_ended(monkeypatch):
    model, atoms = made(charge_model="qeq"), ethanol()
    model.phi.operator.dense_limit = model.phi.operator.tiles_from = 2
    steps = []
    descend = batched._descend
    monkeypatch.setattr(batched, "_descend", lambda *given: steps.append(descend(*given)) or steps[-1])
    run(model, atoms)
    first = sum(taken for *_, taken in steps)
    steps.clear()
    atoms.positions[0] += 1e-9
    run(model, atoms)
    assert sum(taken for *_, taken in steps) < 0.5 * first
    run(model, molecule("H2O"))  # others in between are not used as a start
    assert np.isfinite(run(model, atoms)["energy"]).all()


def test_without_conductance_charges_are_the_heads():
    model = made(charge_model="sqe")
    direct = made()
    direct.phi.alpha_net.load_state_dict(model.phi.alpha_net.state_dict())
    with torch.no_grad():
        model.phi.charge_model.conductance.log_weight.fill_(-60.0)
    got, want = run(model, ethanol()), run(direct, ethanol())
    np.testing.assert_allclose(got["charges"], want["charges"], atol=1e-12)
    np.testing.assert_allclose(got["potential"], want["potential"], atol=1e-11)
    np.testing.assert_allclose(got["net_charge"], want["net_charge"], atol=1e-12)


def test_without_polarisability_nothing_is_polarised():
    model, direct = made(polarizable=True, multipoles=1), made(multipoles=1)
    direct.phi.alpha_net.load_state_dict(model.phi.alpha_net.state_dict())
    with torch.no_grad():
        model.phi.charge_model.heads.element_term.fill_(-16.0)
    got, want = run(model, ethanol()), run(direct, ethanol())
    for name in ("energy", "forces", "dipole", "atomic_dipoles"):
        np.testing.assert_allclose(got[name], want[name], atol=1e-5)


def far_apart(distance):
    one, other = distorted(molecule("H2O")), distorted(molecule("CH3CONH2"))
    other.positions += [distance, 0, 0]
    return one, other


def test_unlike_fragments_add_up_only_where_nothing_moves_charge_between_them():
    """Under ``sqe`` with ``penalty``; qeq moves a charge between far unlike molecules, whatever their distance."""
    one, other = far_apart(60.0)
    for config, adds_up in (
        (dict(charge_model="sqe", charge_constraint="penalty"), True),
        (dict(charge_model="sqe", charge_constraint="none", polarizable=True), True),
        (dict(charge_model="qeq"), False),
    ):
        model = made(**config)
        alone, together = [run(model, atoms) for atoms in (one, other)], run(model, one + other)
        moved = together["charges"][: len(one)].sum() - alone[0]["charges"].sum()
        if adds_up:
            # What is left is the law of Coulomb between them.
            q = [out["charges"].sum() for out in alone]
            mu = [np.abs(out["charges"]) @ np.ones(len(out["charges"])) for out in alone]
            rest = together["energy"][0] - sum(out["energy"][0] for out in alone) - 14.399645 * q[0] * q[1] / 60
            assert abs(rest) < 14.4 * (abs(q[0]) * mu[1] + abs(q[1]) * mu[0] + mu[0] * mu[1] / 20) * 4 / 60**2
            assert abs(moved) < 0.01
        else:
            assert abs(moved) > 0.02


def test_the_energy_is_a_minimum_and_the_potential_that_of_the_charges():
    """E = ½ρᵀPρ + χᵀρ + ½ηρ² with what the heads give, and no other neutral charges have less."""
    model, atoms = made(charge_model="qeq"), ethanol()
    given = {}
    model.phi.charge_model.heads.register_forward_hook(lambda module, arguments, output: given.update(output))
    out = run(model, atoms)
    chi, eta = given["electronegativity"].detach().numpy(), given["hardness"].detach().numpy()

    def energy(charges):
        potential = run_operator(model, atoms, charges)
        return 0.5 * charges @ potential + chi @ charges + 0.5 * eta @ charges**2

    np.testing.assert_allclose(out["potential"], run_operator(model, atoms, out["charges"]), atol=1e-11)
    least = energy(out["charges"])
    assert out["phi_energy"][0] == pytest.approx(least, abs=1e-11)
    rng = np.random.default_rng(0)
    for size in (1e-3, 1e-1, 1.0):
        change = rng.normal(size=len(atoms))
        assert energy(out["charges"] + size * (change - change.mean())) > least


def run_operator(model, atoms, charges):
    """φ of charges in free space, by the closed form in numpy."""
    widths = model.phi.operator.widths().detach().numpy()
    species = [{1: 0, 6: 1, 7: 2, 8: 3}[z] for z in atoms.numbers]
    sigma, distance = widths[species], atoms.get_all_distances()
    gamma = np.sqrt(sigma[:, None] ** 2 + sigma[None] ** 2)
    np.fill_diagonal(distance, 1.0)
    kernel = np.vectorize(erf)(distance / (sqrt(2) * gamma)) / distance
    np.fill_diagonal(kernel, 1 / (sqrt(pi) * sigma))
    return 14.399645 * kernel @ charges


@EACH
def test_starts(config):
    """Charges of a sensible size by default; with ``small`` a trained host's energies do not move."""
    fresh = attach_phi(copy.deepcopy(host()), PhiConfig(**config))
    size = np.sqrt(np.mean(run(fresh, ethanol(), molecule("CH3CONH2"), molecule("HCOOH"))["charges"] ** 2))
    assert 0.1 < size < 0.45
    small = attach_phi(copy.deepcopy(host()), PhiConfig(**config, init="small"))
    out = run(small, ethanol(), molecule("HCOOH"))
    assert (np.abs(out["phi_energy"]) < 1e-5 * np.array([9, 5])).all() and (out["phi_energy"] != 0).all()


@EACH
def test_files(config, tmp_path):
    """What is saved is loaded; a file from before there were charge models, and energies of charge, is too."""
    model = made(**config)
    save_model(model, tmp_path / "new")
    want = run(model, ethanol())
    np.testing.assert_allclose(run(load_model(tmp_path / "new"), ethanol())["energy"], want["energy"], rtol=1e-13)
    settings = read_saved(tmp_path / "new").config["phi"]["config"]
    assert {name: settings[name] for name in config} == config
    plain = potential(host=copy.deepcopy(host()))
    save_model(plain, tmp_path / "old")
    path = tmp_path / "old" / "config.json"
    saved = json.loads(path.read_text())
    for name in ("charge_model", "polarizable", "electronegativity"):
        del saved["phi"]["config"][name]
    path.write_text(json.dumps(saved))
    assert "charge_model" not in read_saved(tmp_path / "old").config["phi"]["config"]
    want = run(plain, ethanol())["energy"]
    np.testing.assert_allclose(run(load_model(tmp_path / "old"), ethanol())["energy"], want, rtol=1e-13)


@pytest.mark.parametrize("model", [dict(charge_model="qeq"), dict(charge_model="sqe"), dict(polarizable=True)])
def test_what_charges_that_respond_cannot_be_combined_with(model):
    for other, message in (
        (dict(operator="graph"), "operator='graph'.*only operator='coulomb'"),
        (dict(poisson="learned"), "poisson='learned'.*their own"),
        (dict(low_pass=0.2), "low_pass is 0.2"),
        (dict(num_modes=4), "num_modes is 4"),
    ):
        with pytest.raises(InputError, match=message):
            PhiConfig(**model, **other)
    with pytest.raises(InputError, match="pde_weight.*zero by construction"):
        Phi(config=PhiConfig(**model), pde_weight=0.1)


def test_what_else_is_refused():
    for constraint in ("penalty", "none"):
        with pytest.raises(InputError, match=f"charge_constraint is '{constraint}' with charge_model='qeq'"):
            PhiConfig(charge_model="qeq", charge_constraint=constraint)
    with pytest.raises(InputError, match="charge_model is 'eem'; use one of 'direct', 'qeq', 'sqe'"):
        PhiConfig(charge_model="eem")
    with pytest.raises(InputError, match="polarizable is 1; use True or False"):
        PhiConfig(polarizable=1)
    with pytest.raises(InputError, match="net_charge_weight.*total charge by construction with charge_model: qeq"):
        Phi(config=PhiConfig(charge_model="qeq"), net_charge_weight=0.1)
    Phi(config=PhiConfig(charge_model="qeq", channels=2), net_charge_weight=0.1)
    model = made(charge_model="qeq")
    with torch.no_grad():
        model.phi.charge_model.heads.element_term[1] = -1e4
    with pytest.raises(InputError, match="hardness of atom 0 is 0.*file is damaged"):
        run(model, ethanol())


def test_one_atom_and_a_lonely_one():
    for config in CONFIGS.values():
        out = run(made(**config), charged(Atoms("O", [[0, 0, 0.0]]), -1), molecule("H2O") + Atoms("O", [[0, 0, 50.0]]))
        assert np.isfinite(out["forces"]).all() and out["charges"][0] == pytest.approx(-1)


@pytest.mark.parametrize("setting", ["charge_model=qeq", "charge_model=sqe", "polarizable=true"])
def test_they_train_from_the_command_line(tmp_path, setting):
    data = write_molecules(tmp_path / "train.xyz", charges=True)
    given = {"hidden_irreps": "4x0e", "charges_key": "q", "charges_weight": 100, "max_num_epochs": 8}
    rows = metrics(train(tmp_path, name="run", train_file=data, phi=[setting], **given))
    assert rows[-1]["train_loss"] < 0.9 * rows[0]["train_loss"] and rows[-1]["train_term_charges"] > 0
