"""Losses and errors by epoch."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from training.quantities import drawn
from training.report import drawing

SIZE = (3.9, 2.9)  # of a panel, inches
DOTS = 60  # of more epochs, lines are drawn without them
Rows = Sequence[Mapping[str, Any]]
#: Title of a curve: (epochs from 1 on, values > 0).
Curves = dict[str, tuple[list[int], list[float]]]


@drawing.style()
def learning_curve(
    path: Path, rows: Rows, form: str, heads: Sequence[str] = (), best: Mapping[int, int] | None = None
) -> None:
    """Write losses, errors and, where there is one, the Poisson residual by epoch, in one picture.

    rows : metrics of the epochs
    form : of the error tables, whose kind of error is drawn
    heads : of the run; several have a curve each
    best : {stage: epoch, from 1 on} whose weights were kept
    """
    shown = _of_run(rows, form, heads)
    if shown:  # else nothing was finite
        drawing.save_png(_figure(shown, _marks(rows, best)), path)


@drawing.style()
def curve_panels(
    rows: Rows, form: str, heads: Sequence[str] = (), best: Mapping[int, int] | None = None
) -> dict[str, str]:
    """{what is drawn: SVG of its panel} of the same."""
    marks = _marks(rows, best)
    panels = _of_run(rows, form, heads)
    return {title: drawing.svg(_figure({title: curves}, marks)) for title, curves in panels.items()}


@drawing.style()
def comparison_plot(path: Path, metrics: Mapping[str, Rows], forms: Mapping[str, str]) -> None:
    """Write validation errors of several runs by epoch; ``metrics`` is {title: rows}, ``forms`` {title: form}."""
    shown: dict[str, Curves] = {}
    for title, rows in metrics.items():
        for name, curves in _of_run(rows, forms[title], ()).items():
            if "valid" in curves and name != "loss":  # losses of different terms do not compare
                shown.setdefault(f"validation: {name}", {})[title] = curves["valid"]
    if shown:
        drawing.save_png(_figure(shown, {}, list(metrics)), path)


def _figure(shown: Mapping[str, Curves], marks: Mapping[str, list[float]], order: Sequence[str] = ()) -> Figure:
    figure, axes = drawing.panels(len(shown), 3, *SIZE)
    for axis, (title, curves) in zip(axes, shown.items(), strict=True):
        _panel(axis, title, curves, marks, order)
    _legend(figure, axes)
    return figure


def _of_run(rows: Rows, form: str, heads: Sequence[str]) -> dict[str, Curves]:
    """{what is drawn: its curves}, as far as there is anything above zero to draw."""
    kind, measures = drawn(form)
    quantities = {"loss": "loss"}
    quantities |= {f"{kind}_{m.name}": f"{m.heading}, {kind.upper()} ({m.error_unit})" for m in measures}
    quantities["pde_residual"] = "Poisson residual R"
    validations = {f"valid {head}": f"valid_{head}" for head in heads} if len(heads) > 1 else {"valid": "valid"}
    found: dict[str, Curves] = {}
    for name, title in quantities.items():
        curves = {
            split: curve
            for split, prefix in {"train": "train", **validations}.items()
            if (curve := _curve(rows, f"{prefix}_{name}"))[0]
        }
        if curves:
            found[title] = curves
    return found


def _curve(rows: Rows, name: str) -> tuple[list[int], list[float]]:
    points = [(row["epoch"] + 1, row[name]) for row in rows if _above_zero(row.get(name))]
    return [epoch for epoch, _ in points], [value for _, value in points]


def _above_zero(value: Any) -> bool:
    return value is not None and 0.0 < value < math.inf


def _marks(rows: Rows, best: Mapping[int, int] | None) -> dict[str, list[float]]:
    """Epochs at which a line is drawn: where stage two begins, and those whose weights were kept."""
    stage_two = [row["epoch"] + 0.5 for row in rows if row.get("stage") == 2][:1]
    kept = [float(epoch) for epoch in (best or {}).values()]
    return {title: where for title, where in {"stage two": stage_two, "best epoch": kept}.items() if where}


def _panel(axis: Axes, title: str, curves: Curves, marks: Mapping[str, list[float]], order: Sequence[str] = ()) -> None:
    """Curves on a logarithmic ordinate, and vertical lines."""
    for number, (name, (epochs, values)) in enumerate(curves.items()):
        place = list(order).index(name) if order else number
        colour = drawing.OTHER_COLOURS[place] if order else drawing.colour(name.removesuffix(" Default"), number)
        axis.plot(epochs, values, color=colour, label=name, marker="." if len(epochs) <= DOTS else "", markersize=5)
    for title_of, style in (("stage two", "--"), ("best epoch", ":")):
        for number, epoch in enumerate(marks.get(title_of, ())):
            label = title_of if number == 0 else None
            axis.axvline(epoch, color=drawing.LINE, linestyle=style, linewidth=1.2, label=label, zorder=1)
    drawing.logarithmic(axis, [value for _, values in curves.values() for value in values])
    drawing.whole_epochs(axis, max(epochs[-1] for epochs, _ in curves.values()))
    axis.set_title(title, loc="left")


def _legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """One legend above all panels, where it covers nothing."""
    named = {label: line for axis in axes for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    columns = (2 if len(named) > 3 else 3) if len(axes) == 1 else 8
    figure.legend(list(named.values()), list(named), loc="outside upper center", ncols=columns, columnspacing=1.4)
