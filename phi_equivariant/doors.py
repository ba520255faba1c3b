"""Doors of the command lines: they open fast, and say so where a file of the user's stands in the way.

``zoo`` and ``training`` are names that a file of anyone's may have; one that Python finds first hides the package.
"""

import importlib.util
import sys
from pathlib import Path

from phi_equivariant.errors import InputError

ROOT = Path(__file__).resolve().parents[1]


def check_not_hidden(*names: str) -> None:
    """See that Python finds our packages by their names; a name that is no package of ours is left alone.

    Raises
    ------
    InputError
        Naming the file that hides a package.
    """
    for name in names:
        ours = ROOT / name / "__init__.py"
        found = sys.modules[name].__file__ if name in sys.modules else _found(name)
        if ours.is_file() and (found is None or Path(found).resolve() != ours):
            raise InputError(
                f"{found or 'Something without a file'} hides the package {name!r} of phi-equivariant "
                f"({ours.parent}): rename it, or take its folder out of PYTHONPATH."
            )


def _found(name: str) -> str | None:
    spec = importlib.util.find_spec(name)
    return None if spec is None else spec.origin


def open_zoo() -> int:
    """``phi-zoo``."""
    try:
        check_not_hidden("zoo")
    except InputError as error:
        print(f"phi-zoo: {error}", file=sys.stderr)
        return 2
    from zoo.cli import main

    return main()
