"""Ewald's splitting s: where a lattice sum is divided between pairs of atoms and waves, which is free.

Pairs reach some 7 s, waves end at some 7/s, so the cheapest s follows from the volume and the density. It moves in
steps of 2^¼, and where pairs are kept only once it is clearly wrong: simulations at constant pressure keep theirs.
"""

import math

import numpy as np
import torch

_PER_OCTAVE = 4
_STAYS = 0.75  # steps from the best one within which the last one is kept
_BOX = 6.0  # Å, edge of the boxes in which atoms are counted for their local density
_SPARSE = 20.0  # Å³ per atom, above which there may be empty space


class Splitting:
    """Chooses s for each structure, and remembers what it chose for structures of so many atoms.

    ``fixed``, in Å, is the s of all structures where it is not None.
    """

    least_with_waves, least_with_mesh = 1.5, 1.0  # Å
    waves_per_edge = 0.18  # s / V^⅓: all pairs and about 500 waves, whatever the volume
    pair_per_point = 5.0  # time of a pair over that of a mesh point
    reach, points_per_width = 6.5, 3.0  # of pairs, in units of s; mesh points along s

    def __init__(self) -> None:
        self.fixed: float | None = None
        self._last: dict[tuple[str, int], float] = {}

    def with_waves(self, volume: float, n_atoms: int, keep: bool) -> float:
        """s in Å for sums over all waves, with which pairs and waves of a few hundred atoms cost about the same:
        the larger of 1.5 Å and 0.18 V^⅓."""
        if self.fixed is not None:
            return self.fixed
        least = self.least_with_waves
        wanted = _PER_OCTAVE * math.log2(max(1.0, self.waves_per_edge * volume ** (1 / 3) / least))
        return least * 2 ** (self._step("waves", n_atoms, wanted, keep) / _PER_OCTAVE)

    def with_mesh(self, positions: torch.Tensor, volume: float, keep: bool) -> float:
        """s in Å for sums on a mesh: the larger of 1 Å and what costs least, 0.46 (V/N)^⅓ where atoms fill the cell.

        Where they do not, pairs are as many as the atoms' local density makes, but no more than all.
        """
        if self.fixed is not None:
            return self.fixed
        n, least = len(positions), self.least_with_mesh
        density = n / volume
        local = density if volume < _SPARSE * n else max(density, _local_density(positions))
        steps = np.arange(0.0, max(1.0, _PER_OCTAVE * math.log2(max(1.0, volume ** (1 / 3) / least))) + 1, 0.25)
        s = least * 2 ** (steps / _PER_OCTAVE)
        sphere = 4 / 3 * math.pi * (self.reach * s) ** 3
        pairs = n * (np.minimum(0.5 * (local - density) * sphere, 0.5 * n) + 0.5 * density * sphere)
        points = volume * (self.points_per_width / s) ** 3
        wanted = float(steps[np.argmin(self.pair_per_point * pairs + points)])
        return float(least * 2 ** (self._step("mesh", n, wanted, keep) / _PER_OCTAVE))

    def _step(self, kind: str, n_atoms: int, wanted: float, keep: bool) -> float:
        last = self._last.get((kind, n_atoms))
        if keep and last is not None and abs(wanted - last) <= _STAYS:
            return last
        step = float(round(wanted))
        if keep:
            self._last[kind, n_atoms] = step
        return step


@torch.no_grad()
def _local_density(positions: torch.Tensor) -> float:
    """Atoms per Å³ around an atom, on average, from how many there are in its box."""
    box = (positions / _BOX).floor().long()
    box = box - box.amin(0)
    span = box.amax(0) + 1
    number = (box[:, 0] * span[1] + box[:, 1]) * span[2] + box[:, 2]
    held = number.unique(return_counts=True)[1].double()
    return float((held * (held - 1)).sum()) / (len(positions) * _BOX**3)
