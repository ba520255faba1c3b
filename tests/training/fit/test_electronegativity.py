"""The electronegativity of Φ that phi-mace-train fits to energies of several total charges."""

import dataclasses
import json

import ase.io
import numpy as np
import pytest
import yaml
from ase.build import molecule
from training_runs import build, keep_default_dtype, refused, run, words  # noqa: F401

from phi_equivariant import PhiCalculator
from phi_equivariant.weights import load_model, save_model

VALUES = {1: -2.5, 6: -7.0, 8: -4.5}  # eV of each atom
SLOPE = 6.25  # eV of each unit of charge
KINDS = ("H2O", "CH3OH", "CH4", "H2CO", "OH")
FREE = dict.fromkeys(
    ("hidden_irreps", "r_max", "max_ell", "correlation", "num_radial_basis", "radial_MLP", "MLP_irreps")
)
PHI = "operator=coulomb"


def ions(charges=(0, 1, -1), kinds=KINDS, slope=SLOPE):
    """Molecules whose energies are sums over atoms and a multiple of the total charge."""
    frames, rng = [], np.random.default_rng(3)
    for index in range(20):
        atoms = molecule(kinds[index % len(kinds)])
        atoms.positions += 0.05 * rng.normal(size=atoms.positions.shape)
        charge = charges[index % len(charges)]
        energy = sum(VALUES[number] for number in atoms.numbers.tolist()) + slope * charge
        atoms.info |= {"energy": energy, "total_charge": charge}
        atoms.arrays["forces"] = rng.normal(size=atoms.positions.shape)
        frames.append(atoms)
    return frames


def write(path, frames):
    ase.io.write(path, frames, format="extxyz")
    return path


def without_neutral(frames):
    """Cations alone have energies, 2 eV above what is added up."""
    for atoms in frames:
        if atoms.info["total_charge"] == 1:
            atoms.info["energy"] += 2.0
        else:
            del atoms.info["energy"]
    return frames


def test_it_is_the_slope_of_the_energies(tmp_path):
    """Whatever E0s are given: they have no part in it. It stands in the log and in the files."""
    file = write(tmp_path / "ions.xyz", ions())
    for given in ({"E0s": "average"}, {"E0s": "{1: 1.0, 6: 2.0, 8: 3.0}"}):
        model, data, _ = build(file, phi=PHI, **given)
        assert model.phi.config.electronegativity == data.electronegativity == pytest.approx(SLOPE, rel=1e-9)
    assert "electronegativity: 6.250 V, least squares: energies differ by that for each e of total charge" in data.lines
    folder = run(tmp_path, name="run", train_file=file, phi=PHI, max_num_epochs=1, charges_weight=None)
    saved = json.loads((folder / "config.json").read_text())["phi"]["config"]
    assert saved["electronegativity"] == pytest.approx(SLOPE, rel=1e-9)
    model, cation = load_model(folder), molecule("H2O")
    cation.info["total_charge"] = 1
    energy = PhiCalculator(model).get_property("energy", cation)
    model.phi.config = dataclasses.replace(model.phi.config, electronegativity=None)
    assert energy - PhiCalculator(model).get_property("energy", cation) == pytest.approx(SLOPE, abs=1e-8)


def test_e0s_shift_and_scale_count_from_it(tmp_path):
    """They are those of energies without the charge's part: of neutral structures, here."""
    plain, charged = ions(slope=0.0), ions()
    for index, (one, other) in enumerate(zip(plain, charged, strict=True)):
        for atoms in (one, other):  # something that elements do not explain
            atoms.info["energy"] += 0.1 * np.sin(index)
        one.info["total_charge"] = 0
    given = {"model": "ScaleShiftMACE", "scaling": "std_scaling", "E0s": "average"}
    of_ions, *_ = build(write(tmp_path / "ions.xyz", charged), phi=[PHI, f"electronegativity={SLOPE}"], **given)
    of_neutral, *_ = build(write(tmp_path / "neutral.xyz", plain), phi=PHI, **given)
    for name in ("scale", "shift"):
        values = [float(getattr(model.host.scale_shift, name)) for model in (of_ions, of_neutral)]
        assert values[0] == pytest.approx(values[1], rel=1e-9) and abs(values[0]) > 0
    energies = [model.host.atomic_energies_fn.atomic_energies.numpy() for model in (of_ions, of_neutral)]
    np.testing.assert_allclose(*energies, rtol=1e-9)


def test_what_is_given_stays(tmp_path):
    file = write(tmp_path / "ions.xyz", ions())
    for value in (0, 5.5):
        model, data, _ = build(file, phi=[PHI, f"electronegativity={value}"])
        assert model.phi.config.electronegativity == value
        assert not any("electronegativity" in line for line in data.lines)


@pytest.mark.parametrize(
    "frames",
    [ions(charges=(0,)), ions(charges=(1,)), ions(charges=(0, 1), kinds=("CH4", "OH")), without_neutral(ions())],
    ids=["neutral", "of one charge", "charge follows from elements", "no energies of the others"],
)
def test_where_charges_say_nothing_there_is_none(tmp_path, frames):
    model, data, _ = build(write(tmp_path / "ions.xyz", frames), phi=PHI)
    assert model.phi.config.electronegativity is None and data.electronegativity is None


def test_hosts_and_graph_have_none(tmp_path):
    assert build(write(tmp_path / "ions.xyz", ions()), no_phi=True)[1].electronegativity is None
    neutral = write(tmp_path / "neutral.xyz", ions(charges=(0,)))
    assert build(neutral, phi="operator=graph")[0].phi.config.electronegativity is None


def test_structures_without_weight_have_no_part(tmp_path):
    frames = ions()
    for atoms in frames[::4]:
        atoms.info["energy"] += 100 * atoms.info["total_charge"]
        atoms.info["config_type"] = "other"
    file = write(tmp_path / "ions.xyz", frames)
    weights = '{"Default": 1.0, "other": 0.0}'
    assert build(file, phi=PHI, config_type_weights=weights)[1].electronegativity == pytest.approx(SLOPE, rel=1e-9)
    assert abs(build(file, phi=PHI)[1].electronegativity - SLOPE) > 1


def test_heads_have_energies_of_their_own_and_one_slope(tmp_path):
    first, second = ions(), ions()
    for atoms in second:
        atoms.info["energy"] += 1000 * np.count_nonzero(atoms.numbers == 1)
    heads = {
        name: {"train_file": str(write(tmp_path / f"{name}.xyz", frames)), "valid_fraction": 0.2, "E0s": "average"}
        for name, frames in (("a", first), ("b", second))
    }
    found = build(tmp_path / "a.xyz", train_file=None, E0s=None, heads=repr(heads), phi=PHI)
    assert found[1].electronegativity == pytest.approx(SLOPE, rel=1e-9)


def test_a_head_of_one_charge_has_no_part(tmp_path):
    cations = ions(charges=(1,))
    for atoms in cations:
        atoms.info["energy"] += 2.0
    heads = {
        name: {"train_file": str(write(tmp_path / f"{name}.xyz", frames)), "valid_fraction": 0.2, "E0s": "average"}
        for name, frames in (("a", cations), ("b", ions()), ("c", ions(charges=(0,))))
    }
    found = build(tmp_path / "a.xyz", train_file=None, E0s=None, heads=repr(heads), phi=PHI)
    assert found[1].electronegativity == SLOPE


def test_a_run_of_before_does_not_go_on_with_another(tmp_path, capsys):
    """A checkpoint says what its energies counted from."""
    file = write(tmp_path / "ions.xyz", ions())
    given = {"name": "run", "train_file": file, "restart_latest": True}
    folder = run(tmp_path, **given, phi=PHI, max_num_epochs=1)
    assert yaml.safe_load((folder / "config.yaml").read_text())["phi"]["electronegativity"] == SLOPE
    assert json.loads((folder / "data.json").read_text())["electronegativity"] == SLOPE
    run(tmp_path, **given, phi=PHI, max_num_epochs=2)
    assert "electronegativity" in refused(
        capsys, words(tmp_path, **given, phi=[PHI, "electronegativity=0"], max_num_epochs=3)
    )


@pytest.fixture
def before(tmp_path):
    """A model that was trained with an electronegativity."""
    model, *_ = build(write(tmp_path / "ions.xyz", ions()), phi=PHI)
    save_model(model, tmp_path / "before")
    return tmp_path / "before"


def labelled_by(model, shift, slope):
    """The ions with energies of a model, moved by so many eV for each atom of an element and each unit of charge."""
    frames, calculator = ions(), PhiCalculator(model)
    for atoms in frames:
        moved = sum(shift[number] for number in atoms.numbers.tolist()) + slope * atoms.info["total_charge"]
        atoms.info["energy"] = calculator.get_property("energy", atoms) + moved
    return frames


@pytest.mark.honours("foundation_model", "E0s")
def test_it_moves_to_another_level_of_theory_with_the_isolated_atoms(before, tmp_path):
    shift, trained = {1: -400.0, 6: 15.0, 8: 30.0}, load_model(before)
    frames = labelled_by(trained, shift, -1.5)
    file = write(tmp_path / "new.xyz", frames)
    model, data, _ = build(file, **{**FREE, "E0s": None, "foundation_model": before})
    assert model.phi.config.electronegativity == pytest.approx(SLOPE - 1.5, abs=1e-6)
    energies = dict(zip((1, 6, 8), trained.host.atomic_energies_fn.atomic_energies.ravel().tolist(), strict=True))
    for number, energy in data.e0s["Default"].items():
        assert energy == pytest.approx(energies[number] + shift[number], abs=1e-6)
    calculator = PhiCalculator(model.eval())
    for atoms in frames[:6]:
        assert calculator.get_property("energy", atoms) == pytest.approx(atoms.info["energy"], abs=1e-5)
    kept = build(file, **{**FREE, "E0s": "foundation", "foundation_model": before})[0]
    assert kept.phi.config.electronegativity == pytest.approx(SLOPE, rel=1e-9)


@pytest.mark.honours("foundation_model", "E0s")
def test_a_fresh_phi_keeps_it_unless_energies_say_another(before, tmp_path):
    file = write(tmp_path / "new.xyz", ions(slope=4.0))
    given = {**FREE, "foundation_model": before, "phi": ["fresh=true", PHI]}
    assert build(file, **given, E0s="foundation")[1].electronegativity == SLOPE
    estimated = build(file, **given, E0s="estimated")[1].electronegativity
    assert estimated == pytest.approx(4.0, abs=1.5)  # less what the host says of the ions' surroundings
    told = build(file, **{**given, "phi": ["fresh=true", PHI, "electronegativity=2"]}, E0s="estimated")
    assert told[1].electronegativity == 2.0


@pytest.mark.honours("foundation_model", "E0s")
@pytest.mark.parametrize("e0s", ["{1: -100.0, 6: 15.0, 8: 30.0}", "average"])
def test_whatever_e0s_are_given_it_is_estimated(before, tmp_path, e0s):
    """And least squares on energies alone has the charge's part beside them."""
    trained = load_model(before)
    frames = labelled_by(trained, {1: -400.0, 6: 15.0, 8: 30.0}, -1.5)
    data = build(write(tmp_path / "new.xyz", frames), **{**FREE, "E0s": e0s, "foundation_model": before})[1]
    assert data.electronegativity == pytest.approx(SLOPE - 1.5, abs=1e-5)
    sums = build(
        write(tmp_path / "sums.xyz", ions(slope=2.0)), **{**FREE, "E0s": "average", "foundation_model": before}
    )
    assert list(sums[1].e0s["Default"].values()) == pytest.approx(list(VALUES.values()), rel=1e-9)


@pytest.mark.honours("foundation_model")
def test_ions_of_one_charge_and_what_is_given_leave_it(before, tmp_path):
    cations = [atoms for atoms in labelled_by(load_model(before), dict.fromkeys(VALUES, 0.0), 3.0)]
    cations = [atoms for atoms in cations if atoms.info["total_charge"] == 1]
    file = write(tmp_path / "cations.xyz", cations)
    given = {**FREE, "foundation_model": before, "E0s": None, "batch_size": 2}
    assert build(file, **given)[1].electronegativity == SLOPE
    file = write(tmp_path / "new.xyz", ions(slope=4.0))
    for value in (0, 3.5):
        model, *_ = build(file, **{**given, "phi": f"electronegativity={value}"})
        assert model.phi.config.electronegativity == value
    save_model(build(tmp_path / "ions.xyz", phi=[PHI, "electronegativity=0"])[0], tmp_path / "zero")
    assert build(file, **{**given, "foundation_model": tmp_path / "zero"})[1].electronegativity == 0


def test_ions_are_not_compared(tmp_path, capsys):
    """Before anything is trained: one of the rows is of the graph."""
    line = words(tmp_path, name="x", train_file=write(tmp_path / "ions.xyz", ions()), compare=True)
    assert "--compare: the data hold ions" in refused(capsys, line)
    assert not (tmp_path / "x").exists()
