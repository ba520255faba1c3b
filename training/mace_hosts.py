"""The hosts that mace makes: from options, from a trained model, with statistics of the training set."""

import dataclasses
import warnings
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import torch

from phi_equivariant.errors import InputError
from phi_equivariant.host_energy import atomic_energies, keep_exact
from phi_equivariant.precision import default_dtype

# isort: split
from mace import modules
from mace import tools as mace_tools
from mace.tools import finetuning_utils, model_script_utils, scripts_utils

from training.mace_interface import irreps, namespace
from training.quantities import LABELS
from training.run import Data, Head, Host, Loss
from zoo.mace_host import MaceHost, check_energies, readable_by_mace

Outputs = dict[str, bool]


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
    of the isolated atoms, {head: {Z: eV}}.
    """

    loader: Loader
    atomic_numbers: list[int]
    heads: list[Head]
    energies: Mapping[str, Mapping[int, float]]

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


def build_host(host: Host, data: Data, loss: Loss, training: TrainingSet) -> tuple[torch.nn.Module, Outputs]:
    """A mace model from mace's options, scaled by the training set's statistics.

    Returns
    -------
    model, outputs
        The model, and which of energy, forces, stress and virials it has to compute for the loss.

    Raises
    ------
    InputError
        Where mace refuses the architecture.
    """
    options = namespace(host, data, loss, compute_energy=True, compute_dipole=False, compute_polarizability=False)
    loader, heads, isolated = training.loader, training.heads, training.isolated
    warnings.filterwarnings("ignore", message="The TorchScript type system doesn't support")
    try:
        options.avg_num_neighbors = scripts_utils.get_avg_num_neighbors(heads, options, loader, torch.device("cpu"))
        if not options.avg_num_neighbors > 0:
            raise InputError(
                f"--r_max: no two atoms of the training set are within {host.r_max} Å of each other, so there is "
                "nothing to learn from. Give a larger r_max, structures in Å, or avg_num_neighbors with "
                "compute_avg_num_neighbors False."
            )
        options.mean, options.std = _mean_and_scale(host.model, data, training)
        written = [SimpleNamespace(**dataclasses.asdict(head)) for head in heads]  # mace changes them
        model, outputs = model_script_utils.configure_model(
            options, loader, isolated, None, training.names, training.table, written
        )
        keep_exact(model, isolated)
    except InputError:
        raise
    except (AssertionError, ValueError, KeyError, RuntimeError, SyntaxError) as error:
        raise InputError(f"mace cannot build this model: {type(error).__name__}: {error}") from error
    return model, {name: outputs[name] for name in ("forces", "stress", "virials")}


def statistics(data: Data, training: TrainingSet) -> tuple[float, list[float], list[float]]:
    """What a host with a scale and a shift takes from the training set, by mace's options for it.

    Returns
    -------
    avg_num_neighbors, scales, shifts
        The last two by head, in eV per atom.

    Raises
    ------
    InputError
        Where mace cannot compute them.
    """
    options, device = namespace(data), torch.device("cpu")
    try:
        neighbours = scripts_utils.get_avg_num_neighbors(training.heads, options, training.loader, device)
        means, scales = _mean_and_scale("ScaleShiftMACE", data, training)
    except (AssertionError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(f"mace cannot take statistics from the training set: {error}") from error
    return float(neighbours), scales, means


def _mean_and_scale(model: str, data: Data, training: TrainingSet) -> tuple[list[float], list[float]]:
    """Shift and scale of each head: what was given for it, the rest from the training set by mace's ``--scaling``."""
    heads = training.heads
    if data.scaling == "no_scaling":
        return [head.mean or 0.0 for head in heads], [1.0] * len(heads)
    needs_mean = model == "ScaleShiftMACE"
    if all(head.std is not None and (head.mean is not None or not needs_mean) for head in heads):
        if data.std is None:
            training.loader.skip()  # mace looks again at what a statistics_file or a head has told
        return [head.mean or 0.0 for head in heads], [head.std or 0.0 for head in heads]
    recorded = _RecordedEnergies(training.loader, training.isolated)
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
    """Hands the batches of a loader on to mace's statistics, in float64, and keeps the energies per atom, less isolated
    atoms.

    mace takes the energy of a structure that has none for 0 eV, which would shift a model by tens of eV per atom.
    """

    def __init__(self, loader: Loader, energies: np.ndarray) -> None:
        self.loader, self.energies = loader, torch.tensor(energies)
        self.values: list[torch.Tensor] = []
        self.heads: list[torch.Tensor] = []
        self.counts: list[torch.Tensor] = []

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            of_atoms = (batch["node_attrs"].to(self.energies.dtype) @ self.energies.T).gather(
                1, batch["head"][batch["batch"]][:, None]
            )
            isolated = of_atoms.new_zeros(batch.num_graphs).index_add_(0, batch["batch"], of_atoms[:, 0])
            self.values.append((batch["energy"] - isolated) / (batch["ptr"][1:] - batch["ptr"][:-1]))
            self.heads.append(batch["head"])
            self.counts.append(LABELS["energy"].counted(batch))
            yield type(batch)({**batch, **{name: batch[name].double() for name in ("node_attrs", "forces")}})

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


def freeze_layers(model: torch.nn.Module, level: int) -> None:
    """Stop training of layers, by mace's ``--freeze``: embedding (1), interactions (5), products (6), readouts (7)."""
    scripts_utils.get_params_options(namespace(freeze=level, lr_params_factors="{}"), model)


def single_head(model: Any, head: str | None = None) -> Any:
    """A trained model as mace's fine-tuning takes it: a ``ScaleShiftMACE`` with one head.

    Parameters
    ----------
    model : mace model in e3nn's layout
    head : name of the head to keep; the first that is not ``pt_head`` where None

    Raises
    ------
    InputError
        If there is no such head or mace cannot take it out.
    """
    heads = list(model.heads)
    if head is not None and head not in heads:
        raise InputError(f"the model has the heads {', '.join(heads)}, not {head!r}: choose one by --foundation_head.")
    if not hasattr(model, "scale_shift"):
        description = {**MaceHost.describe(model), "class": "ScaleShiftMACE"}
        scaled = {"atomic_inter_scale": [1.0] * len(heads), "atomic_inter_shift": [0.0] * len(heads)}
        fresh = MaceHost.build({**description, **scaled})
        fresh.load_state_dict(model.state_dict(), strict=False)
        model = fresh
    if len(heads) == 1:
        return model
    kept = heads.index(head) if head else next((i for i, name in enumerate(heads) if name != "pt_head"), 0)
    try:
        single = scripts_utils.remove_pt_head(readable_by_mace(model), heads[kept])
    except (ValueError, AttributeError, RuntimeError, KeyError) as error:
        raise InputError(f"mace cannot take the head {heads[kept]!r} out of the model: {error}") from error
    keep_exact(single, atomic_energies(model)[kept])
    check_energies(model, single, [(kept, 0)])
    return single


def fine_tuned_host(
    host: Host, data: Data, loss: Loss, training: TrainingSet, trained: Any
) -> tuple[torch.nn.Module, Outputs]:
    """A mace model with the weights of a trained one, as mace_run_train's fine-tuning makes it.

    Scale, shift, cut-off and avg_num_neighbors stay those of the trained model; each head gets a copy of its readouts.

    ``trained`` is a ``ScaleShiftMACE`` with one head, which knows all elements. Returns what :func:`build_host` does.

    Raises
    ------
    InputError
        Where mace cannot carry the weights over.
    """
    # mace reads the training set for statistics that it then does not use.
    to_scale = data.std is None and data.scaling != "no_scaling"
    for read in (all(head.compute_avg_num_neighbors for head in training.heads), to_scale):
        if read:
            training.loader.skip()
    names, own = training.names, training.isolated
    description = MaceHost.describe(trained)
    description |= {
        "atomic_numbers": list(training.atomic_numbers),
        "num_elements": len(training.atomic_numbers),
        "atomic_energies": own,
        "heads": names,
        "atomic_inter_scale": [1.0] * len(names),
        "atomic_inter_shift": [0.0] * len(names),
    }
    fresh = MaceHost.build(description)
    readouts = host.foundation_model_readout
    try:
        model = finetuning_utils.load_foundations_elements(
            fresh,
            trained,
            training.table,
            load_readout=readouts,
            max_L=irreps(description["hidden_irreps"]).lmax,
            default_dtype=torch.get_default_dtype(),
        )
    except (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, ValueError) as error:
        raise InputError(
            "--foundation_model: mace cannot carry the weights of this architecture over to other elements or heads "
            f"({type(error).__name__}: {error})."
        ) from error
    # mace takes the trained model's E0s over those that were given where the elements are the same, and makes a
    # parameter that nothing trains of a buffer.
    model.atomic_energies_fn.atomic_energies = torch.tensor(own)
    keep_exact(model, own)
    basis = model.radial_embedding.bessel_fn
    if isinstance(getattr(basis, "bessel_weights", None), torch.nn.Parameter):
        weights = basis.bessel_weights.detach().clone()
        del basis.bessel_weights
        basis.register_buffer("bessel_weights", weights)
    if readouts:
        check_energies(model, trained, [(i, 0) for i in range(len(names))])
    return model, derivatives(loss)


def derivatives(loss: Loss) -> Outputs:
    """Which derivatives the loss needs, as mace decides: {forces, stress, virials: bool}."""
    stress = loss.loss in ("stress", "huber", "universal")
    return {"forces": True, "stress": stress, "virials": loss.loss == "virials"}
