"""What a published data set gives when it is read, whatever the form of its files."""

import abc
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from ase import Atoms

from phi_equivariant.errors import InputError
from training.data.fetched import verify


class ArrayFrames(Sequence[Atoms]):
    """Labelled structures that are kept as arrays and built when they are asked for."""

    @property
    @abc.abstractmethod
    def labels(self) -> tuple[str, ...]:
        """Names of the labels that every structure has."""

    @abc.abstractmethod
    def pick(self, indices: Sequence[int] | np.ndarray) -> Self:
        """Another such sequence of some of the structures, in this order."""


@dataclass
class Found:
    """The files of a data set, read and split.

    frames : {train, valid, test: structures with labels in their canonical places}
    e0s : energies of the isolated atoms, atomic number -> eV; None if the data set has none
    provenance : files with their sha256, source, licence, citation, split: for JSON
    keys : label -> its name in the files, for the log
    test_name : of the test set, where there are further ones
    further_tests : {name: structures} of these
    notes : lines for the log
    """

    frames: dict[str, Sequence[Atoms]]
    e0s: dict[int, float] | None
    provenance: dict[str, Any]
    keys: dict[str, str]
    test_name: str = ""
    further_tests: dict[str, Sequence[Atoms]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def pick(frames: Sequence[Atoms], indices: Sequence[int] | np.ndarray) -> Sequence[Atoms]:
    """Some of the structures, in this order."""
    return frames.pick(indices) if isinstance(frames, ArrayFrames) else [frames[i] for i in indices]


def existing(folder: Path, names: str | Sequence[str], source: str) -> Path:
    """The first of the named files that is in the folder; InputError, with where it is published, if none is."""
    names = [names] if isinstance(names, str) else names
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"There is no {' or '.join(names)} in {folder}. Put the file from {source} there.")


def digests(paths: Sequence[Path]) -> dict[str, str]:
    """{file name: sha256}."""
    return {path.name: verify(path) for path in paths}
