"""What mace takes from a training set for a host: energies of isolated atoms, neighbours, shift and scale."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import torch
from ase import Atoms

from phi_equivariant.errors import InputError
from phi_equivariant.precision import default_dtype
from phi_equivariant.quiet import importing
from training.mace_interface import namespace
from training.quantities import LABELS
from training.run import Data, Head

with importing():
    from mace import data as mace_data
    from mace import modules
    from mace import tools as mace_tools
    from mace.tools import scripts_utils


class Loader(Protocol):
    """The training set in batches, in a new order each time, as mace reads it for statistics."""

    def __iter__(self) -> Iterator[Any]: ...

    def skip(self) -> None:
        """Draw an order that nobody reads, where mace reads once more."""


@dataclasses.dataclass(frozen=True)
class TrainingSet:
    """What a host takes from the data.

    loader : read as often as mace_run_train reads its own, so that its shuffling continues as there; atomic_numbers :
    elements of the model; heads : in the model's order, with the statistics that were given for them; energies : those
    of the isolated atoms, {head: {Z: eV}}; electronegativity : χ̄ of Φ in V, which counts the energy of charge.
    """

    loader: Loader
    atomic_numbers: list[int]
    heads: list[Head]
    energies: Mapping[str, Mapping[int, float]]
    electronegativity: float = 0.0

    @property
    def names(self) -> list[str]:
        """Names of the heads."""
        return [head.name for head in self.heads]

    @property
    def table(self) -> Any:
        """The elements as mace has them."""
        return mace_tools.AtomicNumberTable(list(self.atomic_numbers))

    @property
    def isolated(self) -> np.ndarray:
        """Energies of the isolated atoms in eV, (n_heads, n_elements)."""
        return np.array([[self.energies[name][number] for number in self.atomic_numbers] for name in self.names])


def average_energies(
    frames: Iterable[Atoms], atomic_numbers: Iterable[int], electronegativity: float = 0.0
) -> dict[int, float]:
    """Isolated-atom energies {Z: eV} that fit the energies of labelled structures, less χ̄Q, best (least squares)."""
    key, charge = LABELS["energy"].canonical, LABELS["total_charge"].canonical
    records: list[Any] = [
        SimpleNamespace(
            properties={"energy": atoms.info[key] - electronegativity * atoms.info.get(charge, 0.0)},
            atomic_numbers=atoms.numbers,
        )
        for atoms in frames
    ]
    found = mace_data.compute_average_E0s(records, mace_tools.AtomicNumberTable(list(atomic_numbers)))
    return {int(number): float(energy) for number, energy in found.items()}


def statistics(data: Data, training: TrainingSet) -> tuple[float, list[float], list[float]]:
    """What a host with a scale and a shift takes from the training set, by mace's options for it.

    Returns avg_num_neighbors, scales and shifts, the last two by head in eV per atom.

    InputError where mace cannot compute them.
    """
    options, device = namespace(data), torch.device("cpu")
    try:
        neighbours = scripts_utils.get_avg_num_neighbors(training.heads, options, training.loader, device)
        means, scales = mean_and_scale("ScaleShiftMACE", data, training)
    except (AssertionError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(f"mace cannot take statistics from the training set: {error}") from error
    return float(neighbours), scales, means


def mean_and_scale(model: str, data: Data, training: TrainingSet) -> tuple[list[float], list[float]]:
    """Shift and scale of each head: what was given for it, the rest from the training set by mace's ``--scaling``."""
    heads = training.heads
    if data.scaling == "no_scaling":
        return [head.mean or 0.0 for head in heads], [1.0] * len(heads)
    needs_mean = model == "ScaleShiftMACE"
    if all(head.std is not None and (head.mean is not None or not needs_mean) for head in heads):
        if data.std is None:
            training.loader.skip()  # mace looks again at what a statistics_file or a head has told
        return [head.mean or 0.0 for head in heads], [head.std or 0.0 for head in heads]
    recorded = _RecordedEnergies(training.loader, training.isolated, training.electronegativity)
    with default_dtype(torch.float64):  # E − ΣE0 of large E0s has no digits in float32
        found = modules.scaling_classes[data.scaling](recorded, training.isolated)
    means, scales = (np.ravel(values) for values in found)
    if not recorded.all_count():
        means, deviations = recorded.means_and_deviations()
        scales = deviations if data.scaling == "std_scaling" else scales
    if len(scales) != len(heads):
        raise ValueError("a head has too few structures to take its mean and scale from; give it a mean and a std")
    return (
        [float(mean) if head.mean is None else head.mean for head, mean in zip(heads, means, strict=True)],
        [float(scale) if head.std is None else head.std for head, scale in zip(heads, scales, strict=True)],
    )


class _RecordedEnergies:
    """Hands the batches of a loader on to mace's statistics, in float64 and less χ̄Q, and keeps the energies per atom,
    less isolated atoms too.

    mace takes the energy of a structure that has none for 0 eV, which would shift a model by tens of eV per atom.
    """

    def __init__(self, loader: Loader, energies: np.ndarray, electronegativity: float) -> None:
        self.loader, self.energies, self.electronegativity = loader, torch.tensor(energies), electronegativity
        self.values: list[torch.Tensor] = []
        self.heads: list[torch.Tensor] = []
        self.counts: list[torch.Tensor] = []

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            of_atoms = (batch["node_attrs"].to(self.energies.dtype) @ self.energies.T).gather(
                1, batch["head"][batch["batch"]][:, None]
            )
            isolated = of_atoms.new_zeros(batch.num_graphs).index_add_(0, batch["batch"], of_atoms[:, 0])
            energy = batch["energy"] - self.electronegativity * batch["total_charge"].double()
            self.values.append((energy - isolated) / (batch["ptr"][1:] - batch["ptr"][:-1]))
            self.heads.append(batch["head"])
            self.counts.append(LABELS["energy"].counted(batch))
            doubled = {name: batch[name].double() for name in ("node_attrs", "forces")}
            yield type(batch)({**batch, **doubled, "energy": energy})

    def all_count(self) -> bool:
        """Whether every structure has an energy that weighs."""
        return bool(torch.cat(self.counts).all())

    def means_and_deviations(self) -> tuple[np.ndarray, np.ndarray]:
        """By head, over the structures whose energies weigh: 0 and 1 where there is none, as where nothing is known."""
        values, heads, counts = torch.cat(self.values), torch.cat(self.heads), torch.cat(self.counts)
        found = [values[counts & (heads == head)] for head in range(len(self.energies))]
        means = np.array([float(value.mean()) if len(value) else 0.0 for value in found])
        deviations = np.array([float(value.std()) if len(value) > 1 else 0.0 for value in found])
        return means, np.where(deviations > 0, deviations, 1.0)
