"""Neighbour lists that are kept from step to step of a simulation."""

import numpy as np
from ase.geometry import complete_cell
from ase.neighborlist import primitive_neighbor_list


class NeighbourList:
    """All ordered pairs within a cut-off, an atom's own images included, from a list that reaches further.

    The list serves until an atom has moved by half of what it reaches further, counted modulo the periodic cell
    vectors: programs that wrap atoms back into the cell do not make it void. Another cell does.

    Parameters
    ----------
    cutoff: Å
    skin: Å by which the list reaches beyond the cut-off
    """

    def __init__(self, cutoff, skin):
        self.cutoff, self.skin = cutoff, skin
        self.built_at = None  # positions, cell and periodic directions that the list was made for

    def __call__(self, positions, cell, pbc):
        """Senders (n_edges,), receivers (n_edges,) and cell images (n_edges, 3), so that the vector from sender to
        receiver is r_receiver − r_sender + images·cell: positions (n_atoms, 3) and cell (3, 3) in Å, pbc (3,)."""
        wraps = self._wraps(positions, cell, pbc)
        if wraps is None:
            self._pairs = primitive_neighbor_list("ijS", pbc, cell, positions, self.cutoff + self.skin)
            self.built_at, wraps = (positions.copy(), cell.copy(), pbc.copy()), np.zeros_like(positions)
        senders, receivers, images = self._pairs
        images = images + wraps[senders] - wraps[receivers]
        vectors = positions[receivers] - positions[senders] + images @ cell
        near = np.einsum("ij,ij->i", vectors, vectors) < self.cutoff**2
        return senders[near], receivers[near], images[near]

    def _wraps(self, positions, cell, pbc):
        """Cell vectors by which atoms were wrapped since the list was made, (n_atoms, 3); None if it is void."""
        if self.built_at is None:
            return None
        old, old_cell, old_pbc = self.built_at
        if len(old) != len(positions) or not np.array_equal(old_cell, cell) or not np.array_equal(old_pbc, pbc):
            return None
        moved = positions - old
        wraps = np.round(moved @ np.linalg.inv(complete_cell(cell))) * pbc
        farthest = np.linalg.norm(moved - wraps @ cell, axis=1).max(initial=0.0)
        return wraps if farthest < self.skin / 2 else None
