"""``phi-zoo try``: molecules from text, relaxed by a trained model; what it prints, its page, and what it refuses."""

import html.parser
import json
import os
import re
import sys

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.constraints import FixAtoms

from phi_equivariant import PhiCalculator
from phi_equivariant.errors import InputError
from zoo import smiles, trial
from zoo.cli import main

MODEL = "phi-mace-small.acac"


@pytest.mark.parametrize(
    ("text", "formula", "charge"),
    [("CCO", "C2H6O", 0), ("CC(=O)[O-]", "C2H3O2", -1), ("C[NH3+]", "CH6N", 1), ("[NH3+]CC(=O)[O-]", "C2H5NO2", 0)],
)
def test_smiles_have_their_atoms_and_formal_charge(text, formula, charge):
    pytest.importorskip("rdkit")
    atoms = smiles.structure_of(text)
    assert atoms.get_chemical_formula(mode="hill") == formula and atoms.info["total_charge"] == charge
    distances = atoms.get_all_distances()[np.triu_indices(len(atoms), 1)]
    assert 0.9 < distances.min() < 1.3 and np.array_equal(atoms.positions, smiles.structure_of(text).positions)


def test_molecules_of_one_smiles_lie_side_by_side():
    pytest.importorskip("rdkit")
    atoms = smiles.structure_of("C[NH3+].[Cl-].O")
    assert atoms.get_chemical_formula(mode="hill") == "CH8ClNO" and atoms.info["total_charge"] == 0
    parts = [atoms.symbols.search("Cl")[0]], [i for i, a in enumerate(atoms) if a.symbol == "O"]
    others = [i for i in range(len(atoms)) if i != parts[0][0]]
    assert atoms.get_distances(parts[0][0], others).min() >= 3.0
    assert sorted(atoms.get_distances(parts[1][0], range(len(atoms))))[3] >= 3.0  # itself, its hydrogens, the others


def test_a_molecule_is_relaxed_and_shown(tmp_path, capsys):
    """To where ase finds no force, from a file; the printed numbers and those of the page are the calculator's."""
    file, page = tmp_path / "<b>.xyz", tmp_path / "page.html"
    ase.io.write(file, molecule("CH3COCH3"))
    assert main(["try", MODEL, str(file), "--page", str(page), "--fmax", "0.05"]) == 0
    printed = capsys.readouterr().out
    text = page.read_text()
    (shown,) = json.loads(re.search(r'id="structures">(.*?)</script>', text, re.DOTALL).group(1))
    relaxed = Atoms(shown["symbols"], shown["positions"])
    relaxed.calc = PhiCalculator(MODEL, dtype="float64")
    assert np.linalg.norm(relaxed.get_forces(), axis=1).max() < 0.1  # positions have three digits
    assert float(re.search(r"energy +(-?[\d.]+) eV \(-", printed)[1]) == pytest.approx(
        relaxed.get_potential_energy(), abs=2e-3
    )
    np.testing.assert_allclose(shown["charges"], relaxed.get_charges(), atol=2e-3)
    dipole = np.array(re.search(r"dipole, e·Å +(\S+) (\S+) (\S+),", printed).groups(), float)
    np.testing.assert_allclose(dipole, relaxed.get_dipole_moment(), atol=5e-3)
    assert "it is not for other molecules" in " ".join(printed.split()) and "+0." in printed
    assert "<b>" not in text.split("<main>")[0] and "&lt;b&gt;.xyz" in text
    names = {value for tag, attributes in _tags(text) for key, value in attributes if key == "id"}
    assert {"viewer", "structures", "scale", "about", "atom", "structure-choice", "colour-choice"} <= names
    assert not [value for _, attributes in _tags(text) for key, value in attributes if key in ("src", "href")]


def _tags(text):
    found = []
    parser = html.parser.HTMLParser()
    parser.handle_starttag = lambda tag, attributes: found.append((tag, attributes))
    parser.feed(text)
    return found


def test_what_cannot_be_tried(tmp_path, capsys, monkeypatch):
    large = Atoms("C501", np.random.default_rng(0).uniform(0, 50, (501, 3)))
    ase.io.write(tmp_path / "large.xyz", large)
    ase.io.write(tmp_path / "ammonia.xyz", molecule("NH3"))
    (tmp_path / "broken.xyz").write_text("3\n\nH 0 0\n")
    os.mkfifo(tmp_path / "pipe")
    for words, message in (
        ([MODEL, "nonsense!"], "is neither a file that is there nor a SMILES"),
        ([MODEL, str(tmp_path / "nowhere.xyz")], "is neither a file that is there nor a SMILES"),
        ([MODEL, str(tmp_path / "broken.xyz")], "broken.xyz"),
        ([MODEL, str(tmp_path / "large.xyz")], "501 atoms; at most 500 are tried"),
        ([MODEL, str(tmp_path / "ammonia.xyz")], "has N, which phi-mace-small.acac does not know; it knows H, C, O"),
        (["phi-mace-small.acca", "CCO"], "Did you mean phi-mace-small.acac"),
        (["phi-mace-small", "CCO"], "is a size, not a trained model"),
        ([MODEL, str(tmp_path / "ammonia.xyz"), "--fmax", "0"], "fmax is 0.0"),
        ([MODEL, ""], "'' is neither a file that is there nor a SMILES"),
        ([MODEL, "C" * 300 + "!"], "is neither a file that is there nor a SMILES"),
        (
            [MODEL, "C" * 300 + "!", "--page", str(tmp_path / "large.xyz")],
            "is neither a file that is there nor a SMILES",
        ),
        ([MODEL, "CCO", "--page", str(tmp_path / "none" / "page.html")], "page.html cannot be written; give a file"),
        ([MODEL, "CCO", "--page", str(tmp_path)], "cannot be written; give a file"),
        ([MODEL, "CCO", "--page", str(tmp_path / "pipe")], "pipe cannot be written; give a file"),
        ([MODEL, str(tmp_path / "large.xyz"), "--page", str(tmp_path / "large.xyz")], "which holds the structure"),
    ):
        assert main(["try", "--page", str(tmp_path / "page.html"), *words]) == 2
        error = capsys.readouterr().err
        assert error.startswith("phi-zoo: ") and error.count("\n") == 1 and message in error, error
    assert not (tmp_path / "page.html").exists()
    monkeypatch.setitem(sys.modules, "rdkit", None)  # not installed
    with pytest.raises(InputError, match=r"pip install 'phi-equivariant\[smiles\]'"):
        smiles.from_smiles("CCO")


def test_what_a_file_says_beside_the_atoms_is_noted(tmp_path):
    """Forces that constraints take away are no sign of a minimum, and a field moves the energy."""
    ethanol = molecule("CH3CH2OH")
    ethanol.set_constraint(FixAtoms([0, 1]))
    ethanol.info["external_field"] = [0.0, 0.0, 0.1]
    ethanol.write(tmp_path / "ethanol.traj")
    found = trial.run(MODEL, str(tmp_path / "ethanol.traj"))
    ethanol.calc, ethanol.positions = PhiCalculator(MODEL, dtype="float64"), found.atoms.positions
    largest = np.linalg.norm(ethanol.get_forces(apply_constraint=False), axis=1).max()
    assert found.force < 0.02 < largest
    field, constraints, *_ = found.notes
    assert field == "it is in the file's external field, 0 0 0.1 V/Å"
    assert constraints == (
        f"the file's constraints act (FixAtoms); without them the largest force is {largest:.3f} eV/Å"
    )


def test_what_the_library_warns_of_is_a_note(tmp_path, recwarn):
    cell = molecule("H2O", vacuum=4.0, pbc=True)
    cell.info["total_charge"] = 1
    ase.io.write(tmp_path / "cell.xyz", cell)
    found = trial.run(MODEL, str(tmp_path / "cell.xyz"), steps=2)
    (told,) = [note for note in found.notes if note.startswith("total_charge is not 0 in a periodic cell")]
    assert not [note for note in found.notes if "TorchScript" in note or "deprecated" in note]
    assert "background" in told and not [one for one in recwarn if "total_charge" in str(one.message)]


def test_another_total_charge_is_used_and_noted(tmp_path):
    ase.io.write(tmp_path / "water.xyz", molecule("H2O"))
    found = trial.run(MODEL, str(tmp_path / "water.xyz"), total_charge=1.0, steps=0)
    assert found.total_charge == 1.0 and found.charges.sum() == pytest.approx(1.0, abs=1e-9) and not found.converged
    assert found.energy == found.first_energy and found.steps == 0
    assert "it was trained on total charge 0, not +1" in found.notes
