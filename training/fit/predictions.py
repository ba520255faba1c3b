"""What a model says of structures, put where mace_eval_configs puts it."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from ase import Atoms

from phi_equivariant import PhiPotential
from phi_equivariant.attach import find_taps
from phi_equivariant.born_charges import born_effective_charges
from phi_equivariant.errors import InputError
from phi_equivariant.host_protocol import chosen_head
from phi_equivariant.inputs.graphs import GraphBatch, collate
from phi_equivariant.potential import run_model
from phi_equivariant.structures import is_slab
from phi_equivariant.taps import irreps_of
from training.data.labelled_graphs import GraphMaker
from training.run.evaluation import Predicted

#: Output of a model → name behind the prefix; one value per structure goes into ``info``, one per atom into ``arrays``.
OF_STRUCTURE = {"energy": "energy"}
OF_ATOM = {"forces": "forces"}
OF_STRUCTURE_WITH_PHI = {name: name for name in ("host_energy", "phi_energy", "net_charge")}
OF_ATOM_WITH_PHI = {"charges": "charges", "potential": "potential"}
#: Everything that may be written behind the prefix: what an earlier evaluation has left is taken out.
WRITTEN = (
    *(OF_STRUCTURE | OF_ATOM | OF_STRUCTURE_WITH_PHI | OF_ATOM_WITH_PHI),
    *("stress", "dipole", "polarizability", "surface_potential_step", "atomic_dipoles"),
    *("node_energies", "descriptors", "BO_contributions", "BEC"),
)

#: Values of a structure and values of its atoms, by name.
Prediction = tuple[dict[str, Any], dict[str, np.ndarray]]


class Predictor:
    """Evaluates a model on structures.

    ``model`` : ``PhiPotential`` or a bare host, on the device.

    InputError for a head the model does not have, or a quantity that it does not compute.
    """

    def __init__(
        self, model: torch.nn.Module, device: str = "cpu", head: str | None = None, wanted: Predicted | None = None
    ) -> None:
        self.model: Any = model.eval().requires_grad_(False)
        self.device, self.wanted = device, wanted or Predicted()
        self.numbers = [int(number) for number in torch.as_tensor(model.atomic_numbers)]
        host = model.host if isinstance(model, PhiPotential) else model
        heads, head = chosen_head(model, head, "--head")
        self.embeddings = getattr(host, "embedding_specs", None) or {}
        dtype = next(model.parameters()).dtype
        self.make = GraphMaker(
            self.numbers, float(torch.as_tensor(model.r_max)), heads, head, specs=self.embeddings, dtype=dtype
        )
        self.has_phi = isinstance(model, PhiPotential)
        for option in ("compute_polarizability", "compute_bec"):
            if getattr(self.wanted, option) and not self.has_phi:
                raise InputError(
                    f"--{option}: the model is a bare host, which has no charges. Leave it out, or take a model with Φ."
                )
        if self.has_phi and self.wanted.return_contributions:
            raise InputError(
                "--return_contributions: the energy of a model with Φ is not a sum over body orders; host_energy and "
                "phi_energy are its parts, and are always written."
            )
        count = self.wanted.descriptor_num_layers
        taps = model.taps if isinstance(model, PhiPotential) else find_taps(host)
        self.layers = [irreps_of(parts) for parts in taps.values()]  # of the node features
        if self.wanted.return_descriptors and count != -1 and not 1 <= count <= len(self.layers):
            raise InputError(
                f"--descriptor_num_layers is {count}; give 1 to {len(self.layers)}, the number of the model's layers, "
                "or -1 for all."
            )

    def batch(self, structures: Iterable[Atoms]) -> GraphBatch:
        """Labelled structures as a batch with mace's keys, on the model's device."""
        return collate(list(map(self.make, structures))).to(self.device)

    def __call__(self, batch: GraphBatch) -> dict[str, Any]:
        """The model's output for a batch: forces always, no graph for parameters."""
        more = {"compute_polarizability": True} if self.wanted.compute_polarizability else {}
        output = run_model(
            self.model, batch, training=False, compute_force=True, compute_stress=self.wanted.compute_stress, **more
        )
        if self.wanted.return_contributions and "contributions" not in output:
            raise InputError("--return_contributions: mace's ScaleShiftMACE does not give them, only its MACE does.")
        if self.wanted.compute_bec:  # in mace's form: a row an atom
            output["bec"] = born_effective_charges(self.model, batch).flatten(1)
        return output

    def split(self, output: Mapping[str, Any], batch: GraphBatch) -> Iterator[Prediction]:
        """One pair (values of the structure, values of its atoms) of plain numbers and arrays per structure.

        Only a structure that is periodic in three directions has a stress, only an open one a dipole, and only a slab a
        step of the potential, from which the component of its dipole along the normal follows.
        """
        of_structure, of_atom = dict(OF_STRUCTURE), dict(OF_ATOM)
        if self.has_phi:
            of_structure |= OF_STRUCTURE_WITH_PHI
            of_atom |= OF_ATOM_WITH_PHI
            if self.model.phi.config.multipoles or self.model.phi.config.polarizable:
                of_atom["atomic_dipoles"] = "atomic_dipoles"
        if self.wanted.return_contributions:
            of_structure["contributions"] = "BO_contributions"
        if self.wanted.return_node_energies:
            of_atom["node_energy"] = "node_energies"
        atoms = {name: _numbers(output[key]) for key, name in of_atom.items()}
        if self.wanted.compute_bec:
            atoms["BEC"] = _numbers(output["bec"])
        if self.wanted.return_descriptors:
            atoms["descriptors"] = _numbers(self._descriptors(output["node_feats"]))
        whole = {name: _numbers(output[key]) for key, name in of_structure.items()}
        periodic = batch["pbc"]  # (n_structures, 3)
        partly = {
            "stress": (periodic.all(-1).tolist(), output.get("stress") if self.wanted.compute_stress else None),
            "dipole": ((~periodic.any(-1)).tolist(), output["dipole"] if self.has_phi else None),
            "surface_potential_step": (is_slab(periodic).tolist(), output.get("surface_potential_step")),
            "polarizability": ((~periodic.any(-1)).tolist(), output.get("polarizability")),
        }
        defined = {name: (has, _numbers(values)) for name, (has, values) in partly.items() if values is not None}
        ptr = batch["ptr"].tolist()
        for g, (first, last) in enumerate(zip(ptr[:-1], ptr[1:], strict=True)):
            info = {name: values[g] if values.ndim > 1 else float(values[g]) for name, values in whole.items()}
            info |= {name: values[g] for name, (has, values) in defined.items() if has[g]}
            yield info, {name: values[first:last] for name, values in atoms.items()}

    def _descriptors(self, features: torch.Tensor) -> torch.Tensor:
        """Node features of the first layers, (n_atoms, n): all of them, or the scalars."""
        kept, start = [], 0
        count = self.wanted.descriptor_num_layers
        for irreps in self.layers[: None if count == -1 else count]:
            for (_, irrep), place in zip(irreps, irreps.slices(), strict=True):
                if irrep.l == 0 or not self.wanted.descriptor_invariants_only:
                    kept.append(features[:, start + place.start : start + place.stop])
            start += irreps.dim
        return torch.cat(kept, dim=1)

    def add_to(self, atoms: Atoms, prediction: Prediction, prefix: str) -> None:
        """Put a structure's predictions into ``info`` and ``arrays`` under prefixed names, in place of earlier ones."""
        for name in WRITTEN:
            atoms.info.pop(prefix + name, None)
            atoms.arrays.pop(prefix + name, None)
        info, arrays = prediction
        descriptors = arrays.pop("descriptors", None)
        if descriptors is not None:
            method = self.wanted.descriptor_aggregation_method
            if method == "mean":
                info["descriptors"] = descriptors.mean(0)
            elif method == "per_element_mean":
                symbols = np.array(atoms.get_chemical_symbols())
                info["descriptors"] = {
                    str(symbol): descriptors[symbols == symbol].mean(0).tolist() for symbol in np.unique(symbols)
                }
            else:
                arrays["descriptors"] = descriptors
        atoms.info.update({prefix + name: value for name, value in info.items()})
        for name, values in arrays.items():
            atoms.set_array(prefix + name, values)


def not_finite(prediction: Prediction) -> list[str]:
    """Names of the predictions that are not finite numbers."""
    return [name for values in prediction for name, value in values.items() if not np.isfinite(value).all()]


def _numbers(values: torch.Tensor) -> np.ndarray:
    return values.detach().cpu().double().numpy()
