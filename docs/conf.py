"""How Sphinx builds the site: ``make docs``. Nothing is fetched, neither when it is built nor when it is read."""

import re
import sys
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import model_pages  # noqa: E402

project = "Φ-equivariant"
author = "The Φ-equivariant maintainers"
version = release = version_of("phi-equivariant")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
html_theme = "furo"
html_title = f"{project} {version}"
html_theme_options = {"light_css_variables": {"color-brand-primary": "#1f5fa8", "color-brand-content": "#1f5fa8"}}
html_show_sphinx = False

myst_heading_anchors = 3  # links to headings are those that work on GitHub too
myst_enable_extensions = ["colon_fence"]
copybutton_prompt_text = "$ "

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 100
napoleon_google_docstring = False
napoleon_use_rtype = False

SECTIONS = ("Parameters", "Returns", "Raises")


def read_docstring(app: object, what: str, name: str, subject: object, options: object, lines: list[str]) -> None:
    """Our docstrings in numpydoc's form: they say ``name: text``, and what is returned as a paragraph."""
    found: list[str] = []
    section = ""
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if line in SECTIONS and set(following) == {"-"}:
            section = line
            if section != "Returns":
                found.append(line)
        elif section == "Returns" and set(line) == {"-"}:
            found += ["", ":returns:"]
        elif section and line.startswith("Source:"):
            section = ""
            found += ["", line]  # two blank lines end a section
        elif section == "Returns":
            found.append(f"    {line}".rstrip())
        elif section == "Parameters" and (entry := re.fullmatch(r"(\*{0,2}\w[\w*, ]*?) ?: (.+)", line)):
            found += [entry[1], f"    {entry[2]}"]
        else:
            found.append(line)
    lines[:] = found


def setup(app: Any) -> None:
    """Read docstrings before napoleon does, and make the pages of the trained models before pages are read."""
    app.connect("builder-inited", lambda app: model_pages.write_pages(Path(app.srcdir) / "models"))
    app.connect("autodoc-process-docstring", read_docstring, priority=100)
