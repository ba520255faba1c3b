"""Energies and forces that stand out are named, ordinary ones are not."""

from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.build import molecule

from training.data.outliers import Outliers

DATA = Path(__file__).parents[4] / "shared" / "data"


def collected(frames):
    outliers = Outliers()
    for index, atoms in enumerate(frames):
        outliers.add(atoms, f"frame {index}")
    return outliers.lines()


def mixture(count=40, seed=0):
    """Molecules of three compositions, −500 eV for an oxygen and −10 for others, and some eV of heat."""
    rng, frames = np.random.default_rng(seed), []
    for index in range(count):
        atoms = molecule(("H2O", "CH3OH", "CH4")[index % 3])
        atoms.info["REF_energy"] = float(np.where(atoms.numbers == 8, -500, -10).sum() + rng.normal(scale=0.5))
        atoms.arrays["REF_forces"] = rng.normal(size=(len(atoms), 3))
        frames.append(atoms)
    return frames


def test_ordinary_structures_are_not_named():
    assert collected(mixture()) == []


@pytest.mark.parametrize("factor", [23.0, 0.0, -1.0, 1.05])
def test_an_energy_far_from_the_others(factor):
    """23 times too large, a placeholder of zero, a sign, another unit by some per cent: the frame and nothing else."""
    frames = mixture()
    frames[7].info["REF_energy"] *= factor
    (line,) = collected(frames)
    assert line.startswith("outlying energies") and "frame 7 (" in line and line.count("frame ") == 1
    frames[7].info["config_energy_weight"] = 0.0  # a placeholder that does not count
    assert collected(frames) == []


def test_forces_in_another_unit():
    frames = mixture()
    frames[3].arrays["REF_forces"] *= 51.4
    (line,) = collected(frames)
    assert line.startswith("outlying forces") and "frame 3 (" in line and line.count("frame ") == 1


def test_groups_of_another_method_are_compared_among_themselves():
    frames = mixture()
    for atoms in frames[20:]:
        atoms.info |= {"config_type": "other", "REF_energy": atoms.info["REF_energy"] / 27.2}
    assert collected(frames) == []
    frames[30].info["REF_energy"] -= 90.0
    (line,) = collected(frames)
    assert "frame 30 (" in line


def test_many_are_counted():
    frames = mixture(100)
    for atoms in frames[:15]:
        atoms.info["REF_energy"] = 0.0
    (line,) = collected(frames)
    assert line.count("frame ") == 10 and "and 5 more" in line


@pytest.mark.parametrize(
    ("name", "forces"),
    [
        ("acac/train_300K.xyz", "forces"),
        ("spice_dipeptides/val.xyz", "force"),
        ("carbon_chain/carbon_chain_4g_128.extxyz", "forces"),
        ("ag3/ag3_2200.extxyz", "forces"),
        ("water/h2o_rpbe_d3.extxyz", "forces"),
        ("au2_mgo/au2_mgo_4g_18.extxyz", "forces"),
    ],
)
def test_published_data_are_not_suspected(name, forces):
    if not (DATA / name).exists():
        pytest.skip("the published file is not in ../shared/data")
    frames = ase.io.read(DATA / name, ":")
    for atoms in frames:
        results = {} if atoms.calc is None else atoms.calc.results
        atoms.info["REF_energy"] = float(results["energy"])
        atoms.arrays["REF_forces"] = results.get(forces, atoms.arrays.get(forces))
    assert collected(frames) == []
