"""Table and figure of the ablation from the runs that are finished."""

import json

import matplotlib
import numpy as np
from runs import write_between

matplotlib.use("Agg")
import matplotlib.pyplot as plt

TITLES = {
    "dimers": "pairs of ions, beyond the training distances",
    "spice_dipeptides": "SPICE dipeptides",
    "acac": "acetylacetone",
    "ag3": "Ag₃⁺ and Ag₃⁻, with charge input",
    "carbon_chain": "carbon chains, charge 0 and +1",
    "ala3": "Ac-Ala3-NHMe",
}
ERRORS = ("errors", "test", "energy_per_atom", "rmse"), ("errors", "test", "forces", "rmse")
#: Column → (place in a run's file, factor, format).
COLUMNS = {
    "energy, meV/atom": (ERRORS[0], 1, ".2f"),
    "forces, meV/Å": (ERRORS[1], 1, ".1f"),
    "root mean square charge, e": (("rms_charge",), 1, ".2f"),
    "charge of the cation, e": (("ion_charge", "mean"), 1, ".2f"),
    "charges: r": (("charges", "correlation"), 1, ".2f"),
    "charges: slope": (("charges", "slope"), 1, ".2f"),
    "charges: RMSE, e": (("charges", "rmse"), 1, ".3f"),
    "dipoles: r": (("dipole", "correlation"), 1, ".3f"),
    "dipoles: slope": (("dipole", "slope"), 1, ".2f"),
    "dipoles: R²": (("dipole", "r2"), 1, ".3f"),
    "dipoles: RMSE, e·Å": (("dipole", "rmse"), 1, ".2f"),
    "Born charges: r": (("born_effective_charges", "correlation"), 1, ".2f"),
    "Born charges: RMSE, e": (("born_effective_charges", "rmse"), 1, ".3f"),
    "ms per step": (("processor_seconds_per_step",), 1e3, ".0f"),
}
BARE = "no Φ"
#: Rows whose host is not that of BARE → the bare host that they are compared with, None for none with their epochs.
COMPARED = {
    "coulomb exact, multipoles": "no Φ, l = 1",
    "coulomb exact, wide": "no Φ, wide",
    "multipoles, width 0.9, wide, long": None,
    "coulomb exact, converged": "no Φ, converged",
    "sqe, converged": "no Φ, converged",
}


def load(results):
    """{data set: {row: runs in the order of their seeds}}."""
    found = {}
    for path in sorted(results.glob("*/*.json")):
        run = json.loads(path.read_text())
        found.setdefault(run["dataset"], {}).setdefault(run["row"], []).append(run)
    return found


def values_of(runs, place):
    """The numbers at a place of every run's file; empty where a run has none."""
    values = []
    for run in runs:
        for key in place:
            run = run.get(key) if isinstance(run, dict) else None
        values += [] if run is None else [run]
    return np.array(values)


def cell(values, factor, style):
    """Mean ± standard deviation over seeds, – without values."""
    if len(values) == 0:
        return "–"
    mean = format(factor * values.mean(), style)
    return f"{mean} ± {format(factor * values.std(ddof=1), style)}" if len(values) > 1 else mean


def table(name, rows, found):
    """Markdown of one data set: mean ± standard deviation over seeds, and what is missing."""
    columns = {
        title: (place, factor, style)
        for title, (place, factor, style) in COLUMNS.items()
        if any(len(values_of(runs, place)) for runs in found.values())
    }
    lines = [f"**{TITLES[name]}** (`{name}`)", "", "| | " + " | ".join([*columns, "epochs", "seeds"]) + " |"]
    lines.append("|---" * (len(columns) + 3) + "|")
    for row in rows:
        if runs := found.get(row):
            cells = [cell(values_of(runs, place), factor, style) for place, factor, style in columns.values()]
            lines.append(f"| {row} | {' | '.join(cells)} | {runs[0]['epochs']} | {len(runs)} |")
    missing = [row for row in rows if row not in found]
    notes = [f"Not finished: {'; '.join(missing)}."] if missing else []
    if not any(row.startswith("graph") for row in rows):
        notes.append("Rows of the graph operator are left out: it carries no net charge.")
    return "\n".join([*(lines if found else lines[:2]), *([""] if found else []), *notes, *([""] if notes else [])])


def compared(rows):
    """Those that are not bare hosts."""
    return [row for row in rows if row not in (BARE, *COMPARED.values())]


def differences(found, all_rows):
    """Markdown of row − its bare host of the same seed, in per cent of that host's mean, with its standard error."""
    names = [name for name in TITLES if BARE in found.get(name, {})]
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for row in compared(all_rows):
        bare = COMPARED.get(row, BARE)
        cells = [
            " / ".join(difference(found[name].get(row, []), found[name].get(bare, []), place) for place in ERRORS)
            for name in names
        ]
        if any(set(cell) - set("– /") for cell in cells):
            lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


def difference(runs, bare, place):
    """Mean over seeds of run − bare host of the same seed, in per cent of the bare host's mean, with standard error."""
    bare = {run["seed"]: run for run in bare}
    runs = [run for run in runs if run["seed"] in bare]
    if not runs:
        return "–"
    of_bare = values_of([bare[run["seed"]] for run in runs], place)
    each = 100 * (values_of(runs, place) - of_bare) / of_bare.mean()
    error = f" ± {each.std(ddof=1) / np.sqrt(len(each)):.0f}" if len(each) > 1 else ""
    return f"{each.mean():+.0f}{error}".replace("-", "−")


def figure(path, found, all_rows):
    """Errors relative to those of the bare host of the same width and seed, one column per data set."""

    def both(name, row):
        return row in found.get(name, {}) and COMPARED.get(row, BARE) in found[name]

    rows = compared(all_rows)
    names = [name for name in TITLES if any(both(name, row) for row in rows)]
    shown = [row for row in rows if any(both(name, row) for name in names)]
    quantities = list(COLUMNS.items())[:2]
    size = {"figsize": (2.0 + 1.9 * len(names), 6.0), "sharey": True, "squeeze": False}
    picture, axes = plt.subplots(2, len(names), layout="constrained", **size)
    for line, (title, (place, _, _)) in zip(axes, quantities, strict=True):
        for axis, name in zip(line, names, strict=True):
            axis.axvline(1, color="0.6", lw=1)
            for height, row in enumerate(shown):
                if both(name, row):
                    bare = {run["seed"]: run for run in found[name][COMPARED.get(row, BARE)]}
                    runs = [run for run in found[name][row] if run["seed"] in bare]
                    ratio = values_of(runs, place) / values_of([bare[run["seed"]] for run in runs], place)
                    axis.errorbar(
                        ratio.mean(), height, xerr=ratio.std(ddof=1) if len(ratio) > 1 else None, fmt=f"oC{height}"
                    )
            axis.set_xlabel(f"{title.split(',')[0]}: error / bare host's", fontsize=8)
            axis.set_yticks(range(len(shown)), shown)
            axis.tick_params(labelsize=8)
    axes[0, 0].invert_yaxis()  # of all
    for axis, name in zip(axes[0], names, strict=True):
        axis.set_title(name, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path, dpi=130)
    plt.close(picture)


def report(results, rows_by_set, all_rows, page, figure_path):
    """Write the tables between the marks of ``page`` and draw the figure."""
    found = load(results)
    text = "\n".join(table(name, rows, found.get(name, {})) for name, rows in rows_by_set.items())
    write_between(page, "ablation", text.rstrip())
    write_between(page, "ablation differences", differences(found, all_rows))
    if found:
        figure(figure_path, found, all_rows)
    print(text)
