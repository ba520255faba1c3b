"""The commands: each imports its package, after making sure that it is the one of this library."""

import importlib.util
import io
import pkgutil
import sys
from pathlib import Path

PACKAGES = ("training", "zoo")


def hidden(*names: str) -> str | None:
    """What to say if a file of the user's hides one of our packages, all of them without names; None if none does."""
    ours = Path(__file__).resolve().parents[1]
    for name in PACKAGES if not names else set(PACKAGES) & set(names):
        spec = importlib.util.find_spec(name)
        if spec is None:
            return f"the package {name} of phi-equivariant is not installed beside {ours / 'phi_equivariant'}."
        found = Path(spec.origin or next(iter(spec.submodule_search_locations or [""]))).resolve()
        if found not in (ours / name, ours / name / "__init__.py"):
            return (
                f"{found} hides the package {name} of phi-equivariant, because its folder comes first where Python "
                "looks for modules (PYTHONPATH, or the folder that python -m is called in). Rename it, or call the "
                "command from another folder without that PYTHONPATH."
            )
    return None


def _run(command: str, function: str) -> int:
    if message := hidden():
        print(f"{command}: {message}", file=sys.stderr)
        return 2
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # where Φ and Å cannot be shown, something is
    status: int = pkgutil.resolve_name(function)()
    return status


def train() -> int:
    """``phi-mace-train``."""
    return _run("phi-mace-train", "training.train:main")


def evaluate() -> int:
    """``phi-mace-eval``."""
    return _run("phi-mace-eval", "training.evaluate:main")


def lammps() -> int:
    """``phi-lammps``."""
    return _run("phi-lammps", "phi_equivariant.engines.lammps.cli:main")


def zoo() -> int:
    """``phi-zoo``."""
    return _run("phi-zoo", "zoo.cli:main")
