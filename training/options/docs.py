"""The page of all options, from the fields of a run: ``python -m training.options.docs docs/options.md``."""

import argparse
from importlib.metadata import version
from pathlib import Path

from phi_equivariant.files import write_atomically
from training import run
from training.options.parser import Parser
from training.options.refused import IDLE, REFUSED
from training.report.tables import markdown

TITLE = """# Options of phi-mace-train

Made by `python -m training.options.docs docs/options.md` from the fields of `training/run`, with the defaults of mace
{version}; a test compares the two. Names, aliases, abbreviations and defaults are those of the installed mace. An
option is **honoured**, **refused** or **idle**.

- A **refused** option would change what is trained, in a way that this library does not have. If it is given another
  value than its default, the run stops and names it.
- An **idle** option is one that mace ignores too, with the models that are trained here. It gets a line in the log
  with its name and the reason. So does any other option that cannot act in a run, such as `ema_decay` without `ema`.
- Options marked ↻ may change when an interrupted run goes on by `--restart_latest`. `max_num_epochs` may not change
  with a cosine schedule.
"""


def _cells(action: argparse.Action) -> list[str]:
    names = ", ".join(f"`{name}`" for name in action.option_strings if name.startswith("--"))
    return [names, "" if action.default in (None, "") else f"`{action.default}`"]


def page() -> str:
    """The whole page as Markdown."""
    parser = Parser()
    actions, theirs = parser.actions, set(parser.of_mace)
    text = TITLE.format(version=version("mace-torch"))
    honoured = sum(name in theirs for name in run.options())
    text += (
        f"\nOf {len(theirs)} options of mace {honoured} are honoured, {len(REFUSED)} refused and {len(IDLE)} idle; "
        f"{len(run.options()) - honoured} are added.\n"
    )
    for kind, title in run.PARTS.values():
        rows = [
            [*_cells(actions[field.name]), "mace" if field.name in theirs else "ours",
             "↻" if field.metadata["restart"] else "", field.metadata["means"]]
            for field in kind.options()
        ]  # fmt: skip
        text += f"\n## {title}\n\n" + markdown(["option", "default", "from", "", "what it does"], rows)
    for title, reasons in (("Refused", REFUSED), ("Idle", IDLE)):
        rows = [[*_cells(actions[name]), reason] for name, reason in reasons.items()]
        text += f"\n## {title}\n\n" + markdown(["option", "default", "why"], rows)
    return text


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("file", type=Path)
    write_atomically(arguments.parse_args().file, lambda path: path.write_text(page(), encoding="utf-8"))
