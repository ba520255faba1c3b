"""In which order structures are trained on, and which process gets which."""

import torch

from training.data.batches import collate


class EpochOrder:
    """The batches of each epoch, shuffled exactly as mace_run_train's loader shuffles with the same seed.

    The order is a function of the seed and the epoch alone: after :meth:`set_epoch` an interrupted run continues with
    the batches that the uninterrupted one would have seen. Of several ``processes`` each takes its part of batches that
    are as many times larger: together they take the steps of a single process with that larger batch.
    """

    def __init__(self, size, batch_size, seed, drop_last=True, rank=0, processes=1):
        batch_size *= processes
        self.size, self.batch_size, self.drop_last = size, batch_size, drop_last
        self.part = slice(rank * batch_size // processes, (rank + 1) * batch_size // processes)
        generator = torch.Generator().manual_seed(seed)
        # torch's own loader draws the order, so that the draws are those of any loader with this generator.
        self._draw = torch.utils.data.DataLoader(
            range(size), batch_size, shuffle=True, drop_last=drop_last, collate_fn=list, generator=generator
        )
        self.epoch, self._order = -1, []

    def __len__(self):
        return self.size // self.batch_size if self.drop_last else -(-self.size // self.batch_size)

    def next_order(self):
        """Draw one more order outside training (mace reads its loader for statistics before the first epoch)."""
        return list(self._draw)

    def set_epoch(self, epoch):
        """Advance to an epoch, counted from 0."""
        if epoch < self.epoch:
            raise ValueError(f"the order of epoch {epoch} is past: now at epoch {self.epoch}")
        while self.epoch < epoch:
            self._order = [batch[self.part] for batch in self._draw]
            self.epoch += 1

    def __iter__(self):
        return iter(self._order)


class WholeSet:
    """The training set as one item per epoch: its batches, made anew each time that the item is iterated.

    L-BFGS goes over them many times in a step. They are the same every time, unlike mace's, which are shuffled anew for
    each evaluation: a mean over a batch's atoms depends on the batch, and the line search needs one function.
    """

    def __init__(self, dataset, batch_size):
        self.dataset, self.batch_size, self.num_graphs = dataset, batch_size, len(dataset)

    def __len__(self):
        return 1

    def __iter__(self):
        yield self

    def batches(self):
        """(indices, batch), the last one smaller if need be."""
        for part in torch.arange(self.num_graphs).split(self.batch_size):
            indices = part.tolist()
            yield indices, collate([self.dataset[i] for i in indices])


class DealtBatches:
    """The batches of a set in its own order, dealt to the processes of a distributed run.

    Each process has the same number of them; where they do not come out even, the last ones are empty.
    """

    def __init__(self, size, batch_size, rank=0, processes=1):
        batches = [range(start, min(start + batch_size, size)) for start in range(0, size, batch_size)]
        batches += [range(0)] * (-len(batches) % processes)
        self.batches = batches[rank::processes]

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


class StatisticsPass:
    """Iterates the training set once per ``iter``, in the loader's next order."""

    def __init__(self, dataset, order):
        self.dataset, self.order = dataset, order

    def __iter__(self):
        for indices in self.order.next_order():
            yield collate([self.dataset[i] for i in indices])

    def skip(self):
        """Draw an order that nobody reads, where mace reads once more."""
        self.order.next_order()
