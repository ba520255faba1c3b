"""Loss, its terms and errors over many batches: the steps of an epoch, or a validation set."""

from collections.abc import Mapping
from typing import Any

import torch

from phi_equivariant.inputs.graphs import GraphBatch
from training import distribution
from training.report.error_sums import ErrorSums
from training.report.samples import LabelPairs


class EpochSums:
    """Weighted sums; ``pairs`` keep what is plotted of it."""

    def __init__(self, pairs: LabelPairs | None = None) -> None:
        self.errors, self.pairs = ErrorSums(), pairs
        self.sums: dict[str, torch.Tensor | float] = {}
        self.weight = 0.0

    def update(
        self,
        output: Mapping[str, Any],
        batch: GraphBatch,
        loss: torch.Tensor,
        terms: Mapping[str, torch.Tensor],
        weight: float = 1.0,
        **others: torch.Tensor,
    ) -> None:
        """Add a batch with its loss and terms, by their weight; ``others`` are sums already."""
        found = {"loss": loss.detach(), **{f"term_{name}": term for name, term in terms.items()}}
        for name, value in {**{name: weight * value for name, value in found.items()}, **others}.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.weight += weight
        self.errors.update(output, batch)
        if self.pairs is not None:
            self.pairs.update(output, batch)

    def row(self) -> tuple[dict[str, float], float]:
        """{name: mean, or error} over all processes; and the sum of the weights."""
        found = distribution.total({"weight": self.weight, **self.sums})
        weight = found.pop("weight")
        if self.pairs is not None:
            self.pairs.gather()
        return {name: value / weight for name, value in found.items()} | self.errors.gather().flat(), weight
