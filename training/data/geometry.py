"""Whether a model can take a structure's atoms, positions and cell."""

from collections.abc import Collection, Iterable

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols

from phi_equivariant.errors import InputError
from phi_equivariant.inputs.cells import check_cells, describe_pbc
from phi_equivariant.inputs.distances import check_distances

#: Numbers of periodic directions that there are.
ALL_PERIODICITIES = frozenset({0, 1, 2, 3})
_KINDS = ("a molecule", "a wire", "a slab", "a crystal")


def check_geometry(atoms: Atoms, where: str, elements: Collection[int] | None, periodicities: Collection[int]) -> None:
    """InputError, naming the frame ``where``, unless a model can take its atoms, positions and cell.

    ``elements`` : atomic numbers that the model knows, None for any; ``periodicities`` : numbers of periodic directions
    that it treats.
    """
    if len(atoms) == 0:
        raise InputError(f"{where} has no atoms. Remove it.")
    if not np.isfinite(atoms.positions).all():
        raise InputError(f"{where} has positions that are not finite (nan or inf). Remove the frame.")
    if not np.isfinite(atoms.cell.array).all():
        raise InputError(f"{where} has a cell that is not finite (nan or inf). Remove the frame.")
    if atoms.pbc.any():
        # mace would take a cell of zeros for one of 1 Å.
        check_cells(torch.tensor(atoms.cell.array)[None], torch.tensor(atoms.pbc)[None], where)
    if (number := int(atoms.pbc.sum())) not in periodicities:
        treated = ", ".join(_KINDS[n].split()[1] + "s" for n in sorted(periodicities))
        hint = " (coulomb treats slabs with charge_constraint: project)" if number == 2 else ""
        raise InputError(
            f"{where} is {_KINDS[number]} (pbc {describe_pbc(atoms.pbc)}), and Φ's operator treats only "
            f"{treated}{hint}. Use operator: graph, or correct the pbc in the file."
        )
    if atoms.pbc.any() and not _spans_space(atoms):
        raise InputError(
            f"{where} is a slab or a wire (pbc {describe_pbc(atoms.pbc)}) whose periodic vectors point where mace puts "
            "those of open directions: along the axes of these. Turn the structure, or correct its pbc or Lattice."
        )
    check_distances(atoms, where)
    if elements is not None and (unknown := set(atoms.numbers.tolist()) - set(elements)):
        raise InputError(
            f"{where} holds {_symbols(unknown)}, which the model does not know: its elements are {_symbols(elements)}. "
            "Remove the frame or train a model on these elements too."
        )
    if 0 in atoms.numbers:
        raise InputError(f"{where} holds an atom without an element (X). Correct the file.")


def describe_periodicity(counts: dict[int, int]) -> str:
    """A line for the log, from {number of periodic directions: structures}."""
    parts = [f"{counts[n]} periodic in {n} direction{'s' if n > 1 else ''}" for n in (3, 2, 1) if counts.get(n)]
    return "cells: " + ", ".join([*parts, *([f"{counts[0]} open"] if counts.get(0) else [])])


def _spans_space(atoms: Atoms) -> bool:
    """Whether periodic vectors are independent, of each other and of the axes that mace puts in open directions."""
    vectors = np.where(atoms.pbc[:, None], atoms.cell.array, np.eye(3))
    lengths = np.linalg.norm(vectors, axis=1)
    return bool(abs(np.linalg.det(vectors)) > 1e-8 * lengths.prod())


def _symbols(numbers: Iterable[int]) -> str:
    return ", ".join(chemical_symbols[number] for number in sorted(numbers))
