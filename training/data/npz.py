"""Structures of one molecule kept as arrays: an npz file becomes a sequence that builds ``ase.Atoms`` one at a time."""

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.formula import Formula

from phi_equivariant.errors import InputError
from training.data.sequences import Frames
from training.quantities import LABELS


class NpzFrames(Frames):
    """Labelled structures of one neutral molecule.

    arrays : ``z`` (N,), ``R`` (n, N, 3), ``E`` (n,), ``F`` (n, N, 3); optionally ``charges`` (n, N), ``dipole`` (n, 3)
    to_ev : energy unit of ``E`` and ``F`` in eV; lengths are in Å, charges in e
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], to_ev: float = 1.0) -> None:
        self._arrays, self._to_ev = arrays, to_ev

    def __len__(self) -> int:
        return len(self._arrays["E"])

    def at(self, index: int) -> Atoms:
        """A frame of the file."""
        arrays = self._arrays
        atoms = Atoms(arrays["z"], arrays["R"][index].astype(np.float64))
        atoms.info[LABELS["energy"].canonical] = float(arrays["E"][index]) * self._to_ev
        atoms.arrays[LABELS["forces"].canonical] = arrays["F"][index].astype(np.float64) * self._to_ev
        atoms.info[LABELS["total_charge"].canonical] = 0.0
        if "charges" in arrays:
            atoms.arrays[LABELS["charges"].canonical] = arrays["charges"][index].astype(np.float64)
        if "dipole" in arrays:
            atoms.info[LABELS["dipole"].canonical] = arrays["dipole"][index].astype(np.float64)
        return atoms


def read_npz(
    path: Path,
    formula: str,
    frames: int | None = None,
    extra: Sequence[str] = (),
    unit: str | None = None,
    names: Mapping[str, str] | None = None,
) -> dict[str, np.ndarray]:
    """The arrays of a file with the keys E, F, R, z and those in ``extra``, after checking all of them.

    path : the npz file
    formula : chemical formula that ``z`` must have
    frames : number of frames that the file must have; None for any
    extra : further keys: ``charges`` (n, N), ``dipole`` (n, 3), others of any shape
    unit : energy unit that the file's own ``e_unit``, where it has one, must name
    names : what the file calls E, F, R and z, where it calls them otherwise

    InputError if the file is not a complete npz file, lacks a key, or an array has an unexpected shape or a value that
    is not finite.
    """
    called = {key: (names or {}).get(key, key) for key in ("E", "F", "R", "z", *extra)}
    loaded = _load_arrays(path, list(called.values()), unit)
    arrays = {key: loaded[name] for key, name in called.items()}
    composition = Formula(formula).count()
    n_atoms = sum(composition.values())
    n_frames = len(arrays["R"]) if frames is None and arrays["R"].ndim else frames
    if arrays["E"].shape == (n_frames, 1):
        arrays["E"] = arrays["E"][:, 0]
    expected = {
        "E": (n_frames,),
        "F": (n_frames, n_atoms, 3),
        "R": (n_frames, n_atoms, 3),
        "z": (n_atoms,),
        "charges": (n_frames, n_atoms),
        "dipole": (n_frames, 3),
    }
    for key, array in arrays.items():
        if key in expected and array.shape != expected[key]:
            raise InputError(f"{path}: {key} has shape {array.shape}; expected {expected[key]}.")
        if array.dtype.kind not in "iuf" or not np.isfinite(array).all():
            raise InputError(f"{path}: {key} holds values that are not finite numbers.")
    if not n_frames:
        raise InputError(f"{path} holds no frames.")
    found = Atoms(arrays["z"]).symbols.formula
    if found.count() != composition:
        raise InputError(f"{path} holds {found.format('hill')}; expected {formula}. Is it another molecule's file?")
    return arrays


def _load_arrays(path: Path, keys: Sequence[str], unit: str | None) -> dict[str, np.ndarray]:
    try:
        start = path.open("rb").read(512)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    if not zipfile.is_zipfile(path):
        page = start.lstrip()[:5].lower() in (b"<html", b"<!doc", b"<?xml")
        what = "a web page" if page else "empty" if not start else "not a complete npz file"
        raise InputError(f"{path} is {what}; expected an npz file with the arrays {', '.join(keys)}.")
    try:
        with np.load(path, allow_pickle=False) as file:
            if absent := [key for key in keys if key not in file]:
                raise InputError(f"{path} lacks the arrays {', '.join(absent)}; it has {', '.join(file.files)}.")
            if unit is not None and "e_unit" in file and (named := np.asarray(file["e_unit"]).item()):
                named = named.decode() if isinstance(named, bytes) else str(named)
                if unit not in named:
                    raise InputError(f"{path} says that its energy unit is {named}; expected {unit}.")
            return {key: file[key] for key in keys}
    except InputError:
        raise
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path} is damaged or not an npz file of plain numbers: {error}.") from error
