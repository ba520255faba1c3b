"""Errors structure by structure: which ones a model is worst at, and which one is typical."""

import dataclasses
from collections.abc import Sequence
from typing import Self

import torch

from phi_equivariant.batching import segment_sum
from training import distribution
from training.quantities import TARGETS
from training.report.error_sums import Batch, Output

#: What structures are ranked by: {name: (title, unit, factor from eV and Å)}.
RANKS = {"energy": ("energy per atom", "meV/atom", 1e3), "forces": ("forces, RMSE", "meV/Å", 1e3)}


@dataclasses.dataclass(frozen=True)
class FrameError:
    """Errors of one structure, in eV and Å; None where it has no such label.

    index : in the set; energy : prediction − label per atom; forces : root mean square over components
    """

    index: int
    energy: float | None
    forces: float | None


class FrameErrors:
    """Errors of every structure of a set."""

    def __init__(self) -> None:
        self.parts: list[torch.Tensor] = []  # (n_structures, 3): index, energy, forces; NaN where not labelled

    def update(self, output: Output, batch: Batch, indices: Sequence[int]) -> None:
        """Add a batch; ``indices`` of its structures in the set."""
        ptr = batch["ptr"]
        atoms = (ptr[1:] - ptr[:-1]).double()  # (n_structures,)
        found = torch.full((len(atoms), 3), float("nan"), dtype=torch.float64)
        found[:, 0] = torch.as_tensor(list(indices), dtype=torch.float64)
        for column, name in enumerate(RANKS, 1):
            predicted = output.get(name)
            if predicted is None or name not in batch:
                continue
            counted = TARGETS[name].counted(batch).expand_as(batch[name])
            error = (predicted.detach() - batch[name]).double()
            if name == "energy":
                found[:, column] = torch.where(counted, error / atoms, float("nan")).cpu()
            else:
                squares = torch.where(counted, error, 0.0).square().sum(1)  # (n_atoms,)
                parts = [segment_sum(part, batch["batch"], len(atoms)) for part in (squares, counted.sum(1).double())]
                found[:, column] = (parts[0] / parts[1]).sqrt().cpu()  # 0/0 is NaN: no label
        self.parts.append(found)

    def gather(self) -> Self:
        """Add what the other processes have seen."""
        if distribution.size() > 1:
            self.parts = [part for parts in distribution.gather(self.parts) for part in parts]
        return self

    def ranked(self, name: str) -> list[FrameError]:
        """Structures that have the label, the worst first."""
        if not self.parts:
            return []
        rows = torch.cat(self.parts)
        size = rows[:, 1 + list(RANKS).index(name)].abs()
        rows = rows[~size.isnan()]
        order = size[~size.isnan()].argsort(descending=True, stable=True)
        return [_frame(row) for row in rows[order].tolist()]

    def picked(self, worst: int) -> dict[int, str]:
        """{index: why it is worth a look}: the worst by each error, and the one in the middle."""
        found: dict[int, str] = {}
        middle: int | None = None
        for name, (title, _, _) in RANKS.items():
            ranked = self.ranked(name)
            for place, frame in enumerate(ranked[:worst], 1):
                found.setdefault(frame.index, f"worst {title.split(',')[0]}" + (f", no. {place}" if place > 1 else ""))
            if ranked and middle is None:
                middle = ranked[len(ranked) // 2].index
        if middle is not None and middle not in found:
            found[middle] = "typical: half of the structures are worse"
        return found


def _frame(row: Sequence[float]) -> FrameError:
    energy, forces = (None if value != value else value for value in row[1:])  # NaN differs from itself
    return FrameError(int(row[0]), energy, forces)
