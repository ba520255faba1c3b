"""Loss and errors over a validation set."""

from collections.abc import Mapping
from typing import Any

import torch

from phi_equivariant.inputs.graphs import GraphBatch
from training import distribution
from training.fit.losses import Objective
from training.report.error_sums import ErrorSums
from training.report.samples import Pairs


class ValidationSums:
    """Sums over the validation set of one head; ``pairs`` keep what is plotted of it."""

    def __init__(self, pairs: Pairs | None = None) -> None:
        self.errors, self.pairs = ErrorSums(), pairs
        self.sums: dict[str, torch.Tensor | float] = {}
        self.mace_loss: torch.Tensor | float = 0.0
        self.structures = 0

    def update(self, output: Mapping[str, Any], batch: GraphBatch, objective: Objective) -> None:
        """Add a batch."""
        loss, terms = objective(output, batch)
        size = batch.num_graphs
        found = {"loss": size * loss, **{f"term_{name}": size * term for name, term in terms.items()}}
        found |= {name: output[name].sum() for name in ("pde_residual", "charge_penalty") if name in output}
        for name, value in found.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.errors.update(output, batch)
        if self.pairs is not None:
            self.pairs.update(output, batch)
        self.mace_loss = self.mace_loss + loss.detach()
        self.structures += size

    def row(self) -> tuple[dict[str, float], float]:
        """{name: value} over all processes, with mace's Σ_batches loss / structures; and the number of structures."""
        found = distribution.total({"structures": self.structures, **self.sums, "loss_mace": self.mace_loss})
        structures = found.pop("structures")
        means = {name: value / structures for name, value in found.items()}
        errors = self.errors.gather().flat("")
        if self.pairs is not None:
            self.pairs.gather()
        return means | {name.removeprefix("_"): value for name, value in errors.items()}, structures
