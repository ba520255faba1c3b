"""What a geometry must be to enter the data set: bonds where the formula has them, no others, no atoms too close."""

from dataclasses import dataclass

import numpy as np
from ase.data import covalent_radii
from ase.data.vdw_alvarez import vdw_radii

#: Positions are multiples of this, Å. The last bits of a processor's arithmetic are lost in it, so that a trajectory
#: is the same on every machine.
GRID = 1e-4
# Distances in units of the sum of two covalent radii.
LONGEST_BOND = 1.35
SHORTEST_BOND = 0.62
SHORTEST_CONTACT = 1.15  # between atoms that are not bonded: below it there is a bond
SAME = 2e-3  # Å: frames of the same atoms whose sorted distances are closer than this count as one


def on_grid(positions: np.ndarray) -> np.ndarray:
    """Positions (N, 3), rounded to ``GRID``."""
    return np.round(np.round(positions / GRID) * GRID, 4)


def pair_distances(positions: np.ndarray) -> np.ndarray:
    """All distances (N, N) of positions (N, 3)."""
    return np.linalg.norm(positions[:, None] - positions[None], axis=-1)


@dataclass(frozen=True)
class Bonding:
    """Who is bonded to whom.

    Parameters
    ----------
    numbers : (N,) atomic numbers
    bonds : (n, 2) pairs of atoms
    """

    numbers: np.ndarray
    bonds: np.ndarray

    def fault(self, positions: np.ndarray, stretched: tuple[int, int] | None = None) -> str | None:
        """What is wrong with positions (N, 3), or None; the bond ``stretched`` may have any length."""
        radii = covalent_radii[self.numbers]
        ratios = pair_distances(positions) / (radii[:, None] + radii[None])
        np.fill_diagonal(ratios, np.inf)
        first, second = self.bonds.T.reshape(2, -1)
        lengths = ratios[first, second]
        if stretched is not None:
            ours = (np.sort(self.bonds, axis=1) == sorted(stretched)).all(axis=1)
            lengths = lengths[~ours]
            ratios[stretched] = ratios[stretched[::-1]] = np.inf
        if lengths.size and lengths.max() > LONGEST_BOND:
            return "a bond is broken"
        if lengths.size and lengths.min() < SHORTEST_BOND:
            return "a bond is too short"
        ratios[first, second] = ratios[second, first] = np.inf
        return "a bond is formed" if ratios.min() < SHORTEST_CONTACT else None

    def side(self, bond: tuple[int, int]) -> np.ndarray | None:
        """(N,) which atoms go with the second atom of a bond when it breaks; None for a bond in a ring."""
        beside: list[list[int]] = [[] for _ in self.numbers]
        for a, b in self.bonds.tolist():
            beside[a].append(b)
            beside[b].append(a)
        reached, waiting = {bond[1]}, [bond[1]]
        while waiting:
            atom = waiting.pop()
            for other in beside[atom]:
                if other not in reached and {atom, other} != set(bond):
                    reached.add(other)
                    waiting.append(other)
        return None if bond[0] in reached else np.isin(np.arange(len(self.numbers)), list(reached))


def joined_bonding(parts: "list[Bonding]") -> Bonding:
    """The bonding of several molecules as one structure."""
    starts = np.cumsum([0, *(len(part.numbers) for part in parts[:-1])])
    bonds = [part.bonds + start for part, start in zip(parts, starts, strict=True)]
    return Bonding(np.concatenate([part.numbers for part in parts]), np.concatenate(bonds))


def contact(a: np.ndarray, b: np.ndarray) -> float:
    """The shortest distance between atoms of two fragments (N, 3) and (M, 3), Å."""
    return float(np.linalg.norm(a[:, None] - b[None], axis=-1).min())


def closeness(numbers_a: np.ndarray, a: np.ndarray, numbers_b: np.ndarray, b: np.ndarray) -> float:
    """The shortest distance between two fragments in units of the sum of van der Waals radii."""
    radii = vdw_radii[numbers_a][:, None] + vdw_radii[numbers_b][None]
    return float((np.linalg.norm(a[:, None] - b[None], axis=-1) / radii).min())


def fingerprint(numbers: np.ndarray, positions: np.ndarray) -> tuple[bytes, np.ndarray]:
    """The composition, and the sorted distances (N(N−1)/2,), which no rotation or order of atoms changes."""
    distances = pair_distances(positions)[np.triu_indices(len(numbers), 1)]
    return np.sort(numbers).tobytes(), np.sort(distances)


class Seen:
    """Remembers frames and says whether one is there already."""

    def __init__(self) -> None:
        self._known: dict[bytes, list[np.ndarray]] = {}

    def add(self, numbers: np.ndarray, positions: np.ndarray) -> bool:
        """Remember a frame; False if it was known."""
        key, distances = fingerprint(numbers, positions)
        known = self._known.setdefault(key, [])
        if known and len(distances) and (np.abs(np.array(known) - distances).max(axis=1) < SAME).any():
            return False
        known.append(distances)
        return True
