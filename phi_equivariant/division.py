"""Who computes which part of a sum: one process all of it, or several a share each."""

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch

Item = TypeVar("Item")


class Share:
    """All of it, on one process.

    Where there are several, tensors are the same on each of them, but between ``enter`` and ``leave``: there each has
    what its own share of the terms adds up to. Both are linear and each other's adjoint, so that derivatives of any
    order are the same on all processes again.
    """

    def of(self, items: Sequence[Item]) -> Sequence[Item]:
        """Some of the terms."""
        return items

    def rows(self, n: int) -> slice:
        """Some of n terms in a row."""
        return slice(0, n)

    def enter(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What the terms of a share are functions of; what they add to its gradient is summed over the processes."""
        return tensors

    def leave(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The sums over all processes."""
        return tensors


WHOLE = Share()


class ShareOfProcesses(Share):
    """One process's share of several's.

    Parameters
    ----------
    comm: mpi4py's communicator; all its processes must call ``enter`` and ``leave``, and go back through them, in the
        same order
    """

    def __init__(self, comm: Any) -> None:
        self.comm = comm

    def of(self, items: Sequence[Item]) -> Sequence[Item]:
        """Every so many, from this process's on."""
        return items[self.comm.rank :: self.comm.size]

    def rows(self, n: int) -> slice:
        """As many on each process, within one."""
        rank, size = self.comm.rank, self.comm.size
        return slice(n * rank // size, n * (rank + 1) // size)

    def enter(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The same tensors; backwards, sums over all processes."""
        found: tuple[torch.Tensor, ...] = _Enter.apply(self, *tensors)
        return found

    def leave(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Sums over all processes; backwards, the same tensors."""
        found: tuple[torch.Tensor, ...] = _Leave.apply(self, *tensors)
        return found

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
