"""Periodic directions and cells of a batch: read once, and refused where nothing can be computed."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from phi_equivariant.errors import InputError
from phi_equivariant.inputs.tensors import flags, numbers

THINNEST = 0.5  # Å between opposite faces; below, every atom would sit on its own images


def read_cells(data: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Cells and periodic directions of a batch with mace's keys.

    Parameters
    ----------
    data: dict with ``ptr`` and, for periodic structures, ``cell`` (3 n_structures, 3) in Å and ``pbc``
        (n_structures, 3); a batch without ``pbc`` is one of open structures

    Returns
    -------
    cell: (n_structures, 3, 3), zeros where the batch has none
    pbc: (n_structures, 3), boolean

    Raises
    ------
    InputError
        For neighbours across a cell's face without ``pbc``, or ``pbc`` without ``cell``; other shapes; a cell
        that is not finite, whose periodic vectors lie in one plane or that is thinner than ``THINNEST``.
    """
    n_structures = len(data["ptr"]) - 1
    pbc, cell, images = data.get("pbc"), data.get("cell"), data.get("unit_shifts")
    if pbc is None:
        if images is not None and bool((images != 0).any()):
            raise InputError("the batch has neighbours across a cell's face but no pbc; give pbc (n_structures, 3).")
        pbc = torch.zeros((n_structures, 3), dtype=torch.bool, device=data["positions"].device)
    pbc = flags("pbc", pbc, data["positions"])
    if pbc.numel() != 3 * n_structures:
        raise InputError(f"pbc has shape {tuple(pbc.shape)} for {n_structures} structures; give (n_structures, 3).")
    pbc = pbc.reshape(n_structures, 3)
    if cell is None:
        if bool(pbc.any()):
            raise InputError("a structure is periodic (pbc) but the batch has no cell; give cell (3 n_structures, 3).")
        return data["positions"].new_zeros((n_structures, 3, 3)), pbc
    cell = numbers("cell", cell, data["positions"])
    if cell.numel() != 9 * n_structures:
        raise InputError(f"cell has shape {tuple(cell.shape)} for {n_structures} structures; give (3 n_structures, 3).")
    cell = cell.reshape(n_structures, 3, 3)
    if bool(pbc.any()):
        check_cells(cell, pbc)
    return cell, pbc


def check_cells(cell: torch.Tensor, pbc: torch.Tensor, where: str = "structure {}") -> None:
    """InputError unless the periodic vectors of every cell span a lattice that can be summed over.

    Parameters
    ----------
    cell: (n_structures, 3, 3) in Å; pbc: (n_structures, 3), boolean
    where: what to call a structure, with its index
    """
    cell, pbc = cell.detach().cpu(), pbc.cpu()  # at once: each number that is looked at on a GPU would wait for it
    for index in pbc.any(1).nonzero()[:, 0].tolist():
        vectors, name = cell[index], where.format(index)
        given = f"{vectors.tolist()} Å with pbc {describe_pbc(pbc[index])}"
        if not bool(torch.isfinite(vectors).all()):
            raise InputError(f"the cell of {name} is not finite (NaN or infinity): {given}.")
        heights = lattice_heights(vectors[pbc[index]])
        if heights is None:
            raise InputError(
                f"the cell of {name} is singular: {given}. The vectors of periodic directions must be there and point "
                "different ways; for a molecule set pbc=False."
            )
        if float(heights.min()) < THINNEST:
            raise InputError(
                f"the cell of {name} is too small: opposite faces are {float(heights.min()):.3g} Å apart ({given}), "
                f"and at least {THINNEST} Å are needed to list neighbours. Is the cell given in Å?"
            )


def lattice_heights(vectors: torch.Tensor) -> torch.Tensor | None:
    """Distances in Å between the planes of a lattice of 1 to 3 vectors (m, 3) → (m,); None if it has no volume."""
    vectors = vectors.double()
    lengths = vectors.norm(dim=1)
    if bool((lengths == 0).any()):
        return None
    unit = vectors / lengths[:, None]
    gram = unit @ unit.mT  # its determinant is the squared volume of a cell of unit vectors
    if float(torch.linalg.det(gram)) < 1e-10:
        return None
    return lengths / torch.linalg.inv(gram).diagonal().sqrt()


def describe_pbc(pbc: Iterable[Any]) -> str:
    """``T T F`` for periodic, periodic, open."""
    return " ".join("FT"[int(periodic)] for periodic in pbc)


def check_open(pbc: torch.Tensor, reason: str) -> None:
    """InputError, with the reason, unless all structures are open: pbc (n_structures, 3)."""
    periodic = pbc.any(1).nonzero()[:, 0].tolist()
    if periodic:
        raise InputError(f"structure {periodic[0]} is periodic (pbc {describe_pbc(pbc[periodic[0]])}), but {reason}.")
