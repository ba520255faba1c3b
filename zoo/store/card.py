"""Model cards: YAML that says what a trained model is, how good it is, and what it is not for."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from phi_equivariant.errors import InputError
from zoo.store.registry import FILE_LIMITS

#: {section: what it says}, in the order in which cards are written and shown.
SECTIONS = {
    "name": "phi-<host>-<size>.<data>",
    "description": "one line",
    "licence": "of the weights",
    "data": "name or files, source, citation, licence, split, sha256",
    "level_of_theory": "functional or method of the labels",
    "units": "energy, length, charge",
    "elements": "symbols",
    "charge_states": "total charges among the training structures",
    "training": "command and configuration",
    "versions": "of the packages it was trained with",
    "errors": "of Φ and of the bare host on held-out structures, with seeds",
    "speed": "of one evaluation, and of training",
    "not_for": "what it must not be used for",
}
#: What nobody but the author knows, and nobody should use a model without.
STATED = ("licence", "level_of_theory", "not_for")


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases, by which a small file could stand for a huge one."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not read")
        return super().compose_node(parent, index)


def read(path: Path) -> dict[str, Any]:
    """The card in a file.

    Raises
    ------
    InputError
        If it is missing, too large, no YAML mapping, or lacks a section.
    """
    try:
        if path.stat().st_size > FILE_LIMITS[path.name]:
            raise InputError(f"{path} has {path.stat().st_size} bytes; at most {FILE_LIMITS[path.name]} are read.")
        card = yaml.load(path.read_text(encoding="utf-8"), Loader=_PlainLoader)
    except FileNotFoundError as error:
        raise InputError(f"{path.parent} has no {path.name}; phi-zoo export makes a folder with one.") from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        text = " ".join(str(error).split())
        raise InputError(f"{path} is not YAML that can be read ({type(error).__name__}: {text[:200]}).") from error
    if not isinstance(card, dict) or (missing := [name for name in SECTIONS if name not in card]):
        what = f"lacks {', '.join(missing)}" if isinstance(card, dict) else f"holds {type(card).__name__}"
        raise InputError(f"{path} is not a model card: it {what}.")
    return card


def check_stated(card: dict[str, Any], path: Path) -> None:
    """InputError if the author has left out what only they know."""
    missing = [name for name in STATED if not card.get(name)]
    if missing:
        raise InputError(
            f"{path} does not state {', '.join(missing)} ({'; '.join(SECTIONS[name] for name in missing)}). Write it "
            "there: the model cannot be judged without it."
        )


def text_of(card: dict[str, Any]) -> str:
    """A card as YAML, in the order of ``SECTIONS``."""
    return yaml.safe_dump(
        {name: card[name] for name in SECTIONS}, sort_keys=False, allow_unicode=True, width=100, default_flow_style=None
    )


#: What a reader wants first, and last.
FIRST = ("name", "description", "use", "errors", "not_for", "elements", "charge_states", "level_of_theory", "licence")
LAST = ("versions", "files", "configuration")


def lines_of(content: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(section, text) of a card, and of what else is known: errors and use first, the configuration last."""
    if isinstance(training := content.get("training"), dict):
        content = {**training, **{name: value for name, value in content.items() if name != "training"}}
    between = [name for name in content if name not in FIRST + LAST]
    for name in [*FIRST, *between, *LAST]:
        value = content.get(name)
        if value in (None, "", [], {}):
            text = "not stated"
        elif isinstance(value, dict):  # an entry a line, which the terminal may break
            text = "\n".join(f"{key}: {_in_a_line(part)}" for key, part in value.items())
        elif name == "errors" and not isinstance(value, str):
            dumped: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, default_flow_style=False)
            text = dumped.strip()
        else:
            text = _in_a_line(value)
        if name in content:
            yield str(name).replace("_", " "), text


def _in_a_line(value: Any) -> str:
    """Text as it is, anything else as YAML in one line."""
    if isinstance(value, str | int | float):
        return str(value)
    dumped: str = yaml.safe_dump(value, allow_unicode=True, sort_keys=False, width=10**6, default_flow_style=True)
    return dumped.removesuffix("...\n").strip()
