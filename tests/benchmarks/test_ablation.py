"""The ablation's labels and measures, against what physics and numpy say of the published data."""

import sys
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import ablation_data  # noqa: E402
import runs  # noqa: E402

DATA = Path(__file__).parents[3] / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"no published data in {DATA}")
COULOMB = 14.399645  # eV·Å/e²


def test_far_ions_interact_as_charges_and_their_forces_agree():
    """Against −k_e/r and k_e/r² of charges spread over each ion's atoms: forces within a factor of two, for the charged
    groups face one another and the ions are polarised; energies but for one constant of each composition."""
    train, valid, test, e0s = ablation_data.read_dimers(DATA)
    assert (len(train) + len(valid), len(test)) == (95, 35) and e0s == "average"
    ratios, constants = [], {}
    for atoms in test:
        cation = atoms.arrays["ion"] == 1
        assert set(atoms.arrays["ion"]) == {-1, 1} and not atoms.pbc.any()
        separation = atoms.positions[~cation][None] - atoms.positions[cation][:, None]
        distance = np.linalg.norm(separation, axis=-1, keepdims=True)
        axis = separation.mean((0, 1)) / np.linalg.norm(separation.mean((0, 1)))
        pull = COULOMB * np.mean(separation / distance**3, axis=(0, 1)) @ axis
        ratios.append(atoms.arrays["REF_forces"][cation].sum(0) @ axis / pull)
        constant = atoms.info["REF_energy"] + COULOMB * np.mean(1 / distance)
        constants.setdefault(atoms.get_chemical_formula(), []).append(constant)
    assert np.min(ratios) > 0.5 and np.max(ratios) < 2, np.array(ratios)
    means = [np.mean(found) for found in constants.values()]
    assert len(means) == 3 and np.ptp(means) > 1, "why E0s are fitted"
    assert max(np.std(found) for found in constants.values()) < 0.2


def test_no_geometry_is_in_two_sets_and_the_split_is_the_same_every_time():
    """Of Ag₃ most geometries are there with both charges."""
    frames = [Atoms("Ag", [[i // 2, 0, 0]], info={"index": i}) for i in range(200)]
    found = [[[a.info["index"] // 2 for a in part] for part in runs.shuffled(frames, 0.1, 0.2)] for _ in range(2)]
    assert found[0] == found[1] and [len(part) for part in found[0]] == [20, 40, 140]
    assert not set(found[0][0]) & set(found[0][1]) and not set(found[0][2]) & {*found[0][0], *found[0][1]}
    train, valid, test, _ = ablation_data.read_ag3(DATA)
    keys = [{atoms.positions.tobytes() for atoms in part} for part in (train, valid, test)]
    assert len(train + valid + test) == 2200 and sum(map(len, keys)) == len(set().union(*keys))


def test_order_of_the_published_born_effective_charges():
    """A rotation turns the dipole: Σ_i Z*_i (ω × r_i) = ω × μ holds for one order of the two indices only."""
    *_, test, _ = ablation_data.read_dipeptides(DATA)
    for atoms in test[:5]:
        tensors, dipole = atoms.arrays["bec"].reshape(-1, 3, 3), atoms.info["REF_dipole"]
        for axis in np.eye(3):
            moved = np.cross(axis, atoms.positions)
            found = np.einsum("iab,ib->a", tensors.swapaxes(1, 2), moved)
            np.testing.assert_allclose(found, np.cross(axis, dipole), atol=0.1)


def test_agreement_is_what_numpy_says():
    rng = np.random.default_rng(0)
    labels = rng.normal(size=200)
    predictions = 0.7 * labels + 0.1 + 0.2 * rng.normal(size=200)
    found = runs.agreement(labels, predictions)
    assert found["slope"] == pytest.approx(np.polyfit(labels, predictions, 1)[0])
    assert found["correlation"] == pytest.approx(np.corrcoef(labels, predictions)[0, 1])
    assert found["r2"] == pytest.approx(1 - found["rmse"] ** 2 / labels.var())
