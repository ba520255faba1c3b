"""Copies of atoms that other processes own: which they are, and messages between the copies and their owners."""

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


class Ghosts:
    """Owned atoms of all processes and the copies that this one has of them; built together, by all processes.

    Parameters
    ----------
    comm: mpi4py's communicator
    own: tags of the owned atoms, (n_own,)
    ghosts: tags of the copies, (n_ghosts,); a tag may be there several times, and may be owned here (periodic images)

    Raises
    ------
    LookupError
        For a copy of an atom that nobody owns.
    """

    def __init__(self, comm: Any, own: Array, ghosts: Array) -> None:
        self.comm, self.own, self.ghosts = comm, own.copy(), ghosts.copy()
        self.counts = np.array(comm.allgather(len(own)))
        tags = np.empty(self.counts.sum(), dtype=own.dtype)
        comm.Allgatherv(np.ascontiguousarray(own), [tags, self.counts])
        self.order = tags.argsort(kind="stable")  # of all atoms, by tag
        self.tags = tags[self.order]
        #: Rows of the owned atoms, and of the copies, among all atoms in the order of their tags.
        self.own_rows = np.searchsorted(self.tags, own)
        self.ghost_rows = np.searchsorted(self.tags, ghosts)
        if (self.tags[self.ghost_rows.clip(max=len(tags) - 1)] != ghosts).any():
            raise LookupError("this process has a copy of an atom that no process owns")
        starts = np.cumsum(self.counts) - self.counts
        rows = self.order[self.ghost_rows]
        owner = np.searchsorted(starts + self.counts, rows, side="right")
        #: Copies sorted by owner, and how many there are of each.
        self.by_owner = owner.argsort(kind="stable")
        self.wanted = np.bincount(owner, minlength=comm.size)
        self.asked = np.empty_like(self.wanted)
        comm.Alltoall(self.wanted, self.asked)
        slots = (rows - starts[owner])[self.by_owner]
        self.asked_slots = np.empty(self.asked.sum(), dtype=slots.dtype)
        comm.Alltoallv([slots, self.wanted], [self.asked_slots, self.asked])

    def fit(self, own: Array, ghosts: Array) -> bool:
        """Whether, on all processes, these still are the atoms; a message to all."""
        same = np.array_equal(own, self.own) and np.array_equal(ghosts, self.ghosts)
        return not self.comm.allreduce(not same)

    def gather(self, rows: Array) -> Array:
        """Rows of the owned atoms (n_own, c) → those of all atoms in the order of their tags, (n_atoms, c)."""
        width = rows.shape[1]
        found = np.empty((len(self.tags), width), dtype=rows.dtype)
        self.comm.Allgatherv(np.ascontiguousarray(rows), [found, self.counts * width])
        return found[self.order]

    def to_copies(self, rows: Array) -> Array:
        """Rows of the owned atoms (n_own, c) → those of the copies, (n_ghosts, c)."""
        width = rows.shape[1]
        arrived = np.empty((len(self.by_owner), width), dtype=rows.dtype)
        sent = np.ascontiguousarray(rows[self.asked_slots])
        self.comm.Alltoallv([sent, self.asked * width], [arrived, self.wanted * width])
        found = np.empty_like(arrived)
        found[self.by_owner] = arrived
        return found

    def to_owners(self, rows: Array) -> Array:
        """Rows of the copies (n_ghosts, c) → their sums at the owned atoms, (n_own, c)."""
        width = rows.shape[1]
        arrived = np.empty((len(self.asked_slots), width), dtype=rows.dtype)
        sent = np.ascontiguousarray(rows[self.by_owner])
        self.comm.Alltoallv([sent, self.wanted * width], [arrived, self.asked * width])
        found = np.zeros((len(self.own), width), dtype=rows.dtype)
        np.add.at(found, self.asked_slots, arrived)
        return found
