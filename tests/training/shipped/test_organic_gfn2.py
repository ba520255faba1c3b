"""The data set organic_gfn2: its molecules, its frames, and the command that makes it."""

import json
import multiprocessing
import time
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule as ase_molecule
from ase.units import kB

from phi_equivariant.errors import InputError
from training.data.reading import read_structures
from training.shipped import organic_gfn2
from training.shipped.organic_gfn2 import clusters, contents, generate, label, making, plan, sampling
from training.shipped.organic_gfn2.bonding import GRID, Bonding, Seen, contact, on_grid
from training.shipped.organic_gfn2.clusters import Approach, Fragment
from training.shipped.organic_gfn2.molecules import SPLITS, canonical, molecules, skeleton

WATER = Bonding(np.array([8, 1, 1]), np.array([[0, 1], [0, 2]]))
AT = np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])
#: Small units of three kinds: made anew in seconds.
SMALL = ("hydroxide", "ammonium", "water")


@pytest.fixture(scope="module")
def sample() -> list[Atoms]:
    """The frames that come with the project, as the trainer reads them."""
    with as_file(files(organic_gfn2) / generate.SAMPLE) as path:
        return read_structures(path).frames


@pytest.fixture
def rdkit() -> None:
    pytest.importorskip("rdkit", reason="needs rdkit, of the extra data")


@pytest.fixture
def tblite(rdkit: None) -> None:
    pytest.importorskip("tblite", reason="needs tblite, of the extra data")


def test_molecules_occur_once_and_skeletons_in_one_split(rdkit: None) -> None:
    found = molecules().values()
    formulas = [canonical(molecule.smiles) for molecule in found]
    assert len(set(formulas)) == len(formulas) > 1000
    of: dict[str, set[str]] = {split: set() for split in SPLITS}
    for molecule in found:
        of[molecule.split].add(skeleton(molecule.smiles))
    for index, split in enumerate(SPLITS):
        for other in SPLITS[:index]:
            assert not of[split] & of[other], f"{split} and {other} share {of[split] & of[other]}"
    assert all(30 <= m.atoms <= 60 for m in found if m.split == "large")
    assert {m.character for m in found if m.split == "test"} == {"neutral", "zwitterion", "cation", "anion"}


def test_every_unit_is_made_of_molecules_of_its_split(rdkit: None) -> None:
    todo = plan.units()
    assert len({unit.name for unit in todo}) == len(todo)
    split = {"test_large": "large", "test_distances": "test"}
    for unit in todo:
        for name in unit.members:
            assert molecules()[name].split == split.get(unit.file, unit.file), unit
    assert set(plan.CLASSES) == {unit.group for unit in todo if unit.kind == "distances"}


@pytest.mark.parametrize("name, value", [("_pool", lambda split: []), ("LARGEST_TESTED_DIMER", 5)])
def test_a_list_without_molecules_for_a_dimer_is_refused(
    name: str, value: object, monkeypatch: pytest.MonkeyPatch, rdkit: None
) -> None:
    monkeypatch.setattr(plan, name, value)
    monkeypatch.setattr(plan, "MOST_TRIES", 100)
    with pytest.raises(InputError, match="no two molecules of (train|valid) are a hydrogen_bond"):
        plan.units()


def test_the_frames_that_come_with_the_project(sample: list[Atoms]) -> None:
    assert len(sample) > 200
    assert {number for frame in sample for number in frame.numbers} == set(label.ISOLATED_ATOMS)
    assert {frame.info["total_charge"] for frame in sample} >= {-2, -1, 0, 1}
    classes = {frame.info["config_type"].rsplit("_", 1)[0] for frame in sample}
    assert classes >= {"minimum", "modes", "md", "stretched", "cluster", "dimer_ion", "dimer_like", "dimer_hydrogen"}
    seen = Seen()
    for frame in sample:
        assert abs(frame.arrays["REF_charges"].sum() - frame.info["total_charge"]) < 1e-6
        forces = frame.arrays["REF_forces"]
        assert np.abs(forces.sum(axis=0)).max() < 1e-6
        assert np.linalg.norm(forces, axis=1).max() <= label.LARGEST_FORCE
        assert np.array_equal(frame.positions, on_grid(frame.positions))
        assert np.abs(frame.get_center_of_mass()).max() < GRID
        assert seen.add(frame.numbers, frame.positions), f"{frame.info['unit']} has a frame twice"
        inside = clusters.GAP[0] < frame.info.get("distance", 0) < clusters.GAP[1]
        beyond = frame.info.get("distance", 0) > clusters.LONGEST + 0.1
        assert not (inside or beyond) or frame.info["unit"].startswith("distances")


@pytest.mark.parametrize("index", [3, 40, -1])
def test_labels_are_those_of_tblite_by_itself(sample: list[Atoms], index: int, tblite: None) -> None:
    from tblite.ase import TBLite

    frame, plain = sample[index], Atoms(sample[index].numbers, sample[index].positions)
    charge = frame.info["total_charge"]
    plain.calc = TBLite(method="GFN2-xTB", charge=charge, multiplicity=1, accuracy=1e-4, verbosity=0)
    assert abs(plain.get_potential_energy() - frame.info["REF_energy"]) < 1e-7
    np.testing.assert_allclose(plain.get_forces(), frame.arrays["REF_forces"], atol=1e-6)
    np.testing.assert_allclose(plain.get_charges(), frame.arrays["REF_charges"], atol=1e-6)
    dipole = plain.get_dipole_moment() - charge * plain.get_center_of_mass()
    np.testing.assert_allclose(dipole, frame.info["REF_dipole"], atol=1e-6)


def test_forces_are_minus_the_slope_of_the_energy(sample: list[Atoms], tblite: None) -> None:
    frame = next(f for f in sample if f.info["config_type"] == "modes_cation")
    charge, step = frame.info["total_charge"], 2e-3

    def energy(atom: int, axis: int, shift: float) -> float:
        positions = frame.positions.copy()
        positions[atom, axis] += shift
        return float(label.single_point(frame.numbers, positions, charge, 1e-5)["energy"])

    for atom, axis in ((0, 0), (1, 1), (2, 2)):
        near = energy(atom, axis, step) - energy(atom, axis, -step)
        far = energy(atom, axis, 2 * step) - energy(atom, axis, -2 * step)
        slope = (8 * near - far) / (12 * step)
        assert abs(slope + frame.arrays["REF_forces"][atom, axis]) < 1e-6


def test_the_dipole_of_an_ion_does_not_depend_on_where_it_is(tblite: None) -> None:
    amide = ase_molecule("NH3")[:3]  # without one hydrogen: NH₂⁻
    here = label.labelled(amide.numbers, amide.positions, -1, {})
    there = label.labelled(amide.numbers, amide.positions + [50.0, -30.0, 20.0], -1, {})
    assert isinstance(here, Atoms) and isinstance(there, Atoms)
    np.testing.assert_allclose(here.info["dipole"], there.info["dipole"], atol=1e-3)
    assert np.linalg.norm(here.info["dipole"]) > 0.1


@pytest.mark.parametrize("name", [*SMALL, "dimer_train_like_ions_000"])
def test_a_unit_made_anew_is_the_one_that_comes_with_the_project(
    sample: list[Atoms], name: str, tmp_path: Path, tblite: None
) -> None:
    expected = [frame for frame in sample if frame.info["unit"] == name]
    made = making.make(next(unit for unit in plan.sample() if unit.name == name), tmp_path).frames
    assert len(made) == len(expected) > 2
    for new, old in zip(made, expected, strict=True):
        assert np.array_equal(new.numbers, old.numbers)
        assert np.array_equal(new.positions, old.positions)
        assert abs(new.info["REF_energy"] - old.info["REF_energy"]) <= 1.5e-8
        np.testing.assert_allclose(new.arrays["REF_forces"], old.arrays["REF_forces"], atol=1.5e-8)
        np.testing.assert_allclose(new.arrays["REF_charges"], old.arrays["REF_charges"], atol=1.5e-8)
        np.testing.assert_allclose(new.info["dipole"], old.info["REF_dipole"], atol=1.5e-8)
        assert new.info["config_type"] == old.info["config_type"]


def make_units(names: Sequence[str], work: Path) -> None:
    """What one process of the command does."""
    for unit in plan.sample():
        if unit.name in names:
            generate.run_unit(unit, work)


@pytest.mark.slow  # another process imports everything anew
def test_a_run_that_was_killed_goes_on_to_the_same_files(tmp_path: Path, tblite: None) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for work in (whole, broken):
        for folder in ("units", "minima"):
            (work / folder).mkdir(parents=True)
    make_units(SMALL, whole)
    process = multiprocessing.get_context("spawn").Process(target=make_units, args=(SMALL, broken))
    process.start()
    deadline = time.monotonic() + 120
    while process.is_alive() and not list((broken / "units").glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.join()
    (broken / "units" / f"{SMALL[1]}.1.part").write_text("half a")  # as of a process killed while it wrote
    first = {path: path.stat().st_mtime_ns for path in (broken / "units").glob("*.xyz") if generate.is_whole(path)}
    assert first
    make_units(SMALL, broken)
    assert {path: path.stat().st_mtime_ns for path in first} == first  # what was complete is left alone
    for name in SMALL:
        assert (broken / "units" / f"{name}.xyz").read_bytes() == (whole / "units" / f"{name}.xyz").read_bytes()
    todo = [unit for unit in plan.sample() if unit.name in SMALL]
    texts = [generate.collect(todo, work) for work in (whole, broken)]
    assert texts[0] == texts[1]
    about = contents.of(texts[0], todo, whole)
    assert about["frames"] == sum(len(found) for found in texts[0].values()) > 10
    assert about["units_without_frames"] == []


def test_what_was_damaged_is_made_again(tmp_path: Path, tblite: None) -> None:
    """Cut between frames, in one or to nothing, as by a full disk or a power cut; what describes it, and a minimum."""
    name = SMALL[2]
    generate.prepare(tmp_path)
    make_units([name], tmp_path)
    unit, minimum = tmp_path / "units" / f"{name}.xyz", next((tmp_path / "minima").glob("*.npz"))
    whole, about = unit.read_text(), unit.with_suffix(".json")
    for text in (generate.blocks(whole)[0], whole[:-40], ""):
        unit.write_text(text)
        assert not generate.is_whole(unit)
        make_units([name], tmp_path)
        assert unit.read_text() == whole
    for path, content in ((about, b'{"left'), (about, b"[]"), (minimum, minimum.read_bytes()[:50])):
        path.write_bytes(content)
        unit.write_text("")
        make_units([name], tmp_path)
        assert unit.read_text() == whole and generate.is_whole(unit)
    about.unlink()
    make_units([name], tmp_path)
    assert generate.is_whole(unit)


def test_folders_that_cannot_be_worked_in_are_refused(tmp_path: Path, tblite: None) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--work: .*file cannot be a folder to work in"):
        generate.prepare(tmp_path / "file")
    (tmp_path / "recipe.json").write_text('{"plan"')
    with pytest.raises(InputError, match=r"recipe\.json is not a JSON file"):
        generate.prepare(tmp_path)
    with pytest.raises(InputError, match="--work is ''; name a folder"):
        generate.main(["--work", ""])


def test_a_folder_of_another_recipe_is_refused(tmp_path: Path, tblite: None) -> None:
    generate.prepare(tmp_path)
    generate.prepare(tmp_path)  # its own
    (tmp_path / "recipe.json").write_text(json.dumps(generate.recipe() | {"rdkit": "2020.3"}))
    with pytest.raises(InputError, match=r"--work: .*2020\.3"):
        generate.prepare(tmp_path)
    with pytest.raises(InputError, match="--processes is 0"):
        generate.main(["--work", str(tmp_path), "--processes", "0"])


def test_frames_that_are_there_twice_are_collected_once(tmp_path: Path, rdkit: None) -> None:
    (tmp_path / "units").mkdir()
    atoms = Atoms(WATER.numbers, AT)
    turned = atoms.copy()
    turned.rotate(40, "xyz")
    longer = atoms.copy()
    longer.positions[1] *= 1.05
    todo = [unit for unit in plan.sample() if unit.name in SMALL[:2]]
    (tmp_path / "units" / f"{todo[0].name}.xyz").write_text(generate.as_text([atoms, turned]))
    (tmp_path / "units" / f"{todo[1].name}.xyz").write_text(generate.as_text([longer, atoms]))
    found = [text for texts in generate.collect(todo, tmp_path).values() for text in texts]
    assert found == generate.blocks(generate.as_text([atoms, longer]))


def test_broken_geometries_are_named() -> None:
    assert WATER.fault(AT) is None
    for factor, fault in ((1.5, "a bond is broken"), (0.5, "a bond is too short")):
        moved = AT * [[1], [factor], [1]]
        assert WATER.fault(moved) == fault
        assert WATER.fault(moved, stretched=(1, 0)) is None
        assert WATER.fault(moved, stretched=(0, 2)) == fault
    near = np.array([AT[0], AT[1], AT[1] + [0.1, 0.6, 0.0]])
    assert WATER.fault(near, stretched=(0, 2)) == "a bond is formed"


def test_a_trajectory_does_not_follow_the_last_bits(monkeypatch: pytest.MonkeyPatch, tblite: None) -> None:
    minimum = on_grid(AT)

    def run() -> list[np.ndarray]:
        return sampling.trajectory(WATER.numbers, 0, minimum, 600.0, [40, 40], np.random.default_rng(5))

    exact, rng, plain = run(), np.random.default_rng(1), label.SelfConsistentField.at

    def noisy(self: label.SelfConsistentField, positions: np.ndarray) -> dict[str, np.ndarray]:
        found = plain(self, positions)
        return found | {"forces": found["forces"] + 1e-11 * rng.normal(size=positions.shape)}

    monkeypatch.setattr(label.SelfConsistentField, "at", noisy)
    assert all(np.array_equal(a, b) for a, b in zip(exact, run(), strict=True))
    assert np.abs(exact[1] - exact[0]).max() > 0.01


def test_harmonic_displacements_have_the_energy_of_their_temperature(tblite: None) -> None:
    minimum = sampling.relaxed(WATER.numbers, 0, AT)
    assert minimum is not None
    hessian, rng = sampling.hessian(WATER.numbers, 0, minimum), np.random.default_rng(0)
    steps = [sampling.displaced(WATER.numbers, minimum, hessian, 300.0, rng) - minimum for _ in range(600)]
    energies = [0.5 * step.ravel() @ hessian @ step.ravel() for step in steps]
    assert abs(np.mean(energies) / (1.5 * kB * 300.0) - 1) < 0.12  # three modes; two standard errors are 0.07


def test_a_stretched_bond_is_the_only_thing_that_changes() -> None:
    found = sampling.stretched(WATER, AT, np.random.default_rng(3))
    assert found is not None
    positions, bond, factor = found
    length = np.linalg.norm(positions[bond[0]] - positions[bond[1]])
    assert abs(length / np.linalg.norm(AT[bond[0]] - AT[bond[1]]) - factor) < 1e-3
    other = 3 - max(bond)
    assert abs(np.linalg.norm(positions[other] - positions[0]) - np.linalg.norm(AT[other])) < 3 * GRID
    ring = Bonding(np.array([6, 6, 6]), np.array([[0, 1], [1, 2], [2, 0]]))
    assert sampling.stretched(ring, AT, np.random.default_rng(3)) is None


@pytest.mark.parametrize("kind", [kind for kind in plan.CLASSES if kind != "stack"])
def test_two_molecules_are_at_the_distance_that_was_asked_for(kind: str, rdkit: None) -> None:
    rng = np.random.default_rng(7)
    water = Fragment("O", 0, WATER, AT)
    for distance in (1.6, 3.0, 11.0, 19.0):
        line = clusters.approach(kind, water, water.at(AT @ clusters.random_rotation(rng)), rng)
        assert abs(contact(line.first.positions, line.at(distance)) - distance) < 2 * GRID
    turned = Approach(water, water, np.array([0.0, 0.0, 1.0])).at(2.0)  # comes from above, in the same attitude
    np.testing.assert_allclose(turned, AT + [0, 0, 2], atol=2 * GRID)


def test_stacked_rings_are_parallel(tblite: None) -> None:
    bonding, (positions,) = sampling.conformers("c1ccccc1", 1, 11)
    benzene = Fragment("c1ccccc1", 0, bonding, positions)
    line = clusters.approach("stack", benzene, benzene, np.random.default_rng(2))
    normals = [np.linalg.svd(p[:6] - p[:6].mean(axis=0))[2][2] for p in (line.first.positions, line.at(3.5))]
    assert abs(normals[0] @ normals[1]) > 0.99
    assert 2.5 < abs((line.at(3.5)[:6].mean(axis=0) - positions[:6].mean(axis=0)) @ normals[0]) < 3.51


def test_distances_for_training_leave_a_gap_that_is_tested() -> None:
    rng = np.random.default_rng(0)
    trained = [d for kind in plan.CLASSES for _ in range(50) for d in clusters.distances(kind, 4, rng)]
    assert min(trained) >= 1.5 and max(trained) <= clusters.LONGEST
    assert not [d for d in trained if clusters.GAP[0] < d < clusters.GAP[1]]
    tested = [d for _ in range(50) for d in clusters.untrained_distances(6, rng)]
    assert all(clusters.GAP[0] < d < clusters.GAP[1] or d > clusters.LONGEST for d in tested)
    assert 0.2 < np.mean([d < clusters.LONGEST for d in tested]) < 0.5
