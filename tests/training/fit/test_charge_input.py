"""The total charge as an input to the host's features, from the command to the calculators."""

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.emt import EMT
from ase.calculators.fd import calculate_numerical_forces
from mace.calculators import MACECalculator
from systems import ethanol, mace_host, potential
from training_runs import TINY, keep_default_dtype, refused, run, words  # noqa: F401

from phi_equivariant import PhiCalculator
from phi_equivariant.errors import InputError
from training import evaluate
from zoo import load_pretrained

SPECS = {"total_charge": {"type": "categorical", "per": "graph", "num_classes": 3, "offset": 1, "emb_dim": 4}}


def silver(seed, charge=None):
    """Three shaken silver atoms."""
    corners = [[0, 0, 0], [2.6, 0, 0], [1.3, 2.2, 0]]
    atoms = Atoms("Ag3", corners + 0.1 * np.random.default_rng(seed).normal(size=(3, 3)))
    if charge is not None:
        atoms.info["total_charge"] = charge
    return atoms


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on ions whose energies differ by state, and its folder."""
    folder = tmp_path_factory.mktemp("ions")
    frames = []
    for index in range(24):
        atoms = silver(index, (-1, 1, None)[index % 3])
        atoms.calc = EMT()
        energy = atoms.get_potential_energy() + 2.0 * atoms.info.get("total_charge", 0)
        atoms.info["energy"], atoms.arrays["forces"] = energy, atoms.get_forces()
        atoms.calc = None
        frames.append(atoms)
    ase.io.write(folder / "ions.xyz", frames, format="extxyz")
    phi = ["operator=coulomb"]
    options = {"embedding_specs": repr(SPECS), "use_embedding_readout": "True", "max_num_epochs": 6, "lr": 0.05}
    options |= {"energy_weight": 100, "forces_weight": 1}
    given = {"train_file": folder / "ions.xyz", "r_max": 4.0, "valid_fraction": 0.25, "name": "run", **options}
    return run(folder, **given, phi=phi)


@pytest.mark.honours("embedding_specs", "use_embedding_readout")
def test_two_charges_of_one_geometry(trained, tmp_path):
    """Cation, anion and neutral differ in the host's energy; every way to evaluate gives the same numbers."""
    model = load_pretrained(trained)
    calculator, theirs = PhiCalculator(model), MACECalculator(models=[model], device="cpu", default_dtype="float64")
    energies, frames = {}, [silver(99, charge) for charge in (-1, 0, 1, None)]
    for atoms in frames:
        charge = atoms.info.get("total_charge")
        atoms.calc = calculator
        energies[charge] = atoms.get_potential_energy(), calculator.phi_results["host_energy"]
        copy = atoms.copy()
        copy.info = {} if charge is None else {"charge": charge}
        copy.calc = theirs
        assert copy.get_potential_energy() == pytest.approx(energies[charge][0], rel=1e-10)
        np.testing.assert_allclose(copy.get_forces(), atoms.get_forces(), atol=1e-8)
    assert energies[None] == energies[0]
    host = [energies[charge][1] for charge in (-1, 0, 1)]
    assert np.abs(np.diff(host)).min() > 0.01, host

    ase.io.write(tmp_path / "in.xyz", [atoms.copy() for atoms in frames], format="extxyz")
    line = ["--configs", tmp_path / "in.xyz", "--model", trained, "--output", tmp_path / "out.xyz"]
    assert evaluate.main([str(word) for word in line]) == 0
    for atoms in ase.io.read(tmp_path / "out.xyz", ":"):
        expected = energies[atoms.info.get("total_charge")]
        assert (atoms.info["MACE_energy"], atoms.info["MACE_host_energy"]) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("charge", [-1, 1])
def test_forces_of_ions_equal_finite_differences(trained, charge):
    atoms = silver(7, charge)
    atoms.calc = PhiCalculator(trained)
    np.testing.assert_allclose(atoms.get_forces(), calculate_numerical_forces(atoms, eps=1e-4), atol=1e-6)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("with_phi", [False, True])
def test_charges_that_the_host_was_not_made_for(with_phi):
    host = mace_host(embedding_specs=SPECS)
    atoms = ethanol()
    atoms.calc = PhiCalculator(potential(host=host) if with_phi else host)
    for charge in (2, -2, 0.5):
        atoms.info["total_charge"] = charge
        with pytest.raises(InputError, match=rf"total_charge is \[{charge:.1f}\].*whole numbers from -1 to 1"):
            atoms.get_potential_energy()


@pytest.mark.usefixtures("double")
def test_maces_calculator_does_not_cut_charges_off():
    atoms = ethanol()
    atoms.info["charge"] = 0.5
    model = potential(host=mace_host(embedding_specs=SPECS))
    atoms.calc = MACECalculator(models=[model], device="cpu", default_dtype="float64")
    with pytest.raises(InputError, match="whole numbers"):
        atoms.get_potential_energy()


def test_specifications_that_would_be_ignored_are_refused(trained, capsys):
    given = {"train_file": trained.parent / "ions.xyz", "name": "other"}
    misspelt = {"total_charge": {**SPECS["total_charge"], "ofset": 1}}
    line = words(trained.parent, **given, embedding_specs=repr(misspelt))
    assert "total_charge: unknown entry 'ofset'" in refused(capsys, line)
    given |= dict.fromkeys(TINY) | {"model": "phi-nequip-small", "embedding_specs": repr(SPECS)}
    message = refused(capsys, words(trained.parent, **given))
    assert "--embedding_specs: phi-nequip-small has no such setting" in message
    assert not (trained.parent / "other").exists()
