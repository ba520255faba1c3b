"""The external field of a structure: homogeneous, in V/Å, and zero along periodic directions."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from ase import Atoms

from phi_equivariant.errors import InputError
from phi_equivariant.inputs.cells import describe_pbc
from phi_equivariant.inputs.headers import letters
from phi_equivariant.inputs.state import entries, places_of
from phi_equivariant.inputs.tensors import numbers

NAME = "external_field"
_ALONG = 1e-5  # |F·a| in units of |F||a| that rounding may make


def field_of(value: Any, what: str = NAME) -> np.ndarray:
    """Three finite numbers in V/Å, (3,); ``what`` names them in messages.

    Raises
    ------
    InputError
        For anything else.
    """
    try:
        field = np.asarray(value.detach().cpu() if torch.is_tensor(value) else value)
    except ValueError:  # rows of unequal length
        field = np.empty(0)
    if field.size != 3 or field.dtype.kind not in "iuf" or not np.isfinite(field).all():
        raise InputError(f"{what} is {value!r}; give three finite numbers (Fx, Fy, Fz) in V/Å.")
    return field.reshape(3).astype(float)


def read_field(atoms: Atoms, given: np.ndarray | None = None) -> np.ndarray:
    """The field of a structure, ``atoms.info["external_field"]`` or that of a whole simulation, (3,); zero where none.

    It is looked for where ``StateReader`` looks for the total charge.

    Raises
    ------
    InputError
        If it is not three finite numbers, is given twice and differs, or lies along a periodic direction.
    """
    found = [(place, field_of(value, place)) for place, value in entries(atoms, NAME) if value is not None]
    if not found:
        _check_spelling(atoms)
    if given is not None:
        found.append(("what is given for all structures", given))
    for place, field in found[1:]:
        if not np.array_equal(field, found[0][1]):
            raise InputError(
                f"the external field is given twice and differs: {found[0][0]} = {found[0][1].tolist()} V/Å, "
                f"{place} = {field.tolist()} V/Å; leave one out."
            )
    field = found[0][1] if found else np.zeros(3)
    check_directions(field[None], np.asarray(atoms.cell)[None], atoms.pbc[None])
    return field


def _check_spelling(atoms: Atoms) -> None:
    """InputError for an entry that is the name in other letters, or a column of one field for each atom."""
    for place, names in (places_of(atoms) | {"arrays": atoms.arrays}).items():
        for name in names:
            if isinstance(name, str) and letters(name) == letters(NAME) and (name != NAME or place == "arrays"):
                raise InputError(
                    f"{place} has {name!r}, from which the external field is not read; put it into info[{NAME!r}]."
                )


def check_directions(fields: Any, cells: Any, pbc: Any) -> None:
    """InputError for a field along a periodic direction: fields (n, 3) in V/Å, cells (n, 3, 3) in Å, pbc (n, 3)."""
    for index, (field, cell, periodic) in enumerate(
        zip(*(torch.as_tensor(values) for values in (fields, cells, pbc)), strict=True)
    ):
        field, cell, periodic = field.detach().double(), cell.detach().double(), periodic.bool()
        along = (cell @ field).abs() > _ALONG * cell.norm(dim=1) * field.norm()
        if not bool((along & periodic).any()):
            continue
        where = f"of structure {index} " if len(fields) > 1 else ""
        advice = "Give a field perpendicular to them"
        if bool(periodic.all()):
            advice = (
                "No field fits into three of them: where vacuum stands along it, say so by a pbc that is False in that "
                "direction"
            )
        raise InputError(
            f"{NAME} {where}is {field.tolist()} V/Å, along a periodic direction (pbc {describe_pbc(periodic)}): its "
            f"potential would jump from cell to cell, and charges would flow without end. {advice}."
        )


def field_of_batch(data: Mapping[str, Any], cell: torch.Tensor, pbc: torch.Tensor) -> torch.Tensor | None:
    """The fields of a batch, ``external_field`` (n_structures, 3) in V/Å; None where all are zero and constant.

    Raises
    ------
    InputError
        For another shape, numbers that are not finite, or a field along a periodic direction.
    """
    field = data.get(NAME)
    if field is None:
        return None
    field = numbers(NAME, field, data["positions"])
    told = field.detach().cpu()  # at once, not at every question
    if field.shape not in ((len(pbc), 3), (3 * len(pbc),)) or not bool(torch.isfinite(told).all()):
        raise InputError(
            f"{NAME} is {told.tolist()} for {len(pbc)} structures; give three finite numbers for each, in V/Å."
        )
    field = field.reshape(-1, 3)
    if not bool((told != 0).any()):
        return field if field.requires_grad else None
    if not bool(pbc.any()):
        return field
    check_directions(field, cell, pbc)
    # What rounding leaves along periodic directions would make an atom's energy jump where it enters the next cell.
    periodic = cell.detach().masked_fill(~pbc[:, :, None], 0.0)
    return field - (field[:, None] @ torch.linalg.pinv(periodic) @ periodic)[:, 0]
