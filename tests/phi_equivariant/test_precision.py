"""Total energies are in float64 whatever the precision of the network, and keep their digits beside large E0s."""

import copy

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from systems import ELEMENTS, batch_of, distorted, mace_host, nequip_host, potential

from phi_equivariant import PhiCalculator
from phi_equivariant.errors import InputError
from phi_equivariant.host_energy import atomic_energies, isolated_of_atoms, keep_exact, run_host
from phi_equivariant.precision import default_dtype, read_dtype
from phi_equivariant.weights import load_model, save_model

pytestmark = pytest.mark.usefixtures("double")
E0S = [-13.6, -1030.123456789, -1485.3, -520000.123456]
SPECS = {"total_charge": {"type": "categorical", "per": "graph", "num_classes": 3, "offset": 1, "emb_dim": 4}}
HOSTS = {
    "mace": lambda: mace_host(),
    "mace without scale": lambda: mace_host(scale_shift=False),
    "mace with an embedding": lambda: mace_host(embedding_specs=SPECS, use_embedding_readout=True),
    "nequip": lambda: nequip_host(),
}


def with_energies(host, energies):
    """The host with other isolated atoms, kept exactly."""
    block = host.atomic_energies_fn
    table = torch.tensor(energies).expand_as(torch.atleast_2d(block.atomic_energies))
    block.atomic_energies = table.reshape(block.atomic_energies.shape).clone()
    keep_exact(host, table)
    return host


def oxygen(n=32):
    """So many oxygen atoms, shaken."""
    return distorted(bulk("O", "sc", a=1.6).repeat((n // 8, 4, 2)), 3)


@pytest.mark.parametrize("with_phi", [False, True])
@pytest.mark.parametrize("name", HOSTS)
def test_single_precision_keeps_the_digits_of_the_interaction(name, with_phi):
    """32 atoms of −520,000 eV: the energy is that of the same network in float64 to what float32 makes of 10 eV."""
    host = with_energies(HOSTS[name](), E0S)
    model = potential(host=host) if with_phi else host
    single = copy.deepcopy(model).float()
    wide, narrow = PhiCalculator(model), PhiCalculator(single)
    for atoms in (oxygen(), distorted(molecule("CH3CH2OH"))):
        energies = []
        for _ in range(2):
            atoms.positions[0] += 0.1
            narrow.calculate(atoms)
            wide.calculate(atoms)
            assert narrow.results["energy"] == pytest.approx(wide.results["energy"], abs=3e-5 * len(atoms), rel=0)
            np.testing.assert_allclose(narrow.results["energies"], wide.results["energies"], atol=1e-4, rtol=0)
            energies.append((narrow.results["energy"], wide.results["energy"]))
        moved = np.diff(energies, axis=0)[0]
        assert abs(moved[1]) > 3e-4 and moved[0] == pytest.approx(moved[1], abs=1e-4)


def test_forces_are_the_slopes_of_energies_in_single_precision():
    atoms, step = oxygen(), 0.01
    atoms.calc = PhiCalculator(potential(host=with_energies(mace_host(), E0S)).float())
    slope = -atoms.get_forces()[5, 1]
    energies = []
    for sign in (1, -1):
        atoms.positions[5, 1] += sign * step
        energies.append(atoms.get_potential_energy())
        atoms.positions[5, 1] -= sign * step
    assert (energies[0] - energies[1]) / (2 * step) == pytest.approx(slope, rel=0.02, abs=3e-3)


@pytest.mark.parametrize("heads", [None, ["one", "two"]])
@pytest.mark.parametrize("scale_shift", [False, True])
def test_in_double_precision_energies_are_the_hosts_own(scale_shift, heads):
    """mace itself adds E0 to the interactions: the same number to the last digit or the one before."""
    host = mace_host(scale_shift=scale_shift, heads=heads)
    if heads:
        host.atomic_energies_fn.atomic_energies[1] -= 7.0
    batch = batch_of(distorted(molecule("CH3CH2OH")), molecule("H2O"), heads=heads or ("Default",))
    if heads:
        batch["head"] = torch.tensor([0, 1])
    own, ours = host(dict(batch), compute_force=True), run_host(host, dict(batch), compute_force=True)
    torch.testing.assert_close(ours["energy"], own["energy"], rtol=3e-16, atol=0)
    torch.testing.assert_close(ours["node_energy"], own["node_energy"], rtol=3e-16, atol=1e-15)
    assert torch.equal(ours["forces"], own["forces"])
    if not scale_shift:
        torch.testing.assert_close(ours["contributions"], own["contributions"], rtol=3e-16, atol=0)
    by_hand = host.atomic_energies_fn(batch["node_attrs"])
    by_hand = by_hand[torch.arange(len(by_hand)), batch["head"][batch["batch"]]]
    assert torch.equal(isolated_of_atoms(host, batch), by_hand)


@pytest.mark.parametrize("make", [mace_host, nequip_host])
def test_isolated_atoms_are_saved_with_all_digits(make, tmp_path):
    with default_dtype(torch.float32):
        host = make()
        model = potential(host=host)
    with_energies(host, E0S)
    host.float()
    save_model(model, tmp_path)
    expected = torch.tensor([E0S], dtype=torch.float64)
    for dtype in (None, "float64", "float32"):
        loaded = load_model(tmp_path, dtype=dtype)
        assert torch.equal(atomic_energies(loaded.host), expected), dtype
    atom = Atoms("O")
    atom.calc = PhiCalculator(tmp_path)
    # What is left is the interaction of an atom with itself: nothing, or the charge's own energy.
    parts = atom.calc
    energy = atom.get_potential_energy() - parts.phi_results["phi_energy"]
    alone = with_energies(copy.deepcopy(load_model(tmp_path).host), [0.0] * len(ELEMENTS))
    atom.calc = PhiCalculator(alone)
    assert energy - atom.get_potential_energy() == pytest.approx(E0S[-1], abs=1e-9)


def test_other_isolated_atoms_are_not_overlooked():
    """Who changes the host's E0s in place changes its energies, whatever was kept beside them."""
    host = with_energies(mace_host(), E0S).float()
    host.atomic_energies_fn.atomic_energies[0] = -5.0
    assert atomic_energies(host)[0].tolist() == [-5.0, *E0S[1:]]
    assert atomic_energies(host.double())[0].tolist() == [-5.0, *E0S[1:]]
    double = with_energies(mace_host(), E0S)
    double.atomic_energies_fn.atomic_energies[1] += 1e-7
    assert atomic_energies(double)[0, 1] == E0S[1] + 1e-7


def test_precisions_by_name():
    assert read_dtype(None) is None and read_dtype("float32") is torch.float32
    assert read_dtype(torch.float64) is torch.float64
    for wrong in ("double", "float16", torch.float16, 64, ""):
        with pytest.raises(InputError, match="dtype is .*use one of 'float32', 'float64'"):
            read_dtype(wrong)
