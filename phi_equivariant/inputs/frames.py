"""Structures of files, one at a time: extended XYZ with its comment lines checked, all else as ase reads it."""

import io
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

import ase.db
import ase.io
from ase import Atoms
from ase.io.extxyz import read_xyz
from ase.io.formats import filetype, open_with_compression

from phi_equivariant.errors import InputError
from phi_equivariant.inputs.headers import check_header, letters

_DATABASES = ("db", "json")  # ase's names of its databases' formats
_PLAIN_COLUMNS = 4  # element and position


def read_frames(path: str | Path, names: Iterable[str] = ()) -> Iterator[tuple[int, Atoms | InputError]]:
    """The structures of a file with their numbers, in constant memory; an error in place of one that cannot be read.

    Blank lines between the frames of an extended XYZ file are passed over. Of ase's databases, key-value pairs are
    entries of ``info``, further data are ``info["data"]``; labels, total charges and fields are found in both.

    Parameters
    ----------
    path : any file that ase reads, compressed or not
    names : keys of the labels that will be read, which extended XYZ must not swallow or hold twice

    Raises
    ------
    InputError
        If there is no such file, it is empty, or it is not a list of frames.
    """
    path = Path(path)
    check_readable(path)
    try:
        kind = filetype(str(path))
    except Exception as error:  # ase's guess may open the file, and raises whatever it meets
        raise InputError(f"ase cannot read {path}: {type(error).__name__}: {error}. Is the file complete?") from error
    if kind == "extxyz":
        return _extended_xyz(path, frozenset(names))
    return _database(path) if kind in _DATABASES else _as_ase(path)


def first_structure(path: str | Path) -> Atoms:
    """The first structure of a file.

    Raises
    ------
    InputError
        As :func:`read_frames`, and if the file holds none or the first cannot be read.
    """
    for _, atoms in read_frames(path):
        if isinstance(atoms, InputError):
            raise atoms
        return atoms
    raise InputError(f"{path} holds no structure.")


def check_readable(path: Path) -> None:
    """InputError unless there is a file with something in it."""
    if not path.exists():
        raise InputError(f"There is no file {path}. Give the path of a file with structures that ase reads.")
    if path.is_dir():
        raise InputError(f"{path} is a folder; expected a file with structures that ase reads, such as extended XYZ.")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty; expected a file with structures that ase reads.")


def read_frame(text: str) -> Atoms:
    """ase's reading of one frame of extended XYZ: number of atoms, comment line, atoms."""
    return next(read_xyz(io.StringIO(text), 0))


class _Lines:
    """Lines of a text file with their numbers, the next one visible."""

    def __init__(self, file: TextIO) -> None:
        self._file, self.number = file, 0
        self.next = file.readline()

    def take(self) -> str:
        """The next line; "" at the end of the file."""
        line, self.next = self.next, self._file.readline()
        self.number += 1
        return line


def _extended_xyz(path: Path, names: frozenset[str]) -> Iterator[tuple[int, Atoms | InputError]]:
    index, unnamed = 0, False
    try:
        with io.TextIOWrapper(open_with_compression(str(path), "rb"), encoding="utf-8-sig") as file:
            lines = _Lines(file)
            while lines.next:
                if not lines.next.strip():
                    lines.take()
                    continue
                frame = _Frame(lines, index, path)
                error = frame.error(names)
                if not unnamed and error is None and frame.unnamed_columns:
                    unnamed = True
                    warnings.warn(
                        f"{path} has columns after the positions that no Properties in the comment line names: they "
                        "are not read.",
                        stacklevel=2,
                    )
                yield index, frame.read() if error is None else error
                index += 1
    except InputError:
        raise
    except (OSError, EOFError, ValueError, MemoryError) as error:  # not UTF-8, damaged compression
        raise InputError(f"ase cannot read {path}: {type(error).__name__}: {error}. Is the file complete?") from error


class _Frame:
    """The lines of one frame, taken from the file; InputError where they are not those of a frame."""

    def __init__(self, lines: _Lines, index: int, path: Path) -> None:
        self.where = f"frame {index} of {path}"
        head = lines.take()
        if not head.strip().removeprefix("+").isdecimal():
            raise InputError(
                f"ase cannot read {path}: line {lines.number} is {head.strip()[:60]!r}, where frame {index} should "
                "begin with its number of atoms. Is a number of atoms wrong, or is this not extended XYZ?"
            )
        self.size, self.ended = int(head), not lines.next
        self.comment = lines.take()
        self.rows: list[str] = []
        while len(self.rows) < self.size and lines.next:
            row = lines.take()
            if not row.strip():
                raise InputError(
                    f"ase cannot read {path}: line {lines.number} is blank, in the middle of frame {index}. Correct "
                    "the number of atoms, or take the line out."
                )
            self.rows.append(row)
        self.vectors = 0
        while lines.next.lstrip().startswith("VEC"):
            self.rows.append(lines.take())
            self.vectors += 1
        self.unnamed_columns = False

    def error(self, names: frozenset[str]) -> InputError | None:
        """What is wrong with the comment line, the number of lines or of columns."""
        atoms = len(self.rows) - self.vectors
        if self.ended or atoms < self.size:
            return InputError(
                f"{self.where} cannot be read: the file ends after {atoms} of its {self.size} atoms. Is it complete?"
            )
        try:
            header = check_header(self.comment, self.where, names)
        except InputError as error:
            return error
        if self.vectors and (lost := [key for key in header if header[key] is not None and letters(key) in _KEPT]):
            return InputError(
                f"{self.where} gives its cell by lines VEC1 …, and ase then ignores the comment line, "
                f"so {lost[0]} would be lost. Write the cell as Lattice."
            )
        return self._wrong_columns(header)

    def _wrong_columns(self, header: dict[str, str | None]) -> InputError | None:
        columns = header.get("Properties")
        named = sum(map(int, columns.split(":")[2::3])) if columns and not self.vectors else _PLAIN_COLUMNS
        for number, row in enumerate(self.rows[: self.size]):
            found = len(row.split())
            if found < named or (found > named and columns):
                return InputError(
                    f"{self.where} cannot be read: atom {number} has {found} columns, {row.strip()[:60]!r}, and "
                    f"{named} are expected. Correct the line or Properties."
                )
            self.unnamed_columns |= found > named
        return None

    def read(self) -> Atoms | InputError:
        """ase's reading, or why there is none."""
        try:
            return read_frame("".join((f"{self.size}\n", self.comment.rstrip("\n") + "\n", *self.rows)))
        except Exception as error:  # ase's readers raise whatever their parser meets: there is no narrower base class
            return InputError(f"{self.where} cannot be read: {type(error).__name__}: {error}.")


_KEPT = frozenset({"totalcharge", "charge", "totalspin", "spin", "multiplicity", "spinmultiplicity", "lattice", "pbc"})


def _database(path: Path) -> Iterator[tuple[int, Atoms | InputError]]:
    """Rows of ase's databases with what ase.io.read leaves out: their key-value pairs and data."""
    try:
        with ase.db.connect(str(path), serial=True) as database:
            for index, row in enumerate(database.select()):
                atoms = row.toatoms(add_additional_information=True)
                atoms.info = {**atoms.info.pop("key_value_pairs", {}), **atoms.info}
                yield index, atoms
    except Exception as error:  # sqlite's, json's and ase's own
        raise InputError(f"ase cannot read {path}: {type(error).__name__}: {error}. Is the file complete?") from error


def _as_ase(path: Path) -> Iterator[tuple[int, Atoms | InputError]]:
    index = 0
    while True:
        # ase's readers raise whatever their parser meets: there is no narrower base class.
        try:
            for atoms in ase.io.iread(path, index=slice(index, None)):
                yield index, atoms
                index += 1
            return
        except Exception as error:
            _check_list_of_frames(path, error)
            yield index, InputError(f"frame {index} of {path} cannot be read: {type(error).__name__}: {error}.")
            index += 1  # ase's reader ends with the frame it fails on: begin again behind it


def _check_list_of_frames(path: Path, error: Exception) -> None:
    """InputError where it is not one frame that cannot be read, but the file."""
    try:
        next(iter(ase.io.iread(path, index=slice(10**12, None))), None)
    except Exception:
        raise InputError(f"ase cannot read {path}: {type(error).__name__}: {error}. Is the file complete?") from error
