"""What is written as extended XYZ is read back by ase's own reader as it was."""

import io

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixCartesian

from phi_equivariant.errors import InputError
from training.data.frame_text import frame_text

TEXTS = (
    "a\nb", "a\rb", "x\r\ny", "C:\\dir\\", "\\frac{a}{b}", 'say "hi"', "it's", "a=b total_charge=1", "Å µ 水 “x”",
    "\u2028 x", "a\xa0b", "", " lead and trail ", "a\tb", "12", "1.5 2.5", "nan", "T", "T F", "true", "_JSON [1]",
    "{x}", "[1 2]", "a, b", "a;b", "\\", '"', "'", "=", "\x0b", "\x00",
)  # fmt: skip
VALUES = {
    "none": None, "flag": True, "numpy flag": np.bool_(False), "float32": np.float32(0.1), "large": 2**80, "small": -5,
    "float": 1e-300, "infinite": np.inf, "list": [1, 2, 3], "words": ["a", "b c"], "nothing": [], "no entry": {},
    "dictionary": {"a": [1, 2], "b": {"c": "x\ny"}, "d": None},
    "arrays within": {"x": np.arange(3), "y": np.float64(2)}, "empty array": np.zeros(0), "one": np.array([0.5]),
    "matrix": np.arange(9.0).reshape(3, 3), "flags": np.array([True, False]), "one flag": np.array([True]),
    "bytes": np.array([1, 255], np.uint8), "single": np.array([0.1, 0.2], np.float32),
    "not numbers": np.array([np.nan, np.inf, 1.0]), "text array": np.array(["a", "b c"]), "tuple": (1, 2),
    "tensor": np.arange(8.0).reshape(2, 2, 2),
}  # fmt: skip
NAMES = ("key with space", 'k"q', "k=e", "k\\b", "ключ", "k[1]", "it's")


def back(atoms):
    """A structure, written and read by ase, between two others."""
    text = "".join(frame_text(one, "frame 0") for one in (molecule("H2O"), atoms, molecule("CH4")))
    frames = ase.io.read(io.StringIO(text), ":", format="extxyz")
    assert len(frames) == 3 and frames[2].info == {}
    return frames[1]


@pytest.mark.parametrize("text", TEXTS)
def test_texts(text):
    atoms = molecule("H2O")
    atoms.info = {"before": 1, "text": text, "total_charge": -1}
    found = back(atoms).info
    assert found == atoms.info and isinstance(found["text"], str)


@pytest.mark.parametrize("name", VALUES)
def test_values(name):
    atoms, value = molecule("H2O"), VALUES[name]
    atoms.info = {"before": 1, name: value, "total_charge": -1}
    found = back(atoms).info
    assert list(found) == list(atoms.info) and found["total_charge"] == -1
    if isinstance(value, dict):
        assert repr(found[name]) == repr({k: v.tolist() if hasattr(v, "tolist") else v for k, v in value.items()})
    elif value is None or isinstance(value, bool | int):
        assert found[name] == value and type(found[name]) is not str
    else:
        np.testing.assert_array_equal(found[name], value)
        assert np.shape(found[name]) == np.shape(value)


@pytest.mark.parametrize("name", NAMES)
def test_names_of_entries(name):
    atoms = molecule("H2O")
    atoms.info = {name: 1.5, "total_charge": -1}
    assert back(atoms).info == atoms.info


def test_columns_results_constraints_and_cell():
    atoms = bulk("NaCl", "rocksalt", a=5.6)
    atoms.calc = SinglePointCalculator(
        atoms,
        energy=-1.0,
        forces=np.ones((2, 3)),
        stress=np.arange(6.0),
        dipole=np.ones(3),
        charges=np.array([1.0, -1]),
    )
    atoms.set_constraint([FixAtoms([0]), FixCartesian(1, [True, False, True])])
    atoms.set_initial_charges([0.5, -0.5])
    atoms.set_initial_magnetic_moments([1, 2])
    atoms.set_tags([1, 2])
    atoms.set_momenta(np.ones((2, 3)), apply_constraint=False)
    atoms.info["virial"] = np.arange(9.0).reshape(3, 3)
    columns = {"ids": np.array([1, 2**40]), "tiny": np.array([1e-12, -2e-12]), "wide": np.array([1e12, np.nan])}
    columns |= {"word": np.array(["a", "long"]), "flags": np.array([[True, False], [False, False]])}
    atoms.arrays |= columns
    found = back(atoms)
    for name, value in atoms.calc.results.items():
        np.testing.assert_array_equal(found.calc.results[name], value)
    for name, value in columns.items():
        np.testing.assert_array_equal(found.arrays[name], value)
    np.testing.assert_array_equal(found.info["virial"], atoms.info["virial"])
    np.testing.assert_array_equal(found.cell.array, atoms.cell.array)
    np.testing.assert_array_equal(found.get_momenta(), atoms.get_momenta())
    np.testing.assert_array_equal(found.get_initial_charges(), [0.5, -0.5])
    assert found.pbc.all() and {one.index.item(): one.mask.tolist() for one in found.constraints} == {
        0: [True] * 3,
        1: [True, False, True],
    }


def test_ordinary_frames_are_written_as_ase_writes_them():
    atoms = molecule("CH3OH")
    atoms.info = {"config_type": "dimer", "REF_energy": -1.25, "mu": np.array([0.5, 1.0, -2.0]), "flag": True, "n": 3}
    atoms.arrays["REF_forces"] = np.random.default_rng(0).normal(size=(6, 3))
    text = io.StringIO()
    ase.io.write(text, atoms, format="extxyz")
    assert frame_text(atoms, "") == text.getvalue()


@pytest.mark.parametrize(
    ("info", "arrays", "match"),
    [
        ({"z": 1j}, {}, "'z' is a complex"),
        ({"z": b"x"}, {}, "'z' is a bytes"),
        ({1: 2}, {}, "name of an entry is 1"),
        ({"a\nb": 2}, {}, "has a line break"),
        ({"rows": [[1, 2], [3]]}, {}, "'rows' is a list"),
        ({"virial": 3.0}, {}, "virial"),
        ({"Lattice": 1}, {}, "Lattice"),
        ({}, {"words": np.array(["a", "b c", "d"])}, "'words'"),
        ({}, {"words": np.array(["a", "", "d"])}, "'words'"),
        ({}, {"cube": np.zeros((3, 3, 3))}, "'cube' has shape"),
        ({}, {"z": np.zeros(3, complex)}, "'z'"),
        ({}, {"charge": np.ones(3)}, "'charge'"),
        ({}, {"Z": np.ones(3, int)}, "'Z'"),
        ({}, {"a:b": np.ones(3)}, "a:b"),
    ],
)
def test_what_cannot_be_written_is_named(info, arrays, match):
    atoms = molecule("H2O")
    atoms.info |= info
    atoms.arrays |= arrays
    with pytest.raises(InputError, match=f"frame 4 cannot be written as extended XYZ: .*{match}") as caught:
        frame_text(atoms, "frame 4")
    assert "\n" not in str(caught.value).replace("\\n", "")


def test_entries_that_contradict_the_calculator():
    atoms = Atoms("H", info={"energy": -1.0})
    atoms.calc = SinglePointCalculator(atoms, energy=-1.0)
    assert back(atoms).calc.results == {"energy": -1.0}
    atoms.info["energy"] = -2.0
    with pytest.raises(InputError, match="'energy' is among its entries and among its calculator's results"):
        frame_text(atoms, "frame 0")
