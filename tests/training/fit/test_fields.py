"""Structures in external fields, and their polarisabilities: trained on, evaluated, and refused."""

import json

import ase.io
import numpy as np
import pytest
from ase.build import bulk
from training_runs import keep_default_dtype, metrics, refused, words, write_molecules  # noqa: F401
from training_runs import run as train

from phi_equivariant import PhiCalculator
from training import evaluate

SQE = ["charge_model=sqe", "polarizable=true"]


def in_fields(tmp_path, count=12, name="fields.xyz", **changes):
    """Molecules in fields that take their energy −F·μ − ½FαF and pull at their charges, with labels."""
    frames = ase.io.read(write_molecules(tmp_path / name, count=count, charges=True), ":")
    rng = np.random.default_rng(0)
    for atoms in frames:
        field = rng.normal(size=3)
        alpha = 0.05 * len(atoms) * np.eye(3)
        atoms.info["energy"] = atoms.get_potential_energy() - field @ atoms.info["mu"] - 0.5 * field @ alpha @ field
        atoms.arrays["forces"] = atoms.get_forces() + atoms.arrays["q"][:, None] * field
        atoms.info["F"], atoms.info["alpha"] = field, alpha
        atoms.info["mu"] = atoms.info["mu"] + alpha @ field
        atoms.info |= changes
        atoms.calc = None
    ase.io.write(tmp_path / name, frames, format="extxyz")
    return tmp_path / name


@pytest.mark.honours("external_field_key", "polarizability_key", "polarizability_weight")
def test_a_run_and_what_it_says_of_its_structures(tmp_path, capsys):
    """The loss of polarisabilities falls, and what is evaluated is what the calculator gives in the field."""
    data = in_fields(tmp_path)
    given = {"external_field_key": "F", "polarizability_key": "alpha", "polarizability_weight": 1e4, "phi": SQE}
    given |= {"dipole_key": "mu", "dipole_weight": 100, "energy_weight": 0.01, "forces_weight": 0.01}
    folder = train(tmp_path, name="run", train_file=data, max_num_epochs=6, lr=0.05, **given)
    told = capsys.readouterr().out
    assert "external fields" in told and "polarizabilities" in told and "external_field_key: F" in told
    rows = metrics(folder)
    assert 0 < rows[-1]["train_term_polarizability"] < 0.5 * rows[0]["train_term_polarizability"]
    line = ["--configs", str(data), "--model", str(folder), "--output", str(tmp_path / "out.xyz")]
    line += ["--errors", str(tmp_path / "errors.json"), "--compute_polarizability", "--external_field_key", "F"]
    line += ["--compute_bec"]
    line += ["--polarizability_key", "alpha", "--energy_key", "energy", "--forces_key", "forces", "--dipole_key", "mu"]
    assert evaluate.main(line) == 0
    errors, calculator = json.loads((tmp_path / "errors.json").read_text())["errors"], PhiCalculator(folder)
    differences = []
    for atoms in ase.io.read(tmp_path / "out.xyz", ":"):
        atoms.info["external_field"] = atoms.info["F"]
        calculator.calculate(atoms)
        assert atoms.info["MACE_energy"] == pytest.approx(calculator.results["energy"], abs=1e-6)
        np.testing.assert_allclose(atoms.info["MACE_dipole"], calculator.results["dipole"], atol=1e-6)
        alpha = calculator.get_polarizability(atoms)
        np.testing.assert_allclose(np.reshape(atoms.info["MACE_polarizability"], (3, 3)), alpha, atol=1e-6)
        born = calculator.get_born_effective_charges(atoms)
        np.testing.assert_allclose(atoms.arrays["MACE_BEC"].reshape(-1, 3, 3), born, atol=1e-6)
        differences.append(alpha - np.reshape(atoms.info["alpha"], (3, 3)))
    rmse, found = np.sqrt(np.mean(np.square(differences))), errors["polarizability"]
    assert found["rmse"] == pytest.approx(rmse, rel=1e-6) and found["unit"] == "e·Å²/V"


@pytest.mark.honours("swa_polarizability_weight")
def test_stage_two_has_its_weight(tmp_path):
    """With a learning rate of almost zero the term's ratio is its weights'."""
    given = {"external_field_key": "F", "polarizability_key": "alpha", "polarizability_weight": 2.0, "phi": SQE}
    given |= {"swa": True, "start_swa": 1, "swa_polarizability_weight": 6.0, "lr": 1e-300, "swa_lr": 1e-300}
    rows = metrics(train(tmp_path, name="run", train_file=in_fields(tmp_path), max_num_epochs=2, **given))
    ratio = rows[1]["valid_term_polarizability"] / rows[0]["valid_term_polarizability"]
    assert ratio == pytest.approx(3.0)


def test_the_field_is_what_moves_the_energy(tmp_path):
    """Without their fields the same structures train worse."""
    data = in_fields(tmp_path, count=20)
    given = {"dipole_key": "mu", "dipole_weight": 100, "phi": SQE, "max_num_epochs": 6, "forces_weight": 10}
    with_field = metrics(train(tmp_path, name="with", train_file=data, external_field_key="F", **given))
    without = metrics(train(tmp_path, name="without", train_file=data, **given))
    assert with_field[-1]["valid_rmse_dipole"] < 0.8 * without[-1]["valid_rmse_dipole"]


def test_what_is_refused(tmp_path, capsys):
    data = in_fields(tmp_path)
    field = {"name": "run", "train_file": data, "external_field_key": "F"}
    assert "external_field: frame 0 of" in refused(capsys, words(tmp_path, **field))
    response = {"polarizability_key": "alpha", "polarizability_weight": 1.0}
    message = refused(capsys, words(tmp_path, **field, **response, phi=["operator=coulomb"]))
    assert "--polarizability_weight" in message and "nothing responds to a field" in message
    message = refused(capsys, words(tmp_path, **field, **response))
    assert "the bare host does not predict polarizabilities" in message
    crystal = bulk("C", "diamond", a=3.6, cubic=True)
    crystal.info |= {"energy": 0.0, "F": [0, 0, 0.1]}
    crystal.arrays["forces"] = np.zeros((8, 3))
    ase.io.write(tmp_path / "crystal.xyz", [crystal] * 3, format="extxyz")
    message = refused(capsys, words(tmp_path, **{**field, "train_file": tmp_path / "crystal.xyz"}, phi=SQE))
    assert "frame 0 of" in message and "along a periodic direction (pbc T T T)" in message
