"""Data sets by name from a folder, in the form in which they are published: rMD17, extended XYZ, OE62's table."""

import json
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path

import ase.io
import numpy as np
import pytest
import yaml
from ase import Atoms
from ase.build import molecule
from ase.formula import Formula
from training_runs import keep_default_dtype, parsed, refused, run, words  # noqa: F401

from phi_equivariant.errors import InputError
from training.data.named import DATASETS, find_dataset
from training.data.named_files import load_dataset
from training.shipped import organic_gfn2
from zoo.store import export

KCAL = 4184 / 96485.33212  # kcal/mol in eV: joules per calorie over Faraday's constant
DATA = Path(__file__).parents[4] / "shared" / "data"
E0S = {1: -13.0, 6: -1030.0, 8: -2042.0}


def refuses(match, *args, **kwargs):
    with pytest.raises(InputError, match=match) as caught:
        load_dataset(*args, **kwargs)
    assert "\n" not in str(caught.value)


# rMD17


@pytest.fixture
def ethanol(tmp_path):
    """The folder of ethanol with 40 frames, and two splits of 10 + 10."""
    rng = np.random.default_rng(0)
    arrays = {
        "nuclear_charges": np.array([6, 6, 8, 1, 1, 1, 1, 1, 1], dtype=np.uint8),
        "coords": rng.normal(size=(40, 9, 3)),
        "energies": rng.normal(-97000, 1, 40),
        "forces": rng.normal(size=(40, 9, 3)),
        "old_indices": np.arange(40),
    }
    for folder in ("npz_data", "splits"):
        (tmp_path / folder).mkdir()
    np.savez(tmp_path / "npz_data" / "rmd17_ethanol.npz", **arrays)
    for part in (1, 2):
        order = np.random.default_rng(part).permutation(40)
        for split, chosen in (("train", order[:10]), ("test", order[10:20])):
            np.savetxt(tmp_path / "splits" / f"index_{split}_{part:02d}.csv", chosen, fmt="%d")
    return tmp_path, arrays


@pytest.mark.parametrize(("name", "part"), [("rmd17_ethanol", 1), ("rmd17_ethanol_2", 2)])
def test_rmd17_has_its_published_splits_in_ev(ethanol, name, part):
    folder, arrays = ethanol
    data, order = load_dataset(name, data_dir=folder), np.random.default_rng(part).permutation(40)
    split = data.provenance["split"]
    assert sorted(split["train_indices"] + split["valid_indices"]) == sorted(order[:10].tolist())
    assert split["test_indices"] == order[10:20].tolist() and len(data.valid) == 1 and split["published"] == part
    for frames, indices in ((data.train, split["train_indices"]), (data.test, split["test_indices"])):
        for atoms, index in zip(frames, indices, strict=True):
            assert atoms.info["REF_energy"] == pytest.approx(arrays["energies"][index] * KCAL, rel=1e-8)
            np.testing.assert_allclose(atoms.arrays["REF_forces"], arrays["forces"][index] * KCAL, rtol=1e-7)
            np.testing.assert_array_equal(atoms.positions, arrays["coords"][index])
    assert set(data.provenance["files"]) == {
        "rmd17_ethanol.npz", f"index_train_0{part}.csv", f"index_test_0{part}.csv"
    }  # fmt: skip


def test_rmd17_files_that_are_not_there_or_not_right(ethanol):
    folder, _ = ethanol
    refuses(r"--data_dir: rmd17_ethanol is not downloaded. Get it from .*figshare", "rmd17_ethanol")
    refuses("no npz_data/rmd17_uracil.npz or rmd17_uracil.npz in .*figshare", "rmd17_uracil", data_dir=folder)
    refuses(r"no splits/index_train_03.csv or", "rmd17_ethanol_3", data_dir=folder)
    refuses("no data set 'rmd17_ethanol_6'", "rmd17_ethanol_6", data_dir=folder)
    file = folder / "splits" / "index_train_01.csv"
    for text, match in (
        ("1\n2\n40\n", "names frame 40; the molecule has frames 0 to 39"),
        ("1\n1\n2\n", "expected two or more different ones"),
        ("one\ntwo\n", "not a list of frame numbers"),
        (folder.joinpath("splits", "index_test_01.csv").read_text(), "share 10 frames"),
    ):
        file.write_text(text)
        refuses(match, "rmd17_ethanol", data_dir=folder)
    (folder / "npz_data" / "rmd17_uracil.npz").write_bytes((folder / "npz_data" / "rmd17_ethanol.npz").read_bytes())
    refuses(r"F has shape \(40, 9, 3\)", "rmd17_uracil_2", data_dir=folder)


# Extended XYZ


def frames_of(formula, count, seed=0, forces="forces"):
    """Atoms of a formula on a shaken grid with energies and forces, and an open cell as the published files have."""
    numbers = Atoms(formula).numbers
    grid = 1.5 * np.stack(np.meshgrid(*[np.arange(3)] * 3), -1).reshape(-1, 3)[: len(numbers)]
    rng, frames = np.random.default_rng(seed), []
    for _ in range(count):
        atoms = Atoms(numbers, grid + rng.normal(scale=0.05, size=grid.shape))
        atoms.info["energy"] = float(sum(E0S.get(z, -1480.0) for z in numbers) + rng.normal())
        atoms.arrays[forces] = rng.normal(size=grid.shape)
        frames.append(atoms)
    return frames


def write_acac(folder, further=("test_MD_600K",)):
    ase.io.write(folder / "train_300K.xyz", frames_of("C5H8O2", 20), format="extxyz")
    for seed, name in enumerate(("test_MD_300K", *further), 1):
        ase.io.write(folder / f"{name}.xyz", frames_of("C5H8O2", 5 + seed, seed), format="extxyz")
    atoms = [Atoms([z], info={"energy": energy, "config_type": "isolated_atom"}) for z, energy in E0S.items()]
    ase.io.write(folder / "isolated_atoms.xyz", atoms, format="extxyz")


def test_sets_of_extended_xyz(tmp_path):
    write_acac(tmp_path)
    data = load_dataset("acac", data_dir=tmp_path)
    assert [len(part) for part in (data.train, data.valid, data.test)] == [18, 2, 6] and data.e0s == E0S
    assert data.test_name == "MD_300K" and {name: len(part) for name, part in data.further_tests.items()} == {
        "MD_600K": 7
    }
    (note,) = data.notes
    assert note.endswith("not tested on: test_dihedral.xyz, test_H_transfer.xyz")
    written = ase.io.read(tmp_path / "train_300K.xyz", ":")
    split = data.provenance["split"]
    assert sorted(split["train_indices"] + split["valid_indices"]) == list(range(20))
    for atoms, index in zip(data.train, split["train_indices"], strict=True):
        assert atoms.info["REF_energy"] == written[index].get_potential_energy()
        np.testing.assert_array_equal(atoms.arrays["REF_forces"], written[index].get_forces())
    assert data.reports["train"].counts == {"energy": 18, "forces": 18}


def test_files_of_extended_xyz_that_are_missing_are_named(tmp_path):
    write_acac(tmp_path, further=())
    for name in ("isolated_atoms.xyz", "test_MD_300K.xyz", "train_300K.xyz"):
        (tmp_path / name).rename(tmp_path / "away")
        refuses(
            f"There is no {name} in .*dataset_acac of github.com/davkovacs/BOTNet-datasets", "acac", data_dir=tmp_path
        )
        (tmp_path / "away").rename(tmp_path / name)
    ase.io.write(tmp_path / "train_300K.xyz", frames_of("C5H8O2", 3) + frames_of("C4H8O2", 1), format="extxyz")
    refuses("frame 3 of .* holds C4H8O2; expected C5H8O2", "acac", data_dir=tmp_path)


def test_dipeptides_have_charges_and_dipoles(tmp_path):
    for name, count in (("train", 10), ("val", 4)):
        frames = frames_of("C3H7NO2", count, forces="force")
        for atoms in frames:
            atoms.arrays["mbi_charges"] = np.linspace(-0.3, 0.3, len(atoms))[:, None]
            atoms.info["dipole"] = [[1.0, 2.0, 3.0]]
        ase.io.write(tmp_path / f"{name}.xyz", frames, format="extxyz")
    data = load_dataset("spice_dipeptides", data_dir=tmp_path)
    assert [len(part) for part in (data.train, data.valid, data.test)] == [9, 1, 4] and data.e0s is None
    assert data.reports["test"].counts == {"energy": 4, "forces": 4, "charges": 4, "dipole": 4}
    np.testing.assert_array_equal(data.train[0].info["REF_dipole"], [1.0, 2.0, 3.0])
    assert data.train[0].arrays["REF_charges"][0] == pytest.approx(-0.3)


@pytest.mark.slow
def test_published_files_are_read(published):
    data = load_dataset("acac", data_dir=published / "acac")
    assert [len(part) for part in (data.train, data.valid, data.test)] == [450, 50, 650]
    assert data.e0s == pytest.approx({1: -13.568422, 6: -1026.853900, 8: -2037.796869}, abs=1e-4)
    data = load_dataset("spice_dipeptides", data_dir=published / "spice_dipeptides")
    assert [len(part) for part in (data.train, data.valid, data.test)] == [446, 49, 55]
    assert data.reports["train"].counts["charges"] == data.reports["train"].counts["dipole"] == 446
    with pytest.raises(InputError, match="no test_300K.xyz in .*dataset_3BPA"):
        load_dataset("3bpa", data_dir=published / "3bpa")


def test_formulas_are_those_of_published_files(published):
    for name, file in (("acac", "acac/train_300K.xyz"), ("3bpa", "3bpa/train_300K.xyz")):
        found = ase.io.read(published / file, 0).symbols.formula
        assert Formula(DATASETS[name].formula).count() == found.count()
    numbers = np.load(published / "rmd17" / "aspirin_train_01.npz")["nuclear_charges"]
    assert Formula(find_dataset("rmd17_aspirin_4").formula).count() == Atoms(numbers).symbols.formula.count()


# The set that a command makes


def test_organic_gfn2_from_its_folder(tmp_path):
    """Its own validation file, isolated atoms of the training file, and charged molecules that are counted as such."""
    with as_file(files(organic_gfn2) / "sample.xyz.gz") as path:
        frames = ase.io.read(path, ":")
    elements = (1, 6, 7, 8, 9, 15, 16, 17)
    singles = [Atoms([z], info={"config_type": "IsolatedAtom", "REF_energy": -10.0 * z}) for z in elements]
    parts = {
        "train": [*singles, *frames[:40]],
        "valid": frames[40:60],
        "test": frames[60:90],
        "test_large": frames[90:],
    }
    for name, part in parts.items():
        ase.io.write(tmp_path / f"{name}.xyz", part, format="extxyz")
    data = load_dataset("organic_gfn2", data_dir=tmp_path)
    assert [len(part) for part in (data.train, data.valid, data.test)] == [40, 20, 30]
    assert list(data.further_tests) == ["large"] and data.e0s == {z: -10.0 * z for z in elements}
    assert "test_distances.xyz" in data.notes[0] and set(data.provenance["files"]) == {f"{name}.xyz" for name in parts}
    assert "training.shipped.organic_gfn2" in data.provenance["source"] and data.provenance["folder"] == str(tmp_path)
    charges = [atoms.info["total_charge"] for atoms in data.train]
    assert min(charges) < 0 < max(charges)
    assert f"total charge: {min(charges):+g}…{max(charges):+g} e" in data.reports["train"].lines()[-2]
    folder = run(
        tmp_path, name="run", dataset="organic_gfn2", data_dir=tmp_path, max_train=20, max_test=10, max_num_epochs=1
    )
    errors = json.loads((folder / "errors.json").read_text())["sets"]
    assert {"charges", "dipole"} <= set(errors["test_organic_gfn2"]["errors"]) and "test_large" in errors
    exported = export.export(folder, tmp_path / "phi-mace-tiny.organic")
    card = yaml.safe_load((exported / "card.yaml").read_text())
    assert [row["set"].partition(",")[0] for row in card["errors"]] == ["test_organic_gfn2", "test_large"]
    assert card["charge_states"][0] < 0 and str(tmp_path) not in str(card)


# OE62

NAMES = ("H2O", "CH3OH", "CH4", "CO2", "CH3CH2OH", "C2H6", "H2CO", "HCOOH", "CH3CHO", "C2H4", "CO", "C2H2")


def xyz_text(name):
    atoms = molecule(name)
    rows = [f"{a.symbol} {a.x:.8f} {a.y:.8f} {a.z:.8f}" for a in atoms]
    return "\n".join([str(len(atoms)), "", *rows]) + "\n"


def table(**changes):
    """The table of twelve molecules whose energies are exactly linear in their elements."""
    rows = [[f"C{i}", xyz_text(name), sum(E0S[z] for z in molecule(name).numbers)] for i, name in enumerate(NAMES)]
    made = {"columns": ["refcode_csd", "xyz_pbe_relaxed", "total_energy_pbe0_vac_tier2"], "index": list(range(12))}
    return {**made, "data": rows, **changes}


@pytest.fixture
def small(monkeypatch):
    """OE62 with twelve molecules: 7 to train on, 2 for validation, 3 for tests."""
    monkeypatch.setitem(DATASETS, "oe62", replace(DATASETS["oe62"], frames=12, train_size=9, part=2))


@pytest.mark.honours("dataset", "data_dir", "max_test", "max_train")
def test_oe62_trains_on_energies_alone_above_a_fit_of_the_elements(small, tmp_path):
    (tmp_path / "df_62k.json").write_text(json.dumps(table()))
    data = load_dataset("oe62", data_dir=tmp_path)
    assert [len(part) for part in (data.train, data.valid, data.test)] == [7, 2, 3]
    found = {str(a.symbols): a for part in (data.train, data.valid, data.test) for a in part}
    assert len(found) == 12
    for name in NAMES:
        atoms = found[str(molecule(name).symbols)]
        np.testing.assert_allclose(atoms.positions, molecule(name).positions, atol=1e-7)
        assert "REF_forces" not in atoms.arrays
    given = {"train_file": None, "dataset": "oe62", "data_dir": tmp_path, "energy_key": None, "forces_key": None}
    folder = run(tmp_path, name="run", **given, max_num_epochs=1, max_test=2, plot="False", batch_size=2)
    about = json.loads((folder / "data.json").read_text())
    assert {int(z): e for z, e in about["e0s"].items()} == pytest.approx(E0S, abs=1e-6)
    sets = json.loads((folder / "errors.json").read_text())["sets"]
    assert {name: found["structures"] for name, found in sets.items()} == {"train": 7, "valid": 2, "test": 2}
    assert "forces" not in sets["test"]["errors"] and about["split"]["test_left_out"] == 1
    few = parsed(tmp_path, name="few", **given, max_train=5)
    assert (few.data.max_train, few.data.max_test, few.loss.forces_weight) == (5, None, 0.0)


def test_tables_that_are_not_oe62s(small, tmp_path):
    file = tmp_path / "df_62k.json"
    refuses("There is no df_62k.json in .*mediaTUM", "oe62", data_dir=tmp_path)
    rows = table()["data"]
    for content, match in (
        ("{", "not a table as pandas writes it"),
        ("[1, 2]", "not a table as pandas writes it"),
        (
            json.dumps(table(columns=["a", "xyz_pbe_relaxed", "b"])),
            "lacks the columns total_energy_pbe0_vac_tier2; it has a,",
        ),
        (json.dumps(table(data=rows[:5])), "has 5 rows; expected 12"),
        (json.dumps(table(data=[*rows[:11], ["x", "3\n\nH 0 0 0\n", -1.0]])), "row 11 cannot be read .*1 of 3 atoms"),
        (json.dumps(table(data=[["x", xyz_text("CO"), None], *rows[1:]])), "row 0 has no finite"),
    ):
        file.write_text(content)
        refuses(match, "oe62", data_dir=tmp_path)


def test_a_part_is_taken_of_data_sets_only(tmp_path, capsys):
    message = refused(capsys, words(tmp_path, train_file="train.xyz", max_test=3))
    assert "--max_test" in message and "by name" in message
    assert "above zero" in refused(capsys, words(tmp_path, train_file=None, dataset="ala3_gfn2", max_train=0))
