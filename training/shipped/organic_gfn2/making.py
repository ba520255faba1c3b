"""The frames of one work unit: geometries of its kind, labelled, those with a fault left out and counted."""

import os
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from ase import Atoms

from training.shipped.organic_gfn2 import clusters, sampling
from training.shipped.organic_gfn2.bonding import Bonding, Seen, contact
from training.shipped.organic_gfn2.chance import fraction, generator
from training.shipped.organic_gfn2.clusters import Fragment
from training.shipped.organic_gfn2.label import NotConverged, labelled
from training.shipped.organic_gfn2.molecules import Molecule, molecules
from training.shipped.organic_gfn2.plan import Unit

CONFORMERS = 2  # tried until one relaxes to a minimum with the bonds of the formula
# Frames of a molecule beside its minimum, and of a cluster: few, so that there can be many molecules.
MODES, TRAJECTORY, STRETCHED, CLUSTER = 1, 2, 1, 4
LARGE_TRAJECTORY = 8
EQUILIBRATION, BETWEEN = 60, 24  # steps of 1.5 fs
TEMPERATURES = (300.0, 1000.0)  # K
CLUSTER_TEMPERATURES = (250.0, 500.0)
FRAGMENT_TEMPERATURE = 300.0  # of the molecules of a dimer
LINES, DISTANCES = 2, 3  # of a unit of dimers: lines of approach, distances on each
TEST_LINES, TEST_DISTANCES = 2, 6
# A molecule further than this from others keeps its charge to within this: otherwise GFN2 has moved an electron.
FAR, KEPT_CHARGE = 4.0, 0.1  # Å, e


@dataclass
class Collected:
    """Frames of a unit, and how many were left out for which reason."""

    unit: Unit
    frames: list[Atoms] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    seen: Seen = field(default_factory=Seen)

    def add(
        self,
        bonding: Bonding,
        positions: np.ndarray,
        charge: int,
        info: dict[str, Any],
        stretched: tuple[int, int] | None = None,
        check: Callable[[Atoms], str | None] = lambda frame: None,
    ) -> bool:
        """Check, label and keep a frame; False if it was left out."""
        fault = bonding.fault(positions, stretched)
        if fault is None and not self.seen.add(bonding.numbers, positions):
            fault = "a duplicate"
        if fault is None:
            names = {"unit": self.unit.name, "molecule": "+".join(self.unit.members)}
            frame = labelled(bonding.numbers, positions, charge, info | names)
            fault = frame if isinstance(frame, str) else check(frame)
            if not isinstance(frame, str) and fault is None:
                self.frames.append(frame)
        if fault is not None:
            self.left_out[fault] += 1
        return fault is None


@dataclass(frozen=True)
class Minimum:
    """A molecule at rest.

    Parameters
    ----------
    bonding : atoms and bonds
    positions : (N, 3), Å
    hessian : (3N, 3N), eV/Å²; zeros for large molecules and single atoms
    """

    bonding: Bonding
    positions: np.ndarray
    hessian: np.ndarray


def minimum_of(molecule: Molecule, folder: Path) -> Minimum | None:
    """The minimum of a molecule, from the folder if it is there; None if it does not stay what its formula says."""
    path = folder / f"{molecule.name}.npz"
    with suppress(OSError, ValueError, LookupError, BadZipFile):  # not there, or damaged
        return _read_minimum(path)
    made = _find_minimum(molecule)
    arrays = {"numbers": np.zeros(0)} if made is None else {
        "numbers": made.bonding.numbers, "bonds": made.bonding.bonds,
        "positions": made.positions, "hessian": made.hessian,
    }  # fmt: skip
    np.savez(temporary := path.with_suffix(f".{os.getpid()}.part.npz"), **arrays)
    temporary.replace(path)
    return _read_minimum(path)


def _read_minimum(path: Path) -> Minimum | None:
    with np.load(path) as found:
        if not len(found["numbers"]):
            return None
        return Minimum(Bonding(found["numbers"], found["bonds"]), found["positions"], found["hessian"])


def _find_minimum(molecule: Molecule) -> Minimum | None:
    seed = int(fraction(f"conformers of {molecule.name}") * 2**31)
    count = 1 if molecule.split == "large" else CONFORMERS
    bonding, starts = sampling.conformers(molecule.smiles, count, seed)
    for start in starts:
        positions = sampling.relaxed(bonding.numbers, molecule.charge, start)
        if positions is not None and bonding.fault(positions) is None:
            break
    else:
        return None
    hessian = np.zeros((positions.size, positions.size))
    if molecule.split != "large" and len(bonding.numbers) > 1:
        try:
            hessian = sampling.hessian(bonding.numbers, molecule.charge, positions)
        except NotConverged:
            return None
    return Minimum(bonding, positions, hessian)


def make(unit: Unit, minima: Path) -> Collected:
    """All frames of a unit; its molecules' minima are kept in a folder."""
    rng = generator(unit.name)
    collected = Collected(unit)
    members = [molecules()[name] for name in unit.members]
    found = [minimum_of(member, minima) for member in members]
    if any(minimum is None for minimum in found):
        collected.left_out["no minimum with the bonds of the formula"] += 1
        return collected
    rest = [minimum for minimum in found if minimum is not None]
    makers = {
        "molecule": _molecule, "large": _molecule, "dimer": _dimer, "distances": _dimer, "cluster": _cluster,
    }  # fmt: skip
    makers[unit.kind](collected, members, rest, rng)
    return collected


def _molecule(collected: Collected, members: list[Molecule], rest: list[Minimum], rng: np.random.Generator) -> None:
    """The minimum, harmonic displacements, a trajectory and stretched bonds of one molecule."""
    molecule, minimum, large = members[0], rest[0], collected.unit.kind == "large"
    add = partial(collected.add, minimum.bonding, charge=molecule.charge)
    numbers = minimum.bonding.numbers
    add(minimum.positions, info={"config_type": f"minimum_{molecule.character}"})
    if not large:
        for _ in range(MODES):
            temperature = round(float(rng.uniform(*TEMPERATURES)))
            for hotness in (temperature, 0.5 * (temperature + TEMPERATURES[0]), TEMPERATURES[0]):
                positions = sampling.displaced(numbers, minimum.positions, minimum.hessian, hotness, rng)
                if add(positions, info={"config_type": f"modes_{molecule.character}", "temperature": hotness}):
                    break
    kind, count = f"md_{molecule.character}", LARGE_TRAJECTORY if large else TRAJECTORY
    hot = _run(collected, minimum.bonding, molecule.charge, minimum.positions, TEMPERATURES, count, kind, rng)
    for _ in range(STRETCHED):
        base = hot[rng.integers(len(hot))] if hot else minimum.positions
        if (bent := sampling.stretched(minimum.bonding, base, rng)) is not None:
            positions, bond, factor = bent
            info = {"config_type": f"stretched_{molecule.character}", "stretch": factor}
            add(positions, info=info, stretched=bond)


def _run(
    collected: Collected,
    bonding: Bonding,
    charge: int,
    start: np.ndarray,
    temperatures: tuple[float, float],
    count: int,
    config_type: str,
    rng: np.random.Generator,
) -> list[np.ndarray]:
    """Frames of one trajectory up to where a bond changes; then a colder one goes on, twice at most."""
    temperature = float(rng.uniform(*temperatures))
    kept: list[np.ndarray] = []
    for _ in range(3):
        temperature = round(temperature)
        steps = [EQUILIBRATION + BETWEEN, *[BETWEEN] * (count - len(kept) - 1)]
        for positions in sampling.trajectory(bonding.numbers, charge, start, temperature, steps, rng):
            info = {"config_type": config_type, "temperature": temperature}
            if not collected.add(bonding, positions, charge, info):
                break
            kept.append(positions)
        if len(kept) == count:
            break
        temperature = 0.5 * (temperature + temperatures[0])
    return kept


def _fragments(members: list[Molecule], rest: list[Minimum], rng: np.random.Generator) -> list[Fragment]:
    """The molecules of a dimer or cluster, each displaced from its minimum and turned."""
    found = []
    for molecule, minimum in zip(members, rest, strict=True):
        positions = minimum.positions
        if len(positions) > 1:
            moved = sampling.displaced(minimum.bonding.numbers, positions, minimum.hessian, FRAGMENT_TEMPERATURE, rng)
            positions = positions if minimum.bonding.fault(moved) else moved
        turned = (positions - positions.mean(axis=0)) @ clusters.random_rotation(rng)
        found.append(Fragment(molecule.smiles, molecule.charge, minimum.bonding, turned))
    return found


def _dimer(collected: Collected, members: list[Molecule], rest: list[Minimum], rng: np.random.Generator) -> None:
    """Lines of approach of two molecules, each at several distances."""
    group, tested = collected.unit.group, collected.unit.kind == "distances"
    lines, count = (TEST_LINES, TEST_DISTANCES) if tested else (LINES, DISTANCES)
    for _ in range(lines):
        first, second = _fragments(members, rest, rng)
        line = clusters.approach(group, first, second, rng)
        drawn = clusters.untrained_distances(count, rng) if tested else clusters.distances(group, count, rng)
        for distance in sorted(drawn):
            other = line.second.at(line.at(distance))
            if clusters.too_close(line.first, other):
                collected.left_out["molecules too close"] += 1
                continue
            bonding, positions = clusters.together([line.first, other])
            apart = contact(line.first.positions, other.positions)
            check = partial(_keeps_charge, fragments=[line.first, other], apart=apart)
            info = {"config_type": f"dimer_{group}", "distance": round(apart, 4)}
            collected.add(bonding, positions, first.charge + second.charge, info, check=check)


def _keeps_charge(frame: Atoms, fragments: list[Fragment], apart: float) -> str | None:
    """What is wrong with the charges of molecules that are far from each other."""
    if apart < FAR:
        return None
    first = len(fragments[0].numbers)
    moved = abs(float(frame.arrays["REF_charges"][:first].sum()) - fragments[0].charge)
    return "a charge moved between distant molecules" if moved > KEPT_CHARGE else None


def _cluster(collected: Collected, members: list[Molecule], rest: list[Minimum], rng: np.random.Generator) -> None:
    """A trajectory of a few molecules that touch."""
    for _ in range(5):
        placed = clusters.grown(_fragments(members, rest, rng), rng)
        if placed is not None:
            break
        collected.left_out["no place for a molecule"] += 1
    else:
        return
    bonding, positions = clusters.together(placed)
    charge = sum(member.charge for member in members)
    kind = "ion" if any(member.character != "neutral" for member in members) else "neutral"
    _run(collected, bonding, charge, positions, CLUSTER_TEMPERATURES, CLUSTER, f"cluster_{kind}", rng)
