"""Error tables and plots of a finished run."""

import json

import matplotlib
import torch
from rich.table import Table

from phi_equivariant.files import write_atomically
from training.errors import QUANTITIES

NAMES = {"energy_per_atom": "energy per atom", "forces": "forces", "charges": "charges", "dipole": "dipole"}
PLOTTED_POINTS = 20_000
SPLIT_COLOURS = {"train": "tab:blue", "valid": "tab:orange"}


def error_cell(found):
    """``MAE / RMSE``."""
    return f"{found['mae']:.4g} / {found['rmse']:.4g}" if found else "–"


def error_header(tables):
    """Names of the quantities that any of the tables has, and the columns' titles."""
    names = [name for name in QUANTITIES if any(name in table for table in tables)]
    return names, [f"{NAMES[name]} / {QUANTITIES[name][0]}" for name in names]


def error_rows(sets):
    """Header and rows, ``MAE / RMSE`` in each cell, from {split: {"structures", "errors"}}."""
    names, titles = error_header([table["errors"] for table in sets.values()])
    rows = [
        [split, str(table["structures"]), *(error_cell(table["errors"].get(name)) for name in names)]
        for split, table in sets.items()
    ]
    return ["set", "structures", *titles], rows


def markdown(header, rows):
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def print_table(console, title, header, rows):
    """The table on the terminal."""
    table = Table(*header, title=title, caption="MAE / RMSE")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def write_errors(folder, tables, about):
    """errors.json and errors.md."""
    content = json.dumps({**about, "sets": tables}, indent=1)
    write_atomically(folder / "errors.json", lambda path: path.write_text(content))
    text = "Errors as MAE / RMSE.\n\n" + markdown(*error_rows(tables))
    write_atomically(folder / "errors.md", lambda path: path.write_text(text))


def _figure(panels):
    """A figure and its axes, at most three in a row so that a page holds them."""
    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    columns = min(panels, 3)
    rows = -(-panels // columns)
    figure = Figure(figsize=(4.2 * columns, 3.8 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for unused in axes[panels:]:
        unused.remove()
    return figure, axes[:panels]


def _save(figure, path):
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=140, format="png"))


def parity_plot(path, pairs, split, errors):
    """Predictions against labels; ``pairs`` is {quantity: list of (2, n) tensors} in eV, Å, e."""
    pairs = {name: torch.cat(parts, 1) for name, parts in pairs.items() if parts}
    if not pairs:
        return
    figure, axes = _figure(len(pairs))
    for axis, (name, values) in zip(axes, pairs.items(), strict=True):
        unit = {"energy_per_atom": "eV", "forces": "eV/Å"}.get(name, QUANTITIES[name][0])
        if name == "energy_per_atom":
            values = values - values[0].mean()
        stride = max(1, values.shape[1] // PLOTTED_POINTS)
        label, predicted = values[:, ::stride].numpy()
        ends = [min(label.min(), predicted.min()), max(label.max(), predicted.max())]
        axis.plot(ends, ends, color="0.6", linewidth=1)
        axis.plot(label, predicted, ".", markersize=2, alpha=0.5)
        shift = " (mean of labels subtracted)" if name == "energy_per_atom" else ""
        axis.set(xlabel=f"label / {unit}{shift}", ylabel=f"prediction / {unit}")
        error = errors[name]
        axis.set_title(f"{split}: {NAMES[name]}, RMSE {error['rmse']:.3g} {error['unit']}", fontsize=9)
    _save(figure, path)


def learning_curve(path, rows):
    """Losses, errors and, where there is one, the Poisson residual by epoch."""
    residual = any(row.get("valid_pde_residual", 0.0) > 0.0 for row in rows)
    figure, axes = _figure(4 if residual else 3)
    for split, colour in SPLIT_COLOURS.items():
        _curve(axes[0], rows, f"{split}_loss", split, color=colour)
    axes[0].set_ylabel("loss")
    _curve(axes[1], rows, "valid_rmse_energy_per_atom", "valid")
    axes[1].set_ylabel("energy RMSE / meV per atom")
    _curve(axes[2], rows, "valid_rmse_forces", "valid")
    axes[2].set_ylabel("forces RMSE / meV/Å")
    if residual:
        _curve(axes[3], rows, "valid_pde_residual", "valid")
        axes[3].set_ylabel("Poisson residual R")
    for axis in axes:
        axis.set(xlabel="epoch", yscale="log")
        if axis.has_data():
            axis.legend(fontsize=8)
    _save(figure, path)


def _curve(axis, rows, name, label, **style):
    points = [(row["epoch"] + 1, row[name]) for row in rows if row.get(name, 0.0) > 0.0]
    if points:
        axis.plot(*zip(*points, strict=True), marker=".", label=label, **style)


def comparison_plot(path, metrics):
    """Validation errors of several runs by epoch; ``metrics`` is {title: rows}."""
    panels = [
        ("valid_rmse_energy_per_atom", "energy RMSE / meV per atom"),
        ("valid_rmse_forces", "forces RMSE / meV/Å"),
        ("valid_rmse_charges", "charges RMSE / e"),
        ("valid_rmse_dipole", "dipole RMSE / e·Å"),
        ("valid_pde_residual", "Poisson residual R"),
    ]
    shown = [
        panel for panel in panels if any(row.get(panel[0], 0.0) > 0.0 for rows in metrics.values() for row in rows)
    ]
    figure, axes = _figure(len(shown))
    for axis, (name, label) in zip(axes, shown, strict=True):
        for index, (title, rows) in enumerate(metrics.items()):
            _curve(axis, rows, name, title, color=f"C{index}")
        axis.set(xlabel="epoch", ylabel=label, yscale="log")
        axis.legend(fontsize=8)
    _save(figure, path)
