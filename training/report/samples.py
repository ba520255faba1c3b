"""Labels and predictions for plots: a bounded sample of them, and sums over all."""

from collections.abc import Sequence
from typing import Any, Self

import torch

from training import distribution
from training.quantities import TARGETS
from training.report.error_sums import Batch, Energies, Output, labelled

KEPT = 100_000  # pairs of a quantity and set: more are thinned, because large test sets would fill the memory


class Sample:
    """Every n-th of many pairs (label, prediction), with n a power of two, and sums over all of them.

    ``limit``: as many are kept at most.
    """

    def __init__(self, limit: int = KEPT) -> None:
        self.limit = limit
        self.parts: list[torch.Tensor] = []  # (2, n) each
        self.stride = 1
        self.count = self.kept = 0
        self.mean = torch.zeros(2, dtype=torch.float64)  # of labels and of predictions
        self.squares = torch.zeros(2, dtype=torch.float64)  # Σ (x − mean)² of the same
        self.errors = torch.zeros(2, dtype=torch.float64)  # Σ |error|, Σ error²
        self.lowest = torch.full((2,), float("inf"), dtype=torch.float64)  # of labels and of predictions
        self.highest = -self.lowest

    def add(self, pair: torch.Tensor) -> None:
        """Add pairs (2, n), on any device."""
        pair = pair.detach().double().cpu()
        new = pair.shape[1]
        if not new:
            return
        mean, error = pair.mean(1), pair[1] - pair[0]
        self._merge(new, mean, (pair - mean[:, None]).square().sum(1))
        self.errors += torch.stack([error.abs().sum(), error.square().sum()])
        self._widen(pair.amin(1), pair.amax(1))
        self._keep(pair[:, -(self.count - new) % self.stride :: self.stride])

    def join(self, other: "Sample") -> None:
        """Add what another one has seen."""
        if not other.count:
            return
        self._merge(other.count, other.mean, other.squares)
        self.errors += other.errors
        self._widen(other.lowest, other.highest)
        while self.stride < other.stride:
            self._thin()
        self._keep(other.values()[:, :: self.stride // other.stride])

    def _merge(self, count: int, mean: torch.Tensor, squares: torch.Tensor) -> None:
        """Moments of two parts to those of the whole (Chan, Golub and LeVeque 1979), which do not lose digits."""
        total, apart = self.count + count, mean - self.mean
        self.squares = self.squares + squares + apart.square() * (self.count * count / total)
        self.mean = self.mean + apart * (count / total)
        self.count = total

    def _widen(self, lowest: torch.Tensor, highest: torch.Tensor) -> None:
        self.lowest, self.highest = torch.minimum(self.lowest, lowest), torch.maximum(self.highest, highest)

    def _keep(self, values: torch.Tensor) -> None:
        self.parts.append(values.clone())
        self.kept += values.shape[1]
        while self.kept > self.limit:
            self._thin()

    def _thin(self) -> None:
        self.parts, self.stride = [self.values()[:, ::2].clone()], 2 * self.stride
        self.kept = self.parts[0].shape[1]

    def values(self) -> torch.Tensor:
        """The pairs that were kept, (2, n): labels, predictions."""
        return torch.cat(self.parts, 1) if self.parts else torch.zeros(2, 0, dtype=torch.float64)

    @property
    def mae(self) -> float:
        """Mean absolute error."""
        return float(self.errors[0]) / self.count

    @property
    def rmse(self) -> float:
        """Root mean square error."""
        return (float(self.errors[1]) / self.count) ** 0.5

    @property
    def r_squared(self) -> float | None:
        """R² = 1 − Σ(prediction − label)² / Σ(label − mean label)²; None where labels are all the same."""
        spread = float(self.squares[0])
        return 1.0 - float(self.errors[1]) / spread if spread > 0.0 else None


class LabelPairs:
    """Samples of the quantities that are drawn, of one set.

    names : of the measures
    isolated : from a batch to the energies (n_structures,) of its isolated atoms in eV, which the energies are without
    kept : pairs of a measure at most
    """

    def __init__(self, names: Sequence[str], isolated: Energies | None = None, kept: int = KEPT) -> None:
        self.names, self.isolated, self.limit = names, isolated, kept
        self.samples: dict[str, Sample] = {}

    def update(self, output: Output, batch: Batch, indices: Sequence[int] = ()) -> None:
        """Add a batch."""
        for measure, pair in labelled(output, batch, self.isolated):
            if measure.name in self.names:
                self.samples.setdefault(measure.name, Sample(self.limit)).add(pair.flatten(1))

    def gather(self) -> Self:
        """Add what the other processes have seen."""
        self.samples = _joined(self.samples)
        return self


class ElementCharges:
    """Charges of atoms by element: of all predictions, and of those that have labels.

    ``predicted`` and ``labelled`` are {index of the element in the model: sample}; the pairs of ``predicted`` are
    (prediction, prediction), since they have no label.
    """

    def __init__(self) -> None:
        self.predicted: dict[int, Sample] = {}
        self.labelled: dict[int, Sample] = {}

    def update(self, output: Output, batch: Batch, indices: Sequence[int] = ()) -> None:
        """Add a batch."""
        charges = output.get("charges")
        if charges is None:
            return
        elements = batch["node_attrs"].argmax(1)  # (n_atoms,)
        counted = TARGETS["charges"].counted(batch) if "charges" in batch else None  # (n_atoms,)
        for element in elements.unique().tolist():
            own = elements == element
            self.predicted.setdefault(element, Sample()).add(charges[own].expand(2, -1))
            if counted is not None and bool((own & counted).any()):
                pair = torch.stack([batch["charges"], charges])[:, own & counted]
                self.labelled.setdefault(element, Sample()).add(pair)

    def gather(self) -> Self:
        """Add what the other processes have seen."""
        self.predicted, self.labelled = _joined(self.predicted), _joined(self.labelled)
        return self


def _joined(mine: dict[Any, Sample]) -> dict[Any, Sample]:
    """The samples of all processes of a distributed run, by the same names."""
    if distribution.size() == 1:
        return mine
    joined: dict[Any, Sample] = {}
    for samples in distribution.gather(mine):
        for name, sample in samples.items():
            joined.setdefault(name, Sample()).join(sample)
    return joined
