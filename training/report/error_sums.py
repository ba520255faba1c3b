"""Errors of predictions: mean absolute and root mean square, of every quantity that is labelled and predicted."""

import ase.units
import torch

from training import distribution

#: Quantity → (unit, factor from eV, Å, e).
QUANTITIES = {
    "energy": ("meV", 1e3),
    "energy_per_atom": ("meV", 1e3),
    "forces": ("meV/Å", 1e3),
    "stress": ("meV/Å³", 1e3),
    "virials": ("meV", 1e3),
    "charges": ("e", 1.0),
    "dipole": ("e·Å", 1.0),
    "dipole_per_atom": ("mD", 1e3 / ase.units.Debye),
}
#: Quantities whose predictions are plotted against their labels.
PLOTTED = ("energy_per_atom", "forces", "stress", "charges", "dipole")

KEPT_PAIRS = 200_000  # a plot shows no more, and large test sets would fill the memory


class ErrorSums:
    """Sums of |error|, error², |label| and label² per quantity, gathered batch by batch.

    Forces, stresses, virials and dipoles are by component. Structures whose label is absent, or has weight zero, do not
    count, nor do stresses of open structures and dipoles of periodic ones where a model gives none (NaN).

    Parameters
    ----------
    keep : sequence of str
        Quantities whose pairs (label, prediction) are kept for plots.
    isolated : function or None
        From a batch to the energies (n_structures,) of its isolated atoms in eV, which the kept energies are without.
    """

    def __init__(self, keep=(), isolated=None):
        self.sums = {}
        self.keep, self.isolated = keep, isolated
        self.pairs = {name: [] for name in keep}

    def update(self, output, batch):
        """Add a batch."""
        structure = batch["batch"]
        atoms = (batch["ptr"][1:] - batch["ptr"][:-1]).to(batch["energy"].dtype)
        energy, label, labelled = output["energy"].detach(), batch["energy"], batch["energy_weight"] != 0
        self._add("energy", energy, label, labelled)
        self._add("energy_per_atom", energy / atoms, label / atoms, labelled)
        if self.isolated is not None:
            isolated = self.isolated(batch)
            energy, label = energy - isolated, label - isolated
        self._keep("energy_per_atom", energy / atoms, label / atoms, labelled)
        periodic = batch["pbc"].view(-1, 3)
        for name, by_structure in {
            "forces": (batch["forces_weight"] != 0)[structure],
            "charges": (batch["charges_weight"] != 0)[structure],
            "stress": (batch["stress_weight"] != 0) & _defined(output.get("stress"), periodic.all(1)),
            "virials": batch["virials_weight"] != 0,
        }.items():
            self._add(name, output.get(name), batch.get(name), by_structure)
            self._keep(name, output.get(name), batch.get(name), by_structure)
        if output.get("dipole") is not None:
            predicted, label = output["dipole"].detach(), batch["dipole"]
            labelled = (batch["dipole_weight"].view(-1, 3) != 0).any(1) & _defined(predicted, ~periodic.any(1))
            self._add("dipole", predicted, label, labelled)
            self._add("dipole_per_atom", predicted / atoms[:, None], label / atoms[:, None], labelled)
            self._keep("dipole", predicted, label, labelled)

    def _add(self, name, predicted, label, labelled):
        if predicted is None or not bool(labelled.any()):
            return
        label = label[labelled].double()
        error = predicted.detach()[labelled].double() - label
        sums = torch.stack([error.abs().sum(), error.square().sum(), label.abs().sum(), label.square().sum()])
        before, count = self.sums.get(name, (0.0, 0))
        self.sums[name] = (before + sums, count + error.numel())

    def _keep(self, name, predicted, label, labelled):
        if name not in self.keep or predicted is None or not bool(labelled.any()):
            return
        if sum(part.shape[1] for part in self.pairs[name]) < KEPT_PAIRS:
            pair = torch.stack([label[labelled].flatten(), predicted.detach()[labelled].flatten()])
            self.pairs[name].append(pair.double().cpu())

    def gather(self):
        """Add what the other processes of a distributed run have seen; returns this object."""
        if distribution.size() > 1:
            mine = ({name: (sums.cpu(), count) for name, (sums, count) in self.sums.items()}, self.pairs)
            self.sums, self.pairs = {}, {name: [] for name in self.keep}
            for sums, pairs in distribution.gather(mine):
                for name, (values, count) in sums.items():
                    before, counted = self.sums.get(name, (0.0, 0))
                    self.sums[name] = (before + values, counted + count)
                for name, parts in pairs.items():
                    self.pairs[name] += parts
        return self

    def table(self):
        """{quantity: {"mae", "rmse", "rel_mae", "rel_rmse", "unit", "count"}}, the relative ones in per cent."""
        table = {}
        # In the table's order, whatever the order in which quantities were met.
        for name in (name for name in QUANTITIES if name in self.sums):
            sums, count = self.sums[name]
            mae, square, size, square_size = (sums / count).tolist()
            unit, factor = QUANTITIES[name]
            rmse = square**0.5
            table[name] = {"mae": mae * factor, "rmse": rmse * factor, "unit": unit, "count": count}
            # 1e-9 as in mace, for labels that are all zero
            table[name] |= {"rel_mae": 100 * mae / (size + 1e-9), "rel_rmse": 100 * rmse / (square_size**0.5 + 1e-9)}
        return table

    def flat(self, prefix):
        """{prefix_mae_quantity: value, prefix_rmse_quantity: value}, for the metrics."""
        return {f"{prefix}_{kind}_{name}": row[kind] for name, row in self.table().items() for kind in ("mae", "rmse")}


def _defined(values, always):
    """Structures (n_structures,) that have a quantity: those that must have it, and others where it is not NaN."""
    return always if values is None else always | ~values.flatten(1).isnan().any(1)
