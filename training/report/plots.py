"""Plots of a run: predictions against labels, and errors by epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import torch

from phi_equivariant.files import write_atomically
from training.quantities import measures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLOTTED_POINTS = 20_000
SPLIT_COLOURS = {"train": "tab:blue", "valid": "tab:orange"}


def _figure(panels: int) -> tuple[Figure, list[Axes]]:
    """A figure and its axes, at most three in a row so that a page holds them."""
    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    columns = min(panels, 3)
    rows = -(-panels // columns)
    figure = Figure(figsize=(4.2 * columns, 3.8 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for unused in axes[panels:]:
        unused.remove()
    return figure, list(axes[:panels])


def _save(figure: Figure, path: Path) -> None:
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=140, format="png"))


def parity_plot(
    path: Path,
    pairs: Mapping[str, Sequence[torch.Tensor]],
    title: str,
    errors: Mapping[str, Mapping[str, Any]],
    interaction: bool = False,
) -> None:
    """Predictions against labels.

    Parameters
    ----------
    pairs : dict
        {measure: list of (2, n) tensors} in eV, Å, e.
    title : str
        Name of the set.
    errors : dict
        Its table, for the panels' titles.
    interaction : bool
        The energies are without those of the isolated atoms: they are shown as they are, not shifted by their mean.
    """
    joined = {name: torch.cat(list(parts), 1) for name, parts in pairs.items() if parts}
    shown = [measure for measure in measures() if measure.name in joined]
    if not shown:
        return
    figure, axes = _figure(len(shown))
    for axis, measure in zip(axes, shown, strict=True):
        values, quantity, unit, shift = joined[measure.name], measure.title, measure.plotted, ""
        if measure.name == "energy_per_atom" and interaction:
            quantity = f"interaction {measure.title}"
        elif measure.name == "energy_per_atom":
            values, shift = values - values[0].mean(), " (mean of labels subtracted)"
        stride = max(1, values.shape[1] // PLOTTED_POINTS)
        label, predicted = values[:, ::stride].numpy()
        ends = [min(label.min(), predicted.min()), max(label.max(), predicted.max())]
        axis.plot(ends, ends, color="0.6", linewidth=1)
        axis.plot(label, predicted, ".", markersize=2, alpha=0.5)
        axis.set(xlabel=f"label / {unit}{shift}", ylabel=f"prediction / {unit}")
        error = errors[measure.name]
        axis.set_title(f"{title}: {quantity}, RMSE {error['rmse']:.3g} {error['unit']}", fontsize=9)
    _save(figure, path)


#: Metric → what its curve shows.
_CURVES = {
    **{f"valid_rmse_{m.name}": f"{m.title} RMSE / {m.unit}" for m in measures() if m.title},
    "valid_pde_residual": "Poisson residual R",
}
Rows = Sequence[Mapping[str, Any]]


def _shown_curves(histories: Sequence[Rows]) -> list[tuple[str, str]]:
    return [
        curve for curve in _CURVES.items() if any(row.get(curve[0], 0.0) > 0.0 for rows in histories for row in rows)
    ]


def learning_curve(path: Path, rows: Rows) -> None:
    """Losses, errors and, where there is one, the Poisson residual by epoch; a line where stage two begins."""
    stage_two = next((row["epoch"] for row in rows if row.get("stage") == 2), None)
    shown = _shown_curves([rows])
    figure, axes = _figure(1 + len(shown))
    for split, colour in SPLIT_COLOURS.items():
        _curve(axes[0], rows, f"{split}_loss", split, color=colour)
    axes[0].set_ylabel("loss")
    for axis, (name, label) in zip(axes[1:], shown, strict=True):
        _curve(axis, rows, name, "valid", color=SPLIT_COLOURS["valid"])
        axis.set_ylabel(label)
    for axis in axes:
        axis.set(xlabel="epoch", yscale="log")
        if stage_two is not None:
            axis.axvline(stage_two + 0.5, color="0.6", linestyle="--", linewidth=1, label="stage two")
        if axis.has_data():
            axis.legend(fontsize=8)
    _save(figure, path)


def _curve(axis: Axes, rows: Rows, name: str, label: str, **style: Any) -> None:
    points = [(row["epoch"] + 1, row[name]) for row in rows if row.get(name, 0.0) > 0.0]
    if points:
        axis.plot(*zip(*points, strict=True), marker=".", label=label, **style)


def comparison_plot(path: Path, metrics: Mapping[str, Rows]) -> None:
    """Validation errors of several runs by epoch; ``metrics`` is {title: rows}."""
    shown = _shown_curves(list(metrics.values()))
    figure, axes = _figure(len(shown))
    for axis, (name, label) in zip(axes, shown, strict=True):
        for index, (title, rows) in enumerate(metrics.items()):
            _curve(axis, rows, name, title, color=f"C{index}")
        axis.set(xlabel="epoch", ylabel=label, yscale="log")
        axis.legend(fontsize=8)
    _save(figure, path)
