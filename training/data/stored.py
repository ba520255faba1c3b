"""Structures that stay on disk: HDF5 files of mace_prepare_data and LMDB databases, read one at a time."""

import hashlib
import os
import re
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np
from ase import Atoms

from phi_equivariant.errors import InputError
from training import mace_interface
from training.data.labels import clean_label, resolve_keys
from training.data.stored_files import HDF5, LMDB, stored_files
from training.data.structures import labelled_copy
from training.quantities import LABELS

_DATABASES = weakref.WeakValueDictionary()  # LMDB files that are open, by process and path
SAMPLED_BLOCKS, BLOCK = 16, 1 << 16  # of a file's content, for its fingerprint


def open_stored(path, keys=None, check=None):
    """The structures of an HDF5 or LMDB file, or of a folder of them (its files in the order of their numbers).

    Parameters
    ----------
    path : file or folder
    keys : label name -> key in LMDB files, as mace's options; HDF5 files have names of their own
    check : called with each structure and its name in messages; raises InputError for one that cannot be used

    Raises
    ------
    InputError
        If there is nothing, or nothing that can be read.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"There is no {path}. Give a file or folder that mace_prepare_data has written.")
    files = stored_files(path)
    if not files:
        raise InputError(f"{path} holds no files ending in {', '.join((*HDF5, *LMDB))}. Is it the right folder?")
    return Chain([_open(file, keys, check) for file in files])


def _open(file, keys, check):
    kind = Hdf5Frames if file.suffix.lower() in HDF5 else LmdbFrames
    try:
        return kind(file, keys, check)
    except InputError:
        raise
    except Exception as error:  # the two libraries raise whatever their parsers meet
        format_name = "HDF5" if kind is Hdf5Frames else "LMDB"
        raise InputError(
            f"{file} cannot be read as {format_name}: {type(error).__name__}: {error}. Is the file complete?"
        ) from error


class Chain(Sequence):
    """Several sequences as one."""

    def __init__(self, parts):
        self.parts = list(parts)
        self.ends = np.cumsum([len(part) for part in self.parts])

    def __len__(self):
        return int(self.ends[-1])

    def __getitem__(self, index):
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        part = int(np.searchsorted(self.ends, index, side="right"))
        return self.parts[part][index - (int(self.ends[part - 1]) if part else 0)]

    def fingerprint(self):
        """sha256 of the parts' fingerprints."""
        return hashlib.sha256("".join(part.fingerprint() for part in self.parts).encode()).hexdigest()


class _OpenedPerProcess(Sequence):
    """A file whose handle is not shared between processes: neither HDF5's nor LMDB's survives a fork.

    Inherited handles are kept, unused, because closing them would disturb the parent's.
    """

    def __init__(self, path, keys, check):
        self.path, self.check, self._handles = Path(path), check, {}
        self.keys = resolve_keys(keys)

    def handle(self):
        """The file, opened in this process."""
        process = os.getpid()
        if process not in self._handles:
            self._handles[process] = self.open()
        return self._handles[process]

    def __getstate__(self):
        return {**self.__dict__, "_handles": {}}

    def __getitem__(self, index):
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        where = f"structure {index} of {self.path}"
        try:
            atoms = self.read(self.handle(), index, where)
        except InputError:
            raise
        except Exception as error:  # whatever the two libraries meet in a damaged file
            raise InputError(
                f"{where} cannot be read: {type(error).__name__}: {error}. Is the file complete?"
            ) from error
        if self.check is not None:
            self.check(atoms, where)
        return atoms

    def fingerprint(self):
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

    def __init__(self, path, keys, check):
        super().__init__(path, keys, check)
        file = self.handle()
        groups = sorted(file, key=lambda name: [int(part) for part in re.findall(r"\d+", name)])
        if not groups or not all(re.fullmatch(r"config_batch_\d+", name) for name in groups):
            raise InputError(
                f"{path} is not a file of mace_prepare_data: it holds {', '.join(list(file)[:4]) or 'nothing'}, not "
                "config_batch_0."
            )
        self.groups = groups
        self.ends = np.cumsum([len(file[name]) for name in groups])

    def open(self):
        """The file, for reading, in this process."""
        return h5py.File(self.path, "r")

    def __len__(self):
        return int(self.ends[-1])

    def read(self, file, index, where):
        """The structure of that number; ``where`` names it in messages."""
        part = int(np.searchsorted(self.ends, index, side="right"))
        stored = file[self.groups[part]][f"config_{index - (int(self.ends[part - 1]) if part else 0)}"]
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
            if label is None:
                per_atom = isinstance(value, np.ndarray) and value.ndim and len(value) == len(atoms)
                (atoms.arrays if per_atom else atoms.info)[name] = value
            else:
                place = atoms.arrays if label.per_atom else atoms.info
                place[label.canonical] = clean_label(label, value, len(atoms), where)
        for name, item in stored["property_weights"].items():
            if (weight := _value(item)) is not None:
                atoms.info[f"config_{name}_weight"] = weight
        return atoms


def _value(item):
    """A value as mace_prepare_data writes it: text ``None`` for what is absent."""
    value = item[()]
    value = value.decode() if isinstance(value, bytes) else value
    return None if isinstance(value, str) and value == "None" else value


class LmdbFrames(_OpenedPerProcess):
    """Structures of an LMDB database in ase's form (``.aselmdb``), labels moved to the canonical keys.

    Energies, forces and stress are the calculator's results that the database keeps, as in mace, unless a key other
    than mace's default names another entry.
    """

    def __init__(self, path, keys, check):
        super().__init__(path, keys, check)
        self.length = len(self.handle())
        if not self.length:
            raise InputError(f"{path} holds no structure.")

    def open(self):
        """The file, for reading, in this process."""
        # LMDB refuses to open a file twice in a process: several data sets share it.
        place = (os.getpid(), self.path.resolve())
        database = _DATABASES.get(place)
        if database is None:
            _DATABASES[place] = database = mace_interface.LmdbDatabase(self.path)
        return database

    def __len__(self):
        return self.length

    def read(self, database, index, where):
        """The structure of that number; ``where`` names it in messages."""
        atoms = database.atoms(index)
        results = {} if atoms.calc is None else atoms.calc.results
        keys: Mapping[str, str] = {
            name: name if key == LABELS[name].default_key and name in results else key
            for name, key in self.keys.items()
        }
        for name in results:
            atoms.info.pop(name, None)  # mace's reader leaves a second, unchecked copy there
        return labelled_copy(atoms, keys, where, None, True)[0]
