"""Data sets that are published as extended XYZ, a file for each training and test set."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ase import Atoms
from ase.formula import Formula

from phi_equivariant.errors import InputError
from training.data.dataset_info import DatasetInfo
from training.data.labels import resolve_keys
from training.data.parts import random_split
from training.data.published import Dataset, digests, existing
from training.data.reading import read_structures
from training.data.sequences import picked
from training.quantities import LABELS


def load(info: DatasetInfo, folder: Path, seed: int) -> Dataset:
    """A data set from the folder that holds its files.

    info : ``xyz`` names the files, the keys of the labels, and the share of the training file for validation
    folder : with the files
    seed : of the validation frames, which are taken from those for training

    InputError if the training file, the one of the isolated atoms or the first test file is missing, or one cannot be
    used.
    """
    files = info.xyz
    assert files is not None
    train = existing(folder, files.train, info.source)
    first = existing(folder, files.tests[0], info.source)
    further = [folder / name for name in files.tests[1:] if (folder / name).is_file()]
    isolated = existing(folder, files.isolated, info.source) if files.isolated else None
    whole = read_structures(train, files.keys, "train")
    read: Sequence[Atoms] = whole.frames
    _check_formula(read, info, train)
    split: dict[str, Any] = {"seed": seed, "test": first.name}
    if files.valid is None:
        kept, held_out = random_split(len(read), files.valid_fraction, seed)
        split |= {"train_indices": kept, "valid_indices": held_out}
        read, valid, own = picked(read, kept), picked(read, held_out), []
    else:
        own = [existing(folder, files.valid, info.source)]
        valid = read_structures(own[0], files.keys, "valid").frames
        split |= {"valid": files.valid}
    tests: dict[str, Sequence[Atoms]] = {
        info.name if path.stem == "test" else path.stem.removeprefix("test_"): (
            read_structures(path, files.keys, "test").frames
        )
        for path in (first, *further)
    }
    name = next(iter(tests))
    used = [train, *own, first, *further, *([isolated] if isolated else [])]
    absent = [name for name in files.tests[1:] if folder / name not in further]
    notes = [f"{info.name}: not in {folder}, not tested on: {', '.join(absent)}"] if absent else []
    keys = {name: key for name, key in resolve_keys(files.keys).items() if LABELS[name].within(read[0])}
    return Dataset(
        train=read,
        valid=valid,
        test=tests.pop(name),
        e0s=_e0s(isolated, files.keys) if isolated else whole.e0s or None,
        provenance={"files": digests(used), "source": str(folder), "split": split},
        keys=keys,
        test_name=name if tests else "",
        further_tests=tests,
        notes=notes,
    )


def _check_formula(frames: Sequence[Atoms], info: DatasetInfo, path: Path) -> None:
    if info.formula:
        expected = Formula(info.formula).count()
        for index, atoms in enumerate(frames):
            if (found := atoms.symbols.formula).count() != expected:
                raise InputError(
                    f"frame {index} of {path} holds {found.format('hill')}; expected {info.formula}. Is it another "
                    "molecule's file?"
                )


def _e0s(path: Path, keys: Mapping[str, str]) -> dict[int, float]:
    """{Z: eV} of a file of single atoms."""
    found: dict[int, float] = {}
    for atoms in read_structures(path, keys, "isolated atoms", keep_isolated_atoms=True).frames:
        energy = atoms.info.get(LABELS["energy"].canonical)
        if len(atoms) != 1 or energy is None or int(atoms.numbers[0]) in found:
            raise InputError(f"{path} must hold single atoms of different elements, each with its energy.")
        found[int(atoms.numbers[0])] = float(energy)
    return found
