"""Values that options give as text or as files."""

import ast
import json
import math
from pathlib import Path
from typing import Any

from phi_equivariant.errors import InputError

#: Where energies may come from, beside a dictionary and a JSON file.
WORDS = ("average", "estimated", "foundation")


def literal(value: Any, name: str, example: str) -> Any:
    """A Python or YAML value given as text, as mace's parser passes on what is nested; others as they are."""
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise InputError(f"{name.removesuffix(': ')}: {value!r} cannot be read; expected {example}.") from None


def read_json(path: str | Path, name: str) -> Any:
    """What a JSON file holds; InputError, beginning with ``name``, if it cannot be read."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{name}{path} cannot be read as JSON: {reason}.") from error


def read_e0s(choice: Any, where: str = "") -> dict[int, float] | str | None:
    """``--E0s`` as {Z: eV}, or the word that says where they come from; None if there are none.

    InputError if it is neither a word, nor a dictionary, nor a JSON file with one.
    """
    if choice is None or (isinstance(choice, str) and choice.lower() in WORDS):
        return choice if choice is None else choice.lower()
    name = f"--E0s: {where}"
    found = choice
    if isinstance(choice, str) and choice.endswith(".json"):
        found = read_json(choice, name)
    elif isinstance(choice, str):
        expected = f"a dictionary as in {{1: -13.6, 8: -2043.0}}, a JSON file, or one of {', '.join(WORDS)}"
        found = literal(choice, name, expected)
    try:
        energies = {int(number): float(energy) for number, energy in found.items()}
    except (AttributeError, TypeError, ValueError):
        energies = None
    if not energies or not all(map(math.isfinite, energies.values())):
        raise InputError(f"{name}expected energies (eV) by atomic number, got {found!r}.")
    return energies
