"""Graphs of structures that are not held in memory: made when they are asked for, kept on disk or not at all."""

import logging
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from typing import IO

import torch
from ase import Atoms
from safetensors.torch import load, save

from phi_equivariant.inputs.graphs import Graph
from training.data.parts import name_of

logger = logging.getLogger("phi_mace_train")
FREE_SHARE = 0.5  # of the free disk space: no more is taken
ZEROS = ("shifts", "unit_shifts")  # one row of zeros, expanded, in open structures


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


class SpooledGraphs(GraphStream):
    """Structures read from disk when they are asked for, their graphs kept in a temporary file after the first time.

    The file is in the system's temporary folder (``TMPDIR`` names another), has no name and vanishes with the process,
    however it ends. Loader processes share it. Where the disk has no room for it, graphs are built anew each time.

    ``make_graph`` : from a structure to mace's fields.
    """

    def __init__(self, frames: Sequence[Atoms], make_graph: Callable[[Atoms], Graph]) -> None:
        super().__init__(frames, make_graph)
        self._file: IO[bytes] | None = None
        self._room = 0.0
        try:
            self._file = tempfile.TemporaryFile(prefix="phi_graphs_")  # noqa: SIM115 (open as long as the data set)
            self._room = FREE_SHARE * shutil.disk_usage(tempfile.gettempdir()).free
        except OSError as error:
            logger.info(f"graphs are built anew in every epoch: no temporary file can be made ({error})")
        # Where a graph stands, and how long it is; zero: not yet built. Shared, because a loader process may build it.
        self._places = torch.zeros(len(frames), 2, dtype=torch.int64).share_memory_()
        self._end = multiprocessing.Value("q", 0)

    def name(self, index: int) -> str:
        """What a structure is called in messages."""
        return f"structure {getattr(self.frames, 'indices', range(len(self)))[index]} of the stored data"

    def __getitem__(self, index: int) -> Graph:
        start, length = self._places[index].tolist()
        if length and self._file is not None:
            return unpack(os.pread(self._file.fileno(), length, start))
        graph = self.make_graph(self.frames[index])
        if self._file is not None:
            self._keep(index, graph, self._file.fileno())
        return graph

    def _keep(self, index: int, graph: Graph, file: int) -> None:
        content = pack(graph)
        with self._end.get_lock():
            start = self._end.value
            if start + len(content) > self._room:
                return
            self._end.value = start + len(content)
        try:
            if os.pwrite(file, content, start) == len(content):
                self._places[index, 0] = start
                self._places[index, 1] = len(content)
        except OSError as error:
            logger.info(f"graphs are built anew from now on: the temporary file is full ({error.strerror})")
            self._room = 0  # what is in it already can still be read


def pack(graph: Graph) -> bytes:
    """A graph as bytes; tensors of zeros that only look large take no room."""
    tensors = {key: value for key, value in graph.items() if isinstance(value, torch.Tensor)}
    small = {key: value[:1] if key in ZEROS and value.stride(0) == 0 else value for key, value in tensors.items()}
    packed: bytes = save({key: value.contiguous() for key, value in small.items()})
    return packed


def unpack(content: bytes) -> Graph:
    """The graph of :func:`pack`."""
    graph: Graph = load(content)
    for key in ZEROS:
        edges = graph["edge_index"].shape[1]
        if len(graph[key]) != edges:
            graph[key] = graph[key].expand(edges, 3)
    return graph
