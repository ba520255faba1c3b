"""What it takes to evaluate a model on structures, whichever program asks: the model made ready, and its input."""

from pathlib import Path

import numpy as np
import torch

from phi_equivariant.engines.neighbours import NeighbourList
from phi_equivariant.errors import InputError
from phi_equivariant.inputs.cells import check_cells
from phi_equivariant.inputs.distances import check_edges
from phi_equivariant.inputs.embedded import check_classes
from phi_equivariant.inputs.total_charge import total_charge_of
from phi_equivariant.potential import PhiPotential
from phi_equivariant.weights import check_dtype, load_model

#: Entries of ``atoms.info`` that a host may embed beside the total charge.
EMBEDDED = {
    "total_spin": lambda info: float(info.get("total_spin", info.get("spin", 1.0))),
    "elec_temp": lambda info: float(info.get("elec_temp", 0.0)),
}


def ready_model(model, device="cpu", dtype=None):
    """A model, or that of a folder, on its device, in the wanted precision and in evaluation mode; not copied.

    Raises
    ------
    InputError
        For an unknown precision, or a folder that holds no model.
    """
    check_dtype(dtype)
    if isinstance(model, str | Path):
        model = load_model(model, device=device, dtype=dtype)
    elif dtype is not None:
        model = model.to(getattr(torch, dtype))
    return model.to(device).eval()


def host_of(model):
    """The host of a potential; a bare host itself."""
    return model.host if isinstance(model, PhiPotential) else model


def embedded_by(model):
    """Names of the quantities of a structure that a model's host embeds."""
    return set(getattr(host_of(model), "embedding_specs", None) or {})


class ModelInput:
    """Batches with mace's keys for one model, made from ase's structures; neighbour lists are kept between calls.

    Parameters
    ----------
    model: ``PhiPotential`` or a host
    head: name of the host's head, for hosts with several
    skin: Å by which the neighbour lists reach beyond the cut-off

    Raises
    ------
    InputError
        For a head that the model does not have, a skin that is negative, or a host that embeds what ``atoms.info`` has
        no entry for.
    """

    def __init__(self, model, head=None, skin=0.5):
        if not skin >= 0:
            raise InputError(f"skin is {skin!r}; give a length in Å, 0 or more.")
        heads = list(getattr(model, "heads", None) or ["Default"])
        head = heads[0] if head is None and len(heads) == 1 else head
        if head not in heads:
            raise InputError(f"head is {head!r}; the model has the heads {', '.join(heads)}: name one of them.")
        if unknown := sorted(embedded_by(model) - {"total_charge", *EMBEDDED}):
            raise InputError(f"the host embeds {', '.join(unknown)}, which cannot be read from atoms.info.")
        self.model, self.head, self.skin = model, heads.index(head), skin
        self.lists = []  # one for each place in the batch
        self._elements = {int(z): i for i, z in enumerate(model.atomic_numbers)}
        self._info = {"total_charge": total_charge_of, **EMBEDDED}

    def read(self, info):
        """What the model is told of ``atoms.info``: {name: number}."""
        return {name: value(info) for name, value in self._info.items()}

    def __call__(self, structures):
        """One batch of ``structures``, a list of ase's ``Atoms``.

        Raises
        ------
        InputError
            For a structure without atoms, with elements that the model does not know, positions or a cell that are not
            finite, a singular cell, a total charge that is no number, or one that is no class of the host's embedding.
        """
        self._check(structures)
        reference = next(self.model.parameters())
        number = {"dtype": reference.dtype, "device": reference.device}
        whole = {"dtype": torch.long, "device": reference.device}
        counts = [len(atoms) for atoms in structures]
        ptr = np.concatenate([[0], np.cumsum(counts)])
        cells = np.stack([np.asarray(atoms.cell) for atoms in structures])
        edges, images, shifts = self._edges(structures, cells, ptr)
        species = torch.tensor([self._elements[z] for atoms in structures for z in atoms.numbers.tolist()], **whole)
        values = [self.read(atoms.info) for atoms in structures]
        info = {name: torch.tensor([value[name] for value in values], **number) for name in self._info}
        check_classes(host_of(self.model), info)
        batch = {
            "positions": torch.tensor(np.concatenate([atoms.positions for atoms in structures]), **number),
            "node_attrs": torch.nn.functional.one_hot(species, len(self._elements)).to(reference.dtype),
            "edge_index": torch.tensor(edges, **whole),
            "shifts": torch.tensor(shifts, **number),
            "unit_shifts": torch.tensor(images, **number),
            "cell": torch.tensor(cells.reshape(-1, 3), **number),
            "pbc": torch.tensor(np.stack([atoms.pbc for atoms in structures])),
            "batch": torch.tensor(np.repeat(np.arange(len(structures)), counts), **whole),
            "ptr": torch.tensor(ptr, **whole),
            "head": torch.full((len(structures),), self.head, **whole),
            **info,
        }
        check_edges(batch)
        return batch

    def _edges(self, structures, cells, ptr):
        """Edges (2, n_edges) of the whole batch, their cell images and shifts (n_edges, 3)."""
        while len(self.lists) < len(structures):
            self.lists.append(NeighbourList(float(self.model.r_max), self.skin))
        edges, images, shifts = [], [], []
        for atoms, cell, first, neighbours in zip(structures, cells, ptr, self.lists, strict=False):
            senders, receivers, image = neighbours(atoms.positions, cell, atoms.pbc)
            edges.append(np.stack([senders, receivers]) + first)
            images.append(image)
            shifts.append(image @ cell)
        return np.concatenate(edges, axis=1), np.concatenate(images), np.concatenate(shifts)

    def _check(self, structures):
        for index, atoms in enumerate(structures):
            where = f" of structure {index}" if len(structures) > 1 else ""
            if len(atoms) == 0:
                raise InputError(f"a structure has no atoms{where and f' (structure {index})'}.")
            if not np.isfinite(atoms.positions).all():
                raise InputError(
                    f"positions{where} are not finite (NaN or infinity); the simulation has probably blown up."
                )
            if unknown := sorted(set(atoms.numbers.tolist()) - set(self._elements)):
                raise InputError(
                    f"the model does not know atomic numbers {unknown}{where}; it was made for {list(self._elements)}."
                )
        cells = torch.tensor(np.stack([np.asarray(atoms.cell) for atoms in structures]))
        check_cells(cells, torch.tensor(np.stack([atoms.pbc for atoms in structures])))
