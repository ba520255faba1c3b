"""In which order structures are trained on, and which process gets which."""

from collections.abc import Iterator
from typing import Any

import torch

from phi_equivariant.inputs.graphs import GraphBatch, collate
from training.data.labelled_graphs import Graphs


class EpochOrder:
    """The batches of each epoch, shuffled exactly as mace_run_train's loader shuffles with the same seed.

    The order is a function of the seed and the epoch alone: after :meth:`set_epoch` an interrupted run continues with
    the batches that the uninterrupted one would have seen. Of several ``processes`` each takes its part of batches that
    are as many times larger: together they take the steps of a single process with that larger batch.
    """

    def __init__(
        self, size: int, batch_size: int, seed: int, drop_last: bool = True, rank: int = 0, processes: int = 1
    ) -> None:
        batch_size *= processes
        self.size, self.batch_size, self.drop_last = size, batch_size, drop_last
        self.part = slice(rank * batch_size // processes, (rank + 1) * batch_size // processes)
        generator = torch.Generator().manual_seed(seed)
        # torch's own loader draws the order, so that the draws are those of any loader with this generator.
        numbers: Any = range(size)  # has what a loader uses of a data set
        self._draw: torch.utils.data.DataLoader[int] = torch.utils.data.DataLoader(
            numbers, batch_size, shuffle=True, drop_last=drop_last, collate_fn=list, generator=generator
        )
        self.epoch = -1
        self._order: list[list[int]] = []

    def __len__(self) -> int:
        return self.size // self.batch_size if self.drop_last else -(-self.size // self.batch_size)

    def next_order(self) -> list[list[int]]:
        """Draw one more order outside training (mace reads its loader for statistics before the first epoch)."""
        return list(self._draw)

    def set_epoch(self, epoch: int) -> None:
        """Advance to an epoch, counted from 0."""
        if epoch < self.epoch:
            raise ValueError(f"the order of epoch {epoch} is past: now at epoch {self.epoch}")
        while self.epoch < epoch:
            self._order = [batch[self.part] for batch in self._draw]
            self.epoch += 1

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._order)


class WholeSet:
    """The training set as one item per epoch: its batches, made anew each time that the item is iterated.

    L-BFGS goes over them many times in a step. They are the same every time, unlike mace's, which are shuffled anew for
    each evaluation: a mean over a batch's atoms depends on the batch, and the line search needs one function.
    """

    def __init__(self, dataset: Graphs, batch_size: int) -> None:
        self.dataset, self.batch_size, self.num_graphs = dataset, batch_size, len(dataset)

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator["WholeSet"]:
        yield self

    def batches(self) -> Iterator[tuple[list[int], GraphBatch]]:
        """(indices, batch), the last one smaller if need be."""
        for part in torch.arange(self.num_graphs).split(self.batch_size):
            indices = part.tolist()
            yield indices, collate([self.dataset[i] for i in indices])


class DealtBatches:
    """The batches of a set in its own order, dealt to the processes of a distributed run.

    Each process has the same number of them; where they do not come out even, the last ones are empty.
    """

    def __init__(self, size: int, batch_size: int, rank: int = 0, processes: int = 1) -> None:
        batches = [range(start, min(start + batch_size, size)) for start in range(0, size, batch_size)]
        batches += [range(0)] * (-len(batches) % processes)
        self.batches = batches[rank::processes]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[range]:
        return iter(self.batches)


class StatisticsPass:
    """Iterates the training set once per ``iter``, in the loader's next order."""

    def __init__(self, dataset: Graphs, order: EpochOrder) -> None:
        self.dataset, self.order = dataset, order

    def __iter__(self) -> Iterator[GraphBatch]:
        for indices in self.order.next_order():
            yield collate([self.dataset[i] for i in indices])

    def skip(self) -> None:
        """Draw an order that nobody reads, where mace reads once more."""
        self.order.next_order()
