"""Errors of predictions: mean absolute and root mean square, of every quantity that is labelled and predicted."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from training import distribution
from training.quantities import TARGETS, Measure, measures

#: Measures whose predictions are plotted against their labels.
PLOTTED = tuple(measure.name for measure in measures() if measure.plotted)
KEPT_PAIRS = 200_000  # a plot shows no more, and large test sets would fill the memory

Batch = Mapping[str, torch.Tensor]


class ErrorSums:
    """Sums of |error|, error², |label| and label² per measure, gathered batch by batch.

    Forces, stresses, virials, dipoles and the like are by component. What is absent, has weight zero, or is not defined
    with a structure's periodic directions does not count.

    Parameters
    ----------
    keep : sequence of str
        Measures whose pairs (label, prediction) are kept for plots.
    isolated : function or None
        From a batch to the energies (n_structures,) of its isolated atoms in eV, which the kept energies are without.
    """

    def __init__(self, keep: Sequence[str] = (), isolated: Callable[[Batch], torch.Tensor] | None = None) -> None:
        self.sums: dict[str, tuple[torch.Tensor, int]] = {}
        self.keep, self.isolated = keep, isolated
        self.pairs: dict[str, list[torch.Tensor]] = {name: [] for name in keep}

    def update(self, output: Mapping[str, torch.Tensor | None], batch: Batch) -> None:
        """Add a batch."""
        atoms = batch["ptr"][1:] - batch["ptr"][:-1]  # (n_structures,)
        for name, label in TARGETS.items():
            predicted = output.get(name)
            if predicted is None or name not in batch:
                continue
            counted = label.counted(batch).expand_as(batch[name])
            if not bool(counted.any()):
                continue
            predicted, reference = predicted.detach(), batch[name]
            for measure in label.measures:
                pair = torch.stack([reference, predicted])  # (2, n_structures or n_atoms, …)
                self._add(measure, _per_atom(pair, atoms, measure)[:, counted])
                if measure.name in self.keep:
                    if name == "energy" and self.isolated is not None:
                        pair = pair - self.isolated(batch)
                    self._keep(measure, _per_atom(pair, atoms, measure)[:, counted])

    def _add(self, measure: Measure, pair: torch.Tensor) -> None:
        label, predicted = pair.double()
        error = predicted - label
        sums = torch.stack([error.abs().sum(), error.square().sum(), label.abs().sum(), label.square().sum()])
        before, count = self.sums.get(measure.name, (torch.zeros_like(sums), 0))
        self.sums[measure.name] = (before + sums, count + error.numel())

    def _keep(self, measure: Measure, pair: torch.Tensor) -> None:
        if sum(part.shape[1] for part in self.pairs[measure.name]) < KEPT_PAIRS:
            self.pairs[measure.name].append(pair.double().cpu())

    def gather(self) -> "ErrorSums":
        """Add what the other processes of a distributed run have seen; returns this object."""
        if distribution.size() > 1:
            mine = ({name: (sums.cpu(), count) for name, (sums, count) in self.sums.items()}, self.pairs)
            self.sums, self.pairs = {}, {name: [] for name in self.keep}
            for sums, pairs in distribution.gather(mine):
                for name, (values, count) in sums.items():
                    before, counted = self.sums.get(name, (torch.zeros_like(values), 0))
                    self.sums[name] = (before + values, counted + count)
                for name, parts in pairs.items():
                    self.pairs[name] += parts
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

    def flat(self, prefix: str) -> dict[str, float]:
        """{prefix_mae_measure: value, prefix_rmse_measure: value}, for the metrics."""
        return {f"{prefix}_{kind}_{name}": row[kind] for name, row in self.table().items() for kind in ("mae", "rmse")}


def _per_atom(pair: torch.Tensor, atoms: torch.Tensor, measure: Measure) -> torch.Tensor:
    """Labels and predictions (2, n_structures, …), divided by the numbers of atoms where the measure says so."""
    return pair / atoms.view(-1, *[1] * (pair.dim() - 2)) if measure.per_atom else pair
