"""Charges by element: predictions against labels, and how both are distributed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ase.data import chemical_symbols
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from training.report import drawing
from training.report.page import Table
from training.report.parity import r_squared
from training.report.samples import ElementCharges, Sample

POINTS = 1_500  # of an element
COLOURS = tuple(drawing.COLOURS.values()) + drawing.OTHER_COLOURS


@drawing.style()
def charges_plot(path: Path, charges: ElementCharges, numbers: Sequence[int], title: str) -> None:
    """Write the picture.

    charges : of a set
    numbers : atomic numbers of the model's elements
    title : name of the set
    """
    if charges.predicted:
        drawing.save_png(_figure(charges, numbers, title), path)


@drawing.style()
def charges_panels(charges: ElementCharges, numbers: Sequence[int], title: str) -> dict[str, str]:
    """{what is drawn: SVG} of the same, panel by panel."""
    found = {}
    for name, draw in (("against labels", _against_labels), ("distribution", _distribution)):
        if charges.labelled or (draw is _distribution and charges.predicted):
            width, height = _size(charges) if draw is _distribution else (5.6, 3.6)
            figure, (axis,) = drawing.panels(1, 1, width, height)
            draw(axis, charges, numbers, title)
            found[name] = drawing.svg(figure)
    return found


def charge_table(charges: ElementCharges, numbers: Sequence[int], title: str) -> Table:
    """Mean, spread and range of each element's predicted charges, and errors where there are labels."""
    rows = []
    for element in sorted(charges.predicted, key=lambda element: numbers[element]):
        found, pairs = charges.predicted[element], charges.labelled.get(element)
        spread = (float(found.squares[1]) / found.count) ** 0.5
        values = [float(found.mean[1]), spread, float(found.lowest[1]), float(found.highest[1])]
        errors = ["–"] * 4 if pairs is None else [f"{pairs.count:,}", f"{pairs.mae:.4g}", f"{pairs.rmse:.4g}"]
        if pairs is not None:
            errors.append(r_squared(pairs))
        numbers_of = [f"{round(value, 3) + 0.0:.3f}".replace("-", "−") for value in values]
        rows.append([chemical_symbols[numbers[element]], f"{found.count:,}", *numbers_of, *errors])
    header = ["element", "atoms", "mean (e)", "standard deviation (e)", "lowest (e)", "highest (e)"]
    return Table(title=title, header=[*header, "labels", "MAE (e)", "RMSE (e)", "R²"], rows=rows)


def _size(charges: ElementCharges) -> tuple[float, float]:
    return 4.4, max(2.2, 1.1 + 0.42 * len(charges.predicted))


def _figure(charges: ElementCharges, numbers: Sequence[int], title: str) -> Figure:
    width, height = _size(charges)
    if not charges.labelled:
        figure, (axis,) = drawing.panels(1, 1, width, height)
        _distribution(axis, charges, numbers, title)
        return figure
    figure, (left, right) = drawing.panels(2, 2, 5.2, max(3.7, height))
    _against_labels(left, charges, numbers, title)
    _distribution(right, charges, numbers, title)
    return figure


def _against_labels(axis: Axes, charges: ElementCharges, numbers: Sequence[int], title: str) -> None:
    """Predictions against labels, with each element's errors beside them."""
    samples = charges.labelled.values()
    ends = [float(end) for sample in samples for end in (*sample.lowest, *sample.highest)]
    drawing.square(axis, min(ends), max(ends))
    axis.axline((0, 0), slope=1, color=drawing.LINE, linewidth=0.8, zorder=1)
    for element in sorted(charges.labelled, key=lambda element: -charges.labelled[element].count):
        sample = charges.labelled[element]
        values = sample.values()
        shown = values[:, :: -(-values.shape[1] // POINTS)].numpy()
        drawn = f", {shown.shape[1]:,} drawn" if shown.shape[1] < sample.count else ""
        name = f"{chemical_symbols[numbers[element]]}: {sample.count:,} atoms{drawn}\nMAE {sample.mae:.3g}, RMSE "
        axis.scatter(
            shown[0],
            shown[1],
            s=7,
            color=COLOURS[element % len(COLOURS)],
            alpha=0.5,
            linewidths=0,
            rasterized=shown.shape[1] > 300,
            zorder=2,
            label=f"{name}{sample.rmse:.3g} e",
        )
    axis.legend(loc="upper left", bbox_to_anchor=(1.01, 1.02), markerscale=2.2, handletextpad=0.2, labelspacing=0.8)
    axis.set(xlabel="label (e)", ylabel="prediction (e)")
    axis.set_title(f"{title}: charges by element", loc="left")


def _distribution(axis: Axes, charges: ElementCharges, numbers: Sequence[int], title: str) -> None:
    """Boxes from the first to the third quartile, whiskers from 1 to 99 %, of predictions and of labels."""
    elements = sorted(charges.predicted, key=lambda element: numbers[element], reverse=True)
    places = range(len(elements))
    labelled = {place: charges.labelled[one] for place, one in enumerate(elements) if one in charges.labelled}
    predicted = {place: charges.predicted[one] for place, one in enumerate(elements)}
    handles = [Patch(color=drawing.COLOURS["train"], label="prediction")]
    _boxes(axis, predicted, 1, 0.17 if labelled else 0.0, drawing.COLOURS["train"])
    if labelled:
        _boxes(axis, labelled, 0, -0.17, drawing.LINE)
        handles.append(Patch(color=drawing.LINE, label="label"))
    axis.set_yticks(list(places), [chemical_symbols[numbers[element]] for element in elements])
    axis.set_ylim(-0.6, len(elements) - 0.4)
    axis.axvline(0.0, color=drawing.LINE, linewidth=0.8, zorder=0)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: drawing.plain(value)))
    axis.set_xlabel("charge (e): box from 25 to 75 %, whiskers from 1 to 99 %")
    axis.set_title(f"{title}: charges by element", loc="left")
    axis.legend(handles=handles, loc="lower right", bbox_to_anchor=(1.02, 1.0), ncols=2, handlelength=1.0, borderpad=0)


def _boxes(axis: Axes, samples: dict[int, Sample], row: int, offset: float, colour: str) -> None:
    """One box for each place; ``row`` 0 of the pairs are labels, 1 predictions."""
    for place, sample in samples.items():
        low, first, middle, third, high = np.percentile(sample.values()[row].numpy(), (1, 25, 50, 75, 99))
        where = place + offset
        axis.hlines(where, low, high, color=colour, linewidth=1.3)
        axis.barh(where, third - first, height=0.28, left=first, color=colour)
        axis.vlines(middle, where - 0.14, where + 0.14, color=drawing.INK, linewidth=1.3)  # seen where a box is narrow
