"""Which frames the data set has: work units, each of a few frames that one process makes at once."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from phi_equivariant.errors import InputError
from training.shipped.organic_gfn2.chance import generator
from training.shipped.organic_gfn2.clusters import sites
from training.shipped.organic_gfn2.molecules import Molecule, molecules

#: Files of the data set. The last two are made of molecules that are not in training either.
FILES = ("train", "valid", "test", "test_large", "test_distances")
KINDS = ("molecule", "large", "dimer", "distances", "cluster")
DIMERS = {"train": 750, "valid": 40, "test": 100}  # units
CLUSTERS = {"train": 350, "valid": 14, "test": 36}
UNTRAINED_DISTANCES = 60
# Classes of dimers and their shares.
CLASSES = {"hydrogen_bond": 0.3, "ion_molecule": 0.23, "ion_pair": 0.22, "like_ions": 0.06, "stack": 0.08,
           "contact": 0.11}  # fmt: skip
LARGEST_FRAGMENT = 17  # atoms
LARGEST_DIMER = {"stack": 26, "ion_pair": 22}  # atoms
LARGEST_OTHER_DIMER, LARGEST_TESTED_DIMER = 18, 26  # the latter wherever the split has few small molecules
LARGEST_CLUSTER = 22
MOST_TRIES = 100_000  # to draw two molecules that go together
CLUSTER = (2, 6)  # molecules, drawn between these
SOLVENTS = {"water": 0.6, "ammonia": 0.08, "methanol": 0.08, "formamide": 0.06, "hydrogen_fluoride": 0.06}
# Ions that a cluster of the training set has in half of the cases.
IONS = ("chloride", "fluoride", "hydroxide", "hydronium", "ammonium", "methylammonium", "guanidinium", "imidazolium",
        "acetate", "nitrate", "bicarbonate", "dihydrogen_phosphate", "phenolate", "trimethylsulfonium",
        "tetramethylphosphonium", "tetramethylammonium", "betaine")  # fmt: skip


@dataclass(frozen=True)
class Unit:
    """Frames that belong together.

    Parameters
    ----------
    name : of the unit's file; its random numbers follow from it alone
    kind : one of ``KINDS``
    file : the file of the data set that its frames go to, one of ``FILES``
    members : names of its molecules
    group : class of dimer, character of a molecule, "" for clusters
    """

    name: str
    kind: str
    file: str
    members: tuple[str, ...]
    group: str = ""


def units() -> list[Unit]:
    """All units of the data set, in the order of its files' frames."""
    found = []
    for name, molecule in molecules().items():
        if molecule.split == "large":
            found.append(Unit(name, "large", "test_large", (name,), molecule.character))
        elif molecule.atoms > 1:
            found.append(Unit(name, "molecule", molecule.split, (name,), molecule.character))
    for group, share in CLASSES.items():
        for split, count in DIMERS.items():
            names = [f"dimer_{split}_{group}_{index:03d}" for index in range(round(share * count))]
            found += [_dimer(name, "dimer", split, split, group) for name in names]
        names = [f"distances_{group}_{index:03d}" for index in range(round(share * UNTRAINED_DISTANCES))]
        found += [_dimer(name, "distances", "test_distances", "test", group) for name in names]
    for split, count in CLUSTERS.items():
        found += [_cluster(f"cluster_{split}_{index:03d}", split) for index in range(count)]
    return found


def sample() -> list[Unit]:
    """The first unit of each kind, group and file."""
    first: dict[tuple[str, str, str], Unit] = {}
    for unit in units():
        first.setdefault((unit.file, unit.kind, unit.group), unit)
    return list(first.values())


def _pool(split: str) -> list[Molecule]:
    return [m for m in molecules().values() if m.split == split and m.atoms <= LARGEST_FRAGMENT]


def _dimer(name: str, kind: str, file: str, split: str, group: str) -> Unit:
    """Two molecules of one split that suit a class of dimer, drawn until they do."""
    rng = generator(name)
    pool = _pool(split)
    if kind == "distances":
        pool = [m for m in pool if m.charge == 0 or sites(m.smiles).holds_charge]
    firsts = [m for m in pool if _suits(group, m, 0)]
    seconds = [m for m in pool if _suits(group, m, 1)]
    limit = LARGEST_DIMER.get(group, LARGEST_OTHER_DIMER) if split == "train" else LARGEST_TESTED_DIMER
    for _ in range(MOST_TRIES if firsts and seconds else 0):
        first, second = firsts[rng.integers(len(firsts))], seconds[rng.integers(len(seconds))]
        # Water is in every solution, so it is in a third of what is not a stack.
        if split == "train" and group in ("hydrogen_bond", "ion_molecule") and rng.uniform() < 0.33:
            second = molecules()["water"]
        alike = group != "like_ions" or first.charge == second.charge
        if alike and first.atoms + second.atoms <= limit:
            return Unit(name, kind, file, (first.name, second.name), group)
    raise InputError(
        f"common.smi: no two molecules of {split} are a {group} of at most {limit} atoms. Add small ones that suit it."
    )


def _suits(group: str, molecule: Molecule, place: int) -> bool:
    """Whether a molecule may be the first (0) or second (1) of a class of dimer."""
    has = sites(molecule.smiles)
    if group == "stack":
        return bool(has.ring) and molecule.charge == 0
    if group == "ion_pair":
        return molecule.charge == (1, -1)[place] and has.holds_charge
    if group == "like_ions":
        return abs(molecule.charge) == 1
    if group == "ion_molecule":
        return abs(molecule.charge) == 1 if place == 0 else molecule.charge == 0 and bool(has.donors or has.acceptors)
    if group == "hydrogen_bond":
        return molecule.charge == 0 and bool((has.donors, has.acceptors)[place])
    return molecule.charge == 0


def _cluster(name: str, split: str) -> Unit:
    """A few molecules: in training solvents with at most one ion, elsewhere small ones of the split."""
    rng = generator(name)
    count = int(rng.integers(CLUSTER[0], CLUSTER[1] + 1))
    small = [m.name for m in _pool(split) if m.atoms <= 11 and m.charge == 0 and sites(m.smiles).acceptors]
    members = [str(rng.choice(IONS))] if split == "train" and rng.uniform() < 0.5 else []
    solvents, shares = list(SOLVENTS), np.array([*SOLVENTS.values()])
    atoms = sum(molecules()[member].atoms for member in members)
    one = str(rng.choice(solvents, p=shares / shares.sum()))  # most clusters are of one solvent
    while len(members) < count:
        other = str(rng.choice(small)) if split != "train" or rng.uniform() < 0.15 else one
        atoms += molecules()[other].atoms
        if atoms > LARGEST_CLUSTER and len(members) > 1:
            break
        members.append(other)
    return Unit(name, "cluster", split, tuple(members))


def composition(units: list[Unit]) -> Counter[str]:
    """How many units each kind and file has, for the log."""
    return Counter(f"{unit.file}: {unit.kind}" for unit in units)
