"""Structures in memory or streamed, and their batches."""

from typing import Any, Protocol

import torch


class GraphBatch(dict):
    """Structures of a batch as one disconnected graph: a dictionary with mace's keys whose items are attributes too."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    @property
    def num_graphs(self):
        """Number of structures."""
        return len(self["ptr"]) - 1

    def to(self, device, **kwargs):
        """The same batch on another device."""
        return GraphBatch({key: value.to(device, **kwargs) for key, value in self.items()})

    def pin_memory(self):
        """The same batch in page-locked memory."""
        return GraphBatch({key: value.pin_memory() for key, value in self.items()})


def collate(graphs):
    """Join structures: atoms and edges are concatenated, edge indices shifted, ``batch`` and ``ptr`` added."""
    if not graphs:
        return GraphBatch()
    counts = torch.tensor([len(graph["positions"]) for graph in graphs])
    ptr = torch.zeros(len(graphs) + 1, dtype=torch.long)
    torch.cumsum(counts, 0, out=ptr[1:])
    joined = GraphBatch(ptr=ptr, batch=torch.repeat_interleave(torch.arange(len(graphs)), counts))
    for key, first in graphs[0].items():
        if key == "num_nodes":
            continue
        values = [graph[key] for graph in graphs]
        if key == "edge_index":
            joined[key] = torch.cat(
                [value + offset for value, offset in zip(values, ptr.tolist(), strict=False)], dim=1
            )
        elif first.dim() == 0:
            joined[key] = torch.stack(values)
        else:
            joined[key] = torch.cat(values)
    return joined


class Graphs(Protocol):
    """Structures with their neighbour lists, in memory or made when they are asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class GraphList(torch.utils.data.Dataset):
    """Structures whose neighbour lists are built once and kept."""

    def __init__(self, graphs):
        self.graphs = list(graphs)

    def __len__(self):
        return len(self.graphs)

    def __getitem__(self, index):
        return self.graphs[index]


class GraphStream(torch.utils.data.Dataset):
    """Structures whose neighbour lists are built when they are asked for and not kept (large test sets)."""

    def __init__(self, frames, make_graph):
        self.frames, self.make_graph = frames, make_graph

    def __len__(self):
        return len(self.frames)

    def __getitem__(self, index):
        return self.make_graph(self.frames[index])
