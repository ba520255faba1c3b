"""Structures for a page of the run: what its viewer draws, and rows of tables."""

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from ase import Atoms
from ase.data import chemical_symbols

from training.report.frames import RANKS, FrameError

MOST_ATOMS = 1_500  # of a structure that is shown: a page stays small, and a browser quick
_FACTORS = {name: factor for name, (_, _, factor) in RANKS.items()}


def atomic_numbers(graph: Mapping[str, Any], numbers: Sequence[int]) -> list[int]:
    """Of a structure's atoms, from the one-hot rows (n_atoms, n_elements) of the model's elements."""
    return [numbers[element] for element in graph["node_attrs"].argmax(1).tolist()]


def formula(graph: Mapping[str, Any], numbers: Sequence[int]) -> str:
    """In Hill's order: carbon, hydrogen, then by the alphabet."""
    return str(Atoms(atomic_numbers(graph, numbers)).get_chemical_formula(mode="hill"))


def total_charge(graph: Mapping[str, Any]) -> str:
    """With its sign, as it is read: +1, −1, 0."""
    found = graph.get("total_charge")
    value = 0.0 if found is None else float(torch.as_tensor(found).flatten()[0])
    return "0" if value == 0.0 else f"{value:+g}".replace("-", "−")


def short(name: str) -> str:
    """The name of a structure without the folders of its file."""
    return re.sub(r"( of ).*[/\\]", r"\1", name)


def error_texts(frame: FrameError) -> dict[str, str]:
    """{rank: error in its unit}, – where there is no label; that of the energy has its sign."""
    values = {"energy": frame.energy, "forces": frame.forces}
    style = {"energy": "+.4g", "forces": ".4g"}
    return {
        name: "–" if value is None else f"{_FACTORS[name] * value:{style[name]}}".replace("-", "−")
        for name, value in values.items()
    }


def view(
    name: str,
    why: str,
    graph: Mapping[str, torch.Tensor],
    output: Mapping[str, torch.Tensor | None],
    numbers: Sequence[int],
    frame: FrameError,
) -> dict[str, Any]:
    """What the viewer draws of one structure, as plain numbers.

    name, why : what it is called, and why it is shown
    graph : with mace's keys
    output : the model's, of which charges (e) and potential (V) are shown where they are
    numbers : atomic numbers of the model's elements
    frame : its errors
    """
    positions = graph["positions"].detach().double().cpu()
    periodic = torch.as_tensor(graph["pbc"]).flatten()[:3].tolist()
    errors = error_texts(frame)
    fields = {key: values for key in ("charges", "potential") if (values := _values(output.get(key))) is not None}
    return {
        "name": name,
        "why": why,
        "formula": formula(graph, numbers),
        "total_charge": total_charge(graph),
        "errors": {title: f"{errors[key]} {unit}" for key, (title, unit, _) in RANKS.items()},
        "symbols": [chemical_symbols[number] for number in atomic_numbers(graph, numbers)],
        "positions": _rounded(positions),
        "cell": _edges(graph["cell"].detach().double().cpu().view(3, 3), periodic),
        **fields,
    }


def _values(found: torch.Tensor | None) -> list[float] | None:
    return None if found is None else [round(value, 4) for value in found.detach().double().cpu().flatten().tolist()]


def _rounded(vectors: torch.Tensor) -> list[list[float]]:
    return [[round(value, 3) for value in vector] for vector in vectors.tolist()]


def _edges(cell: torch.Tensor, periodic: Iterable[bool]) -> list[list[list[float]]]:
    """Start and end of the edges of the cell that periodic directions span: a line, a parallelogram or a box."""
    vectors = [vector for vector, repeats in zip(cell, periodic, strict=True) if repeats]
    found = []
    for number, along in enumerate(vectors):
        others = vectors[:number] + vectors[number + 1 :]
        for chosen in itertools.product((0, 1), repeat=len(others)):
            start = torch.zeros(3, dtype=torch.float64)
            for factor, vector in zip(chosen, others, strict=True):
                start = start + factor * vector
            found.append(_rounded(torch.stack([start, start + along])))
    return found
