"""The electronegativity of all atoms: χ̄Q in the energy of a structure of total charge Q, and nothing else."""

import copy
import functools

import numpy as np
import pytest
from ase.build import bulk, molecule
from checks import run
from systems import distorted, enlarge_dipoles, ethanol, mace_host, potential

from phi_equivariant import PhiConfig, PhiPotential
from phi_equivariant.errors import InputError
from phi_equivariant.weights import load_model, save_model

pytestmark = pytest.mark.usefixtures("double")

VOLTS = 7.5
CONFIGS = {
    "direct": {},
    "channels and dipoles": {"channels": 2, "multipoles": 1},
    "learned, two modes": {"poisson": "learned", "num_modes": 2},
    "penalty": {"charge_constraint": "penalty"},
    "none": {"charge_constraint": "none"},
    "qeq": {"charge_model": "qeq"},
    "sqe": {"charge_model": "sqe", "polarizable": True},
    "sqe, penalty": {"charge_model": "sqe", "charge_constraint": "penalty"},
}


@functools.cache
def host():
    return mace_host("8x0e+8x1o", 2)


def pair(**config) -> tuple[PhiPotential, PhiPotential]:
    """A potential, and the same with an electronegativity."""
    plain = potential(host=copy.deepcopy(host()), **config)
    enlarge_dipoles(plain)
    shifted = potential(host=copy.deepcopy(host()), electronegativity=VOLTS, **config)
    shifted.load_state_dict(plain.state_dict())
    return plain.eval(), shifted.eval()


def ions():
    found = [ethanol(), molecule("CH3OH"), distorted(molecule("H2O")), molecule("NH3")]
    for atoms, charge in zip(found, (0, 1, -2, 0.5), strict=True):
        atoms.info["total_charge"] = charge
    return found


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_energies_differ_by_the_total_charge_alone(config, training):
    """Whatever the charges of the atoms sum to; not even rounding reaches the forces."""
    structures, (plain, shifted) = ions(), pair(**config)
    before, after = (run(model, *structures, training=training) for model in (plain, shifted))
    wanted = VOLTS * np.array([atoms.info["total_charge"] for atoms in structures])
    for name in ("energy", "phi_energy"):
        np.testing.assert_allclose(after[name] - before[name], wanted, atol=1e-10)
    starts = np.cumsum([0, *map(len, structures[:-1])])
    shares = np.add.reduceat(after["node_energy"] - before["node_energy"], starts)
    np.testing.assert_allclose(shares, wanted, atol=1e-10)
    for name in ("forces", "charges", "dipole", "host_energy", "net_charge"):
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)


@pytest.mark.parametrize("limit", [2000, 1])
def test_crystals_and_slabs(limit):
    crystal, slab = distorted(bulk("CO", "rocksalt", a=4.4, cubic=True)), distorted(bulk("CO", "rocksalt", a=4.4))
    slab.pbc = (True, True, False)
    slab.info["total_charge"] = -1
    plain, shifted = pair(dense_limit=limit)
    with pytest.warns(UserWarning, match="total_charge is -1 e in a slab"):
        before, after = (run(model, crystal, slab, compute_stress=True) for model in (plain, shifted))
    np.testing.assert_allclose(after["energy"] - before["energy"], [0.0, -VOLTS], atol=1e-10)
    np.testing.assert_allclose(after["forces"], before["forces"], atol=1e-9)
    np.testing.assert_allclose(after["stress"], before["stress"], atol=1e-10)


def test_it_is_kept_in_files(tmp_path):
    _, shifted = pair()
    save_model(shifted, tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert loaded.phi.config.electronegativity == VOLTS
    structures = ions()
    np.testing.assert_array_equal(run(loaded, *structures)["energy"], run(shifted, *structures)["energy"])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "7", True])
def test_what_is_no_number_is_refused(value):
    with pytest.raises(InputError, match="electronegativity is .*; give a number of V"):
        PhiConfig(electronegativity=value)


def test_graph_takes_none():
    assert PhiConfig(operator="graph", electronegativity=0).electronegativity == 0.0
    with pytest.raises(InputError, match="electronegativity is 7.*which takes no total charge; .*operator='coulomb'"):
        PhiConfig(operator="graph", electronegativity=7)
