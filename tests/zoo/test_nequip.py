"""The NequIP of the zoo on its own; with Φ attached it is one of the hosts of test_contract.py."""

import copy
import io
import json

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.fd import calculate_numerical_stress
from systems import ELEMENTS, R_MAX, batch_of, distorted, ethanol, nequip_host, potential

from e3nn import o3  # isort: skip
from mace.calculators import MACECalculator  # isort: skip

from phi_equivariant import PhiCalculator, PhiConfig, attach_phi
from phi_equivariant.errors import InputError
from phi_equivariant.weights import describe_model, load_model, save_model
from zoo import parameter_groups
from zoo.nequip import Convolution

pytestmark = pytest.mark.usefixtures("double")

KINDS = {
    "scalars": dict(hidden_irreps="8x0e", max_ell=2, num_interactions=2),
    "vectors, one layer": dict(hidden_irreps="8x0e+8x1o", num_interactions=1),
    "l = 3": dict(hidden_irreps="8x0e+4x1o+4x2e+2x3o"),
    "both parities": dict(hidden_irreps="4x0e+4x0o+4x1e+4x1o+4x2e+4x2o"),
    "no parity": dict(hidden_irreps="8x0e+8x1e", parity=False),
}


@pytest.fixture(params=KINDS, scope="module")
def model(request):
    torch.set_default_dtype(torch.float64)
    return nequip_host(**KINDS[request.param])


@pytest.fixture(scope="module")
def bare():
    """Two kinds of features, three layers; not to be changed (a copy is cheaper than another one)."""
    torch.set_default_dtype(torch.float64)
    return nequip_host()


def run(model, *structures, **asked):
    return {k: v.detach().numpy() for k, v in model(batch_of(*structures), **asked).items() if torch.is_tensor(v)}


@pytest.mark.parametrize("irreps", ["4x0e+3x1o+2x2e", "2x0o+3x0e+2x1o+3x1e+2x2e"])
def test_convolution_equals_e3nns_tensor_product(irreps):
    """Couplings, weights and their order, against o3.TensorProduct with the same paths."""
    irreps, edge_irreps = o3.Irreps(irreps), o3.Irreps.spherical_harmonics(2)
    ours = Convolution(irreps, edge_irreps, [ir for _, ir in irreps])
    paths = [
        (i, j, (mul, ir_out))
        for ir_out in sorted({ir for _, ir in irreps})
        for i, (mul, a) in enumerate(irreps)
        for j, (_, b) in enumerate(edge_irreps)
        if ir_out in a * b
    ]
    theirs = o3.TensorProduct(
        irreps, edge_irreps, o3.Irreps([out for _, _, out in paths]),
        [(i, j, k, "uvu", True) for k, (i, j, _) in enumerate(paths)], shared_weights=False, internal_weights=False,
    )  # fmt: skip
    assert ours.n_weights == theirs.weight_numel and ours.irreps_out.simplify() == theirs.irreps_out.simplify()
    features, y = torch.randn(5, irreps.dim), torch.randn(12, edge_irreps.dim)
    weights = torch.randn(12, theirs.weight_numel)
    sender, receiver = torch.randint(5, (2, 12))
    expected = torch.zeros(5, theirs.irreps_out.dim).index_add(0, receiver, theirs(features[sender], y, weights))
    np.testing.assert_allclose(ours(features, y, weights, sender, receiver), expected, atol=1e-12)


def test_symmetries(model):
    atoms = ethanol()
    rotation = o3.rand_matrix().numpy()
    if model.arguments["parity"]:
        rotation = -rotation
    order = np.random.default_rng(0).permutation(len(atoms))
    moved = atoms[order]
    moved.positions = moved.positions @ rotation.T + [3.0, -2.0, 1.0]
    want, got = run(model, atoms), run(model, moved)
    np.testing.assert_allclose(got["energy"], want["energy"], rtol=1e-12)
    np.testing.assert_allclose(got["node_energy"], want["node_energy"][order], rtol=1e-11)
    np.testing.assert_allclose(got["forces"], want["forces"][order] @ rotation.T, atol=1e-11)
    assert np.abs(want["forces"]).max() > 1e-3


@pytest.mark.parametrize("model", ["both parities", "no parity"], indirect=True)
def test_parity_decides_whether_mirror_images_differ(model):
    atoms, mirrored = ethanol(), ethanol()  # distorted: chiral
    mirrored.positions[:, 0] *= -1
    energies = run(model, atoms, mirrored)["energy"]
    difference = abs(energies[1] - energies[0])
    assert difference < 1e-12 if model.arguments["parity"] else difference > 1e-6


def test_forces_equal_finite_differences(model):
    atoms, step = ethanol(), 1e-4
    forces = run(model, atoms)["forces"]
    for i, c in [(0, 0), (2, 1), (5, 2)]:
        moved = [atoms.copy() for _ in range(4)]
        for factor, copied in zip((-2, -1, 1, 2), moved, strict=True):
            copied.positions[i, c] += factor * step
        a, b, d, e = run(model, *moved)["energy"]
        assert abs(forces[i, c] + (a - 8 * b + 8 * d - e) / (12 * step)) < 1e-6 * np.abs(forces).max()


def test_second_derivatives():
    host, batch = nequip_host("4x0e+2x1o+2x2e", 2, num_bessel=3, radial_MLP=(4,)), batch_of(molecule("H2O"))

    def energy(positions):
        return host({**batch, "positions": positions}, compute_force=False)["energy"]

    positions = batch["positions"].clone().requires_grad_(True)
    assert torch.autograd.gradcheck(energy, positions) and torch.autograd.gradgradcheck(energy, positions)


def test_stress_equals_finite_differences_and_differentiates_from_outside(bare):
    atoms = bulk("C", cubic=True)
    atoms.positions += 0.05 * np.random.default_rng(0).normal(size=atoms.positions.shape)
    atoms.set_cell(atoms.cell @ (np.eye(3) + 0.03 * np.random.default_rng(1).normal(size=(3, 3))), scale_atoms=True)
    atoms.calc = MACECalculator(models=[bare], device="cpu", default_dtype="float64")
    expected = calculate_numerical_stress(atoms, eps=1e-5)
    np.testing.assert_allclose(atoms.get_stress(), expected, atol=1e-7 * np.abs(expected).max())
    batch = batch_of(atoms)
    outside = bare(batch, compute_force=False, compute_displacement=True)
    (slope,) = torch.autograd.grad(outside["energy"].sum(), outside["displacement"])
    out = bare(batch, compute_virials=True)
    np.testing.assert_allclose(slope.numpy(), -out["virials"].detach().numpy(), atol=1e-12)
    np.testing.assert_allclose(slope.numpy()[0] / atoms.get_volume(), atoms.get_stress(voigt=False), atol=1e-10)


def test_energy_force_and_curvature_are_continuous_at_the_cutoff(bare):
    def along(distance):
        """Energy, slope and curvature along the distance of a lone atom from a molecule's."""
        atoms = molecule("H2O") + Atoms("C", [[0.0, 0.0, 0.0]])
        atoms.positions[3] = atoms.positions[0] + [0, 0, distance]
        batch = batch_of(atoms)
        shift = torch.zeros((), requires_grad=True)
        positions = batch["positions"] + shift * torch.eye(4)[3][:, None] * torch.tensor([0.0, 0.0, 1.0])
        energy = bare({**batch, "positions": positions}, compute_force=False)["energy"].sum()
        (slope,) = torch.autograd.grad(energy, shift, create_graph=True, allow_unused=True)
        curvature = torch.autograd.grad(slope, shift)[0] if slope is not None and slope.requires_grad else slope
        return np.array([0.0 if value is None else float(value.detach()) for value in (energy, slope, curvature)])

    inside, outside, well_inside = along(R_MAX - 1e-6), along(R_MAX + 1e-6), along(R_MAX - 1.0)
    assert np.abs(well_inside - outside).min() > 1e-4, "the atom must matter where it is near"
    assert np.all(np.abs(inside - outside) < 1e-4 * np.abs(well_inside - outside))


def test_other_structures_in_the_batch_change_nothing(model):
    atoms, benzene, water = ethanol(), molecule("C6H6"), molecule("H2O")
    alone, mixed = run(model, atoms), run(model, benzene, atoms, water)
    inside = slice(12, 12 + len(atoms))
    np.testing.assert_allclose(mixed["energy"][1], alone["energy"][0], rtol=1e-13)
    for key in ("forces", "node_energy", "node_feats"):
        np.testing.assert_allclose(mixed[key][inside], alone[key], atol=1e-12)


def test_energies_of_isolated_atoms():
    host = nequip_host(
        "4x0e", 1, max_ell=1, atomic_inter_shift=[0.1, 0.2, 0.3, 0.4], atomic_inter_scale=[1.0, 2.0, 3.0, 4.0]
    )
    out = run(host, Atoms("O", [[0, 0, 0.0]]), molecule("H2O") + Atoms("N", [[0, 0, 50.0]]))
    # Without neighbours ε comes from the element alone.
    epsilon = (out["node_energy"] - [-0.6, -0.6, -2.9, -2.9, -1.4])[[0, 4]] / [4.0, 3.0]
    assert np.isfinite(out["energy"]).all() and (out["forces"][[0, 4]] == 0).all()
    assert np.abs(epsilon).max() < 1
    np.testing.assert_allclose(out["node_energy"].sum(), out["energy"].sum(), rtol=1e-14)
    out = run(host, Atoms("O", [[0, 0, 0.0]]), compute_stress=True, compute_virials=True)
    assert "stress" not in out and out["virials"].shape == (1, 3, 3) and (out["virials"] == 0).all()


@pytest.mark.parametrize("model", ["l = 3", "no parity"], indirect=True)
def test_saved_copied_and_pickled_models_are_the_model(tmp_path, model):
    want = run(model, ethanol())
    save_model(model, tmp_path)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    loaded = load_model(tmp_path)
    assert describe_model(loaded) == json.loads(json.dumps(describe_model(model)))
    for twin in (loaded, copy.deepcopy(model), torch.load(buffer, weights_only=False)):
        got = run(twin, ethanol())
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
        assert all(np.array_equal(got[key], want[key]) for key in ("energy", "node_feats"))
        # TorchScript runs the backward pass of a first call in another way: one rounding.
        np.testing.assert_allclose(got["forces"], want["forces"], rtol=0, atol=1e-13)


def test_a_trained_scale_and_settings_of_any_type_are_saved(tmp_path):
    host = nequip_host(
        o3.Irreps("4x0e"), 1, max_ell=1, train_scale_shift=True, avg_num_neighbors=torch.tensor(8.0),
        atomic_numbers=np.array(ELEMENTS), atomic_energies=np.linspace(-3, -1, 4), atomic_inter_scale=np.float32(2),
    )  # fmt: skip
    with torch.no_grad():
        host.scale.mul_(1.5), host.shift.add_(0.1)
    save_model(attach_phi(host, PhiConfig()), tmp_path)
    twin = load_model(tmp_path).detach()
    assert torch.equal(twin.scale, host.scale) and torch.equal(twin.shift, host.shift)


def test_phi_detaches_bit_for_bit(bare):
    run(bare, ethanol())  # TorchScript runs the backward pass of a first call in another way
    want = run(bare, ethanol())
    attached = potential(host=copy.deepcopy(bare))
    assert len(attached.taps) == 3 and attached(batch_of(ethanol()))["phi_energy"].abs() > 1e-3
    host = attached.detach()
    run(host, ethanol())
    got = run(host, ethanol())
    assert np.array_equal(got["energy"], want["energy"]) and np.array_equal(got["forces"], want["forces"])


@pytest.mark.parametrize("with_phi", [False, True], ids=["bare", "phi"])
def test_both_calculators_run_it(bare, with_phi):
    built = potential(host=copy.deepcopy(bare)) if with_phi else bare
    want = run(built, ethanol())
    calculators = [
        PhiCalculator(built),
        MACECalculator(models=[copy.deepcopy(built)], device="cpu", default_dtype="float64"),
    ]
    for calculator in calculators:
        atoms = ethanol()
        atoms.calc = calculator
        assert atoms.get_potential_energy() == pytest.approx(want["energy"][0], rel=1e-13)
        np.testing.assert_allclose(atoms.get_forces(), want["forces"], atol=1e-11)


def test_every_parameter_is_grouped_and_gets_a_gradient(model):
    assert sum(len(group["params"]) for group in parameter_groups(model)) == len(list(model.parameters()))
    model.zero_grad()
    out = model(batch_of(molecule("CH3CONH2"), ethanol()), training=True)
    (out["energy"].sum() + out["forces"].square().sum()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().max() == 0] == []


def test_it_learns_forces_of_another_potential():
    """Frames labelled by ase's effective medium theory, from scratch."""
    frames = [distorted(molecule("CH3CH2OH"), seed) for seed in range(4)]
    for atoms in frames:
        atoms.calc = EMT()
    forces = np.concatenate([atoms.get_forces() for atoms in frames])
    labels, batch = torch.tensor(forces), batch_of(*frames)
    host = nequip_host("16x0e+8x1o", atomic_inter_scale=float(np.sqrt((forces**2).mean())))
    optimizer = torch.optim.Adam(host.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        error = (host(batch, training=True)["forces"] - labels).square().mean()
        error.backward()
        optimizer.step()
    assert error.sqrt() < 0.1 * labels.square().mean().sqrt()


@pytest.mark.parametrize("model", ["l = 3"], indirect=True)
def test_single_precision_is_close_to_double(model):
    want = run(model, ethanol())["forces"]
    out = copy.deepcopy(model).float()(batch_of(ethanol(), dtype=torch.float32))
    assert out["forces"].dtype == torch.float32
    assert out["energy"].dtype == torch.float64  # the sum with the energies of isolated atoms
    np.testing.assert_allclose(out["forces"].detach().numpy(), want, atol=1e-5 * np.abs(want).max())


def test_forces_without_gradient_mode_and_without_touching_the_callers_batch(bare):
    batch = batch_of(ethanol())
    before = {key: value.clone() for key, value in batch.items() if torch.is_tensor(value)}
    want = bare(batch, compute_stress=True)["forces"]
    with torch.no_grad():
        assert torch.equal(bare(batch)["forces"], want)
        assert not bare(batch, compute_force=False)["energy"].requires_grad
    assert not batch["positions"].requires_grad
    assert all(torch.equal(batch[key], value) for key, value in before.items())
    with torch.inference_mode(), pytest.raises(InputError, match="inference_mode"):
        bare(batch_of(ethanol()))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(hidden_irreps="8x1o"), "hidden_irreps is 8x1o; without a 0e channel"),
        (dict(hidden_irreps="hello"), "hidden_irreps is 'hello', which are not irreps"),
        (dict(hidden_irreps="8x0e+8x1o", parity=False), r"parity=False; write all irreps even, such as 8x0e\+8x1e"),
        (dict(atomic_energies=[1.0, 2.0]), r"atomic_energies is \[1.0, 2.0\] for 4 elements"),
        (dict(atomic_inter_scale=float("nan")), "atomic_inter_scale is nan for 4 elements"),
        (dict(r_max=-1.0), "r_max is -1.0; give a length"),
        (dict(num_interactions=0), "num_interactions is 0; give 1 or more"),
    ],
)
def test_settings_that_make_no_sense(given, message):
    with pytest.raises(InputError, match=message):
        nequip_host(**given)


def test_calls_that_make_no_sense(bare):
    batch = batch_of(ethanol())
    with pytest.raises(InputError, match="compute_hessian is asked for, but NequIP does not compute it"):
        bare(batch, compute_hessian=True)
    with pytest.raises(InputError, match=f"node_attrs has 2 columns for the model's {len(ELEMENTS)} elements"):
        bare({**batch, "node_attrs": batch["node_attrs"][:, :2]})
