"""The trained models that come with the package: what their cards say, on the data that they were tested on."""

import json
import re

import ase.io
import numpy as np
import pytest
from ase import Atoms
from conftest import DATA

from phi_equivariant import PhiCalculator, PhiPotential
from training import evaluate
from training.data.named_files import load_dataset
from zoo import list_models, load_pretrained
from zoo.store import card
from zoo.store.registry import CARD_FILE, REFERENCE_FILE, SHIPPED, shipped

NAMES = sorted(shipped())
UNITS = {"energy_per_atom": 1e3, "forces": 1e3, "charges": 1.0, "dipole": 1.0}  # the card's, per eV, eV/Å, e, e·Å


def published(path, every):
    """Frames of a published file, every n-th."""
    if not (DATA / path).is_file():
        pytest.skip(f"the published file {path} is not in ../shared/data")
    frames = ase.io.read(DATA / path, ":")[every]
    return [(a, {"energy": a.get_potential_energy(), "forces": a.get_forces()}) for a in frames]


def ala3_gfn2():
    """The test split that comes with the project."""
    frames = load_dataset("ala3_gfn2").test
    names = ("energy", "forces", "charges", "dipole")
    return [(a, {name: {**a.info, **a.arrays}[f"REF_{name}"] for name in names}) for a in frames]


#: {name of the data: test frames with labels}; a model on other data has to be entered here.
TEST_FRAMES = {
    "ala3_gfn2": ala3_gfn2,
    "acac": lambda: published("acac/test_MD_300K.xyz", slice(None)),
    "3bpa": lambda: published("3bpa/train_300K.xyz", slice(9, None, 10)),
}


WATER = """3
Properties=species:S:1:pos:R:3{}
O 0 0 .12
H 0 .76 -.48
H 0 -.76 -.48
"""


@pytest.mark.parametrize(
    ("entries", "energy"),
    [
        ("", -2078.4825),
        (" total_charge=1", -2070.9532),
        (' Lattice="3.2 0 0 0 3.2 0 0 0 3.2"', -2078.1873),
    ],
)
def test_water_has_the_energies_that_were_published(tmp_path, entries, energy):
    """By the calculator and by the command, neutral and open, charged, and in a cube: the numbers to 1e-4 eV."""
    path, name = tmp_path / "water.xyz", "phi-mace-small.acac"
    path.write_text(WATER.format(entries))
    assert PhiCalculator(name).get_potential_energy(ase.io.read(path)) == pytest.approx(energy, abs=1e-4)
    command = ["--configs", str(path), "--model", name, "--output", str(tmp_path / "out.xyz")]
    assert evaluate.main(command) == 0
    assert ase.io.read(tmp_path / "out.xyz").info["MACE_energy"] == pytest.approx(energy, abs=1e-4)


def test_there_are_models_within_the_size_that_is_promised():
    assert {name.split(".")[1] for name in NAMES} == set(TEST_FRAMES) and list_models(trained=True) == NAMES
    assert {name.split("-")[1] for name in NAMES} == {"mace", "nequip"}
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()) < 8e6


@pytest.mark.parametrize("name", NAMES)
def test_the_stored_energy_forces_and_charges_come_out_again(name):
    kept = json.loads((SHIPPED / name / REFERENCE_FILE).read_text())
    structure = kept["structure"]
    atoms = Atoms(structure["numbers"], structure["positions"], cell=structure["cell"], pbc=structure["pbc"])
    model = load_pretrained(name, dtype="float64", offline=True)
    assert isinstance(model, PhiPotential)
    atoms.calc = PhiCalculator(model)
    assert atoms.get_potential_energy() == pytest.approx(kept["energy"], rel=1e-6)
    for got, key in ((atoms.get_forces(), "forces"), (atoms.get_charges(), "charges")):
        np.testing.assert_allclose(got, kept[key], rtol=0, atol=1e-6 * np.abs(kept[key]).max())


def stated(name, quantity, model="phi"):
    """RMSE that the card says."""
    rows = [row for row in card.read(SHIPPED / name / CARD_FILE)["errors"] if row["model"] == model]
    return float(re.search(r"RMSE ([\d.e+-]+)", rows[0][quantity])[1])


def measured(name, frames):
    """{quantity: RMSE in the card's units} over frames, through ase."""
    calculator = PhiCalculator(load_pretrained(name, offline=True))
    differences = {}
    for atoms, want in frames:
        atoms = Atoms(atoms.numbers, atoms.positions)
        atoms.calc = calculator
        got = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        got |= {"charges": atoms.get_charges(), "dipole": atoms.get_dipole_moment()}
        found = {key: np.ravel(got[key] - np.asarray(value)) for key, value in want.items()}
        found["energy_per_atom"] = found.pop("energy") / len(atoms)
        for key, value in found.items():
            differences.setdefault(key, []).append(value)
    return {key: UNITS[key] * np.sqrt(np.mean(np.square(np.concatenate(d)))) for key, d in differences.items()}


@pytest.mark.parametrize("name", NAMES)
def test_the_errors_of_the_card_are_found_again_on_a_part_of_the_test_set(name):
    frames = TEST_FRAMES[name.split(".")[1]]()
    errors = measured(name, frames[:: max(1, len(frames) // 25)])
    assert errors["forces"] == pytest.approx(stated(name, "forces"), rel=0.15)
    assert errors["energy_per_atom"] == pytest.approx(stated(name, "energy_per_atom"), rel=0.5)
    if "charges" in errors:
        assert errors["charges"] == pytest.approx(stated(name, "charges"), rel=0.15)
        assert errors["dipole"] == pytest.approx(stated(name, "dipole"), rel=0.3)


@pytest.mark.full
@pytest.mark.parametrize("name", NAMES)
def test_the_errors_of_the_card_are_found_again(name):
    """Total energies of the cards were summed in single precision, those of calculators are not."""
    for quantity, error in measured(name, TEST_FRAMES[name.split(".")[1]]()).items():
        assert error == pytest.approx(stated(name, quantity), rel=0.015 if "energy" in quantity else 0.01), quantity
