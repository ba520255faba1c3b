"""Who may import whom."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("phi_equivariant", "zoo", "training")
MACE = {"zoo/mace_host.py", "training/mace_interface.py"}
FORBIDDEN = {"phi_equivariant": {"zoo", "training", "mace", "lightning", "pydantic", "matscipy"}, "zoo": {"training"}}


def imported(path):
    """Top-level packages a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("package", PACKAGES)
def test_import_rules(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        name = path.relative_to(ROOT).as_posix()
        names = set(imported(path))
        assert not names & FORBIDDEN.get(package, set()), name
        assert "mace" not in names or name in MACE, f"{name} imports mace"
        assert not names & {"benchmarks", "tests"}, name
