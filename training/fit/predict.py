"""Predictions of a model for batches, and their errors over a set."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader

from phi_equivariant.batching import segment_sum
from phi_equivariant.errors import InputError
from phi_equivariant.host_energy import isolated_of_atoms
from phi_equivariant.inputs.graphs import GraphBatch, collate
from phi_equivariant.potential import run_model
from training.data.labelled_graphs import name_in
from training.report.error_sums import Energies, ErrorSums


class Watcher(Protocol):
    """What looks at predictions beside :class:`training.report.error_sums.ErrorSums`."""

    def update(
        self, output: Mapping[str, torch.Tensor | None], batch: Mapping[str, torch.Tensor], indices: Sequence[int]
    ) -> None:
        """Look at a batch, whose structures have these indices in their set."""

    def gather(self) -> Any:
        """Add what the other processes have seen."""


def isolated_energies(model: torch.nn.Module) -> Energies:
    """A function from a batch to the energies (n_structures,) in eV of its isolated atoms, as the model has them."""

    def energies(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        of_atom = isolated_of_atoms(model, dict(batch))
        return segment_sum(of_atom, batch["batch"], len(batch["ptr"]) - 1)

    return energies


def evaluate(
    model: torch.nn.Module,
    loader: DataLoader[Any],
    outputs: Mapping[str, bool],
    device: torch.device | str,
    watchers: Sequence[Watcher] = (),
    on_batch: Callable[[int], None] | None = None,
) -> ErrorSums:
    """Errors of a model over a loader, without gradients of its parameters.

    In a distributed run every process evaluates its share of the batches and has the errors of all.

    ``outputs`` : which of forces, virials, stress and polarizability the model computes; ``watchers`` look at all
    predictions too; ``on_batch`` is called with the number of structures of each batch.
    """
    errors = ErrorSums()
    batches: Any = loader.batch_sampler  # of every loader of a run
    with frozen(model):
        for indices, batch in zip(batches, loader, strict=True):
            if not batch:  # this process's share is a batch shorter than others'
                continue
            batch = batch.to(device)
            output = predict(model, batch, outputs)
            check_finite(model, output, batch, loader.dataset, indices)
            errors.update(output, batch)
            for watcher in watchers:
                watcher.update(output, batch, list(indices))
            if on_batch is not None:
                on_batch(batch.num_graphs)
    for watcher in watchers:
        watcher.gather()
    return errors.gather()


def evaluate_one(
    model: torch.nn.Module, dataset: Any, index: int, outputs: Mapping[str, bool], device: torch.device | str
) -> dict[str, torch.Tensor | None]:
    """What a model says of one structure of a set."""
    with frozen(model):
        return predict(model, collate([dataset[index]]).to(device), outputs)


def check_finite(
    model: torch.nn.Module, output: Mapping[str, Any], batch: GraphBatch, dataset: Any, indices: Iterable[int]
) -> None:
    """InputError, naming the frames, where a model with finite parameters gives energies or forces that are not.

    model, output, batch : the model and what it said of a batch
    dataset, indices : where the batch's structures come from, for their names
    """
    finite = torch.isfinite(output["energy"].detach())
    if output.get("forces") is not None:
        atoms = torch.isfinite(output["forces"].detach()).all(1)
        finite = finite & (
            torch.zeros_like(finite, dtype=torch.long).index_add_(0, batch["batch"], (~atoms).long()) == 0
        )
    # A model whose training diverged is told of elsewhere: no frame is at fault.
    if bool(finite.all()) or not all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters()):
        return
    named = [name_in(dataset, index) for index, good in zip(indices, finite.tolist(), strict=True) if not good]
    raise InputError(
        f"the model gives energies or forces that are not finite for {', '.join(named[:5])}"
        f"{', …' if len(named) > 5 else ''}. Take these structures out, or look at what is wrong with them."
    )


def refuse_loss(
    model: torch.nn.Module,
    output: Mapping[str, Any],
    batch: GraphBatch,
    dataset: Any,
    indices: Sequence[int],
    steps: int,
) -> None:
    """InputError, naming the frames, for a training loss that is not finite, where the model's parameters are.

    The frames are those of which the model gives no numbers, or all of the step if only the loss is at fault.

    model, output, batch, dataset, indices : as of :func:`check_finite`
    steps : that were taken before; after some the model may be at fault, whose parameters grow
    """
    perhaps = f" If nothing is, training has diverged after {steps} steps: lower the learning rate." if steps else ""
    try:
        check_finite(model, output, batch, dataset, indices)
    except InputError as error:
        raise InputError(f"{error}{perhaps}") from None
    if all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters()):
        named = ", ".join(name_in(dataset, index) for index in indices)
        raise InputError(
            f"the training loss is not finite for the step of {named}. Look at what is wrong with their labels and "
            f"weights.{perhaps}"
        )


def predict(
    model: torch.nn.Module, batch: dict[str, torch.Tensor], outputs: Mapping[str, bool], training: bool = False
) -> dict[str, torch.Tensor | None]:
    """Call a model with mace's call signature."""
    more = {"compute_polarizability": True} if outputs.get("polarizability") else {}  # of potentials with Φ
    return run_model(
        model,
        batch,
        training=training,
        compute_force=outputs["forces"],
        compute_virials=outputs["virials"],
        compute_stress=outputs["stress"],
        **more,
    )


@contextlib.contextmanager
def frozen(model: torch.nn.Module) -> Iterator[None]:
    """A block in which parameters have no gradients: forces then cost less. The model stays in evaluation mode."""
    model.eval()
    flags = [parameter.requires_grad for parameter in model.parameters()]
    model.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, flag in zip(model.parameters(), flags, strict=True):
            parameter.requires_grad_(flag)
