"""Neighbour lists that are kept from step to step of a simulation, for programs that hold arrays."""

from typing import Any

import numpy as np
import torch

from phi_equivariant.pairs import KeptPairs, both_ways

Array = np.ndarray[Any, np.dtype[Any]]


class NeighbourList:
    """All ordered pairs within a cut-off, an atom's own images included, from lists that reach further.

    Open structures and large cells cost what their atoms and neighbours cost. See ``KeptPairs`` for how long a list
    serves.

    Parameters
    ----------
    cutoff: Å
    skin: Å by which the lists reach beyond the cut-off
    """

    def __init__(self, cutoff: float, skin: float) -> None:
        self.cutoff, self.kept = cutoff, KeptPairs(both_ways, skin)

    def __call__(self, positions: Array, cell: Array, pbc: Array) -> tuple[Array, Array, Array]:
        """Senders (n_edges,), receivers (n_edges,) and cell images (n_edges, 3), so that the vector from sender to
        receiver is r_receiver − r_sender + images·cell: positions (n_atoms, 3) and cell (3, 3) in Å, pbc (3,)."""
        senders, receivers, images = self.kept(
            self.cutoff,
            torch.tensor(positions, dtype=torch.float64),
            torch.tensor(cell, dtype=torch.float64),
            torch.tensor(pbc, dtype=torch.bool),
        )
        return senders.numpy(), receivers.numpy(), images.numpy()

    @property
    def built_at(self) -> object:
        """The structure that the list in use was made for; None before the first."""
        return self.kept.latest()
