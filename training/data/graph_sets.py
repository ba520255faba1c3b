"""The structures of a head with their neighbour lists: those in memory are built once, those on disk are spooled."""

from collections.abc import Callable
from typing import Any

import torch
from ase import Atoms

from training.data.batches import GraphList, Graphs, name_of
from training.data.parts import on_disk
from training.data.spool import SpooledGraphs


def graph_set(parts: list[Any], make: Callable[[Atoms], dict[str, torch.Tensor]], sha: Any) -> Graphs:
    """The data set of a head's parts, each with graphs in memory or on disk; ``sha`` learns what is in it."""
    sets: list[Any] = []
    for part in parts:
        if on_disk(part):
            sets.append(SpooledGraphs(part, make))
            sha.update(part.fingerprint().encode())
        else:
            graphs = GraphList(map(make, part), [name_of(atoms) for atoms in part])
            _digest(graphs, sha)
            sets.append(graphs)
    return sets[0] if len(sets) == 1 else torch.utils.data.ConcatDataset(sets)


def _digest(graphs: GraphList, sha: Any) -> None:
    """What the structures are, whatever the cut-off: mace makes up a cell for an open one, as large as that needs."""
    for graph in graphs.graphs:
        made = ("edge_index", "shifts", "unit_shifts", *(() if graph["pbc"].any() else ("cell",)))
        for key, value in sorted(graph.items()):
            if isinstance(value, torch.Tensor) and key not in made:
                sha.update(value.numpy().tobytes())
