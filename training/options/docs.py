"""The page of all options, from mace's parser and the table: ``python -m training.options.docs docs/options.md``."""

import argparse
from collections import Counter
from pathlib import Path

from phi_equivariant.files import write_atomically
from training import mace_interface
from training.options.command_line import option_parser
from training.options.table import HONOURED, MEANINGLESS, REFUSED
from training.report.tables import markdown

TITLE = """# Options of phi-mace-train

Made by `python -m training.options.docs docs/options.md` from the parser of mace {version}; a test compares the two.
Names, aliases, abbreviations and defaults are those of the installed mace. An option is **honoured**, **refused** (it
belongs to a model or a way of training that this library does not have) or **meaningless** here. One that is not
honoured stops the run, by its name, when it is given another value than its default: none is ignored.
"""
HEADER = ["option", "default", "here", "what it does, or why nothing acts on it"]


def status(name):
    """``honoured``, ``refused`` or ``meaningless``, and what the option does or why it does nothing."""
    tables = {"honoured": HONOURED, "refused": REFUSED, "meaningless": MEANINGLESS}
    return next((word, table[name]) for word, table in tables.items() if name in table)


def _section(title, actions):
    rows = []
    for action in actions:
        names = ", ".join(f"`{name}`" for name in action.option_strings if name.startswith("--"))
        default = "" if action.default in (None, "") else f"`{action.default}`"
        rows.append([names, default, *status(action.dest)])
    counts = Counter(row[2] for row in rows)
    summary = ", ".join(f"{count} {word}" for word, count in counts.items())
    return f"\n## {title}\n\n{len(rows)} options: {summary}.\n\n{markdown(HEADER, rows)}"


def page():
    """The whole page as Markdown."""
    theirs = set(mace_interface.option_names(mace_interface.argument_parser()))
    actions = [action for action in option_parser()._actions if action.option_strings and action.dest != "help"]
    return (
        TITLE.format(version=mace_interface.version())
        + _section("Options of mace_run_train", [action for action in actions if action.dest in theirs])
        + _section("Options that phi-mace-train adds", [action for action in actions if action.dest not in theirs])
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    write_atomically(parser.parse_args().file, lambda path: path.write_text(page(), encoding="utf-8"))
