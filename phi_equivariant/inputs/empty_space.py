"""Structures without their empty space, so that the cost of finding neighbours follows the number of atoms."""

from dataclasses import dataclass

import numpy as np
from ase.geometry import complete_cell

_BOXES = 100_000  # of the cut-off's size, and 100 more for each atom: searching so many takes no longer than the atoms
_MARGIN = 1.001  # of the cut-off: what is that far apart is not a neighbour, whatever the rounding


@dataclass(frozen=True)
class Compact:
    """A structure with the neighbours of another, in a small cell that is periodic in all directions.

    positions : (n_atoms, 3) in Å; cell : (3, 3) in Å; wraps : (n_atoms, 3), whole cell vectors of the other structure
    by which atoms were moved: an edge from i to j with images S here has images S + wraps_j − wraps_i there; opened :
    (3,), directions in which nothing is periodic here, S is zero there.
    """

    positions: np.ndarray
    cell: np.ndarray
    wraps: np.ndarray
    opened: np.ndarray


def mostly_empty(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float) -> bool:
    """Whether mace's search for neighbours would go through many more boxes than there are atoms.

    It divides the cell into boxes of the cut-off's size, and gives open directions 5 boxes for each Å that an atom is
    away from the origin.
    """
    basis = complete_cell(np.where(np.asarray(pbc)[:, None], cell, 0.0))
    heights = 1 / np.linalg.norm(np.linalg.inv(basis), axis=0)
    boxes = np.where(pbc, np.maximum(heights / cutoff, 1), 5 * (np.abs(positions).max() + 1))
    return bool(boxes.prod() > _BOXES + 100 * len(positions))


def compact(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float) -> Compact:
    """Take out empty space that is wider than a cut-off, which parts no neighbours.

    A periodic direction across which there is such a gap is opened there. In open directions every gap is narrowed, and
    the cell ends one cut-off behind the last atom.

    Parameters
    ----------
    positions : (n_atoms, 3) in Å
    cell : (3, 3) in Å; vectors of open directions do not matter
    pbc : (3,), boolean
    cutoff : in Å
    """
    reach, pbc = _MARGIN * cutoff, np.array(pbc, bool)
    basis = complete_cell(np.where(pbc[:, None], cell, 0.0))
    inverse = np.linalg.inv(basis)
    wraps = np.zeros_like(positions)
    opened = ~pbc
    for k in pbc.nonzero()[0]:
        fractions = positions @ inverse[:, k]
        inside = fractions % 1.0
        ordered = np.sort(inside)
        gaps = np.diff(np.append(ordered, ordered[0] + 1))
        widest = int(gaps.argmax())
        if gaps[widest] / np.linalg.norm(inverse[:, k]) > reach:  # height of the cell times the gap
            opened[k] = True
            wraps[:, k] = np.where(inside > ordered[widest], 0.0, 1.0) - np.round(fractions - inside)
    basis = complete_cell(np.where(opened[:, None], 0.0, cell))
    places = (positions + wraps @ np.where(pbc[:, None], cell, 0.0)) @ np.linalg.inv(basis)
    for k in opened.nonzero()[0]:
        order = places[:, k].argsort()
        steps = np.minimum(np.diff(places[order, k], prepend=places[order[0], k]), reach)
        places[order, k] = np.cumsum(steps)
        basis[k] *= places[order[-1], k] + reach
        places[:, k] /= places[order[-1], k] + reach
    return Compact(places @ basis, basis, wraps, opened)
