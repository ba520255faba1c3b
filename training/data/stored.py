"""Structures that stay on disk: HDF5 files of mace_prepare_data and LMDB databases, read one at a time."""

import contextlib
import hashlib
import os
import re
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from ase import Atoms

from phi_equivariant.errors import InputError
from training import mace_interface
from training.data.labels import CANONICAL, resolve_keys
from training.data.placing import Accepted, LabelPlacer
from training.data.sequences import Chain, Frames, place_in
from training.data.stored_files import HDF5, LMDB, stored_files
from training.quantities import LABELS

Keys = Mapping[str, str | None]
#: LMDB files that are open, by process and path.
_DATABASES: weakref.WeakValueDictionary[tuple[int, Path], Any] = weakref.WeakValueDictionary()
SAMPLED_BLOCKS, BLOCK = 16, 1 << 16  # of a file's content, for its fingerprint


def open_stored(path: str | Path, keys: Keys | None = None, accepted: Accepted | None = None) -> Chain:
    """The structures of an HDF5 or LMDB file, or of a folder of them (its files in the order of their numbers).

    ``keys`` : label name -> key in LMDB files, as mace's options; HDF5 files have names of their own.

    InputError if there is nothing, or nothing that can be read.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"There is no {path}. Give a file or folder that mace_prepare_data has written.")
    files = stored_files(path)
    if not files:
        raise InputError(f"{path} holds no files ending in {', '.join((*HDF5, *LMDB))}. Is it the right folder?")
    return Chain([_open(file, keys, accepted) for file in files])


def _open(file: Path, *how: Any) -> "_OpenedPerProcess":
    kind, name = (Hdf5Frames, "HDF5") if file.suffix.lower() in HDF5 else (LmdbFrames, "LMDB")
    with _reading(f"{file} cannot be read as {name}"):
        return kind(file, *how)


@contextlib.contextmanager
def _reading(failure: str) -> Iterator[None]:
    """A block in which the two libraries raise whatever their parsers meet in a damaged file: an InputError, then."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{failure}: {type(error).__name__}: {error}. Is the file complete?") from error


class _OpenedPerProcess(Frames):
    """A file whose handle is not shared between processes: neither HDF5's nor LMDB's survives a fork.

    Inherited handles are kept, unused, because closing them would disturb the parent's.
    """

    on_disk = True

    def __init__(self, path: str | Path, keys: Keys | None = None, accepted: Accepted | None = None) -> None:
        self.path, self.placer = Path(path), LabelPlacer(resolve_keys(keys), accepted)
        self._handles: dict[int, Any] = {}

    def _open(self) -> Any:
        """The file, for reading, in this process."""
        raise NotImplementedError

    def _read(self, file: Any, index: int, where: str) -> Atoms:
        """The structure of that number; ``where`` names it in messages."""
        raise NotImplementedError

    def handle(self) -> Any:
        """The file, opened in this process."""
        process = os.getpid()
        if process not in self._handles:
            self._handles[process] = self._open()
        return self._handles[process]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handles": {}}

    def at(self, index: int) -> Atoms:
        """Read it, checked."""
        where = f"structure {index} of {self.path}"
        with _reading(f"{where} cannot be read"):
            atoms = self._read(self.handle(), index, where)
        self.placer.accepted.check_entries(atoms, where)
        return atoms

    def fingerprint(self) -> str:
        """sha256 of the file's size and of blocks spread over it.

        Reading a large data set whole, to know whether it is still the same, would take as long as an epoch. This finds
        another data set, a changed number of structures, and nearly every rewriting; not one label edited in place.
        """
        size = self.path.stat().st_size
        sha = hashlib.sha256(f"{size}".encode())
        with open(self.path, "rb") as file:
            for start in np.linspace(0, max(size - BLOCK, 0), SAMPLED_BLOCKS).astype(int):
                file.seek(int(start))
                sha.update(file.read(BLOCK))
        return sha.hexdigest()


class Hdf5Frames(_OpenedPerProcess):
    """Structures of a file of mace_prepare_data, labels under the canonical keys.

    Weights of structures and labels are in the file: mace_prepare_data has applied config_type_weights.
    """

    def __init__(self, path: str | Path, *how: Any) -> None:
        super().__init__(path, *how)
        self._canonical = LabelPlacer(CANONICAL, self.placer.accepted)
        file = self.handle()
        groups = sorted(file, key=lambda name: [int(part) for part in re.findall(r"\d+", name)])
        if not groups or not all(re.fullmatch(r"config_batch_\d+", name) for name in groups):
            raise InputError(
                f"{path} is not a file of mace_prepare_data: it holds {', '.join(list(file)[:4]) or 'nothing'}, not "
                "config_batch_0."
            )
        self.groups = groups
        self.ends = np.cumsum([len(file[name]) for name in groups])

    def _open(self) -> h5py.File:
        return h5py.File(self.path, "r")

    def __len__(self) -> int:
        return int(self.ends[-1])

    def _read(self, file: h5py.File, index: int, where: str) -> Atoms:
        part, within = place_in(self.ends, index)
        stored = file[self.groups[part]][f"config_{within}"]
        atoms = Atoms(stored["atomic_numbers"][()], stored["positions"][()])
        cell, pbc = _value(stored["cell"]), _value(stored["pbc"])
        if cell is not None:
            atoms.cell = cell
        atoms.pbc = False if pbc is None else pbc
        atoms.info["config_weight"] = 1.0 if (weight := _value(stored["weight"])) is None else float(weight)
        atoms.info["config_type"] = _value(stored["config_type"]) or "Default"
        for name, item in stored["properties"].items():
            value = _value(item)
            if value is None or name == "head":
                continue
            label = LABELS.get(name)
            per_atom = isinstance(value, np.ndarray) and value.ndim > 0 and len(value) == len(atoms)
            place = atoms.arrays if (per_atom if label is None else label.per_atom) else atoms.info
            place[name if label is None else label.canonical] = value
        for name, item in stored["property_weights"].items():
            if (weight := _value(item)) is not None:
                atoms.info[f"config_{name}_weight"] = weight
        self._canonical.place(atoms, self._canonical.collect(atoms, where)[0])
        return atoms


def _value(item: h5py.Dataset) -> Any:
    """A value as mace_prepare_data writes it: text ``None`` for what is absent."""
    value = item[()]
    value = value.decode() if isinstance(value, bytes) else value
    return None if isinstance(value, str) and value == "None" else value


class LmdbFrames(_OpenedPerProcess):
    """Structures of an LMDB database in ase's form (``.aselmdb``), labels moved to the canonical keys.

    Energies, forces and stress are the calculator's results that the database keeps, as in mace, unless a key other
    than mace's default names another entry.
    """

    def __init__(self, path: str | Path, *how: Any) -> None:
        super().__init__(path, *how)
        self.length = len(self.handle())
        self._placers: dict[frozenset[str], LabelPlacer] = {}
        if not self.length:
            raise InputError(f"{path} holds no structure.")

    def _open(self) -> Any:
        # LMDB refuses to open a file twice in a process: several data sets share it.
        place = (os.getpid(), self.path.resolve())
        database = _DATABASES.get(place)
        if database is None:
            _DATABASES[place] = database = mace_interface.open_lmdb(self.path)
        return database

    def __len__(self) -> int:
        return self.length

    def _read(self, file: Any, index: int, where: str) -> Atoms:
        atoms = file.get_atoms(file.ids[index])
        results = {} if atoms.calc is None else atoms.calc.results
        stored = frozenset(
            name for name, key in self.placer.keys.items() if key == LABELS[name].default_key and name in results
        )
        for name in results:
            atoms.info.pop(name, None)  # mace's reader leaves a second, unchecked copy there
        return self._placer_for(stored).labelled_copy(atoms, where)[0]

    def _placer_for(self, stored: frozenset[str]) -> LabelPlacer:
        """The placer where labels of these names are results of a calculator."""
        if stored not in self._placers:
            keys = {name: name if name in stored else key for name, key in self.placer.keys.items()}
            self._placers[stored] = LabelPlacer(keys, self.placer.accepted)
        return self._placers[stored]
