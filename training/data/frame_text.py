"""Structures as extended XYZ that ase reads back: what ase's own writer would garble is escaped or refused.

ase's writer loses backslashes, breaks lines at line breaks in texts, and writes empty values that swallow the next
entry. Its reader decodes JSON behind ``_JSON``, in which every text and every nested value can be written.
"""

import json
import re
from typing import Any

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms, FixCartesian
from ase.io.extxyz import per_atom_properties, per_config_properties
from ase.spacegroup.spacegroup import Spacegroup
from ase.stress import voigt_6_to_full_3x3_stress

from phi_equivariant.errors import InputError
from phi_equivariant.inputs.frames import read_frame
from phi_equivariant.inputs.headers import check_header

_PLAIN = re.compile(r"[^\s=\"'{}\[\]\\]+")
_MATRICES = ("virial", "stress")  # that ase's reader takes column by column
_COLUMN_NAMES = {"positions": "pos", "numbers": "Z", "charges": "charge"}
_ROUNDING = 5e-9  # eight decimals, as ase writes


def frame_text(atoms: Atoms, where: str) -> str:
    """One frame with all its entries, columns, results, constraints and cell; read back and compared.

    Numbers of atoms have eight decimals as in files of ase, more where a column's are small; all others every digit.

    InputError for an entry that extended XYZ cannot hold, by its name; ``where`` names the frame.
    """
    info, arrays = _entries(atoms, where)
    try:
        text = f"{len(atoms)}\n{_header(atoms, info, arrays)}\n" + _rows(atoms, arrays)
        check_header(text.split("\n", 2)[1], "as written")
        back = read_frame(text)
    except InputError as error:
        raise InputError(f"{where} cannot be written as extended XYZ: {error}") from error
    except Exception as error:  # ase's reader raises whatever its parser meets
        raise InputError(
            f"{where} cannot be written as extended XYZ: {type(error).__name__}: {error}. Take out what it names."
        ) from error
    if changed := _changed(atoms, info, arrays, back):
        raise InputError(
            f"{where} cannot be written as extended XYZ: {', '.join(map(repr, changed[:5]))} would be read back as "
            "something else. Take it out, or rename it."
        )
    return text


def _entries(atoms: Atoms, where: str) -> tuple[dict[Any, Any], dict[str, np.ndarray]]:
    """What stands in the comment line and in columns, a calculator's results among them."""
    info = {key: value for key, value in atoms.info.items() if key != "pbc"}
    arrays = {key: value for key, value in atoms.arrays.items() if key not in ("numbers", "positions")}
    results = {} if atoms.calc is None else atoms.calc.results
    for name, value in results.items():
        per_atom = name in per_atom_properties
        if value is None or not (per_atom or name in per_config_properties):
            continue
        place: dict[Any, Any] = arrays if per_atom else info
        if name in place and not _same(place[name], value):
            raise InputError(
                f"{where} cannot be written as extended XYZ: {name!r} is among its entries and among its calculator's "
                "results, and they differ. Take one out."
            )
        place[name] = value
    if isinstance(info.get("stress"), np.ndarray) and info["stress"].shape == (6,):
        info["stress"] = voigt_6_to_full_3x3_stress(info["stress"])
    mask = _move_mask(atoms)
    return info, arrays if mask.all() else {"move_mask": mask, **arrays}


def _header(atoms: Atoms, info: dict[Any, Any], arrays: dict[str, np.ndarray]) -> str:
    columns = ["species:S:1", "pos:R:3"]
    for name, array in arrays.items():
        kind = "R" if _as_reals(array) else {"f": "R", "i": "I", "u": "I", "b": "L"}.get(array.dtype.kind, "S")
        columns.append(f"{_COLUMN_NAMES.get(name, name)}:{kind}:{array.shape[1] if array.ndim > 1 else 1}")
    parts = []
    if atoms.cell.any():
        parts.append('Lattice="' + " ".join(str(float(x)) for x in atoms.cell.array.ravel()) + '"')
    parts.append(f"Properties={_quoted(':'.join(columns))}")
    parts += [f"{_quoted(key)}={_value(key, value)}" for key, value in info.items()]
    return " ".join([*parts, 'pbc="' + " ".join("FT"[int(one)] for one in atoms.pbc) + '"'])


def _value(key: object, value: object) -> str:
    """A value as ase's reader decodes it."""
    if isinstance(value, Spacegroup):
        value = value.symbol
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        value = value.item()
    if isinstance(value, bool):
        return "T" if value else "F"
    if isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63):
        return repr(value)
    if isinstance(value, str) and (_reads_as_itself(value) or str(key).lower() == "uid"):
        return _quoted(value)
    if isinstance(value, np.ndarray) and value.size > 1 and value.dtype.kind in "iufb":
        if key in _MATRICES:
            value = value.reshape(value.size, order="F")
        if value.ndim == 1:
            words = ["T" if x else "F" for x in value] if value.dtype.kind == "b" else map(repr, value.tolist())
            return '"' + " ".join(words) + '"'
    try:
        np.array(value)  # as the reader does
        return _quoted("_JSON " + json.dumps(value, default=_plain))
    except (TypeError, ValueError) as error:
        raise InputError(f"the entry {key!r} is a {type(value).__name__} that a text cannot hold ({error}).") from error


def _plain(value: object) -> object:
    """Numpy's objects within lists and dictionaries as Python's."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not a text, number, list or dictionary")


def _reads_as_itself(text: str) -> bool:
    """Whether ase's reader takes a text for a text, neither for numbers, logicals or nothing, nor for JSON."""
    words = re.findall(r"[^\s,]+", text)
    if not words or not text.isprintable() or text.startswith("_JSON "):
        return False
    try:
        np.array(words, dtype=float)
    except ValueError:
        return not all(word in ("T", "F", "true", "false", "True", "False", "TRUE", "FALSE") for word in words)
    return False


def _quoted(text: object) -> str:
    if not isinstance(text, str):
        raise InputError(f"the name of an entry is {text!r}, not a text.")
    if _PLAIN.fullmatch(text):
        return text
    if "\n" in text or "\r" in text:
        raise InputError(f"the name of an entry or column, {text!r}, has a line break.")
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _as_reals(array: np.ndarray) -> bool:
    """Whether a column is of whole numbers that the format's 32 bits do not hold."""
    return array.dtype.kind in "iu" and bool(array.size) and bool((np.abs(array.astype(float)) >= 2**31).any())


def _rows(atoms: Atoms, arrays: dict[str, np.ndarray]) -> str:
    columns: list[list[str]] = [[f"{symbol:<2}" for symbol in atoms.symbols], *_reals(atoms.positions)]
    for name, array in arrays.items():
        if array.ndim > 2:
            raise InputError(f"the column {name!r} has shape {array.shape}; a column holds (n_atoms, n).")
        if array.dtype.kind == "f":
            columns += _reals(array)
        elif array.dtype.kind in "iub":
            form = "{:16.1f}" if _as_reals(array) else "{:8d}" if array.dtype.kind != "b" else "{!s:>2.1}"
            columns += [[form.format(value) for value in part] for part in np.atleast_2d(array.T).tolist()]
        else:
            texts = [[str(value) for value in part] for part in np.atleast_2d(array.T).tolist()]
            if array.dtype.kind not in "USO" or not all(len(text.split()) == 1 for part in texts for text in part):
                raise InputError(f"the column {name!r} holds what is neither numbers nor words without spaces.")
            columns += texts
    return "".join(" ".join(row) + "\n" for row in zip(*columns, strict=True))


def _reals(array: np.ndarray) -> list[list[str]]:
    """Columns of numbers: eight decimals, or every digit where the eighth is more than 1e-6 of the largest number."""
    largest = np.abs(array[np.isfinite(array)]).max(initial=0.0)
    form = "{:16.8f}" if largest == 0 or largest * 1e-6 >= _ROUNDING else "{:25.16e}"
    return [[form.format(value) for value in part] for part in np.atleast_2d(np.asarray(array, float).T).tolist()]


def _move_mask(atoms: Atoms) -> np.ndarray:
    """What may move, (n_atoms,) or by component (n_atoms, 3), by the two constraints that the format knows."""
    known = [one for one in atoms.constraints if isinstance(one, FixAtoms | FixCartesian)]
    by_component = any(isinstance(one, FixCartesian) for one in known)
    mask = np.ones((len(atoms), 3) if by_component else len(atoms), bool)
    for one in known:
        mask[one.index] = False if isinstance(one, FixAtoms) else ~np.asarray(one.mask, bool) & mask[one.index]
    return mask


def _changed(atoms: Atoms, info: dict[Any, Any], arrays: dict[str, np.ndarray], back: Atoms) -> list[str]:
    """Names of what is not the same when it is read back."""
    results = {} if back.calc is None else back.calc.results
    found_info = {**back.info, **{key: results[key] for key in results if key in per_config_properties}}
    found_arrays = {**back.arrays, **{key: results[key] for key in results if key in per_atom_properties}}
    if "stress" in found_info and np.shape(found_info["stress"]) == (6,):
        found_info["stress"] = voigt_6_to_full_3x3_stress(found_info["stress"])
    if "initial_charges" in arrays:
        found_arrays["initial_charges"] = back.get_initial_charges()
    expected_arrays = {**arrays, "numbers": atoms.numbers, "positions": atoms.positions}
    if expected_arrays.pop("move_mask", None) is not None:
        found_arrays["move_mask"] = _move_mask(back)
        expected_arrays["move_mask"] = _move_mask(atoms)
    changed = [str(key) for key in {**info, **found_info} if not _same(info.get(key, ...), found_info.get(key, ...))]
    changed += [
        key
        for key in {**expected_arrays, **found_arrays}
        if not _same(expected_arrays.get(key, ...), found_arrays.get(key, ...), rounded=True)
    ]
    if not (np.array_equal(atoms.cell.array, back.cell.array) and np.array_equal(atoms.pbc, back.pbc)):
        changed.append("the cell")
    return changed


def _same(given: object, found: object, rounded: bool = False) -> bool:
    """Whether two values are equal; lists, tuples and arrays of the same content are, and so are 1 and 1.0."""
    if isinstance(given, Spacegroup):
        given = given.symbol
    if given is ... or found is ... or given is None or found is None:
        return given is found
    if isinstance(given, dict) and isinstance(found, dict):
        return set(map(str, given)) == set(found) and all(_same(given[key], found[str(key)]) for key in given)
    if isinstance(given, str) or isinstance(found, str):
        return str(given) == found
    try:
        one, other = np.squeeze(np.asarray(given)), np.squeeze(np.asarray(found))
    except ValueError:  # rows of unequal length
        one = other = np.asarray(None)
    if one.dtype.kind in "iufb" and other.dtype.kind in "iufb":
        if one.shape != other.shape:
            return one.size == other.size == 0
        limit = max(_ROUNDING * 1.01, 1e-15 * float(np.abs(other).max(initial=0.0))) if rounded else 0.0
        return bool(np.allclose(one.astype(float), other.astype(float), rtol=0.0, atol=limit, equal_nan=True))
    if one.dtype.kind in "US" and other.dtype.kind in "USO":
        return bool(one.shape == other.shape and (one.astype(str) == other.astype(str)).all())
    if isinstance(given, list | tuple | np.ndarray) and isinstance(found, list | tuple | np.ndarray):
        return len(given) == len(found) and all(_same(a, b) for a, b in zip(given, found, strict=True))
    return bool(given == found)
