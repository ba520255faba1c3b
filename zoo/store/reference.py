"""Energy, forces and charges of one structure, kept with a model: they must come out again when it is loaded."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.data import covalent_radii
from ase.geometry import complete_cell

from phi_equivariant import PhiCalculator
from phi_equivariant.errors import InputError
from phi_equivariant.files import read_json
from phi_equivariant.inputs.state import reader_of
from zoo.store.registry import FILE_LIMITS, REFERENCE_FILE

MOST_ATOMS = 500
#: What a periodic reference may have: pairs of atoms and images; volume in Å³, for an Ewald sum's waves.
MOST_PAIRS, MOST_VOLUME = 1e7, 5e4
LONGEST_RANGE = 10.5  # Å, of the near part of an Ewald sum
#: Largest differences that other versions of the libraries may make, in float64: eV per atom, eV/Å, e.
TOLERANCES = {"energy": 1e-5, "forces": 1e-4, "charges": 1e-5}


def cluster_of(atomic_numbers: Sequence[int], seed: int = 0) -> Atoms:
    """Two atoms of each element on a jittered cubic grid, neighbours about 1.3 bond lengths apart: every element's
    parameters enter its energy."""
    numbers = np.repeat(np.asarray(atomic_numbers, dtype=int), 2)
    rng = np.random.default_rng(seed)
    rng.shuffle(numbers)
    spacing = 2.6 * covalent_radii[numbers].mean()
    side = int(np.ceil(len(numbers) ** (1 / 3)))
    grid = np.array(list(itertools.product(range(side), repeat=3)), dtype=float)[: len(numbers)]
    return Atoms(numbers, spacing * (grid + rng.uniform(-0.12, 0.12, grid.shape)))


def compute(model: torch.nn.Module, atoms: Atoms) -> dict[str, Any]:
    """The reference of a float64 model: structure, energy in eV, forces in eV/Å, charges in e (None without Φ)."""
    atoms = atoms.copy()
    atoms.calc = PhiCalculator(model)
    energy, charges = atoms.get_potential_energy(), atoms.calc.results.get("charges")
    return {
        "structure": {
            "numbers": atoms.numbers.tolist(),
            "positions": atoms.positions.tolist(),
            "cell": np.asarray(atoms.cell).tolist(),
            "pbc": atoms.pbc.tolist(),
            "total_charge": reader_of(model).read(atoms)["total_charge"],
        },
        "energy": energy,
        "forces": atoms.get_forces().tolist(),
        "charges": None if charges is None else charges.tolist(),
    }


def check(model: torch.nn.Module, folder: Path) -> None:
    """Compare a float64 model with the reference in its folder.

    Raises
    ------
    InputError
        If the file is not a reference, or something differs by more than ``TOLERANCES``: then what the constructor
        made is not what the weights were trained with.
    """
    path = folder / REFERENCE_FILE
    kept: dict[str, Any] = read_json(path, FILE_LIMITS[REFERENCE_FILE])
    try:
        structure = kept["structure"]
        if not 0 < len(structure["numbers"]) <= MOST_ATOMS:
            raise InputError(f"{path} has {len(structure['numbers'])} atoms; expected 1 to {MOST_ATOMS}.")
        atoms = Atoms(**{key: np.array(structure[key]) for key in ("numbers", "positions", "cell", "pbc")})
        atoms.info["total_charge"] = float(structure["total_charge"])
        kept = {name: None if kept[name] is None else np.array(kept[name], dtype=float) for name in TOLERANCES}
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(f"{path} is not a reference of a model ({type(error).__name__}: {error}).") from error
    r_max: Any = model.r_max
    _check_cost(atoms, float(r_max), path)
    try:
        found = compute(model, atoms)
    except InputError as error:
        raise InputError(f"{path} cannot be computed with this model: {error}") from error
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: the model fails on it ({type(error).__name__}: {error}).") from error
    for name, tolerance in TOLERANCES.items():
        expected, got = kept[name], found[name]
        if (expected is None) != (got is None) or (got is not None and np.shape(got) != np.shape(expected)):
            raise InputError(f"{path}: {name} do not fit this model; the files are not of the same model.")
        if got is None:
            continue
        worst = float(np.abs(np.asarray(got) - expected).max()) / (len(atoms) if name == "energy" else 1)
        if not worst <= tolerance:
            unit = {"energy": "eV per atom", "forces": "eV/Å", "charges": "e"}[name]
            raise InputError(
                f"{folder}: {name} of the reference structure differ by {worst:.3g} {unit} from those kept with the "
                f"model (allowed: {tolerance:g}). The model that these versions of the libraries build is not the one "
                "that was trained; install those named in config.json, or get the files again."
            )


def _check_cost(atoms: Atoms, r_max: float, path: Path) -> None:
    """InputError for a structure with so many neighbours, or in so large a cell, that it takes minutes or gigabytes."""
    if not atoms.pbc.any():
        return
    cell = complete_cell(atoms.cell)
    volume = abs(np.linalg.det(cell))
    if not (np.isfinite(cell).all() and volume > 0):
        raise InputError(f"{path} has a cell that is singular or not finite.")
    heights = 1 / np.linalg.norm(np.linalg.inv(cell), axis=0)  # Å between opposite faces
    images = np.prod(2 * np.ceil(max(r_max, LONGEST_RANGE) / heights[atoms.pbc]) + 1)
    if len(atoms) ** 2 * images > MOST_PAIRS or volume > MOST_VOLUME:
        raise InputError(
            f"{path} has {len(atoms)} atoms in a periodic cell of {volume:.3g} Å³, more than is computed to check a "
            f"model with a cut-off of {r_max:g} Å; give a smaller structure in an ordinary cell."
        )
