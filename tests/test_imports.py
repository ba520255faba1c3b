"""Who may import whom."""

import ast
import subprocess
import sys
from pathlib import Path

import networkx
import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("phi_equivariant", "zoo", "training")
#: Of the trainer's two, one has options, structures and losses, the other hosts.
MACE = {"zoo/mace_host.py", "training/mace_interface.py", "training/mace_hosts.py"}
LIBRARY = sys.stdlib_module_names | {"torch", "torchpme", "e3nn", "ase", "numpy", "safetensors", "phi_equivariant"}
FILES = {"filelock", "requests", "rich", "yaml"}  # for downloads, cards and the command line
ALLOWED = {"phi_equivariant": LIBRARY, "zoo": LIBRARY | FILES | {"mace", "zoo"}}
OPTIONAL = {"torch_scatter", "torch_sim", "torch_geometric", "huggingface_hub"}  # only where its absence is handled


def imported(tree):
    """Top-level packages that a syntax tree imports; relative imports stay within their package."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0]


def guarded(tree):
    """What is imported under ``try: ... except ImportError``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Try) and any(getattr(h.type, "id", "") == "ImportError" for h in node.handlers):
            for statement in node.body:
                yield from imported(statement)


def called(tree):
    """Names of the functions and methods that a syntax tree calls."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield getattr(node.func, "id", getattr(node.func, "attr", None))


@pytest.mark.parametrize("package", PACKAGES)
def test_import_rules(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        name = path.relative_to(ROOT).as_posix()
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = set(imported(tree))
        if package in ALLOWED:
            others = names - ALLOWED[package]
            assert not others - (OPTIONAL & set(guarded(tree))), f"{name} imports {others}"
        assert "mace" not in names or name in MACE, f"{name} imports mace"
        assert not names & {"benchmarks", "tests"}, name
        assert not {"__import__", "import_module"} & set(called(tree)), f"{name} imports by a name made at run time"


def test_the_library_alone_loads_no_host_and_no_trainer():
    code = "import sys, phi_equivariant; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not {"mace", "zoo", "training", "lightning", "pydantic", "matscipy"} & set(loaded.stdout.split())


#: Rooms of the trainer, from the ground up: a module imports from its own room and from those below.
FLOORS = (
    {"run", "messages", "quantities"},
    {"distribution", "mace_interface", "mace_hosts"},
    {"data", "report", "run_folder"},
    {"fit"},
    {"options"},
    {"build"},
    {"results", "evaluation"},
    {"one_run"},
    {"compare"},
    {"train", "evaluate"},
)


def imported_modules(tree, package):
    """Dotted names of what a syntax tree imports of a package: modules, or names in them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith(f"{package}."))
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == package:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_rooms_of_the_trainer_import_from_below():
    level = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    for path in sorted((ROOT / "training").rglob("*.py")):
        inside = path.relative_to(ROOT / "training").with_suffix("").parts
        if inside[0] in ("shipped", "__init__"):
            continue
        for name in imported_modules(ast.parse(path.read_text(encoding="utf-8")), "training"):
            room = name.split(".")[1]
            assert level[room] <= level[inside[0]], f"{'/'.join(inside)} imports {name}, which is above it"


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_imports_itself_in_a_circle(package):
    files = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in (ROOT / package).rglob("*.py")
    }
    graph = networkx.DiGraph()
    for name, path in files.items():
        for target in imported_modules(ast.parse(path.read_text(encoding="utf-8")), package):
            found = target if target in files else target.rpartition(".")[0]
            if found != package:  # the package itself is what its users see of it
                graph.add_edge(name, found)
    assert not list(networkx.simple_cycles(graph))


def test_options_end_at_the_door():
    """No room of the trainer knows argparse: it takes its part of the run. (shipped/ has a script, and no room.)"""
    for path in sorted((ROOT / "training").rglob("*.py")):
        place = path.relative_to(ROOT / "training").as_posix()
        if place.startswith(("options/", "shipped/")) or place in ("mace_interface.py", "evaluate.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            words = {getattr(node, "id", ""), getattr(node, "attr", ""), *imported(ast.Module([node], []))}
            assert not words & {"argparse", "configargparse", "Namespace"}, f"{place} knows options"
