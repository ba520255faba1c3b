"""Curves, parity and charges as matplotlib has them: what is written on axes, beside data, and in files."""

import json

import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from training_runs import keep_default_dtype, metrics, run, write_molecules  # noqa: F401

from training.quantities import drawn
from training.report import charges, curves, drawing, parity
from training.report.samples import ElementCharges, Sample


@pytest.fixture(scope="module")
def molecules(tmp_path_factory):
    return write_molecules(tmp_path_factory.mktemp("molecules") / "train.xyz", count=12, charges=True)


@pytest.fixture
def figures(monkeypatch):
    """[(name of the file, figure)] of what is written from here on."""
    written, save = [], drawing.save_png
    monkeypatch.setattr(
        drawing, "save_png", lambda figure, path: (written.append((path.name, figure)), save(figure, path))
    )
    return written


def texts(axis):
    """What stands at the ticks of both axes within their limits."""
    found = []
    axis.figure.draw_without_rendering()
    for one, (low, high) in ((axis.xaxis, axis.get_xlim()), (axis.yaxis, axis.get_ylim())):
        ticks = [(tick.get_loc(), tick.label1.get_text()) for tick in one.get_major_ticks()]
        found.append([text for place, text in ticks if low <= place <= high and text])
        assert not any(tick.label1.get_text() for tick in one.get_minor_ticks())
    return found


def rows(epochs, **curves_of):
    return [{"epoch": epoch} | {name: of(epoch) for name, of in curves_of.items()} for epoch in range(epochs)]


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [
        (1, ["1"]),
        (3, ["1", "2", "3"]),
        (7, ["1", "2", "3", "4", "5", "6", "7"]),
        (25, ["1", "5", "10", "15", "20", "25"]),
        (500, ["1", "100", "200", "300", "400", "500"]),
    ],
)
def test_epochs_are_whole_numbers(tmp_path, figures, epochs, expected):
    found = rows(epochs, train_loss=lambda e: 100 / (e + 1), valid_loss=lambda e: 120 / (e + 1))
    curves.learning_curve(tmp_path / "curve.png", found, "PerAtomRMSE")
    ((_, figure),) = figures
    whole, _ = texts(figure.axes[0])
    assert whole == expected or (epochs == 7 and whole == ["2", "4", "6"])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["train", "valid"]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (590.0, 1240.0, ["600", "800", "1,000", "1,200"]),
        (0.0021, 0.31, ["0.002", "0.005", "0.01", "0.02", "0.05", "0.1", "0.2"]),
        (2e-6, 3e5, None),
        (5.0, 5.0, None),
        (3e-7, 1.1e-5, ["5e−7", "1e−6", "2e−6", "5e−6", "1e−5"]),
    ],
)
def test_logarithmic_axes_have_plain_numbers(tmp_path, figures, low, high, expected):
    found = rows(2, train_loss=lambda e: (low, high)[e])
    curves.learning_curve(tmp_path / "curve.png", found, "PerAtomRMSE")
    _, numbers = texts(figures[0][1].axes[0])
    assert 1 <= len(numbers) <= 8 and not any("×" in number or "$" in number for number in numbers)
    if expected is not None:
        assert numbers == expected


def test_curves_are_of_the_tables_error_and_of_every_head(tmp_path, figures):
    """Values that a logarithm does not have are left out; the epochs that were kept and stage two have lines."""
    found = rows(
        8,
        train_loss=lambda e: float("nan") if e == 3 else 2.0**-e,
        train_mae_energy=lambda e: 5.0,
        valid_a_mae_energy=lambda e: 6.0 + e,
        valid_b_mae_energy=lambda e: float("inf") if e == 0 else 7.0,
        valid_mae_energy=lambda e: 7.0,
        valid_rmse_energy_per_atom=lambda e: 1.0,
        valid_pde_residual=lambda e: 0.0,
        stage=lambda e: 1 + (e > 5),
    )
    curves.learning_curve(tmp_path / "curve.png", found, "TotalMAE", ("a", "b"), {1: 5, 2: 8})
    ((_, figure),) = figures
    loss, energy = figure.axes
    assert (loss.get_title("left"), energy.get_title("left")) == ("loss", "energy, MAE (meV)")
    lines = {line.get_label(): line.get_xdata() for line in energy.lines}
    assert list(lines["valid b"]) == list(range(2, 9)) and list(lines["valid a"]) == list(range(1, 9))
    assert list(loss.lines[0].get_xdata()) == [1, 2, 3, 5, 6, 7, 8]
    assert sorted(float(line.get_xdata()[0]) for line in energy.lines if len(line.get_xdata()) == 2) == [5, 6.5, 8]
    assert {"stage two", "best epoch"} <= {text.get_text() for text in figure.legends[0].get_texts()}


def sample_of(label, predicted):
    sample = Sample()
    sample.add(torch.tensor(np.stack([label, predicted])))
    return sample


@pytest.mark.parametrize("count", [2, 900, 30_000])
def test_parity_says_the_errors_of_the_table_and_covers_no_data(tmp_path, figures, count):
    """Square axes, the same for all sets; many values as hexagons with a scale; texts outside of the axes."""
    rng = np.random.default_rng(0)
    label = rng.normal(size=count)
    sets = {name: {"forces": sample_of(label, label + noise)} for name, noise in (("train", 0.1), ("test", 0.2))}
    sets["valid"] = {}
    errors = {name: {"forces": {"mae": 123.45678, "rmse": 234.5678}} for name in sets}
    parity.parity_plot(tmp_path / "parity.png", sets, errors, drawn("PerAtomRMSE")[1])
    ((_, figure),) = figures
    train, test, valid = figure.axes[:3]
    assert "no labels" in valid.get_title("left")
    assert train.get_xlim() == test.get_xlim() == train.get_ylim() and train.get_aspect() == 1
    heading, told, rest = test.get_title("left").splitlines()
    assert heading == "test: forces" and told == "MAE 123.5, RMSE 234.6 meV/Å"
    r_squared = 1 - count * 0.04 / ((label - label.mean()) ** 2).sum()
    assert rest == f"R² {r_squared:.4f}, {count:,} values".replace("-", "−")
    assert (test.get_xlabel(), test.get_ylabel()) == ("label (eV/Å)", "prediction (eV/Å)")
    scales = [axis.get_ylabel() for axis in train.child_axes]
    assert scales == (["values per hexagon"] if count > parity.POINTS else [])
    figure.draw_without_rendering()
    box, title = test.get_window_extent(), test._left_title.get_window_extent()
    assert title.y0 >= box.y1 and title.x1 <= figure.bbox.x1


def test_thinned_values_and_a_shift_are_told(tmp_path, figures, monkeypatch):
    """Energies are shown without their mean, those without isolated atoms as they are."""
    label = np.linspace(-42.1, -41.9, 1001)
    sample = Sample(limit=600)
    sample.add(torch.tensor(np.stack([label, label])))
    errors = {"test": {"energy_per_atom": {"mae": 0.0, "rmse": 0.0}}}
    for interaction in (False, True):
        sets = {"test": {"energy_per_atom": sample}}
        parity.parity_plot(tmp_path / "p.png", sets, errors, drawn("PerAtomRMSE")[1], interaction=interaction)
    (_, shifted), (_, whole) = figures
    assert "1,001 values, 501 drawn" in shifted.axes[0].get_title("left")
    assert shifted.axes[0].get_xlabel() == "label − mean (eV/atom)" and sum(
        shifted.axes[0].get_xlim()
    ) == pytest.approx(0)
    assert whole.axes[0].get_title("left").startswith("test: interaction energy per atom")
    assert whole.axes[0].get_xlabel() == "label (eV/atom)" and sum(whole.axes[0].get_xlim()) == pytest.approx(-84)


def test_charges_by_element_have_their_errors_beside_the_data(tmp_path, figures):
    found, rng = ElementCharges(), np.random.default_rng(0)
    for element, mean in enumerate((0.2, -0.4)):
        label = mean + 0.05 * rng.normal(size=50)
        found.predicted[element] = sample_of(label + 0.01, label + 0.01)
        if element:
            found.labelled[element] = sample_of(label, label + 0.01)
    charges.charges_plot(tmp_path / "charges.png", found, [1, 8], "test")
    ((_, figure),) = figures
    figure.draw_without_rendering()
    against, distribution = figure.axes
    (entry,) = against.get_legend().get_texts()
    assert entry.get_text() == "O: 50 atoms\nMAE 0.01, RMSE 0.01 e"
    assert against.get_legend().get_window_extent().x0 > against.get_window_extent().x1
    assert distribution.get_legend().get_window_extent().y0 >= distribution.get_window_extent().y1 - 1
    assert texts(distribution)[1] == ["O", "H"]
    table = charges.charge_table(found, [1, 8], "test")
    assert [row[0] for row in table.rows] == ["H", "O"] and table.rows[0][-3:] == ["–", "–", "–"]
    assert table.rows[1][-3:-1] == ["0.01", "0.01"]


@pytest.mark.honours("plot", "plot_frequency", "plot_interaction_e")
def test_pictures_are_drawn_again_every_few_epochs(molecules, tmp_path, figures):
    given = {"train_file": molecules, "max_num_epochs": 3, "ema": True, "plot": "True", "plot_interaction_e": "True"}
    folder = run(tmp_path, name="drawn", plot_frequency=2, eval_interval=1, error_table="PerAtomMAE", **given)
    assert [name for name, _ in figures] == ["learning_curve.png", "parity.png"] * 2
    row, errors = metrics(folder)[1], json.loads((folder / "errors.json").read_text())["sets"]
    energy, forces = figures[1][1].axes
    assert energy.get_title("left").startswith("valid, epoch 2: interaction energy per atom\n")
    assert f"MAE {row['valid_mae_forces']:.4g}, RMSE {row['valid_rmse_forces']:.4g} meV/Å" in forces.get_title("left")
    for axis, name in zip(figures[3][1].axes, ("train", "valid"), strict=False):
        found = errors[name]["errors"]["energy_per_atom"]
        assert axis.get_title("left").startswith(f"{name}: interaction energy per atom\nMAE {found['mae']:.4g}, RMSE ")
    shown = [axis.get_title("left") for axis in figures[0][1].axes]
    assert shown == ["loss", "energy per atom, MAE (meV/atom)", "forces, MAE (meV/Å)"]
    assert {line.get_label() for line in figures[2][1].axes[2].lines} >= {"train", "valid"}
    for name in ("parity.png", "learning_curve.png"):
        pixels = matplotlib.image.imread(folder / name)[..., :3]
        assert min(pixels.shape[:2]) > 300 and pixels.std() > 0.02


def test_a_picture_that_fails_loses_no_result(molecules, tmp_path, monkeypatch):
    """The log says what is missing and why; model, errors and the other files are there."""

    def broken(*_, **__):
        raise ZeroDivisionError("no canvas")

    monkeypatch.setattr(Figure, "savefig", broken)
    folder = run(tmp_path, name="run", train_file=molecules, max_num_epochs=2, plot="True", plot_frequency=1)
    assert not [*folder.glob("*.png"), *folder.glob(".*.part"), *folder.glob("*.html")]
    assert (folder / "model.safetensors").is_file() and len(metrics(folder)) == 2
    assert json.loads((folder / "errors.json").read_text())["sets"]["valid"]["errors"]["forces"]["rmse"] > 0
    log = (folder / "log.txt").read_text()
    for name in ("parity.png", "learning_curve.png", "report.html"):
        assert f"{name} could not be written (ZeroDivisionError: no canvas)" in log
