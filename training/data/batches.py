"""Structures in memory or streamed, and their batches."""

import bisect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from ase import Atoms

#: Fields of one structure by mace's names.
Graph = dict[str, Any]


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


def collate(graphs: Sequence[Graph]) -> GraphBatch:
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


class GraphStream(torch.utils.data.Dataset[Graph]):
    """Structures whose neighbour lists are built when they are asked for and not kept (large test sets)."""

    def __init__(self, frames: Sequence[Atoms], make_graph: Callable[[Atoms], Graph]) -> None:
        self.frames, self.make_graph = frames, make_graph

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Graph:
        return self.make_graph(self.frames[index])

    def name(self, index: int) -> str:
        """What a structure is called."""
        return name_of(self.frames[index]) or f"structure {index}"


def set_name(atoms: Atoms, name: str) -> None:
    """Remember which frame of which file a structure was; copies forget it."""
    atoms.__dict__["frame_name"] = name


def name_of(atoms: Atoms) -> str:
    """What :func:`set_name` has set; "" where nothing."""
    return str(atoms.__dict__.get("frame_name", ""))


def name_in(dataset: Any, index: int) -> str:
    """What a structure of a data set, or of several joined ones, is called in messages."""
    if isinstance(dataset, torch.utils.data.ConcatDataset):
        part = bisect.bisect_right(dataset.cumulative_sizes, index)
        return name_in(dataset.datasets[part], index - (dataset.cumulative_sizes[part - 1] if part else 0))
    return str(dataset.name(index)) if hasattr(dataset, "name") else f"structure {index}"
