"""Predictions of a model for batches, and their errors over a set."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from phi_equivariant.errors import InputError
from training.data.batches import GraphBatch, name_in
from training.report.error_sums import ErrorSums


def isolated_energies(model):
    """A function from a batch to the energies (n_structures,) in eV of its isolated atoms, as the model has them."""

    def energies(batch):
        by_head = model.atomic_energies_fn(batch["node_attrs"])  # (n_atoms, n_heads)
        head = batch["head"][batch["batch"]] if by_head.shape[1] > 1 else torch.zeros_like(batch["batch"])
        per_atom = by_head.gather(1, head[:, None]).squeeze(1)
        return torch.zeros_like(batch["energy"]).index_add_(0, batch["batch"], per_atom.to(batch["energy"].dtype))

    return energies


def evaluate(model, loader, outputs, device, keep=(), on_batch=None, isolated=None):
    """Errors of a model over a loader, without gradients of its parameters.

    In a distributed run every process evaluates its share of the batches and has the errors of all.
    """
    model.eval()
    errors = ErrorSums(keep, isolated)
    flags = freeze(model)
    try:
        for indices, batch in zip(loader.batch_sampler, loader, strict=True):
            if not batch:  # this process's share is a batch shorter than others'
                continue
            batch = batch.to(device)
            output = predict(model, batch, outputs)
            check_finite(model, output, batch, loader.dataset, indices)
            errors.update(output, batch)
            if on_batch is not None:
                on_batch(batch.num_graphs)
    finally:
        unfreeze(model, flags)
    return errors.gather()


def check_finite(
    model: torch.nn.Module, output: Mapping[str, Any], batch: GraphBatch, dataset: Any, indices: Iterable[int]
) -> None:
    """InputError, naming the frames, where a model with finite parameters gives energies or forces that are not.

    Parameters
    ----------
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


def predict(model, batch, outputs, training=False):
    """Call a model with mace's call signature."""
    return model(
        batch,
        training=training,
        compute_force=outputs["forces"],
        compute_virials=outputs["virials"],
        compute_stress=outputs["stress"],
    )


def freeze(model):
    """Switch parameters' gradients off (forces then cost less); returns what :func:`unfreeze` needs."""
    flags = [parameter.requires_grad for parameter in model.parameters()]
    model.requires_grad_(False)
    return flags


def unfreeze(model, flags):
    """Give parameters their flags back."""
    for parameter, flag in zip(model.parameters(), flags, strict=True):
        parameter.requires_grad_(flag)
