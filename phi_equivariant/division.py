"""Who computes which part of a sum: one process all of it, or several a share each."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch

Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True)
class Way:
    """How tensors of which each process has other entries go from one division to another.

    Parameters
    ----------
    sent: to each process, indices of this one's entries along the first of ``dims``
    received: from each process, where they are added along the second
    lengths: of this process's tensors along the two
    """

    sent: list[torch.Tensor]
    received: list[torch.Tensor]
    dims: tuple[int, int]
    lengths: tuple[int, int]

    def back(self) -> "Way":
        """The adjoint."""
        return Way(self.received, self.sent, self.dims[::-1], self.lengths[::-1])


class Share:
    """All of it, on one process.

    Where there are several, tensors are the same on each of them, but between ``enter`` and ``leave``: there each has
    what its own share of the terms adds up to. Both are linear and each other's adjoint, so that derivatives of any
    order are the same on all processes again.
    """

    rank = 0

    def of(self, items: Sequence[Item]) -> Sequence[Item]:
        """Some of the terms."""
        return items

    def rows(self, n: int) -> slice:
        """Some of n terms in a row."""
        return self.all_rows(n)[self.rank]

    def all_rows(self, n: int) -> list[slice]:
        """Those of each process."""
        return [slice(0, n)]

    def enter(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What the terms of a share are functions of; what they add to its gradient is summed over the processes."""
        return tensors

    def leave(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The sums over all processes."""
        return tensors

    def exchange(self, tensor: torch.Tensor, way: Way) -> torch.Tensor:
        """From one division to another, between ``enter`` and ``leave``."""
        return tensor


WHOLE = Share()


class ShareOfProcesses(Share):
    """One process's share of several's.

    Parameters
    ----------
    comm: mpi4py's communicator; all its processes must call ``enter``, ``exchange`` and ``leave``, and go back through
        them, in the same order
    """

    def __init__(self, comm: Any) -> None:
        self.comm, self.rank = comm, comm.rank

    def of(self, items: Sequence[Item]) -> Sequence[Item]:
        """Every so many, from this process's on."""
        return items[self.rank :: self.comm.size]

    def all_rows(self, n: int) -> list[slice]:
        """As many on each process, within one."""
        size = self.comm.size
        return [slice(n * rank // size, n * (rank + 1) // size) for rank in range(size)]

    def enter(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The same tensors; backwards, sums over all processes."""
        found: tuple[torch.Tensor, ...] = _Enter.apply(self, *tensors)
        return found

    def leave(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Sums over all processes; backwards, the same tensors."""
        found: tuple[torch.Tensor, ...] = _Leave.apply(self, *tensors)
        return found

    def exchange(self, tensor: torch.Tensor, way: Way) -> torch.Tensor:
        """Each sends each some entries, and adds up what comes; backwards, the adjoint."""
        found: torch.Tensor = _Exchange.apply(self, tensor, way)
        return found

    def all_to_all(self, tensor: torch.Tensor, way: Way) -> torch.Tensor:
        """``exchange`` without derivatives."""
        (send, receive), shape = way.dims, list(tensor.shape)
        shape[send] = len(way.sent[self.rank])
        shape[receive] = way.lengths[1]
        shapes = [(*shape[:receive], len(indices), *shape[receive + 1 :]) for indices in way.received]
        parts = [tensor.detach().index_select(send, indices).flatten() for indices in way.sent]
        mine = torch.cat(parts).cpu().numpy()
        counts = [math.prod(part) for part in shapes]
        theirs = np.empty(sum(counts), mine.dtype)
        self.comm.Alltoallv([mine, [len(part) for part in parts]], [theirs, counts])
        out = tensor.new_zeros(shape)
        for part, indices, form in zip(
            torch.from_numpy(theirs).to(tensor.device).split(counts), way.received, shapes, strict=True
        ):
            out.index_add_(receive, indices, part.reshape(form))
        return out

    def sum(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Over all processes, with the same bits on each: solvers that stop at a residual must stop together."""
        flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
        mine = flat.cpu().numpy()
        total = np.empty_like(mine)
        self.comm.Reduce(mine, total, root=0)
        self.comm.Bcast(total, root=0)
        parts = torch.from_numpy(total).to(flat.device).split([tensor.numel() for tensor in tensors])
        return [part.reshape(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


class _Enter(torch.autograd.Function):
    """The adjoint of ``_Leave``."""

    @staticmethod
    def forward(ctx: Any, share: ShareOfProcesses, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.share = share
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *slopes: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return None, *_Leave.apply(ctx.share, *slopes)


class _Leave(torch.autograd.Function):
    """The adjoint of ``_Enter``."""

    @staticmethod
    def forward(ctx: Any, share: ShareOfProcesses, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.share = share
        return tuple(share.sum(tensors))

    @staticmethod
    def backward(ctx: Any, *slopes: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return None, *_Enter.apply(ctx.share, *slopes)


class _Exchange(torch.autograd.Function):
    """Linear; its adjoint goes the way back."""

    @staticmethod
    def forward(ctx: Any, share: ShareOfProcesses, tensor: torch.Tensor, way: Way) -> torch.Tensor:
        ctx.share, ctx.way = share, way
        return share.all_to_all(tensor, way)

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[None, torch.Tensor, None]:
        return None, _Exchange.apply(ctx.share, slope, ctx.way.back()), None
