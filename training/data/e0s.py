"""``--E0s`` as it was given: energies of the isolated atoms, or the word that says where they come from."""

import math
from typing import Any

from phi_equivariant.errors import InputError
from training.data.literals import literal, read_json

#: Where energies may come from, beside a dictionary and a JSON file.
WORDS = ("average", "estimated", "foundation")


def read_e0s(choice: Any, where: str = "") -> dict[int, float] | str | None:
    """``--E0s`` as {Z: eV}, or the word that says where they come from; None if there are none.

    Raises
    ------
    InputError
        If it is neither a word, nor a dictionary, nor a JSON file with one.
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
