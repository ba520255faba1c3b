"""What must hold for every model of ``list_models()``, with both operators: to be registered is to be tested.

Sizes are shrunk by what their settings are called; those that are then the same are tested once. Weights are moved away
from their start, where zeros would hide mistakes.
"""

import copy
import io
import json
import re

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import make_supercell, molecule
from checks import check_forces, check_gradients, check_symmetries, force_loss, run
from systems import ELEMENTS, R_MAX, batch_of, distorted, ethanol, ideal_ring, regular_tetrahedron

from phi_equivariant import PhiCalculator
from phi_equivariant.weights import load_model, save_model
from zoo import create_model, list_models, model_info, parameter_groups

pytestmark = pytest.mark.usefixtures("double")

SMALLER = {
    "hidden_irreps": lambda irreps: re.sub(r"\d+x", "4x", irreps),
    "MLP_irreps": lambda irreps: "4x0e",
    "radial_MLP": lambda widths: [8],
    "num_interactions": lambda number: 2,
    "correlation": lambda number: 2,
    "max_ell": lambda number: number and min(number, 2),
    "num_bessel": lambda number: 6,
    "num_gaussians": lambda number: 16,
    "num_rbf": lambda number: 8,
    "hidden_channels": lambda number: 8,
    "num_filters": lambda number: 8,
    "num_heads": lambda number: 2,
}
OPERATORS = {
    "graph": dict(operator="graph", poisson="learned", low_pass=0.2),
    "coulomb": dict(operator="coulomb", poisson="exact", channels=2),
}


def shrunk(name):
    """The settings of a size that are other than its own."""
    arguments = model_info(name)["arguments"]
    return {key: SMALLER[key](value) for key, value in arguments.items() if key in SMALLER}


def distinct():
    """One name for each architecture that is left after shrinking."""
    names = {json.dumps([model_info(name)["host"], shrunk(name)]): name for name in reversed(list_models())}
    return sorted(names.values())


def made(name, phi=None, **overrides):
    torch.manual_seed(0)
    return create_model(name, ELEMENTS, phi=phi, r_max=R_MAX, **shrunk(name), **overrides)


@pytest.fixture(params=[(name, op) for name in distinct() for op in OPERATORS], ids="-".join, scope="module")
def model(request):
    torch.set_default_dtype(torch.float64)
    name, operator = request.param
    model = made(name, OPERATORS[operator])
    with torch.no_grad():
        for parameter in model.host.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for head in model.phi.alpha_net.heads:
            head.out.weight.mul_(10.0)
    return model


@pytest.mark.parametrize("name", list_models())
def test_a_fresh_model_starts_sensibly(name):
    """At full size: charges of 0.01 to 0.6 e, an energy that is not of keV, every parameter in one group."""
    torch.manual_seed(0)
    model = create_model(name, ELEMENTS, r_max=R_MAX)
    fresh = run(model, ethanol())
    assert 0.01 < np.abs(fresh["charges"]).mean() < 0.6 and abs(fresh["energy"][0]) < 50.0
    assert sum(len(group["params"]) for group in parameter_groups(model)) == len(list(model.parameters()))


def test_symmetries(model):
    check_symmetries(model)


@pytest.mark.parametrize(
    "atoms",
    [
        ethanol(),
        ideal_ring(),
        regular_tetrahedron(),
        molecule("CH4"),
        molecule("H2O") + Atoms("CO", [[25, 0, 0], [25, 0, 1.2]]),
    ],
    ids=["ethanol", "ring", "tetrahedron", "methane", "disconnected"],
)
def test_forces_equal_finite_differences(model, atoms):
    check_forces(model, atoms, n_components=2)


def test_other_structures_in_the_batch_change_nothing(model):
    atoms, benzene, water = ethanol(), molecule("C6H6"), molecule("H2O")
    alone, mixed = run(model, atoms), run(model, benzene, atoms, water)
    inside = slice(12, 12 + len(atoms))
    for key in ("energy", "pde_residual"):
        np.testing.assert_allclose(mixed[key][1], alone[key][0], atol=1e-10)
    for key in ("forces", "charges", "node_energy", "node_feats"):
        np.testing.assert_allclose(mixed[key][inside], alone[key], atol=1e-10)
    np.testing.assert_allclose(alone["node_energy"].sum(), alone["energy"][0], rtol=1e-12)


def test_nothing_jumps_when_an_atom_crosses_the_cutoff(model):
    paths = []
    for step in range(-4, 5):
        atoms = molecule("H2O") + Atoms("C", [[0.0, 0.0, 0.0]])
        atoms.positions[3] = atoms.positions[0] + [0, 0, R_MAX + step * 1e-6]
        paths.append(atoms)
    out = run(model, *paths)
    assert np.abs(np.diff(out["energy"], 2)).max() < 1e-9
    assert np.abs(np.diff(out["forces"].reshape(len(paths), 4, 3)[:, 3, 2])).max() < 1e-5


def test_copies_far_apart_add_up(model):
    one = ethanol()
    far = one.copy()
    distance = 60.0
    far.positions += [0, 0, distance]
    a, b = run(model, one), run(model, one + far)
    dipoles = 14.4 * 4 * (a["dipole"] ** 2).sum() / distance**3  # their interaction, for coulomb
    assert abs(b["energy"][0] - 2 * a["energy"][0]) < 1e-9 + dipoles
    np.testing.assert_allclose(b["charges"][: len(one)], a["charges"], atol=1e-4)


def test_training_through_forces(model):
    """Second derivatives, also where atoms have no neighbours or symmetry makes vectors vanish."""
    check_gradients(model, force_loss, ethanol())
    model.zero_grad()
    alone = Atoms("O", [[0, 0, 0.0]])
    out = model(batch_of(alone, molecule("H2O") + Atoms("O", [[0, 0, 50.0]]), molecule("CH4")), training=True)
    assert (out["forces"][0] == 0).all() and torch.isfinite(out["energy"]).all()
    (out["energy"].sum() + out["forces"].square().sum() + out["pde_residual"].sum()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert [name for name, gradient in gradients.items() if not torch.isfinite(gradient).all()] == []
    assert [n for n, _ in model.phi.named_parameters() if f"phi.{n}" not in gradients] == []


def test_copies_files_and_the_bare_host(model, tmp_path):
    """What is copied, pickled or saved as parameters alone gives the same; Φ off gives the host bit for bit."""
    want = run(model, ethanol())
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    save_model(model, tmp_path, parameters_only=True)
    for twin in (torch.load(buffer, weights_only=False), load_model(tmp_path)):
        np.testing.assert_allclose(run(twin, ethanol())["forces"], want["forces"], atol=1e-9)
    twin, host = copy.deepcopy(model), copy.deepcopy(model.host)
    off = run(host, ethanol())
    assert not np.array_equal(off["energy"], want["energy"])
    detached = twin.detach()
    assert not any(module._forward_hooks for module in detached.modules())
    again = run(detached, ethanol())
    assert np.array_equal(again["energy"], off["energy"]) and np.array_equal(again["forces"], off["forces"])
    atoms = ethanol()
    atoms.calc = PhiCalculator(model)
    np.testing.assert_allclose(atoms.get_forces(), want["forces"], atol=1e-9)


def test_single_precision(model):
    want = run(model, ethanol())["forces"]
    got = copy.deepcopy(model).float()(batch_of(ethanol(), dtype=torch.float32))["forces"]
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.detach().numpy(), want, rtol=0, atol=1e-4 * max(1.0, np.abs(want).max()))


def test_crystals(model):
    """Stress and forces of a skewed cell, and a supercell, which the same crystal is."""
    if not getattr(model.host, "periodic", True):
        pytest.skip("the host takes open structures only")
    atoms = Atoms("CO", [[0, 0, 0], [1.7, 0.4, 0.2]], cell=[[4.6, 0, 0], [0.7, 4.4, 0.2], [-0.4, 0.3, 4.8]], pbc=True)
    atoms = distorted(atoms)
    rng = np.random.default_rng(2)
    strain, direction = rng.normal(size=(3, 3)), rng.normal(size=(2, 3))
    strain = (strain + strain.T) / 2
    steps, moved = 2e-4 * np.array([-2, -1, 1, 2]), []
    for change in [strain, direction]:
        for step in steps:
            other = atoms.copy()
            if change is strain:
                other.set_cell(atoms.cell @ (np.eye(3) + step * strain), scale_atoms=True)
            else:
                other.positions += step * direction
            moved.append(other)
    doubled = make_supercell(atoms, [[2, 0, 0], [0, 1, 0], [0, 0, 1]])
    out = {
        k: v.detach().numpy() for k, v in model(batch_of(atoms, doubled), compute_stress=True).items() if v is not None
    }
    energies = run(model, *moved)["energy"].reshape(2, 4)
    slopes = energies @ [1, -8, 8, -1] / (12 * 2e-4)
    stress, forces = out["stress"][0], out["forces"][:2]
    assert abs((stress * strain).sum() * atoms.get_volume() - slopes[0]) < 1e-6 * max(1.0, abs(slopes[0]))
    assert abs((forces * direction).sum() + slopes[1]) < 1e-6 * max(1.0, abs(slopes[1]))
    np.testing.assert_allclose(out["energy"][1], 2 * out["energy"][0], rtol=1e-8)
    np.testing.assert_allclose(out["stress"][1], stress, atol=1e-8)
