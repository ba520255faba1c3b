"""What is kept of predictions for pictures: samples, sums by element, and errors of structures."""

import numpy as np
import pytest
import torch
from ase.data import atomic_numbers
from scipy import stats
from training_runs import build, keep_default_dtype, write_molecules  # noqa: F401

from training.fit.predict import evaluate, isolated_energies, predict
from training.report.error_sums import ErrorSums
from training.report.frame_errors import FrameErrors
from training.report.samples import ElementCharges, LabelPairs, Sample


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model with Φ that has not learned anything, and data with charges and dipoles."""
    folder = tmp_path_factory.mktemp("molecules")
    file = write_molecules(folder / "train.xyz", count=12, charges=True)
    given = {"phi": ["operator=coulomb"], "charges_key": "q", "dipole_key": "mu", "valid_fraction": 0.5}
    before = torch.get_default_dtype()
    made = build(file, **given)
    torch.set_default_dtype(before)
    return made


FLAGS = {"forces": True, "virials": False, "stress": False}


def frames_of(data):
    """[(structure as a batch of one, its number)] of the validation set."""
    (loader,) = data.loader("valid").values()
    return [(loader.collate_fn([loader.dataset[i]]), i) for i in range(len(loader.dataset))]


def test_sums_are_those_of_all_values_and_the_rest_is_an_even_sample():
    """Against scipy's linear regression and numpy, on energies whose spread is a millionth of their size."""
    rng = np.random.default_rng(0)
    label = -12345.678 + 0.01 * rng.normal(size=5_000)
    predicted = label + 0.004 * rng.normal(size=5_000)
    sample, halves = Sample(limit=300), [Sample(limit=300), Sample(limit=300)]
    for number, part in enumerate(np.array_split(np.stack([label, predicted]), 17, axis=1)):
        sample.add(torch.tensor(part))
        halves[number % 2].add(torch.tensor(part))
    halves[0].join(halves[1])
    for found in (sample, halves[0]):
        assert found.count == 5_000 and found.mae == pytest.approx(np.abs(predicted - label).mean())
        assert found.rmse == pytest.approx(np.sqrt(np.mean((predicted - label) ** 2)))
        variance = stats.describe(label).variance * 4_999
        assert found.r_squared == pytest.approx(1 - ((predicted - label) ** 2).sum() / variance, rel=1e-7)
        np.testing.assert_allclose(found.mean, [label.mean(), predicted.mean()], rtol=1e-14)
        np.testing.assert_allclose(
            [*found.lowest, *found.highest], [label.min(), predicted.min(), label.max(), predicted.max()]
        )
        assert 100 <= found.values().shape[1] <= 300
        kept = set(found.values()[0].tolist())
        assert len(kept) == found.values().shape[1] and kept <= set(label)
    assert sample.stride == 32 and np.array_equal(sample.values().numpy(), np.stack([label, predicted])[:, ::32])


def test_r_squared_of_equal_labels_is_not_a_number_that_is_shown():
    sample = Sample()
    sample.add(torch.tensor([[2.0, 2.0], [2.0, 3.0]]))
    assert sample.r_squared is None and sample.mae == 0.5


def test_watchers_see_what_the_table_counts(trained):
    """Every value of the drawn quantities, with the errors of the table; charges by element add up to the same."""
    model, data, _ = trained
    (loader,) = data.loader("valid").values()
    pairs, frames, charges = LabelPairs(["energy_per_atom", "forces", "charges"]), FrameErrors(), ElementCharges()
    table = evaluate(model, loader, FLAGS, "cpu", [pairs, frames, charges]).table()
    assert set(pairs.samples) == {"energy_per_atom", "forces", "charges"}
    for name, sample in pairs.samples.items():
        factor = 1.0 if name == "charges" else 1e3
        assert sample.count == table[name]["count"] == sample.values().shape[1]
        assert factor * sample.rmse == pytest.approx(table[name]["rmse"], rel=1e-9)
        assert factor * sample.mae == pytest.approx(table[name]["mae"], rel=1e-9)
    assert [data.atomic_numbers[element] for element in sorted(charges.labelled)] == [1, 6, 8]
    whole = Sample()
    for sample in charges.labelled.values():
        whole.join(sample)
    assert whole.count == table["charges"]["count"] and whole.rmse == pytest.approx(table["charges"]["rmse"], rel=1e-9)
    oxygen = charges.predicted[data.atomic_numbers.index(atomic_numbers["O"])]
    assert oxygen.count == len(loader.dataset)  # one in each molecule
    # All structures have as many force components as atoms times three: errors of structures give that of the set.
    sizes = [len(batch["positions"]) for batch, _ in frames_of(data)]
    ranked = frames.ranked("forces")
    mean = sum(sizes[frame.index] * frame.forces**2 for frame in ranked) / sum(sizes)
    assert 1e3 * np.sqrt(mean) == pytest.approx(table["forces"]["rmse"], rel=1e-9)


def test_structures_are_ranked_by_their_errors(trained):
    model, data, _ = trained
    (loader,) = data.loader("valid").values()
    frames = FrameErrors()
    evaluate(model, loader, FLAGS, "cpu", [frames])
    energies, forces = {}, {}
    for batch, index in frames_of(data):
        output = predict(model, batch, FLAGS)
        energies[index] = float((output["energy"] - batch["energy"]).detach()) / len(batch["positions"])
        forces[index] = float((output["forces"] - batch["forces"]).detach().square().mean().sqrt())
    by_energy, by_forces = frames.ranked("energy"), frames.ranked("forces")
    assert [frame.index for frame in by_energy] == sorted(energies, key=lambda index: -abs(energies[index]))
    assert [frame.index for frame in by_forces] == sorted(forces, key=lambda index: -forces[index])
    for frame in by_energy:
        assert frame.energy == pytest.approx(energies[frame.index]) and frame.forces == pytest.approx(
            forces[frame.index]
        )
    picked = frames.picked(1)
    assert list(picked)[0] == by_energy[0].index and by_forces[0].index in picked
    assert any(why.startswith("typical") for why in picked.values()) or by_energy[3].index == by_forces[0].index


def test_structures_without_a_label_are_not_ranked(trained):
    model, data, _ = trained
    (batch, _), (other, _) = frames_of(data)[:2]
    frames, output = FrameErrors(), predict(model, batch, FLAGS)
    frames.update(output, {**batch, "energy_weight": torch.zeros_like(batch["energy_weight"])}, [5])
    frames.update({**output, "forces": None}, batch, [7])
    assert [(frame.index, frame.energy) for frame in frames.ranked("forces")] == [(5, None)]
    assert [(frame.index, frame.forces) for frame in frames.ranked("energy")] == [(7, None)]


@pytest.mark.honours("plot_interaction_e")
def test_interaction_energies_are_without_the_isolated_atoms(trained):
    model, data, _ = trained
    batch = next(iter(data.loader("train")["Default"]))
    output = predict(model, batch, FLAGS)
    found = [LabelPairs(["energy_per_atom"], isolated_energies(model) if flag else None) for flag in (False, True)]
    sums = ErrorSums()
    for watcher in (*found, sums):
        watcher.update(output, batch)
    numbers = torch.tensor(data.atomic_numbers)[batch["node_attrs"].argmax(1)]
    for graph in range(batch.num_graphs):
        own = numbers[batch["batch"] == graph].tolist()
        isolated = sum(data.e0s["Default"][number] for number in own) / len(own)
        whole, interaction = (pairs.samples["energy_per_atom"].values()[:, graph] for pairs in found)
        np.testing.assert_allclose(whole - interaction, isolated, rtol=1e-10)
    assert 1e3 * found[1].samples["energy_per_atom"].rmse == pytest.approx(sums.table()["energy_per_atom"]["rmse"])
