"""Pages of the docs against the code that they describe."""

import importlib
import re
from pathlib import Path

import pytest

import phi_equivariant
import zoo
from training.quantities import LABELS

DOCS = Path(__file__).parents[2] / "docs"
ENTRY = re.compile(r"\.\. (?:currentmodule:: (\S+)|auto(?:class|function|exception|data):: (\S+))")


def entries():
    """{module: names} that have an entry on an API page."""
    found = {}
    for page in sorted((DOCS / "api").glob("*.md")):
        module = None
        for line in page.read_text(encoding="utf-8").splitlines():
            if match := ENTRY.match(line):
                module = match[1] or module
                found.setdefault(module, set()).update({match[2]} - {None})
    return found


@pytest.mark.parametrize("package", [phi_equivariant, zoo, importlib.import_module("phi_equivariant.lammps")])
def test_every_public_name_has_an_entry(package):
    public = {name for name in package.__all__ if not name.startswith("__")}
    assert public <= entries()[package.__name__]


def test_every_entry_is_there_and_documented():
    for module, names in entries().items():
        for name in names:
            assert getattr(importlib.import_module(module), name).__doc__, f"{module}.{name}"


def test_the_page_of_keys_has_each_option_with_its_default():
    table = dict(re.findall(r"^\| `--(\w+)_key` \| `(\w+)` \|", (DOCS / "keys.md").read_text("utf-8"), re.MULTILINE))
    assert table.pop("head") == "head"
    assert table == {name: label.default_key for name, label in LABELS.items()}


def test_links_of_pages_outside_the_site_lead_somewhere():
    """Sphinx checks those of the site; these pages are read on their own."""
    root = DOCS.parent
    for page in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", (root / page).read_text(encoding="utf-8")):
            assert target.startswith("https://") or (root / target).exists(), f"{page}: {target}"


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_the_map_names_what_is_there(page):
    """Modules by a path or its end, and classes, functions and tables by name."""
    root = DOCS.parent
    named = re.findall(r"`([\w/.]+)`", (root / page).read_text(encoding="utf-8"))
    sources = [path for room in ("phi_equivariant", "zoo", "training", "tests") for path in (root / room).rglob("*.py")]
    words = {word for path in sources for word in re.findall(r"\w+", path.read_text(encoding="utf-8"))}
    missing = [name for name in named if name.endswith(".py") and not any(path.match(name) for path in sources)]
    missing += [name for name in named if name.isidentifier() and name not in words]
    assert not missing
