"""Structures as graphs with their labels and weights: built once and kept, spooled, or made when they are asked for."""

import bisect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from ase import Atoms

from phi_equivariant.inputs.graphs import Graph, graph
from phi_equivariant.inputs.state import QUANTITIES
from training import mace_interface
from training.data.parts import name_of
from training.data.sequences import on_disk
from training.data.spool import SpooledGraphs
from training.quantities import LABELS, TARGETS
from training.run import HEAD


@dataclass(frozen=True)
class GraphMaker:
    """Makes graphs of structures whose labels are under the canonical keys, field by field as mace does.

    atomic_numbers, r_max, heads : of the model
    head : to which the structures belong
    type_weights : ``config_type_weights``
    specs : the host's ``embedding_specs``
    dtype : of all numbers but energies, torch's default where not given
    """

    atomic_numbers: Sequence[int]
    r_max: float
    heads: Sequence[str] = (HEAD,)
    head: str = HEAD
    type_weights: Mapping[str, float] = field(default_factory=dict)
    specs: Mapping[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = field(default_factory=torch.get_default_dtype)

    def __call__(self, atoms: Atoms) -> Graph:
        """One structure."""
        dtype, info = self.dtype, atoms.info
        edges = mace_interface.neighbours(atoms.positions, atoms.cell.array, atoms.pbc, self.r_max)
        elements = {number: place for place, number in enumerate(self.atomic_numbers)}
        made = graph(atoms, elements, edges, self._told(atoms), self.heads.index(self.head), dtype)
        weight = info.get("config_weight", 1.0) * self.type_weights.get(info.get("config_type", "Default"), 1.0)
        made["weight"] = torch.tensor(weight, dtype=dtype)
        for name, label in TARGETS.items():
            shape = (len(atoms), *label.shape) if label.per_atom else (1, *label.shape) if label.shape else ()
            value = (atoms.arrays if label.per_atom else info).get(label.canonical, np.zeros(shape))
            # A total energy of -10^7 eV has no digits for the interaction in float32.
            made[name] = torch.tensor(value, dtype=torch.float64 if name == "energy" else dtype).view(shape)
            weight = info.get(f"config_{name}_weight", 1.0) if label.within(atoms) else 0.0
            by_component = label.loss == "squares" and not label.per_atom
            made[f"{name}_weight"] = torch.tensor(weight, dtype=dtype).broadcast_to(shape if by_component else ())
        return made

    def _told(self, atoms: Atoms) -> dict[str, Any]:
        """What a model reads beside the atoms and is not a target, with mace's value where a structure says nothing."""
        info = atoms.info
        names = {"total_charge", "total_spin", *self.specs} & set(QUANTITIES)
        told: dict[str, Any] = {name: float(info.get(name, QUANTITIES[name].absent)) for name in sorted(names)}
        told["external_field"] = np.reshape(info.get("external_field", np.zeros(3)), (1, 3))  # V/Å
        for name, spec in self.specs.items():
            if name not in LABELS:
                told[name] = (atoms.arrays if spec["per"] == "atom" else info)[name]
        return told


class Graphs(Protocol):
    """Structures with their neighbour lists, in memory or made when they are asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class GraphList(torch.utils.data.Dataset[Graph]):
    """Structures whose neighbour lists are built once and kept; ``names`` of the structures in messages."""

    def __init__(self, graphs: Iterable[Graph], names: Sequence[str] = ()) -> None:
        self.graphs, self.names = list(graphs), names

    def __len__(self) -> int:
        return len(self.graphs)

    def __getitem__(self, index: int) -> Graph:
        return self.graphs[index]

    def name(self, index: int) -> str:
        """What a structure is called."""
        return self.names[index] if self.names else f"structure {index}"

    def add_to(self, sha: Any) -> None:
        """What the structures are, whatever the cut-off: mace makes up a cell for an open one, as large as it needs."""
        for one in self.graphs:
            made = ("edge_index", "shifts", "unit_shifts", *(() if one["pbc"].any() else ("cell",)))
            for key, value in sorted(one.items()):
                if key not in made:
                    sha.update(value.numpy().tobytes())


def graph_set(parts: list[Any], make: Callable[[Atoms], Graph], sha: Any) -> Graphs:
    """The data set of a head's parts, each with graphs in memory or on disk; ``sha`` learns what is in it."""
    sets: list[Any] = []
    for part in parts:
        if on_disk(part):
            sets.append(SpooledGraphs(part, make))
            sha.update(part.fingerprint().encode())
        else:
            sets.append(GraphList(map(make, part), [name_of(atoms) for atoms in part]))
            sets[-1].add_to(sha)
    return sets[0] if len(sets) == 1 else torch.utils.data.ConcatDataset(sets)


def name_in(dataset: Any, index: int) -> str:
    """What a structure of a data set, or of several joined ones, is called in messages."""
    if isinstance(dataset, torch.utils.data.ConcatDataset):
        part = bisect.bisect_right(dataset.cumulative_sizes, index)
        return name_in(dataset.datasets[part], index - (dataset.cumulative_sizes[part - 1] if part else 0))
    return str(dataset.name(index)) if hasattr(dataset, "name") else f"structure {index}"
