"""Geometries of several molecules: two at a distance that is asked for, and a few that touch."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from training.shipped.organic_gfn2.bonding import Bonding, closeness, contact, joined_bonding, on_grid

#: Classes of dimers, and the shortest distance between atoms of the two molecules at which each begins, Å.
SHORTEST = {"hydrogen_bond": 1.5, "ion_molecule": 1.5, "ion_pair": 1.5, "like_ions": 2.5, "stack": 2.9,
            "contact": 2.0}  # fmt: skip
LONGEST = 12.0  # Å, of the training set
GAP = (6.0, 7.0)  # Å: distances within it are tested only
BEYOND = (12.5, 20.0)  # Å: tested only
# Atoms are never closer than this part of the sum of their van der Waals radii.
CLOSEST = 0.55
DISTANCE_IN_CLUSTER = (1.7, 2.3)  # Å
ROTATIONS = 12  # tried, for the one that lets the acceptor come first
TILT = 0.25  # of the direction of a hydrogen bond, root mean square
LARGEST_SHIFT = 1.8  # Å, of stacked rings along their planes
LONE_PAIRS = {7: 3, 8: 2, 9: 1, 15: 3, 16: 2, 17: 1}  # most neighbours that leave a lone pair, by element


@dataclass(frozen=True)
class Fragment:
    """One molecule of a cluster.

    Parameters
    ----------
    smiles : its formula, whose order of atoms is that of ``positions``
    charge : total charge, e
    bonding : its atoms and bonds
    positions : (N, 3), Å
    """

    smiles: str
    charge: int
    bonding: Bonding
    positions: np.ndarray

    @property
    def numbers(self) -> np.ndarray:
        """(N,) atomic numbers."""
        return self.bonding.numbers

    def at(self, positions: np.ndarray) -> "Fragment":
        """The same molecule elsewhere."""
        return Fragment(self.smiles, self.charge, self.bonding, positions)


@dataclass(frozen=True)
class Sites:
    """Where a molecule binds: hydrogens that it gives, acceptors, atoms of the first aromatic ring.

    ``holds_charge``: an ion that keeps its charge beside one of the other sign, which not all do in GFN2: where the
    cation has an empty orbital below the anion's highest one an electron goes over, from any distance.
    """

    donors: tuple[int, ...]
    acceptors: tuple[int, ...]
    ring: tuple[int, ...]
    holds_charge: bool


@cache
def sites(smiles: str) -> Sites:
    """The sites of a molecule; of an ion without proper donors every hydrogen is one, likewise an acceptor."""
    from rdkit import Chem

    molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
    atoms = list(molecule.GetAtoms())
    hydrogens = [(a.GetIdx(), a.GetNeighbors()[0]) for a in atoms if a.GetAtomicNum() == 1 and a.GetDegree() == 1]
    donors = [h for h, heavy in hydrogens if heavy.GetAtomicNum() in LONE_PAIRS]
    acceptors = [
        a.GetIdx() for a in atoms if a.GetFormalCharge() <= 0 and a.GetDegree() <= LONE_PAIRS.get(a.GetAtomicNum(), -1)
    ]
    rings = [ring for ring in molecule.GetRingInfo().AtomRings() if all(atoms[i].GetIsAromatic() for i in ring)]
    charge = Chem.GetFormalCharge(molecule)
    if charge > 0 and not donors:
        donors = [h for h, _ in hydrogens]
    if charge < 0 and not acceptors:
        acceptors = [a.GetIdx() for a in atoms if a.GetAtomicNum() != 1]
    holds = all(_holds_charge(molecule, atom) for atom in atoms if atom.GetFormalCharge() * charge > 0)
    return Sites(tuple(donors), tuple(acceptors), tuple(rings[0]) if rings else (), holds)


def _holds_charge(molecule: Any, atom: Any) -> bool:
    """Whether a charged atom (rdkit's) is that of a saturated cation, of chloride, PF₆⁻ or an oxygen acid."""
    beside = atom.GetNeighbors()
    if atom.GetFormalCharge() > 0:
        hydride = atom.GetSymbol() == "P" and any(other.GetAtomicNum() == 1 for other in beside)
        saturated = all(bond.GetBondTypeAsDouble() == 1 for bond in molecule.GetBonds())
        return saturated and not hydride and atom.GetSymbol() in ("N", "P")
    if atom.GetSymbol() != "O":
        return atom.GetSymbol() in ("Cl", "P")
    central = next(iter(beside))
    doubles = [bond.GetOtherAtom(central) for bond in central.GetBonds() if bond.GetBondTypeAsDouble() == 2]
    oxo = any(other.GetSymbol() == "O" for other in doubles)
    return oxo and central.GetDegree() >= {"C": 3, "N": 3}.get(central.GetSymbol(), 4)


def random_rotation(rng: np.random.Generator) -> np.ndarray:
    """A rotation matrix (3, 3), uniform over all: from a normal quaternion."""
    w, x, y, z = (q := rng.normal(size=4)) / np.linalg.norm(q)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


@dataclass(frozen=True)
class Approach:
    """Two molecules and the line on which the second comes: it is moved along ``direction`` (3,), a unit vector."""

    first: Fragment
    second: Fragment
    direction: np.ndarray

    def at(self, distance: float) -> np.ndarray:
        """Positions (N, 3) of the second where it first comes as near as ``distance`` to the first, atom to atom.

        A pair at r meets the sphere of radius d at t = −r·u + √(d² − r_⊥²); the largest t of all pairs is the answer.
        """
        apart = (self.second.positions[:, None] - self.first.positions[None]).reshape(-1, 3)
        along = apart @ self.direction
        under = distance**2 - (apart**2).sum(axis=1) + along**2
        meets = under >= 0
        return on_grid(self.second.positions + (np.sqrt(under[meets]) - along[meets]).max() * self.direction)


def approach(kind: str, first: Fragment, second: Fragment, rng: np.random.Generator) -> Approach:
    """A line on which the second molecule comes: donor to acceptor, ring over ring, or any atom to any other."""
    ours, theirs = sites(first.smiles), sites(second.smiles)
    if kind == "stack" and ours.ring and theirs.ring:
        return _stacked(first, second, rng)
    gives, takes = ours.donors and theirs.acceptors, ours.acceptors and theirs.donors
    bonds = kind not in ("contact", "like_ions")
    if bonds and gives and (not takes or first.charge >= second.charge):
        return _bonded(first, ours.donors, second, theirs.acceptors, rng)
    if bonds and takes:
        return _bonded(first, ours.acceptors, second, theirs.donors, rng)
    return _bonded(first, tuple(range(len(first.numbers))), second, tuple(range(len(second.numbers))), rng)


def _bonded(
    first: Fragment, ours: tuple[int, ...], second: Fragment, theirs: tuple[int, ...], rng: np.random.Generator
) -> Approach:
    """One of some atoms of the second molecule on the line that leads out from one of some atoms of the first."""
    own, other = int(rng.choice(ours)), int(rng.choice(theirs))
    direction = _outward(first, own, rng) + TILT * rng.normal(size=3) / np.sqrt(3)
    direction /= np.linalg.norm(direction)
    lines = []
    for _ in range(ROTATIONS):
        turned = (second.positions - second.positions[other]) @ random_rotation(rng)
        lines.append(Approach(first, second.at(turned + first.positions[own]), direction))
    separations = [float(np.linalg.norm(line.at(2.0)[other] - first.positions[own])) for line in lines]
    return lines[int(np.argmin(np.round(separations, 6)))]


def _outward(fragment: Fragment, atom: int, rng: np.random.Generator) -> np.ndarray:
    """A unit vector (3,) from an atom away from what it is bonded to."""
    bonds = fragment.bonding.bonds
    beside = bonds[(bonds == atom).any(axis=1)].ravel()
    away = fragment.positions[atom] - fragment.positions[beside[beside != atom]].mean(axis=0) if len(beside) else None
    if away is None or np.linalg.norm(away) < 0.2:
        away = random_rotation(rng)[0]
    return np.asarray(away / np.linalg.norm(away))


def _stacked(first: Fragment, second: Fragment, rng: np.random.Generator) -> Approach:
    """The second molecule's ring over the first's, turned and shifted in its plane."""
    frames = []
    for fragment in (first, second):
        ring = fragment.positions[list(sites(fragment.smiles).ring)]
        centre = ring.mean(axis=0)
        across = ring[0] - centre
        normal = np.cross(across, ring[1] - centre)
        axes = np.array([across, np.cross(normal, across), normal])
        frames.append((centre, axes / np.linalg.norm(axes, axis=1)[:, None]))
    (centre, axes), (other_centre, other_axes) = frames
    angle, side = rng.uniform(0, 2 * np.pi), rng.choice([-1.0, 1.0])
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, -sin, 0.0], [side * sin, side * cos, 0.0], [0.0, 0.0, side]])  # det = side² = 1
    shift = rng.uniform(-1, 1, size=2) * LARGEST_SHIFT / np.sqrt(2)
    turned = (second.positions - other_centre) @ other_axes.T @ turn @ axes
    return Approach(first, second.at(turned + centre + shift @ axes[:2]), axes[2])


def distances(kind: str, count: int, rng: np.random.Generator) -> list[float]:
    """Distances (Å) for training: one in each of ``count`` equal parts of the logarithmic scale, none in the gap."""
    shortest = SHORTEST[kind]
    found: list[float] = []
    while len(found) < count:
        place = (len(found) + rng.uniform()) / count
        distance = float(shortest * (LONGEST / shortest) ** place)
        if not GAP[0] < distance < GAP[1]:
            found.append(distance)
    return found


def untrained_distances(count: int, rng: np.random.Generator) -> list[float]:
    """Distances (Å) that training has not: a third in the gap, the rest beyond."""
    inside = max(1, count // 3)
    return [float(d) for d in (*rng.uniform(*GAP, size=inside), *rng.uniform(*BEYOND, size=count - inside))]


def too_close(first: Fragment, second: Fragment) -> bool:
    """Whether atoms of the two come closer than ``CLOSEST``."""
    return closeness(first.numbers, first.positions, second.numbers, second.positions) < CLOSEST


def grown(fragments: list[Fragment], rng: np.random.Generator, tries: int = 40) -> list[Fragment] | None:
    """The molecules one beside another, each where it touches one that is there and is not too close to the others."""
    placed = [fragments[0]]
    for fragment in fragments[1:]:
        for _ in range(tries):
            beside = placed[rng.integers(len(placed))]
            line = approach("hydrogen_bond" if rng.uniform() < 0.8 else "contact", beside, fragment, rng)
            moved = fragment.at(line.at(float(rng.uniform(*DISTANCE_IN_CLUSTER))))
            apart = min(contact(moved.positions, other.positions) for other in placed)
            if apart >= DISTANCE_IN_CLUSTER[0] - 0.01 and not any(too_close(moved, other) for other in placed):
                placed.append(moved)
                break
        else:
            return None
    return placed


def together(fragments: list[Fragment]) -> tuple[Bonding, np.ndarray]:
    """Bonding and positions (N, 3) of all molecules as one structure."""
    return joined_bonding([f.bonding for f in fragments]), np.concatenate([f.positions for f in fragments])
