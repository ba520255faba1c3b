"""Structures as sequences: in memory, or made and read when they are asked for; several as one, and some of them."""

import abc
import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, overload

import numpy as np
from ase import Atoms


class Frames(Sequence[Atoms]):
    """Structures that are made when they are asked for: an index gives one, a slice the view :class:`Picked`.

    ``on_disk`` : whether they are read from disk each time.
    """

    on_disk = False

    @abc.abstractmethod
    def at(self, index: int) -> Atoms:
        """The structure of that number, from 0 on."""

    @overload
    def __getitem__(self, item: int) -> Atoms: ...

    @overload
    def __getitem__(self, item: slice) -> "Picked": ...

    def __getitem__(self, item: int | slice) -> "Atoms | Picked":
        if isinstance(item, slice):
            return Picked(self, range(len(self))[item])
        if not -len(self) <= item < len(self):
            raise IndexError(item)
        return self.at(item % len(self))

    def fingerprint(self) -> str:
        """A text that is another where the structures are; of those on disk."""
        raise NotImplementedError


class Chain(Frames):
    """Several sequences on disk as one; ``name`` is what reports call it."""

    name = ""
    on_disk = True

    def __init__(self, parts: Iterable[Frames]) -> None:
        self.parts = list(parts)
        self.ends = np.cumsum([len(part) for part in self.parts])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def at(self, index: int) -> Atoms:
        """From the part that has it."""
        part, place = place_in(self.ends, index)
        return self.parts[part][place]

    def fingerprint(self) -> str:
        """sha256 of the parts' fingerprints."""
        return hashlib.sha256("".join(part.fingerprint() for part in self.parts).encode()).hexdigest()


class Picked(Frames):
    """Some of the structures of others, by their indices, in this order."""

    def __init__(self, whole: Frames, indices: Iterable[int]) -> None:
        self.whole, self.indices = whole, [int(index) for index in indices]
        self.on_disk = whole.on_disk

    def __len__(self) -> int:
        return len(self.indices)

    def at(self, index: int) -> Atoms:
        """From the others."""
        return self.whole[self.indices[index]]

    def fingerprint(self) -> str:
        """What the others hold, and which of it."""
        return f"{self.whole.fingerprint()}{self.indices}"


def place_in(ends: np.ndarray, index: int) -> tuple[int, int]:
    """(part, place in it) of an index into parts that end before ``ends``."""
    part = int(np.searchsorted(ends, index, side="right"))
    return part, index - (int(ends[part - 1]) if part else 0)


def picked(part: Sequence[Atoms], indices: Iterable[int]) -> Sequence[Atoms]:
    """Some of the structures, in this order: a view of those that are made when they are asked for, else a list."""
    return Picked(part, indices) if isinstance(part, Frames) else [part[i] for i in indices]


def on_disk(part: Any) -> bool:
    """Whether structures are read from disk each time that they are asked for."""
    return isinstance(part, Frames) and part.on_disk
