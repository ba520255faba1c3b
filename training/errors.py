"""Errors of predictions: mean absolute and root mean square, of every quantity that is labelled and predicted."""

import torch

#: Quantity → (unit, factor from eV, Å, e).
QUANTITIES = {
    "energy_per_atom": ("meV", 1e3),
    "forces": ("meV/Å", 1e3),
    "charges": ("e", 1.0),
    "dipole": ("e·Å", 1.0),
}

KEPT_PAIRS = 200_000  # a plot shows no more, and large test sets would fill the memory


class ErrorSums:
    """Sums of |error| and error² per quantity, gathered batch by batch.

    Energies are per atom; forces and dipoles are by component. Structures whose label is absent, or has weight zero,
    do not count.
    """

    def __init__(self, keep=()):
        self.sums = {}
        self.keep = keep  # quantities whose pairs (label, prediction) are kept for plots
        self.pairs = {name: [] for name in keep}

    def update(self, output, batch):
        """Add a batch."""
        structure = batch["batch"]
        atoms = (batch["ptr"][1:] - batch["ptr"][:-1]).to(batch["energy"].dtype)
        self._add("energy_per_atom", output["energy"] / atoms, batch["energy"] / atoms, batch["energy_weight"] != 0)
        self._add("forces", output.get("forces"), batch["forces"], (batch["forces_weight"] != 0)[structure])
        self._add("charges", output.get("charges"), batch["charges"], (batch["charges_weight"] != 0)[structure])
        self._add("dipole", output.get("dipole"), batch["dipole"], (batch["dipole_weight"].view(-1, 3) != 0).any(1))

    def _add(self, name, predicted, label, labelled):
        if predicted is None or not bool(labelled.any()):
            return
        predicted, label = predicted.detach()[labelled].double(), label[labelled].double()
        error = predicted - label
        absolute, square, count = self.sums.get(name, (0.0, 0.0, 0))
        self.sums[name] = (absolute + error.abs().sum(), square + error.square().sum(), count + error.numel())
        if name in self.keep and sum(part.shape[1] for part in self.pairs[name]) < KEPT_PAIRS:
            self.pairs[name].append(torch.stack([label.flatten(), predicted.flatten()]).cpu())

    def table(self):
        """{quantity: {"mae", "rmse", "unit", "count"}} in the units of :data:`QUANTITIES`."""
        table = {}
        for name, (absolute, square, count) in self.sums.items():
            unit, factor = QUANTITIES[name]
            mae, rmse = float(absolute) / count * factor, (float(square) / count) ** 0.5 * factor
            table[name] = {"mae": mae, "rmse": rmse, "unit": unit, "count": count}
        return table

    def flat(self, prefix):
        """{prefix_mae_quantity: value, prefix_rmse_quantity: value}, for the metrics."""
        return {f"{prefix}_{kind}_{name}": row[kind] for name, row in self.table().items() for kind in ("mae", "rmse")}


def evaluate(model, loader, outputs, device, keep=(), on_batch=None):
    """Errors of a model over a loader, without gradients of its parameters."""
    model.eval()
    errors = ErrorSums(keep)
    flags = freeze(model)
    try:
        for batch in loader:
            batch = batch.to(device)
            errors.update(predict(model, batch, outputs), batch)
            if on_batch is not None:
                on_batch(batch.num_graphs)
    finally:
        unfreeze(model, flags)
    return errors


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
