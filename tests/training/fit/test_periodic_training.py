"""Training on crystals, and on crystals and molecules together, with stress in the loss."""

import ase.io
import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.stress import voigt_6_to_full_3x3_stress
from mace import modules
from training_runs import keep_default_dtype, metrics, refused, run, words  # noqa: F401

from phi_equivariant import PhiCalculator
from phi_equivariant.weights import load_model
from training.fit import losses
from training.fit.terms import TERMS
from training.report.error_sums import ErrorSums


@pytest.fixture(scope="module")
def mixed_set(tmp_path_factory):
    """Strained, shaken crystals with EMT's energies, forces and stresses, and molecules, which have no stress."""
    rng, frames = np.random.default_rng(0), []
    for index in range(24):
        atoms = molecule("CO") if index % 3 == 2 else bulk("CuO", "rocksalt", a=4.3)
        if index % 3 != 2:
            atoms.set_cell(atoms.cell @ (np.eye(3) + 0.03 * rng.normal(size=(3, 3))), scale_atoms=True)
        atoms.positions += 0.05 * rng.normal(size=atoms.positions.shape)
        atoms.calc = EMT()
        labels = {"energy": atoms.get_potential_energy()}
        if atoms.pbc.all():
            labels["stress"] = atoms.get_stress(voigt=False)
        else:
            labels["config_stress_weight"] = 0.0
        atoms.arrays["forces"] = atoms.get_forces()
        atoms.calc = None
        atoms.info |= labels
        frames.append(atoms)
    path = tmp_path_factory.mktemp("mixed") / "mixed.xyz"
    ase.io.write(path, frames, format="extxyz")
    return path


def test_a_set_of_crystals_and_molecules_trains_with_stress(mixed_set, tmp_path):
    given = {"loss": "stress", "stress_weight": 100.0, "stress_key": "stress", "lr": 0.03, "max_num_epochs": 8}
    folder = run(tmp_path, name="run", train_file=mixed_set, phi=["operator=coulomb"], **given)
    rows = metrics(folder)
    assert 0 < rows[-1]["train_term_stress"] < 0.7 * rows[0]["train_term_stress"]
    assert np.isfinite([rows[-1]["valid_loss"], rows[-1]["train_loss"]]).all()
    atoms = ase.io.read(mixed_set, 0)
    want = atoms.get_stress()
    atoms.calc = PhiCalculator(load_model(folder))
    assert np.abs(atoms.get_stress() - want).max() < np.abs(want).max() and np.abs(atoms.get_charges()).max() > 1e-6


def test_virials_train_too(mixed_set, tmp_path):
    frames = ase.io.read(mixed_set, ":")
    for atoms in frames:
        stress, atoms.info["energy"] = atoms.calc.results.get("stress"), atoms.calc.results["energy"]
        atoms.arrays["forces"] = atoms.calc.results["forces"]
        atoms.calc = None
        atoms.info["config_virials_weight"] = float(stress is not None)
        if stress is not None:
            atoms.info["virials"] = -atoms.get_volume() * voigt_6_to_full_3x3_stress(stress)
    ase.io.write(tmp_path / "virials.xyz", frames, format="extxyz")
    given = {"loss": "virials", "virials_weight": 1.0, "virials_key": "virials", "lr": 0.03, "max_num_epochs": 5}
    folder = run(tmp_path, name="run", train_file=tmp_path / "virials.xyz", phi=["operator=graph"], **given)
    rows = metrics(folder)
    assert 0 < rows[-1]["train_term_virials"] < 0.7 * rows[0]["train_term_virials"]


def test_stress_and_dipole_of_a_mixed_batch_count_where_they_are():
    """NaN, for what a structure has not, is neither an error nor a gradient."""
    generator = torch.Generator().manual_seed(0)
    stress = torch.randn(2, 3, 3, generator=generator).requires_grad_(True)
    dipole = torch.randn(2, 3, generator=generator).requires_grad_(True)
    crystal = torch.tensor([True, False])
    output = {
        "energy": torch.zeros(2), "forces": torch.zeros(4, 3), "charges": torch.zeros(4),
        "stress": stress.masked_fill(~crystal[:, None, None], torch.nan),
        "dipole": dipole.masked_fill(crystal[:, None], torch.nan),
    }  # fmt: skip
    batch = {
        "energy": torch.zeros(2), "forces": torch.zeros(4, 3), "stress": torch.zeros(2, 3, 3),
        "dipole": torch.ones(2, 3), "charges": torch.zeros(4), "dipole_weight": torch.ones(2, 3),
        "weight": torch.ones(2), "batch": torch.tensor([0, 0, 1, 1]), "ptr": torch.tensor([0, 2, 4]),
        "pbc": crystal[:, None].expand(2, 3),
        **{f"{name}_weight": torch.ones(2) for name in ("energy", "forces", "stress", "charges", "virials")},
    }  # fmt: skip
    batch = type("Batch", (dict,), {"__getattr__": dict.__getitem__, "num_graphs": 2})(batch)
    objective = losses.Objective(modules.WeightedEnergyForcesStressLoss(1.0, 1.0, 1.0), {"dipole": 1.0})
    total, terms = objective(output, batch)
    assert terms["stress"] == pytest.approx(stress[0].square().sum().item() / 18)
    assert terms["dipole"] == pytest.approx((dipole[1] - 1).square().mean().item())
    total.backward()
    assert (stress.grad[0] != 0).all() and (stress.grad[1] == 0).all()
    assert (dipole.grad[0] == 0).all() and (dipole.grad[1] != 0).all()
    errors = ErrorSums()
    errors.update(output, batch)
    assert errors.table()["dipole"]["count"] == errors.table()["dipole_per_atom"]["count"] == 3
    assert errors.table()["stress"]["count"] == 9
    errors.update({**output, "dipole": None, "stress": None}, batch)
    assert errors.table()["dipole"]["count"] == 3
    assert TERMS["dipole"].loss({"dipole": None}, batch) == 0


def test_slabs_train_and_wires_are_refused_with_coulomb_only(mixed_set, tmp_path, capsys):
    frames = ase.io.read(mixed_set, ":")
    frames[3].pbc = [True, False, False]
    ase.io.write(tmp_path / "wire.xyz", frames, format="extxyz")
    line = {"name": "run", "train_file": tmp_path / "wire.xyz", "max_num_epochs": 1}
    assert "pbc T F F" in refused(capsys, words(tmp_path, phi=["operator=coulomb"], **line))
    run(tmp_path, phi=["operator=graph"], **line)
    frames[3].pbc = [True, True, False]
    ase.io.write(tmp_path / "slab.xyz", frames, format="extxyz")
    run(tmp_path, phi=["operator=coulomb"], **{**line, "train_file": tmp_path / "slab.xyz", "name": "slabs"})
