"""Geometries of one molecule: conformers, minima, thermal displacements, molecular dynamics and stretched bonds."""

from typing import Any

import numpy as np
from ase import Atoms
from ase.data import atomic_masses
from ase.optimize import BFGS
from ase.units import J as joule
from ase.units import _hbar, fs, invcm, kB, second

from training.shipped.organic_gfn2.bonding import GRID, Bonding, on_grid
from training.shipped.organic_gfn2.label import (
    SAMPLING_ACCURACY,
    GridGFN2,
    NotConverged,
    SelfConsistentField,
)

LARGEST_FORCE_AT_MINIMUM = 0.05  # eV/Å
STEPS_TO_MINIMUM = 400
HESSIAN_STEP, HESSIAN_ACCURACY = 0.01, 0.1  # Å, tblite's
# Modes softer than this are displaced as if they were this stiff: along a straight line they would break bonds.
SOFTEST_MODE = 200.0  # cm⁻¹
LINEAR = 1e-2  # rotations that move atoms less than this, in parts of the largest, are those of a line about itself
HYDROGEN_MASS = 3.016  # u: tritium's, for the same configurations at a longer step
TIME_STEP = 1.5  # fs
FRICTION = 0.02  # 1/fs
TO_ACCELERATION = fs**2  # eV/Å/u in Å/fs²
TO_WAVENUMBERS = _hbar * joule * second / invcm  # √(eV/Å²/u) in cm⁻¹


def conformers(smiles: str, count: int, seed: int) -> tuple[Bonding, list[np.ndarray]]:
    """The bonding of a molecule and up to ``count`` geometries (N, 3) of rdkit, by MMFF94 where that applies."""
    from rdkit import Chem, rdBase
    from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

    molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
    settings: Any = rdDistGeom.ETKDGv3()
    settings.randomSeed = seed % 2**31
    settings.numThreads = 1
    with rdBase.BlockLogs():  # rdkit warns of every ion
        found = list(rdDistGeom.EmbedMultipleConfs(molecule, count, settings))
        if not found:  # strained rings: from random coordinates instead of distances
            settings.useRandomCoords = True
            found = list(rdDistGeom.EmbedMultipleConfs(molecule, count, settings))
    if found and rdForceFieldHelpers.MMFFHasAllMoleculeParams(molecule):
        rdForceFieldHelpers.MMFFOptimizeMoleculeConfs(molecule, numThreads=1, maxIters=500)
    bonds = [(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in molecule.GetBonds()]
    numbers = np.array([atom.GetAtomicNum() for atom in molecule.GetAtoms()])
    positions = [on_grid(molecule.GetConformer(index).GetPositions()) for index in found]
    return Bonding(numbers, np.array(bonds, dtype=int).reshape(-1, 2)), positions


def relaxed(numbers: np.ndarray, charge: int, positions: np.ndarray) -> np.ndarray | None:
    """The GFN2 minimum (N, 3) next to some positions; None where it is not found."""
    atoms = Atoms(numbers, positions)
    if len(atoms) == 1:
        return on_grid(positions)
    atoms.calc = GridGFN2(numbers, charge)
    try:
        converged = BFGS(atoms, logfile=None, maxstep=0.1).run(fmax=LARGEST_FORCE_AT_MINIMUM, steps=STEPS_TO_MINIMUM)
    except NotConverged:
        return None
    return on_grid(atoms.positions) if converged else None


def hessian(numbers: np.ndarray, charge: int, positions: np.ndarray) -> np.ndarray:
    """Second derivatives (3N, 3N) of the GFN2 energy, eV/Å², by central differences of forces."""
    field = SelfConsistentField(numbers, charge, HESSIAN_ACCURACY)
    rows = []
    for coordinate in range(positions.size):
        step = np.zeros(positions.size)
        step[coordinate] = HESSIAN_STEP
        forward, backward = (field.at(positions + sign * step.reshape(-1, 3))["forces"] for sign in (1, -1))
        rows.append((backward - forward).ravel() / (2 * HESSIAN_STEP))
    matrix = np.array(rows)
    return 0.5 * (matrix + matrix.T)


def displaced(
    numbers: np.ndarray, minimum: np.ndarray, hessian: np.ndarray, temperature: float, rng: np.random.Generator
) -> np.ndarray:
    """Positions (N, 3) drawn from the harmonic distribution at a temperature (K).

    x = x₀ + M^(−½) f(H̃) ξ √(k_B T) with H̃ the mass-weighted Hessian without translations and rotations, f(λ) = λ^(−½)
    and ξ normal: a function of the matrix, so that it does not matter which eigenvectors a degenerate mode is given.
    """
    masses = np.repeat(atomic_masses[numbers], 3)
    rigid = _rigid_motions(numbers, minimum)
    inner = np.eye(masses.size) - rigid @ np.linalg.pinv(rigid, rcond=LINEAR)
    weighted = inner @ (hessian / np.sqrt(masses[:, None] * masses)) @ inner
    values, vectors = np.linalg.eigh(weighted)
    softest = (SOFTEST_MODE / TO_WAVENUMBERS) ** 2
    scale = 1 / np.sqrt(np.maximum(values, softest))
    step = inner @ vectors @ (scale * (vectors.T @ (inner @ rng.normal(size=masses.size))))
    return on_grid(minimum + (np.sqrt(kB * temperature) * step / np.sqrt(masses)).reshape(-1, 3))


def _rigid_motions(numbers: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Mass-weighted translations and rotations (3N, 6)."""
    masses = atomic_masses[numbers]
    arms = positions - masses @ positions / masses.sum()
    motions = [np.broadcast_to(axis, arms.shape) for axis in np.eye(3)]
    motions += [np.cross(axis, arms) for axis in np.eye(3)]
    return np.array([(np.sqrt(masses)[:, None] * motion).ravel() for motion in motions]).T


def trajectory(
    numbers: np.ndarray,
    charge: int,
    start: np.ndarray,
    temperature: float,
    steps: list[int],
    rng: np.random.Generator,
) -> list[np.ndarray]:
    """Positions (N, 3) of a Langevin trajectory at a temperature (K): one frame after each of ``steps`` steps.

    v ← c v + (1 − c)/γ F/m + √((1 − c²) k_B T/m) ξ,  x ← x + v Δt,  c = e^(−γΔt). The positions are rounded to the
    grid at each step and the velocity is what they have moved, so that the trajectory is one of whole numbers:
    processors that differ in the last bits of a force follow the same one. It starts at a minimum with twice the
    kinetic energy, half of which becomes potential energy. Ends early, with the frames it has, where the
    self-consistent field fails.
    """
    masses = np.where(numbers == 1, HYDROGEN_MASS, atomic_masses[numbers])[:, None]
    spread = np.sqrt(kB * temperature / masses * TO_ACCELERATION)  # Å/fs
    keep = np.exp(-FRICTION * TIME_STEP)
    push = (1 - keep) / FRICTION * TO_ACCELERATION / masses
    field = SelfConsistentField(numbers, charge, SAMPLING_ACCURACY)
    positions = on_grid(start)
    velocities = np.sqrt(2) * spread * rng.normal(size=positions.shape)
    frames: list[np.ndarray] = []
    for count in steps:
        for _ in range(count):
            try:
                forces = field.at(positions)["forces"]
            except NotConverged:
                return frames
            velocities = keep * velocities + push * forces
            velocities += np.sqrt(1 - keep**2) * spread * rng.normal(size=positions.shape)
            moved = on_grid(positions + TIME_STEP * velocities)
            velocities = np.round((moved - positions) / GRID) * (GRID / TIME_STEP)
            positions = moved
        frames.append(positions)
    return frames


def stretched(
    bonding: Bonding, positions: np.ndarray, rng: np.random.Generator, shortest: float = 0.8, longest: float = 1.8
) -> tuple[np.ndarray, tuple[int, int], float] | None:
    """One bond that is not in a ring, at a length drawn between two multiples of what it is.

    Returns the positions (N, 3), the bond and the factor; None if every bond is in a ring.
    """
    for index in rng.permutation(len(bonding.bonds)):
        bond = (int(bonding.bonds[index, 0]), int(bonding.bonds[index, 1]))
        side = bonding.side(bond)
        if side is not None:
            factor = float(rng.uniform(shortest, longest))
            along = positions[bond[1]] - positions[bond[0]]
            return on_grid(positions + np.outer(side, (factor - 1) * along)), bond, round(factor, 3)
    return None
