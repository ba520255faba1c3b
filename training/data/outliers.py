"""Energies and forces far from those of the other structures: wrong units, other methods, calculations that failed."""

from array import array
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase import Atoms

from training.quantities import LABELS

DEVIATIONS = 20.0  # of the group's median deviation
LEAST_ENERGY = 1.0  # eV per atom: heating and bond breaking stay below
LEAST_FORCE = 10.0  # eV/Å
SMALLEST_GROUP = 4
NAMED = 10  # frames by name in the log
_ROUNDS = 15  # of reweighting, after which medians stand still


@dataclass
class Outliers:
    """Collects the labels of structures, by head and ``config_type``, and names those that stand out.

    Energies are compared after what the composition gives: E_i/n_i − Σ_Z c_iZ x_Z with the fractions c_iZ, fitted by
    least absolute deviations, which an outlier does not move. ``name`` makes names of what :meth:`add` is given.
    """

    name: Callable[[Any], str] = str
    _names: list[Any] = field(default_factory=list)
    _groups: list[Hashable] = field(default_factory=list)
    _energies: "array[float]" = field(default_factory=lambda: array("d"))
    _forces: "array[float]" = field(default_factory=lambda: array("d"))
    _fractions: list[dict[int, float]] = field(default_factory=list)
    _met: dict[Hashable, Any] = field(default_factory=dict)  # equal groups and compositions are kept once

    def add(self, atoms: Atoms, where: Any) -> None:
        """Take in a structure with its labels under the canonical keys; ``name`` makes its name of ``where``."""
        energy, forces = (
            (atoms.arrays if label.per_atom else atoms.info)[label.canonical] if label.acts(atoms, {}) else None
            for label in (LABELS["energy"], LABELS["forces"])
        )
        self._names.append(where)
        group = (str(atoms.info.get("head")), str(atoms.info.get("config_type")))
        self._groups.append(self._met.setdefault(group, group))
        self._energies.append(np.nan if energy is None else float(energy) / len(atoms))
        self._forces.append(np.nan if forces is None else float(np.linalg.norm(forces, axis=1).max()))
        numbers, counts = np.unique(atoms.numbers, return_counts=True)
        fractions = tuple(zip(numbers.tolist(), (counts / len(atoms)).tolist(), strict=True))
        self._fractions.append(self._met.setdefault(fractions, dict(fractions)))

    def lines(self) -> list[str]:
        """Lines for the log: outlying energies and forces with their frames; none where nothing stands out."""
        energies: dict[str, float] = {}
        forces: dict[str, float] = {}
        for group in dict.fromkeys(self._groups):
            members = np.array([index for index, one in enumerate(self._groups) if one == group])
            energies |= self._outlying_energies(members)
            forces |= self._outlying_forces(members)
        return [
            *_line("energies", energies, "eV/atom", f"{DEVIATIONS:g} median deviations from their composition's"),
            *_line("forces", forces, "eV/Å", f"{DEVIATIONS:g} times the largest force of a median frame"),
        ]

    def _outlying_energies(self, members: np.ndarray) -> dict[str, float]:
        members, energies = _finite(members, self._energies)
        if len(members) < SMALLEST_GROUP:
            return {}
        elements = sorted({z for index in members for z in self._fractions[index]})
        fractions = np.array([[self._fractions[index].get(z, 0.0) for z in elements] for index in members])
        residual = energies - np.median(energies)
        for _ in range(_ROUNDS):  # iteratively reweighted least squares, for least absolute deviations
            weight = 1 / np.sqrt(np.maximum(np.abs(residual), 1e-6))
            fitted = np.linalg.lstsq(fractions * weight[:, None], energies * weight, rcond=None)[0]
            residual = energies - fractions @ fitted
        residual -= np.median(residual)
        limit = max(DEVIATIONS * float(np.median(np.abs(residual))), LEAST_ENERGY)
        return self._beyond(limit, members, residual)

    def _outlying_forces(self, members: np.ndarray) -> dict[str, float]:
        members, forces = _finite(members, self._forces)
        if len(members) < SMALLEST_GROUP:
            return {}
        return self._beyond(max(DEVIATIONS * float(np.median(forces)), LEAST_FORCE), members, forces)

    def _beyond(self, limit: float, members: np.ndarray, values: np.ndarray) -> dict[str, float]:
        return {self.name(self._names[members[k]]): float(values[k]) for k in np.flatnonzero(np.abs(values) > limit)}


def _finite(members: np.ndarray, values: "array[float]") -> tuple[np.ndarray, np.ndarray]:
    """Members of a group that have a value, and their values."""
    chosen = np.array(values)[members]
    return members[np.isfinite(chosen)], chosen[np.isfinite(chosen)]


def _line(what: str, found: dict[str, float], unit: str, limit: str) -> list[str]:
    if not found:
        return []
    worst = sorted(found, key=lambda name: -abs(found[name]))
    shown = ", ".join(f"{name} ({found[name]:+.4g} {unit})" for name in worst[:NAMED])
    more = f", and {len(worst) - NAMED} more" if len(worst) > NAMED else ""
    return [f"outlying {what}, more than {limit}: {shown}{more}. They count as they are: are they right?"]
