"""From structures to graphs with mace's keys, and from these to a batch: one way for files and for live structures."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from ase import Atoms

#: Fields of one structure by mace's names.
Graph = dict[str, torch.Tensor]


class Edges(NamedTuple):
    """Ordered pairs of neighbours: ``ends`` (2, n_edges), ``images`` (n_edges, 3) and ``cell`` (3, 3) in Å, so that
    the vector of an edge is r_receiver − r_sender + images · cell."""

    ends: np.ndarray
    images: np.ndarray
    cell: np.ndarray


class GraphBatch(dict[str, torch.Tensor]):
    """Structures of a batch as one disconnected graph: a dictionary with mace's keys whose items are attributes too."""

    def __getattr__(self, name: str) -> torch.Tensor:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    @property
    def num_graphs(self) -> int:
        """Number of structures."""
        return len(self["ptr"]) - 1

    def to(self, device: torch.device | str, **kwargs: Any) -> "GraphBatch":
        """The same batch on another device."""
        return GraphBatch({key: value.to(device, **kwargs) for key, value in self.items()})

    def pin_memory(self) -> "GraphBatch":
        """The same batch in page-locked memory."""
        return GraphBatch({key: value.pin_memory() for key, value in self.items()})


def graph(
    atoms: Atoms, elements: Mapping[int, int], edges: Edges, told: Mapping[str, Any], head: int, dtype: torch.dtype
) -> Graph:
    """A structure with its neighbours as mace's models read it.

    Parameters
    ----------
    elements: {atomic number: its place among those that the model knows}
    edges: of the structure
    told: what the model is told beside the atoms, {name: number, or array with a row for each atom or of one row}
    head: number of the model's head
    dtype: of what is not a whole number
    """
    species = torch.tensor([elements[number] for number in atoms.numbers.tolist()])
    return {
        "positions": torch.tensor(atoms.positions, dtype=dtype),
        "node_attrs": torch.nn.functional.one_hot(species, len(elements)).to(dtype),
        "edge_index": torch.tensor(edges.ends, dtype=torch.long),
        "shifts": _rows(edges.images @ edges.cell, dtype),
        "unit_shifts": _rows(edges.images, dtype),
        "cell": torch.tensor(edges.cell, dtype=dtype),
        "pbc": torch.tensor(atoms.pbc)[None],
        "head": torch.tensor(head),
        **{name: _told(value, dtype) for name, value in told.items()},
    }


def _rows(values: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """(n_edges, 3); of zeros only, in an open structure, one row stands for all: they would fill most of the memory."""
    return torch.tensor(values, dtype=dtype) if values.any() else torch.zeros(1, 3, dtype=dtype).expand(len(values), 3)


def _told(value: Any, dtype: torch.dtype) -> torch.Tensor:
    """Numbers of classes stay whole; one number for each atom is a column, as in mace."""
    tensor = torch.tensor(np.asarray(value))
    tensor = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return tensor[:, None] if tensor.dim() == 1 else tensor


def collate(graphs: Sequence[Graph]) -> GraphBatch:
    """Join structures: atoms and edges are concatenated, edge indices shifted, ``batch`` and ``ptr`` added."""
    if not graphs:
        return GraphBatch()
    counts = torch.tensor([len(graph["positions"]) for graph in graphs])
    ptr = torch.zeros(len(graphs) + 1, dtype=torch.long)
    torch.cumsum(counts, 0, out=ptr[1:])
    joined = GraphBatch(ptr=ptr, batch=torch.repeat_interleave(torch.arange(len(graphs)), counts))
    for key, first in graphs[0].items():
        values = [graph[key] for graph in graphs]
        if key == "edge_index":
            values = [value + offset for value, offset in zip(values, ptr.tolist(), strict=False)]
            joined[key] = torch.cat(values, dim=1)
        else:
            joined[key] = torch.cat(values) if first.dim() else torch.stack(values)
    return joined
