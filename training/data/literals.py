"""Values that options give as text or as files."""

import ast
import json
from pathlib import Path
from typing import Any

from phi_equivariant.errors import InputError


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
