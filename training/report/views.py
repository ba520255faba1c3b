"""Structures for a page of the run: what its viewer draws, and rows of tables."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from ase import Atoms

from training.report.frame_errors import RANKS, FrameError
from zoo import viewer

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
    return viewer.charge_text(0.0 if found is None else float(torch.as_tensor(found).flatten()[0]))


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
    atoms = Atoms(
        atomic_numbers(graph, numbers),
        graph["positions"].detach().double().cpu().numpy(),
        cell=graph["cell"].detach().double().cpu().view(3, 3).numpy(),
        pbc=torch.as_tensor(graph["pbc"]).flatten()[:3].tolist(),
    )
    errors = error_texts(frame)
    found = {key: output.get(key) for key in ("charges", "potential")}
    fields = {key: values.detach().double().cpu().numpy() for key, values in found.items() if values is not None}
    told = {title: f"{errors[key]} {unit}" for key, (title, unit, _) in RANKS.items()}
    return viewer.view(name, why, atoms, total_charge(graph), told, fields)
