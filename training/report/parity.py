"""Predictions against labels: a panel for each set and quantity, its errors beside it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from training.quantities import Measure
from training.report import drawing
from training.report.samples import Sample

POINTS = 2_000  # of more, a panel shows how many lie in each hexagon
VECTOR_POINTS = 300  # of more, points are drawn as an image within the SVG, which is smaller
#: Inches: a panel's width and height, and in it the square of its axes: left, bottom, side. Where they are is not left
#: to matplotlib, so that squares stay squares, alike in all panels, with room for texts and for a scale of colours.
WIDTH, HEIGHT, LEFT, BOTTOM, SIDE = 4.1, 3.75, 0.78, 0.58, 2.5

#: {set: its samples by measure}, and {set: its table of errors}.
Sets = Mapping[str, Mapping[str, Sample]]
Errors = Mapping[str, Mapping[str, Mapping[str, Any]]]


@drawing.style()
def parity_plot(path: Path, sets: Sets, errors: Errors, measures: Sequence[Measure], interaction: bool = False) -> None:
    """Write all panels in one picture: a row for each quantity, a column for each set.

    sets : samples in eV, Å, e
    errors : of all pairs, as the tables show them
    measures : what is drawn, as far as there are samples of it
    interaction : the energies are without those of the isolated atoms, and are shown as they are, not shifted
    """
    shown = [measure for measure in measures if any(measure.name in samples for samples in sets.values())]
    if not shown:
        return
    figure, axes = _squares(len(shown), len(sets))
    for axis, (measure, name) in zip(axes, itertools.product(shown, sets), strict=True):
        _panel(axis, name, sets, errors, measure, interaction)
    drawing.save_png(figure, path)


@drawing.style()
def parity_panels(
    sets: Sets, errors: Errors, measures: Sequence[Measure], interaction: bool = False
) -> dict[str, dict[str, str]]:
    """{heading of the quantity: {set: SVG of its panel}}."""
    found: dict[str, dict[str, str]] = {}
    for measure, name in itertools.product(measures, sets):
        if measure.name in sets[name]:
            figure, (axis,) = _squares(1, 1)
            _panel(axis, name, sets, errors, measure, interaction)
            found.setdefault(measure.heading, {})[name] = drawing.svg(figure)
    return found


def _squares(rows: int, columns: int) -> tuple[Figure, list[Axes]]:
    """A figure of square axes, row by row."""
    width, height = WIDTH * columns, HEIGHT * rows
    figure = Figure(figsize=(width, height))
    places = [
        ((WIDTH * column + LEFT) / width, (HEIGHT * (rows - 1 - row) + BOTTOM) / height, SIDE / width, SIDE / height)
        for row, column in itertools.product(range(rows), range(columns))
    ]
    return figure, [figure.add_axes(place) for place in places]


def _panel(axis: Axes, name: str, sets: Sets, errors: Errors, measure: Measure, interaction: bool) -> None:
    """One set's values of one quantity, on axes that all sets share."""
    heading = f"interaction {measure.heading}" if interaction and measure.symbol == "E" else measure.heading
    sample = sets[name].get(measure.name)
    if sample is None:
        axis.set_axis_off()
        axis.set_title(f"{name}: {heading}\nno labels", loc="left")
        return
    shift, of_shift = 0.0, ""
    if measure.symbol == "E" and not interaction:
        first = next(samples[measure.name] for samples in sets.values() if measure.name in samples)
        shift, of_shift = float(first.mean[0]), " − mean"
    everything = torch.cat([samples[measure.name].values() for samples in sets.values() if measure.name in samples], 1)
    low, high = float(everything.min()) - shift, float(everything.max()) - shift
    drawing.square(axis, low, high)
    axis.axline((0, 0), slope=1, color=drawing.LINE, linewidth=0.8, zorder=1)
    label, predicted = (sample.values() - shift).numpy()
    _points(axis, label, predicted, drawing.colour(name, list(sets).index(name)))
    axis.set_xlabel(f"label{of_shift} ({measure.axis_unit})")
    axis.set_ylabel(f"prediction{of_shift} ({measure.axis_unit})")
    error = errors[name][measure.name]  # as the tables show it, and in their digits
    lines = [f"{name}: {heading}", f"MAE {error['mae']:.4g}, RMSE {error['rmse']:.4g} {measure.error_unit}"]
    axis.set_title("\n".join([*lines, f"R² {r_squared(sample)}, {_count(sample)}"]), loc="left")


def r_squared(sample: Sample) -> str:
    """R² to four digits; a dash where it is not defined."""
    return "–" if sample.r_squared is None else f"{sample.r_squared:.4f}".replace("-", "−")


def _count(sample: Sample) -> str:
    """How many values there are, and how many of them are drawn if that is not all."""
    count, drawn = sample.count, sample.values().shape[1]
    return f"{count:,} values" if count == drawn else f"{count:,} values, {drawn:,} drawn"


def _points(axis: Axes, label: Any, predicted: Any, colour: str) -> None:
    """Draw points or, where they would cover each other, how many lie in each hexagon."""
    many = len(label) > VECTOR_POINTS
    if len(label) <= POINTS:
        size = 14 if len(label) <= 100 else 7
        axis.scatter(label, predicted, s=size, color=colour, alpha=0.6, linewidths=0, rasterized=many, zorder=2)
        return
    (left, right), (bottom, top) = axis.get_xlim(), axis.get_ylim()
    cells = axis.hexbin(
        label, predicted, gridsize=60, extent=(left, right, bottom, top), bins="log", mincnt=1,
        cmap=drawing.density(), linewidths=0.1, rasterized=True, zorder=2,
    )  # fmt: skip
    bar = axis.figure.colorbar(cells, cax=axis.inset_axes((1.03, 0.0, 0.035, 1.0)), label="values per hexagon")
    bar.ax.yaxis.set_major_locator(LogLocator())
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: drawing.plain(value)))
    bar.ax.grid(False)
