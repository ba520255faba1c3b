"""OE62: 61,489 molecules of organic crystals with PBE0 energies, published as a table in JSON."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers

from phi_equivariant.errors import InputError
from training.data.dataset_info import DatasetInfo
from training.data.published import Dataset, digests, existing
from training.data.sequences import Frames
from training.quantities import LABELS

#: Columns of the table: geometries relaxed with PBE in Å, as the text of an xyz file, and PBE0 energies in eV.
GEOMETRY, ENERGY = "xyz_pbe_relaxed", "total_energy_pbe0_vac_tier2"


class MoleculeFrames(Frames):
    """Neutral molecules of many kinds with an energy each.

    molecules : (numbers (N,), positions (N, 3) in Å) of each
    energies : (n,) in eV
    """

    def __init__(self, molecules: Sequence[tuple[np.ndarray, np.ndarray]], energies: np.ndarray) -> None:
        self._molecules, self._energies = molecules, energies

    def __len__(self) -> int:
        return len(self._molecules)

    def at(self, index: int) -> Atoms:
        """A row of the table."""
        about = {LABELS["energy"].canonical: float(self._energies[index]), LABELS["total_charge"].canonical: 0.0}
        return Atoms(*self._molecules[index], info=about)


def load(info: DatasetInfo, folder: Path, seed: int) -> Dataset:
    """The table, shuffled and split: 50,000 molecules for training, 6,000 for validation, the rest for tests.

    These are the sizes of arXiv 2505.14606; its shuffling is another. Its linear fit over the elements is mace's
    ``E0s: average``, which the preset has.

    info : ``file`` is the table, ``frames`` its rows, ``train_size`` the sum of the two first sets, ``part`` the second
    folder : with the file
    seed : of the split

    InputError if the file is missing, or is not such a table.
    """
    assert info.file is not None and info.train_size is not None
    path = existing(folder, info.file, info.source)
    frames = _read(path, info.frames)
    order = np.random.default_rng(seed).permutation(len(frames))
    ends = info.train_size - info.part, info.train_size
    chosen = {"train": order[: ends[0]], "valid": order[ends[0] : ends[1]], "test": order[ends[1] :]}
    return Dataset.split(frames, chosen, digests([path]), path, {"energy": ENERGY}, seed=seed)


def _read(path: Path, rows: int | None) -> MoleculeFrames:
    """All molecules of the table."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        columns, data = list(table["columns"]), table["data"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{path} is not a table as pandas writes it with orient='split' ({type(error).__name__}: {error})."
        ) from error
    if absent := [name for name in (GEOMETRY, ENERGY) if name not in columns]:
        raise InputError(f"{path} lacks the columns {', '.join(absent)}; it has {', '.join(map(str, columns))}.")
    if len(data) != rows:
        raise InputError(f"{path} has {len(data)} rows; expected {rows}. Is it complete, and not a part of the data?")
    geometry, energy = columns.index(GEOMETRY), columns.index(ENERGY)
    molecules, energies = [], np.empty(len(data))
    for number, row in enumerate(data):
        try:
            molecules.append(_molecule(row[geometry]))
            energies[number] = row[energy]
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise InputError(
                f"{path}: row {number} cannot be read ({type(error).__name__}: {error}). Expected an xyz file as text "
                f"in {GEOMETRY} and a number in {ENERGY}."
            ) from error
    if not np.isfinite(energies).all():
        raise InputError(f"{path}: row {int(np.argmin(np.isfinite(energies)))} has no finite {ENERGY}.")
    return MoleculeFrames(molecules, energies)


def _molecule(text: Any) -> tuple[np.ndarray, np.ndarray]:
    """Numbers and positions from the text of an xyz file: number of atoms, comment, element and x y z of each."""
    lines = text.splitlines()
    atoms = [line.split() for line in lines[2 : 2 + int(lines[0])]]
    if len(atoms) != int(lines[0]):
        raise ValueError(f"{len(atoms)} of {int(lines[0])} atoms")
    numbers = np.array([atomic_numbers[words[0]] for words in atoms])
    positions = np.array([[float(word) for word in words[1:4]] for words in atoms])
    if positions.shape != (len(atoms), 3) or not np.isfinite(positions).all():
        raise ValueError("positions are not three finite numbers for each atom")
    return numbers, positions
