"""Structures that stay on disk, joined and picked."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from ase import Atoms


class Chain(Sequence[Atoms]):
    """Several sequences as one; ``name`` is what reports call it."""

    name = ""

    def __init__(self, parts: Iterable[Any]) -> None:
        self.parts: list[Any] = list(parts)
        self.ends = np.cumsum([len(part) for part in self.parts])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: Any) -> Any:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        part = int(np.searchsorted(self.ends, index, side="right"))
        return self.parts[part][index - (int(self.ends[part - 1]) if part else 0)]

    def fingerprint(self) -> str:
        """sha256 of the parts' fingerprints."""
        return hashlib.sha256("".join(part.fingerprint() for part in self.parts).encode()).hexdigest()


class Picked(Sequence[Atoms]):
    """Some of the structures of a chain, by their indices."""

    def __init__(self, chain: Chain, indices: Sequence[int]) -> None:
        self.chain, self.indices = chain, list(indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        return self.chain[self.indices[index]]

    def fingerprint(self) -> str:
        """What the chain holds, and which of it."""
        return f"{self.chain.fingerprint()}{self.indices}"
