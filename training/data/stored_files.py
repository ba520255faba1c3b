"""Which files are data that stay on disk, and which of them belong together."""

import re
from pathlib import Path

from phi_equivariant.errors import InputError

HDF5 = (".h5", ".hdf5")
LMDB = (".lmdb", ".aselmdb", ".db")


def is_stored(path: str | Path) -> bool:
    """Whether a path is data that is read structure by structure: a folder, or a file of one of the endings above."""
    return Path(path).is_dir() or Path(path).suffix.lower() in (*HDF5, *LMDB)


def is_hdf5(path: str | Path) -> bool:
    """Whether HDF5 files are among such data."""
    return is_stored(path) and any(file.suffix.lower() in HDF5 for file in stored_files(Path(path)))


def stored_files(folder: Path) -> list[Path]:
    """The data files of a folder, numbers in their names counted as numbers; a file is its own."""
    if folder.is_file():
        return [folder]
    found = [file for file in folder.iterdir() if file.suffix.lower() in (*HDF5, *LMDB)]
    return sorted(found, key=_natural)


def test_sets_of_folder(folder: str | Path, sharded: bool) -> dict[str, list[Path]]:
    """{name of the test set: its files} in a folder, as mace reads and as mace_prepare_data writes them.

    ``<name>_test.h5`` is a test set; so are the files ``<name>_0.h5``, ``<name>_1.h5``, … together, which
    mace_prepare_data writes; with ``sharded`` each sub-folder is one.

    InputError if there is no test set.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"--test_dir: there is no folder {folder}.")
    sets: dict[str, list[Path]] = {}
    if sharded:
        sets = {inner.name: [inner] for inner in sorted(folder.iterdir()) if inner.is_dir() and stored_files(inner)}
    if not sets:
        files = [file for file in stored_files(folder) if file.suffix.lower() in HDF5]
        whole = [file for file in files if file.stem.endswith("_test")]
        for file in whole if whole and not sharded else files:
            name = file.stem if file in whole else re.sub(r"_*\d+$", "", file.stem)
            sets.setdefault(name, []).append(file)
    if not sets:
        raise InputError(
            f"--test_dir: {folder} does not hold a test set: neither *_test.h5 nor other files of mace_prepare_data."
        )
    return sets


def _natural(file: Path) -> list[str | int]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", file.name)]
