"""Structures that one can turn, in an HTML page that needs nothing else: for pages of runs and of ``phi-zoo try``."""

import importlib.resources
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
from ase import Atoms

VERSION = "2.5.5"  # of 3Dmol.js, which lies here with its licence
MOST_ATOMS = 1_500  # of a structure that is shown: a page stays small, and a browser quick
_ASSETS = importlib.resources.files("zoo.viewer") / "assets"
_FILES = {
    "style": "page.css",
    "script": "viewer.js",
    "viewer": "3Dmol-min.js",
    "licence": "3Dmol-LICENSE.txt",
}


def asset(name: str) -> str:
    """A part of the page as it is: ``style``, ``script`` (ours), ``viewer`` (3Dmol.js) or its ``licence``."""
    return (_ASSETS / _FILES[name]).read_text(encoding="utf-8")


def view(
    name: str, why: str, atoms: Atoms, total_charge: str, told: Mapping[str, str], fields: Mapping[str, Any]
) -> dict[str, Any]:
    """What the script draws of one structure, as plain numbers.

    Parameters
    ----------
    name, why : what it is called, and why it is shown
    total_charge : as text
    told : {title: text} of what is said of the structure
    fields : charges (e) and potential (V), (n_atoms,), of which those that are there can be shown as colours
    """
    return {
        "name": name,
        "why": why,
        "formula": str(atoms.get_chemical_formula(mode="hill")),
        "total_charge": total_charge,
        "errors": dict(told),
        "symbols": atoms.get_chemical_symbols(),
        "positions": _rounded(atoms.positions),
        "cell": _edges(np.asarray(atoms.cell)[np.asarray(atoms.pbc)]),
        **{key: [round(float(value), 4) for value in np.ravel(values)] for key, values in fields.items()},
    }


def charge_text(value: float) -> str:
    """With its sign, as it is read: +1, −1, 0."""
    return "0" if value == 0.0 else f"{value:+g}".replace("-", "−")


def _rounded(vectors: np.ndarray) -> list[list[float]]:
    return [[round(float(value), 3) for value in vector] for vector in vectors]


def _edges(vectors: np.ndarray) -> list[list[list[float]]]:
    """Start and end of the edges of what periodic directions (n, 3) span: a line, a parallelogram or a box."""
    found = []
    for number, along in enumerate(vectors):
        others = np.delete(vectors, number, axis=0)
        for chosen in itertools.product((0, 1), repeat=len(others)):
            start = np.array(chosen, float) @ others if len(others) else np.zeros(3)
            found.append(_rounded(np.stack([start, start + along])))
    return found
