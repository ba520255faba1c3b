"""Total charge, spin multiplicity and electronic temperature, from wherever people and ase put them."""

import io
import warnings

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect

from phi_equivariant.errors import InputError
from phi_equivariant.inputs.state import StateCount, StateReader, check_charge_labels


def water(**info):
    atoms = Atoms("OH2", [[0, 0, 0.12], [0, 0.76, -0.48], [0, -0.76, -0.48]])
    atoms.info.update(info)
    return atoms


def charge(atoms, **keys):
    return StateReader(keys).read(atoms)["total_charge"]


@pytest.mark.parametrize("key", ["total_charge", "charge", "Q"])
@pytest.mark.parametrize(
    "value", [1, 1.0, np.int64(1), np.float32(1), np.array(1), np.array([1.0]), [1], torch.tensor([1.0])]
)
def test_every_key_and_every_kind_of_number(key, value):
    assert charge(water(**{key: value}), total_charge="Q") == 1.0


@pytest.mark.parametrize("value", ["1", "+1", True, float("nan"), [1, 2], np.zeros(3), [], 1j, {}, "", "neutral"])
def test_numbers_only(value):
    with pytest.raises(InputError, match=r"info\['charge'\] is .*the total charge must be a finite number, in e"):
        charge(water(charge=value))


def test_none_says_nothing():
    assert charge(water(total_charge=None)) == 0.0 and charge(water(total_charge=None, charge=1)) == 1.0


@pytest.mark.parametrize("key", ["total_spin", "spin", "multiplicity", "spin_multiplicity"])
def test_all_names_of_the_multiplicity(key):
    reader = StateReader()
    assert reader.read(water(**{key: 3}), ("total_spin",)) == {"total_spin": 3.0}
    assert reader.find(water(**{key: 3}), "total_spin") == (3.0, key)
    assert reader.find(water(), "total_spin") is None
    assert reader.read(water(), ("total_spin", "elec_temp")) == {"total_spin": 1.0, "elec_temp": 0.0}


def test_files_that_ase_reads(tmp_path):
    text = "3\nProperties=species:S:1:pos:R:3 {}\nO 0 0 0.12\nH 0 0.76 -0.48\nH 0 -0.76 -0.48\n"
    for written in ("charge=1", 'charge="1"', "total_charge=+1.0", "charge={1}", "total_charge=[1]"):
        assert charge(ase.io.read(io.StringIO(text.format(written)), format="extxyz")) == 1.0
    for suffix in ("json", "db"):
        with connect(tmp_path / f"x.{suffix}") as database:
            database.write(water(), key_value_pairs={"total_charge": -1}, data={"spin": 2})
        atoms = next(connect(tmp_path / f"x.{suffix}").select()).toatoms(add_additional_information=True)
        assert StateReader().read(atoms, ("total_charge", "total_spin")) == {"total_charge": -1.0, "total_spin": 2.0}
    water(charge=1).write(tmp_path / "x.traj")
    assert charge(ase.io.read(tmp_path / "x.traj")) == 1.0
    atoms = water()
    atoms.calc = SinglePointCalculator(atoms, energy=0.0)
    atoms.calc.results["charge"] = 1
    assert charge(atoms) == 1.0


def test_contradictions_are_refused():
    with pytest.raises(InputError, match=r"info\['total_charge'\] = 1, info\['charge'\] = 0"):
        charge(water(total_charge=1, charge=0))
    assert charge(water(total_charge=1, charge=1.0, Q=1), total_charge="Q") == 1.0
    with pytest.raises(InputError, match=r"differs: info\['Q'\] = 2, info\['charge'\] = 1"):
        charge(water(Q=2, charge=1), total_charge="Q")
    with pytest.raises(InputError, match="spin multiplicity is given twice"):
        StateReader().find(water(spin=2, multiplicity=1), "total_spin")


def test_initial_charges_and_moments_must_not_say_something_else():
    """tblite and others take the sum of ase's initial charges for the total charge: what is meant must be clear."""
    atoms = water()
    atoms.set_initial_charges([1.0, 0, 0])
    with pytest.raises(InputError, match="initial charges .* 1, but no total_charge"):
        charge(atoms)
    atoms.info["charge"] = 1
    assert charge(atoms) == 1.0
    atoms.info["charge"] = -1
    with pytest.raises(InputError, match="but total_charge is -1"):
        charge(atoms)
    atoms = water()
    atoms.set_initial_charges([-0.834, 0.417, 0.417])
    atoms.set_initial_magnetic_moments([1.0, 0.0, 0.0])
    assert charge(atoms) == 0.0
    with pytest.raises(InputError, match="magmoms make a spin multiplicity of 2, but no total_spin is given"):
        StateReader().find(atoms, "total_spin")


@pytest.mark.parametrize("key", ["Charge", "TotalCharge", "total charge", "TOTAL_CHARGE", "q"])
def test_other_spellings_are_refused_unless_they_are_named(key):
    with pytest.raises(InputError, match=f"{key!r}, from which the total charge is not read"):
        charge(water(**{key: 1}), **({"total_charge": "Q"} if key == "q" else {}))
    assert charge(water(**{key: 1}), total_charge=key) == 1.0


def test_a_column_is_no_total_charge():
    atoms = water()
    atoms.arrays["total_charge"] = np.ones(3)
    with pytest.raises(InputError, match="one value for each atom"):
        charge(atoms)
    atoms.arrays["charge"] = atoms.arrays.pop("total_charge")  # atomic charges
    assert charge(atoms) == 0.0


def test_charges_that_no_ion_has():
    methane = Atoms("CH4", np.arange(15.0).reshape(5, 3))
    for value in (40, 11, -11):
        methane.info["charge"] = value
        with pytest.raises(InputError, match=r"CH4 has 10 electrons"):
            charge(methane)
    proton = Atoms("H", info={"charge": 1})
    assert charge(proton) == 1.0


def test_outside_of_what_was_trained_on():
    reader = StateReader(seen={"total_charge": (-1.0, 1.0)})
    with pytest.warns(UserWarning, match=r"total_charge is 2, but the model was trained on −1…\+1"):
        assert reader.read(water(charge=2)) == {"total_charge": 2.0}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert reader.read(water(charge=-1)) == {"total_charge": -1.0}


def test_written_down_and_read_again():
    reader = StateReader({"total_charge": "Q"}, {"total_charge": (-1.0, 1.0), "total_spin": (1.0, 3.0)})
    assert StateReader.from_dict(reader.to_dict()) == reader
    assert StateReader.from_dict({}) == StateReader()
    for wrong in ({"total_charge": {"key": 3}}, {"magic": {"key": "x"}}, {"total_charge": {"seen": [1, 0]}}, []):
        with pytest.raises(InputError):
            StateReader.from_dict(wrong)


def test_what_a_set_says():
    count, reader = StateCount({"total_charge": "Q"}), StateReader({"total_charge": "Q"})
    frames = [water(Q=-1), water(charge=1), water()]
    for atoms in frames:
        count.add({"total_charge": reader.find(atoms, "total_charge"), "total_spin": None})
    assert count.lines() == ["total charge: 2 of 3 frames, −1…+1, key Q, charge, the others taken as 0"]
    assert count.seen() == {"total_charge": (-1.0, 1.0), "total_spin": (1.0, 1.0)}
    count.check_named("x.xyz")
    other = StateCount({"total_charge": "P"})
    other.add({"total_charge": reader.find(water(charge=1), "total_charge")})
    with pytest.raises(
        InputError, match="total_charge_key is 'P', but none of the 1 frames of x.xyz has it; they .*charge"
    ):
        other.check_named("x.xyz")
    none = StateCount()
    none.add({"total_charge": None})
    assert none.lines() == ["total charge: none of 1 frames, all taken as 0"]


@pytest.mark.parametrize(("total", "good"), [(1.0, True), (0.0, False), (2.0, False), (0.95, True)])
def test_charge_labels_sum_to_the_total_charge(total, good):
    charges = np.array([0.2, 0.4, 0.4])
    if good:
        check_charge_labels(charges, total)
    else:
        with pytest.raises(InputError, match=rf"charges sum to \+1.000 e, but the total charge is \{total:+g} e"):
            check_charge_labels(charges, total)
