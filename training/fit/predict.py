"""Predictions of a model for batches, and their errors over a set."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch

from training.data.batches import GraphBatch
from training.report.error_sums import ErrorSums

Energies = Callable[[Mapping[str, torch.Tensor]], torch.Tensor]


def isolated_energies(model: torch.nn.Module) -> Energies:
    """A function from a batch to the energies (n_structures,) in eV of its isolated atoms, as the model has them."""

    block: torch.nn.Module = model.atomic_energies_fn  # type: ignore[assignment]  # of every host

    def energies(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        by_head = block(batch["node_attrs"])  # (n_atoms, n_heads)
        head = batch["head"][batch["batch"]] if by_head.shape[1] > 1 else torch.zeros_like(batch["batch"])
        per_atom = by_head.gather(1, head[:, None]).squeeze(1)
        return torch.zeros_like(batch["energy"]).index_add_(0, batch["batch"], per_atom.to(batch["energy"].dtype))

    return energies


def evaluate(
    model: torch.nn.Module,
    loader: Iterable[GraphBatch],
    outputs: Mapping[str, bool],
    device: torch.device | str,
    keep: Sequence[str] = (),
    on_batch: Callable[[int], None] | None = None,
    isolated: Energies | None = None,
) -> ErrorSums:
    """Errors of a model over a loader, without gradients of its parameters.

    In a distributed run every process evaluates its share of the batches and has the errors of all.

    Parameters
    ----------
    model : with mace's call signature
    loader : batches; empty ones are passed over
    outputs : which of forces, virials and stress the model computes
    device : where the model is
    keep, isolated : as of :class:`training.report.error_sums.ErrorSums`
    on_batch : called with the number of structures of each batch when it is done
    """
    model.eval()
    errors = ErrorSums(keep, isolated)
    flags = freeze(model)
    try:
        for batch in loader:
            if not batch:  # this process's share is a batch shorter than others'
                continue
            batch = batch.to(device)
            errors.update(predict(model, batch, outputs), batch)
            if on_batch is not None:
                on_batch(batch.num_graphs)
    finally:
        unfreeze(model, flags)
    return errors.gather()


def predict(
    model: torch.nn.Module, batch: Mapping[str, torch.Tensor], outputs: Mapping[str, bool], training: bool = False
) -> dict[str, torch.Tensor | None]:
    """Call a model with mace's call signature."""
    return model(
        batch,
        training=training,
        compute_force=outputs["forces"],
        compute_virials=outputs["virials"],
        compute_stress=outputs["stress"],
    )


def freeze(model: torch.nn.Module) -> list[bool]:
    """Switch parameters' gradients off (forces then cost less); returns what :func:`unfreeze` needs."""
    flags = [parameter.requires_grad for parameter in model.parameters()]
    model.requires_grad_(False)
    return flags


def unfreeze(model: torch.nn.Module, flags: Sequence[bool]) -> None:
    """Give parameters their flags back."""
    for parameter, flag in zip(model.parameters(), flags, strict=True):
        parameter.requires_grad_(flag)
