"""Born effective charges of crystals: molecules in boxes, complex polarisations by differences, the sum rule."""

import copy
import functools
import warnings

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from checks import run
from systems import batch_of, distorted, enlarge_dipoles, ethanol, mace_host, potential

from phi_equivariant import PhiCalculator, attach_phi, born_effective_charges, polarizability
from phi_equivariant.errors import InputError

pytestmark = pytest.mark.usefixtures("double")

CONFIGS = {
    "direct": dict(),
    "dipoles": dict(multipoles=1),
    "sqe": dict(charge_model="sqe"),
    "polarizable": dict(charge_model="sqe", polarizable=True, multipoles=1),
}
EACH = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


@functools.cache
def host(layers=2):
    return mace_host("8x0e+8x1o", layers)


def made(layers=2, **config):
    model = potential(host=copy.deepcopy(host(layers)), **config)
    enlarge_dipoles(model)
    return model.eval()


def charges_of(model, *structures):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return born_effective_charges(model, batch_of(*structures)).numpy()


def boxed(atoms, edge):
    """The molecule across the corner of a skewed box."""
    box = atoms.copy()
    box.set_cell([[edge, 0, 0], [2.0, edge + 1, 0], [-1.0, 0.5, edge - 1]])
    box.pbc = True
    box.wrap()
    return box


@EACH
@pytest.mark.parametrize("charge", [0, 1])
@pytest.mark.filterwarnings("ignore:total_charge is not 0")
def test_a_molecule_in_a_box_that_grows(config, charge):
    """The error, and that of the sum rule Σ Z* = Q, falls with the square of the box, or faster."""
    model, atoms = made(**config), ethanol()
    atoms.info["total_charge"] = charge
    free, errors, sums = charges_of(model, atoms), [], []
    for edge in (18, 36):
        found = charges_of(model, boxed(atoms, edge))
        errors.append(np.abs(found - free).max())
        sums.append(np.abs(found.sum(0) - charge * np.eye(3)).max())
    assert errors[0] < 0.01 * np.abs(free).max() and errors[1] < 0.3 * errors[0]
    assert sums[0] < 0.01 and sums[1] < 0.35 * sums[0] + 1e-9


def test_they_are_slopes_of_the_complex_polarisation():
    """Re e^{−ikr_i} ∂P/∂r_i with P = Σ_j q_j e^{ikr_j}/ik along each axis, in numpy, by differences."""
    model, atoms = made(), distorted(bulk("CO", "rocksalt", a=4.4, cubic=True))
    atoms.set_cell([4.4, 4.6, 4.9], scale_atoms=True)
    found, lengths, step = charges_of(model, atoms), atoms.cell.lengths(), 1e-4
    for i, axis in ((0, 0), (3, 1), (6, 2)):
        ends = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[i, axis] += sign * step
            k = 2 * np.pi / lengths
            waves = np.exp(1j * k * moved.positions)
            ends.append((run(model, moved)["charges"][:, None] * waves).sum(0) / (1j * k))
        slope = (ends[0] - ends[1]) / (2 * step)
        want = (np.exp(-1j * 2 * np.pi / lengths * atoms.positions[i]) * slope).real
        np.testing.assert_allclose(found[i, :, axis], want, atol=1e-7)


@EACH
def test_the_sum_rule_of_crystals(config):
    """It fails by what moves within a model's range, and the less the larger the cell; supercells have the same."""
    model = made(2 if config.get("multipoles") else 1, **config)
    cell = distorted(bulk("CO", "rocksalt", a=4.4, cubic=True), 1)
    found = {n: charges_of(model, cell * (n, n, n)) for n in (1, 2)}
    errors = {n: np.abs(z.sum(0)).max() / len(z) for n, z in found.items()}
    assert errors[2] < 2e-3
    np.testing.assert_allclose(found[2][:8], found[1], atol=0.02 * np.abs(found[1]).max())


def test_cells_atoms_and_batches_may_be_chosen():
    model = made(charge_model="sqe", polarizable=True)
    cell = distorted(bulk("CO", "rocksalt", a=4.4, cubic=True), 1)
    want = charges_of(model, cell)
    moved = cell.copy()
    moved.positions += [1.3, -0.4, 2.2] + np.array([[1, 0, 0]] * 4 + [[0, -1, 1]] * 4) @ cell.cell.array
    np.testing.assert_allclose(charges_of(model, moved), want, atol=1e-9)
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    turned = cell.copy()
    turned.set_cell(cell.cell.array @ rotation.T, scale_atoms=True)
    np.testing.assert_allclose(charges_of(model, turned), rotation @ want @ rotation.T, atol=1e-9)
    mixed = charges_of(model, ethanol(), cell, molecule("H2O"))
    np.testing.assert_allclose(mixed[9:17], want, atol=1e-9)
    np.testing.assert_allclose(mixed[:9], charges_of(model, ethanol()), atol=1e-9)


def test_a_layer_has_a_direction_that_is_open():
    """The graph treats layers; along their normal Z* is that of the dipole."""
    model = made(operator="graph")
    layer = Atoms("CO", [[0, 0, 0], [0.2, 0.1, 1.1]], cell=[[9, 0, 0], [1, 9, 0], [0, 0, 0]], pbc=[True, True, False])
    found, step, ends = charges_of(model, layer), 1e-4, []
    for sign in (1, -1):
        moved = layer.copy()
        moved.positions[0, 2] += sign * step
        ends.append(run(model, moved)["charges"] @ moved.positions[:, 2])
    assert found[0, 2, 2] == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-7)


def test_what_is_warned_of():
    cell = bulk("CO", "rocksalt", a=4.4, cubic=True)
    with pytest.warns(UserWarning, match="structure 0 are 4.4 Å apart.* 16 Å"):
        PhiCalculator(made()).get_born_effective_charges(cell)
    with pytest.warns(UserWarning, match="'qeq'.*conductor.*go to zero"):
        PhiCalculator(made(charge_model="qeq")).get_born_effective_charges(boxed(ethanol(), 30))
    taps = {"products.1": made().taps["products.1"]}  # the last layer alone reaches as far as both
    with pytest.warns(UserWarning, match="structure 0 are 4.4 Å apart.* 16 Å"):
        born_effective_charges(attach_phi(copy.deepcopy(host()), taps=taps), batch_of(cell))
    model = made()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        born_effective_charges(model, batch_of(boxed(ethanol(), 18), ethanol()))


def test_what_is_refused():
    model = made()
    with torch.inference_mode(), pytest.raises(InputError, match=r"Born effective charges need derivatives.*no_grad"):
        PhiCalculator(model).get_born_effective_charges(ethanol())
    with torch.no_grad():
        without = charges_of(model, ethanol())
    np.testing.assert_array_equal(without, charges_of(model, ethanol()))
    for function in (born_effective_charges, polarizability):
        with pytest.raises(InputError, match="bare host, which does not have charges; attach Φ for"):
            function(copy.deepcopy(host()), batch_of(ethanol()))


def test_under_qeq_a_crystal_is_a_conductor():
    cell = distorted(bulk("CO", "rocksalt", a=4.4, cubic=True), 1)
    model = made(1, charge_model="qeq")
    small, large = (np.abs(charges_of(model, cell * (n, n, n))).max() for n in (1, 2))
    assert large < 0.5 * small
