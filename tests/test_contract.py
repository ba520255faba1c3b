"""What every potential keeps: operators and settings on one host, and every model of ``list_models()``.

To be registered is to be tested; a new operator, setting or host is a line in one of the tables.

The zoo's sizes are shrunk by what their settings are called; those that are then the same are tested once. Weights are
moved away from their start, where zeros would hide mistakes. All in float64, but for one test.
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
from ase.units import Bohr, Hartree
from checks import check_forces, check_gradients, check_symmetries, force_loss, phi_forces, residual_loss, run
from systems import (
    ELEMENTS,
    R_MAX,
    batch_of,
    distorted,
    ethanol,
    ideal_ring,
    mace_host,
    potential,
    regular_tetrahedron,
)

from phi_equivariant import PhiCalculator
from phi_equivariant.weights import load_model, save_model
from zoo import create_model, list_models, model_info

pytestmark = pytest.mark.usefixtures("double")

SETTINGS = {
    "graph-learned-k3": dict(operator="graph", poisson="learned", num_modes=3),
    "graph-exact": dict(operator="graph", poisson="exact", channels=2),
    "graph-learned": dict(operator="graph", poisson="learned"),
    "graph-exact-low-pass": dict(operator="graph", poisson="exact", low_pass=0.2),
    "coulomb-exact": dict(operator="coulomb", poisson="exact"),
    "coulomb-learned-k5": dict(operator="coulomb", poisson="learned", num_modes=5, channels=2),
    "coulomb-exact-low-pass": dict(operator="coulomb", poisson="exact", low_pass=0.2),
    "coulomb-exact-penalty": dict(operator="coulomb", poisson="exact", charge_constraint="penalty"),
    "qeq": dict(charge_model="qeq"),
    "qeq-dipoles": dict(charge_model="qeq", channels=2, multipoles=1),
    "sqe": dict(charge_model="sqe"),
    "sqe-polarizable-penalty": dict(charge_model="sqe", polarizable=True, charge_constraint="penalty"),
    "polarizable-dipoles": dict(polarizable=True, channels=2, multipoles=1),
}
HOSTS = {
    "mace-scalars-coulomb": lambda: potential(
        host=mace_host("8x0e", 1), operator="coulomb", poisson="learned", channels=2
    ),
    "mace-l2-three-layers-graph": lambda: potential(
        host=mace_host("4x0e+4x1o+4x2e", 3, scale_shift=False), operator="graph", poisson="learned", num_modes=3
    ),
}
ZOO = {
    "graph": dict(operator="graph", poisson="learned", low_pass=0.2),
    "coulomb": dict(operator="coulomb", poisson="exact", channels=2),
}
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


def shrunk(name):
    """The settings of a size that are other than its own."""
    arguments = model_info(name)["arguments"]
    return {key: SMALLER[key](value) for key, value in arguments.items() if key in SMALLER}


def distinct():
    """One name for each architecture that is left after shrinking."""
    names = {json.dumps([model_info(name)["host"], shrunk(name)]): name for name in reversed(list_models())}
    return sorted(names.values())


def of_zoo(name, phi):
    """A small model of a host of the zoo, none of its weights at zero."""
    torch.manual_seed(0)
    model = create_model(name, ELEMENTS, phi=phi, r_max=R_MAX, **shrunk(name))
    with torch.no_grad():
        for parameter in model.host.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for head in model.phi.alpha_net.heads:
            head.out.weight.mul_(10.0)
    return model


SUBJECTS = {
    **{name: lambda settings=settings: potential(**settings) for name, settings in SETTINGS.items()},
    **HOSTS,
    **{
        f"{name}-{operator}": lambda name=name, phi=phi: of_zoo(name, phi)
        for name in distinct()
        for operator, phi in ZOO.items()
    },
}
STRUCTURES = {
    "ethanol": ethanol(),
    "ring": ideal_ring(),
    "tetrahedron": regular_tetrahedron(),
    "methane": molecule("CH4"),
    "nearly-degenerate": distorted(ideal_ring(), size=1e-6),
    "disconnected": molecule("H2O") + Atoms(molecule("CH3OH").symbols, molecule("CH3OH").positions + [25, 0, 0]),
    "two-atoms": Atoms("CO", [[0, 0, 0], [0, 0, 1.2]]),
}


@pytest.fixture(params=SUBJECTS, scope="module")
def model(request):
    torch.set_default_dtype(torch.float64)
    return SUBJECTS[request.param]()


def test_symmetries(model):
    check_symmetries(model)


@pytest.mark.parametrize("atoms", STRUCTURES.values(), ids=STRUCTURES)
def test_forces_equal_finite_differences(model, atoms):
    check_forces(model, atoms, n_components=2)


def test_other_structures_in_the_batch_change_nothing(model):
    atoms, benzene, water = ethanol(), molecule("C6H6"), molecule("H2O")
    alone, mixed = run(model, atoms), run(model, benzene, atoms, water)
    inside = slice(12, 12 + len(atoms))
    for key in ("energy", "pde_residual", "net_charge"):
        np.testing.assert_allclose(mixed[key][1], alone[key][0], atol=1e-10)
    for key in ("forces", "charges", "potential", "node_energy", "node_feats"):
        np.testing.assert_allclose(mixed[key][inside], alone[key], atol=1e-10)
    np.testing.assert_allclose(alone["node_energy"].sum(), alone["energy"][0], rtol=1e-12)


def test_copies_far_apart_add_up(model):
    if model.phi.config.num_modes is not None:
        pytest.skip("a fixed number of modes cannot be size-extensive")
    one, distances, left = ethanol(), (100.0, 200.0), []
    a = run(model, one)
    charge = a["charges"].sum()  # of channel 0, where it is not projected
    for distance in distances:
        near, far = one.copy(), one.copy()  # about the origin, where mace's search for neighbours is quick
        near.positions[:, 2] -= distance / 2
        far.positions[:, 2] += distance / 2
        b = run(model, near + far)
        np.testing.assert_allclose(b["charges"][: len(one)], a["charges"], atol=2e-4)
        left.append(abs(b["energy"][0] - 2 * a["energy"][0] - Hartree * Bohr * charge**2 / distance))
    # The interaction of dipoles, in every channel, falls with the third power of the distance. A low-pass of coulomb
    # acts before charges are projected, on net charges, whose potential falls with the first.
    conducts = model.phi.config.low_pass is not None and model.phi.operator.inverse
    assert left[0] < 1e-3 and left[1] < 1e-9 + left[0] / (1.4 if conducts else 7.5)


def test_charges_sum_to_the_total_charge(model):
    if model.phi.config.charge_constraint == "penalty":
        pytest.skip("a penalty asks for the sum and does not enforce it")
    ion = ethanol()
    ion.info["total_charge"] = float(model.phi.operator.carries_charge)
    charges = run(model, ion, molecule("H2O"))["charges"]
    sums = charges[: len(ion)].sum(), charges[len(ion) :].sum()
    np.testing.assert_allclose(sums, [ion.info["total_charge"], 0.0], atol=1e-9)


def test_nothing_jumps_when_an_atom_crosses_the_cutoff(model):
    paths = []
    for step in range(-4, 5):
        atoms = molecule("H2O") + Atoms("C", [[0.0, 0.0, 0.0]])
        atoms.positions[3] = atoms.positions[0] + [0, 0, R_MAX + step * 1e-6]
        paths.append(atoms)
    out = run(model, *paths)
    assert np.abs(np.diff(out["energy"], 2)).max() < 1e-9
    assert np.abs(np.diff(out["forces"].reshape(len(paths), 4, 3)[:, 3, 2])).max() < 1e-5


@pytest.mark.parametrize("atoms", [ideal_ring(), ethanol()], ids=["ring", "ethanol"])
def test_second_derivatives_train_through_forces(model, atoms):
    check_gradients(model, force_loss, atoms)
    if model.phi.config.poisson == "learned":
        check_gradients(model, residual_loss, atoms)


@pytest.mark.parametrize("training", [True, False], ids=["training", "energy-only"])
@pytest.mark.parametrize("atoms", [ideal_ring(), ethanol()], ids=["ring", "ethanol"])
def test_hessian_times_vector_equals_differences_of_forces(model, atoms, training):
    """Second derivatives in positions alone; those above see a window's second order only through σ of ``coulomb``.

    The displaced structures share a batch, of which none must see another.
    """
    direction = torch.randn(len(atoms), 3, generator=torch.Generator().manual_seed(2))
    batch = batch_of(*5 * [atoms])
    steps = 1e-4 * torch.tensor([0.0, -2, -1, 1, 2]).repeat_interleave(len(atoms))
    positions = batch["positions"] = batch["positions"] + steps[:, None] * direction.repeat(5, 1)
    if training:
        forces, _ = phi_forces(model, batch)
    else:
        positions.requires_grad_(True)
        energy = model(batch, compute_force=False)["phi_energy"].sum()
        forces = -torch.autograd.grad(energy, positions, create_graph=True)[0]
    here, *moved = forces.split(len(atoms))
    got = torch.autograd.grad((here * direction).sum(), positions)[0].split(len(atoms))
    a, b, c, d = (each.detach() for each in moved)
    expected = (a - 8 * b + 8 * c - d) / (12 * 1e-4)
    np.testing.assert_allclose(got[0].numpy(), expected.numpy(), rtol=0, atol=1e-7 * expected.abs().max())
    assert max(each.abs().max() for each in got[1:]) < 1e-10 * expected.abs().max()


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


def test_every_parameter_of_phi_gets_a_gradient_and_none_is_nan(model):
    """Also where atoms have no neighbours, or symmetry makes vectors vanish."""
    model.zero_grad()
    lonely = molecule("H2O") + Atoms("O", [[0, 0, 50.0]])
    structures = Atoms("O", [[0, 0, 0.0]]), lonely, molecule("CH4"), molecule("CH3CONH2"), ethanol()
    out = model(batch_of(*structures), training=True)
    assert (out["forces"][0] == 0).all() and torch.isfinite(out["energy"]).all()
    (out["energy"].sum() + out["forces"].square().sum() + out["pde_residual"].sum()).backward()
    assert [n for n, p in model.phi.named_parameters() if p.grad is None or p.grad.abs().max() == 0] == []
    assert [n for n, p in model.named_parameters() if p.grad is not None and not torch.isfinite(p.grad).all()] == []


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
    if model.phi.config.num_modes is not None:
        return  # not size-extensive
    np.testing.assert_allclose(out["energy"][1], 2 * out["energy"][0], rtol=1e-8)
    np.testing.assert_allclose(out["stress"][1], stress, atol=1e-8)
