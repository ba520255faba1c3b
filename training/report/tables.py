"""Error tables of a run, in mace's forms, and the line of the log."""

import json

from rich.table import Table

from phi_equivariant.files import write_atomically
from training.report.error_sums import QUANTITIES

NAMES = {
    "energy_per_atom": "energy per atom",
    "forces": "forces",
    "stress": "stress",
    "virials": "virials",
    "charges": "charges",
    "dipole": "dipole",
}
#: Quantity → (symbol, unit, format) in tables by form and in the log.
SYMBOLS = {
    "energy": ("E", "meV", ".1f"),
    "energy_per_atom": ("E", "meV/atom", ".2f"),
    "forces": ("F", "meV/Å", ".1f"),
    "stress": ("σ", "meV/Å³", ".2f"),
    "virials": ("virials", "meV", ".1f"),
    "charges": ("q", "e", ".4f"),
    "dipole": ("μ", "e·Å", ".4f"),
    "dipole_per_atom": ("μ", "mD/atom", ".2f"),
}
_FORCES = ("forces", "relative forces")
_STRESS = ("energy_per_atom", *_FORCES, "stress", "virials")
_DIPOLE = ("dipole_per_atom", "relative dipole")
#: mace's forms of ``--error_table``: which error, of which quantities.
FORMS = {
    "PerAtomRMSE": ("rmse", ("energy_per_atom", *_FORCES)),
    "TotalRMSE": ("rmse", ("energy", *_FORCES)),
    "PerAtomRMSEstressvirials": ("rmse", _STRESS),
    "PerAtomMAEstressvirials": ("mae", _STRESS),
    "PerAtomMAE": ("mae", ("energy_per_atom", *_FORCES)),
    "TotalMAE": ("mae", ("energy", *_FORCES)),
    "DipoleRMSE": ("rmse", _DIPOLE),
    "DipoleMAE": ("mae", _DIPOLE),
    "EnergyDipoleRMSE": ("rmse", ("energy_per_atom", *_FORCES, *_DIPOLE)),
}
EXTRA = ("charges", "dipole")  # shown beside every form where they are labelled


def error_cell(found):
    """``MAE / RMSE``."""
    return f"{found['mae']:.4g} / {found['rmse']:.4g}" if found else "–"


def error_header(tables):
    """Names of the quantities that any of the tables has, and the columns' titles."""
    names = [name for name in NAMES if any(name in table for table in tables)]
    return names, [f"{NAMES[name]} / {QUANTITIES[name][0]}" for name in names]


def _columns(form, tables):
    """(kind, columns) of a form; the stress, or else the virials, as mace; charges and dipoles where labelled."""
    kind, columns = FORMS[form]
    found = {name for table in tables for name in table}
    if "stress" in columns:
        left_out = "stress" if "virials" in found and "stress" not in found else "virials"
        columns = tuple(name for name in columns if name != left_out)
    return kind, (*columns, *(name for name in EXTRA if name in found))


def _title(kind, column):
    name = column.removeprefix("relative ")
    symbol, unit, _ = SYMBOLS[name]
    return f"{kind.upper()} {symbol} / {unit}" if name == column else f"relative {symbol} {kind.upper()} / %"


def _cell(kind, column, table):
    name = column.removeprefix("relative ")
    if name not in table:
        return "–"
    return f"{table[name][kind]:.4g}" if name == column else f"{table[name][f'rel_{kind}']:.2f}"


def error_rows(sets, form=None):
    """Header and rows of an error table, from {set: {"structures", "errors"}}.

    ``form`` is one of mace's; without, each cell is ``MAE / RMSE``.
    """
    tables = [table["errors"] for table in sets.values()]
    if form is None:
        names, titles = error_header(tables)
        cells = [[error_cell(table.get(name)) for name in names] for table in tables]
    else:
        kind, columns = _columns(form, tables)
        titles = [_title(kind, column) for column in columns]
        cells = [[_cell(kind, column, table) for column in columns] for table in tables]
    rows = [[name, str(sets[name]["structures"]), *row] for name, row in zip(sets, cells, strict=True)]
    return ["set", "structures", *titles], rows


def epoch_line(row, epochs, form="PerAtomRMSE", heads=()):
    """One line for the log: epoch, seconds, loss and the validation errors that the form shows, head by head."""
    parts = [f"epoch {row['epoch'] + 1:4d}/{epochs}", f"{row['seconds']:7.1f} s", f"loss {row['train_loss']:.5g}"]
    kind, columns = FORMS[form]
    shown = {*columns, *(name for name in EXTRA if f"{name}_per_atom" not in columns)}
    for head in heads if len(heads) > 1 else (None,):
        prefix = "valid" if head is None else f"valid_{head}"
        found = {name: row.get(f"{prefix}_{kind}_{name}") for name in shown}
        errors = [
            f"{symbol} {found[name]:{style}} {unit}"
            for name, (symbol, unit, style) in SYMBOLS.items()
            if found.get(name) is not None
        ]
        if errors:
            parts.append(" ".join((prefix.replace("_", " "), kind.upper(), "  ".join(errors))))
    if row.get("valid_pde_residual"):
        parts.append(f"R {row['valid_pde_residual']:.3g}")
    return "  ".join(parts)


def markdown(header, rows):
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def print_table(console, title, header, rows, caption="MAE / RMSE"):
    """The table on the terminal."""
    table = Table(*header, title=title, caption=caption)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def write_errors(folder, tables, about, form):
    """errors.json, with everything, and errors.md in the form."""
    content = json.dumps({**about, "sets": tables}, indent=1)
    write_atomically(folder / "errors.json", lambda path: path.write_text(content))
    text = markdown(*error_rows(tables, form))
    write_atomically(folder / "errors.md", lambda path: path.write_text(text))
