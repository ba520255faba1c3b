"""Errors of predictions: mean absolute and root mean square, of every quantity that is labelled and predicted."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from training import distribution
from training.quantities import TARGETS, Measure, measures

Batch = Mapping[str, torch.Tensor]
Output = Mapping[str, torch.Tensor | None]
#: From a batch to energies (n_structures,) in eV.
Energies = Callable[[Batch], torch.Tensor]


def labelled(output: Output, batch: Batch, isolated: Energies | None = None) -> Iterator[tuple[Measure, torch.Tensor]]:
    """Each measure of a batch with its labels and predictions (2, …) in eV, Å and e, as far as they count.

    What is absent, has weight zero, or is not defined with a structure's periodic directions does not count.
    ``isolated``: energies of isolated atoms, which both labels and predictions are then without.
    """
    atoms = batch["ptr"][1:] - batch["ptr"][:-1]  # (n_structures,)
    for name, label in TARGETS.items():
        predicted = output.get(name)
        if predicted is None or name not in batch:
            continue
        counted = label.counted(batch).expand_as(batch[name])
        if not bool(counted.any()):
            continue
        pair = torch.stack([batch[name], predicted.detach()])  # (2, n_structures or n_atoms, …)
        if name == "energy" and isolated is not None:
            pair = pair - isolated(batch)
        for measure in label.measures:
            yield measure, _per_atom(pair, atoms, measure)[:, counted]


class ErrorSums:
    """Sums of |error|, error², |label| and label² per measure, gathered batch by batch.

    Forces, stresses, virials, dipoles and the like are by component. What counts is as of :func:`labelled`.
    """

    def __init__(self) -> None:
        self.sums: dict[str, tuple[torch.Tensor, int]] = {}

    def update(self, output: Output, batch: Batch, indices: Sequence[int] = ()) -> None:
        """Add a batch."""
        for measure, pair in labelled(output, batch):
            label, predicted = pair.double()
            error = predicted - label
            sums = torch.stack([error.abs().sum(), error.square().sum(), label.abs().sum(), label.square().sum()])
            before, count = self.sums.get(measure.name, (torch.zeros_like(sums), 0))
            self.sums[measure.name] = (before + sums, count + error.numel())

    def gather(self) -> "ErrorSums":
        """Add what the other processes of a distributed run have seen; returns this object."""
        if distribution.size() > 1:
            mine = {name: (sums.cpu(), count) for name, (sums, count) in self.sums.items()}
            self.sums = {}
            for found in distribution.gather(mine):
                for name, (values, count) in found.items():
                    before, counted = self.sums.get(name, (torch.zeros_like(values), 0))
                    self.sums[name] = (before + values, counted + count)
        return self

    def table(self) -> dict[str, dict[str, Any]]:
        """{measure: {"mae", "rmse", "rel_mae", "rel_rmse", "unit", "count"}}, the relative ones in per cent."""
        table: dict[str, dict[str, Any]] = {}
        # In the table's order, whatever the order in which quantities were met.
        for measure in (measure for measure in measures() if measure.name in self.sums):
            sums, count = self.sums[measure.name]
            mae, square, size, square_size = (sums / count).tolist()
            rmse, factor = square**0.5, measure.factor
            row = {"mae": mae * factor, "rmse": rmse * factor, "unit": measure.unit, "count": count}
            # 1e-9 as in mace, for labels that are all zero
            row |= {"rel_mae": 100 * mae / (size + 1e-9), "rel_rmse": 100 * rmse / (square_size**0.5 + 1e-9)}
            table[measure.name] = row
        return table

    def flat(self) -> dict[str, float]:
        """{mae_measure: value, rmse_measure: value}, for the metrics."""
        return {f"{kind}_{name}": row[kind] for name, row in self.table().items() for kind in ("mae", "rmse")}


def _per_atom(pair: torch.Tensor, atoms: torch.Tensor, measure: Measure) -> torch.Tensor:
    """Labels and predictions (2, n_structures, …), divided by the numbers of atoms where the measure says so."""
    return pair / atoms.view(-1, *[1] * (pair.dim() - 2)) if measure.per_atom else pair
