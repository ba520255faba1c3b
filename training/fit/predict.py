"""Predictions of a model for batches, and their errors over a set."""

from phi_equivariant.batching import segment_sum
from phi_equivariant.host_energy import isolated_of_atoms
from phi_equivariant.potential import run_model
from training.report.error_sums import ErrorSums


def isolated_energies(model):
    """A function from a batch to the energies (n_structures,) in eV of its isolated atoms, as the model has them."""

    def energies(batch):
        of_atom = isolated_of_atoms(model, batch)
        return segment_sum(of_atom, batch["batch"], len(batch["ptr"]) - 1)

    return energies


def evaluate(model, loader, outputs, device, keep=(), on_batch=None, isolated=None):
    """Errors of a model over a loader, without gradients of its parameters.

    In a distributed run every process evaluates its share of the batches and has the errors of all.
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


def predict(model, batch, outputs, training=False):
    """Call a model with mace's call signature."""
    return run_model(
        model,
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
