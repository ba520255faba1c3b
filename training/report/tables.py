"""Error tables of a run, in mace's forms, and the line of the log."""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from phi_equivariant.files import write_atomically
from training import run_folder
from training.quantities import FORMS, OF_PHI, Measure, measures

Row = Mapping[str, Any]  # of a table of errors: mae, rmse, …
Errors = Mapping[str, Row]

MEASURES: dict[str, Measure] = {measure.name: measure for measure in measures()}
#: Shown beside every form where they are labelled: what mace's losses do not train.
EXTRA = tuple(label.measures[0].name for label in OF_PHI.values())


def error_cell(found: Row | None) -> str:
    """``MAE / RMSE``."""
    return f"{found['mae']:.4g} / {found['rmse']:.4g}" if found else "–"


def error_header(tables: Collection[Errors]) -> tuple[list[str], list[str]]:
    """Names of the measures that any of the tables has, and the columns' titles."""
    shown = [measure for measure in measures() if measure.title and any(measure.name in table for table in tables)]
    return [measure.name for measure in shown], [f"{measure.title} / {measure.unit}" for measure in shown]


def _columns(form: str, tables: Iterable[Errors]) -> tuple[str, tuple[str, ...]]:
    """(kind, columns) of a form; the stress, or else the virials, as mace; our own where labelled."""
    kind, columns = FORMS[form]
    found = {name for table in tables for name in table}
    if "stress" in columns:
        left_out = "stress" if "virials" in found and "stress" not in found else "virials"
        columns = tuple(name for name in columns if name != left_out)
    return kind, (*columns, *(name for name in EXTRA if name in found))


def _title(kind: str, column: str) -> str:
    name = column.removeprefix("relative ")
    measure = MEASURES[name]
    if name == column:
        return f"{kind.upper()} {measure.symbol} / {measure.error_unit}"
    return f"relative {measure.symbol} {kind.upper()} / %"


def _cell(kind: str, column: str, table: Errors) -> str:
    name = column.removeprefix("relative ")
    if name not in table:
        return "–"
    return f"{table[name][kind]:.4g}" if name == column else f"{table[name][f'rel_{kind}']:.2f}"


def error_rows(sets: Mapping[str, Row], form: str | None = None) -> tuple[list[str], list[list[str]]]:
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


def epoch_line(row: Mapping[str, Any], epochs: int | None, form: str = "PerAtomRMSE", heads: Sequence[str] = ()) -> str:
    """One line for the log: epoch, seconds, loss and the validation errors that the form shows, head by head."""
    parts = [
        f"epoch {row['epoch'] + 1:>{len(str(epochs))}}/{epochs}",
        f"{row['seconds']:6.1f} s",
        f"loss {row['train_loss']:.4g}",
        *validation_errors(row, form, heads),
    ]
    if row.get("valid_pde_residual"):
        parts.append(f"R {row['valid_pde_residual']:.3g}")
    return "  ".join(parts)


def validation_errors(row: Mapping[str, Any], form: str = "PerAtomRMSE", heads: Sequence[str] = ()) -> list[str]:
    """The validation errors of an epoch that the form shows, with units: one text for each head."""
    kind, columns = FORMS[form]
    shown = {*columns, *(name for name in EXTRA if f"{name}_per_atom" not in columns)}
    shown_heads: Sequence[str | None] = heads if len(heads) > 1 else (None,)
    texts = []
    for head in shown_heads:
        prefix = "valid" if head is None else f"valid_{head}"
        found = {name: row.get(f"{prefix}_{kind}_{name}") for name in shown}
        errors = [
            f"{measure.symbol} {found[measure.name]:{measure.style}} {measure.error_unit}"
            for measure in measures()
            if found.get(measure.name) is not None
        ]
        if errors:
            texts.append(" ".join((prefix.replace("_", " "), kind.upper(), "  ".join(errors))))
    return texts


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def print_table(
    console: Console,
    title: str,
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    caption: str | None = "MAE / RMSE",
) -> None:
    """The table on the terminal, units below names; where it is too wide, what were columns are rows."""
    broken, rows = [name.replace(" / ", "\n") for name in header], list(rows)
    for lines in ([broken, *rows], list(zip(header, *rows, strict=True)), list(zip(broken, *rows, strict=True))):
        table = _table(lines, title, caption)
        if Measurement.get(console, console.options.update(max_width=1000), table).maximum <= console.width:
            break
    console.print(table)


def _table(lines: Sequence[Sequence[str]], title: str, caption: str | None) -> Table:
    """A table whose first line is its header."""
    table = Table(*lines[0], title=title, caption=caption)
    for line in lines[1:]:
        table.add_row(*line)
    return table


def write_errors(folder: Path, tables: Mapping[str, Row], about: Mapping[str, Any], form: str) -> None:
    """errors.json, with everything, and errors.md in the form."""
    content = json.dumps({**about, "sets": tables}, indent=1)
    write_atomically(folder / run_folder.ERRORS, lambda path: path.write_text(content))
    text = markdown(*error_rows(tables, form))
    write_atomically(folder / run_folder.ERRORS_TABLE, lambda path: path.write_text(text))
