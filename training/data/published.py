"""A published data set: its files, fetched once and known by their sha256 after, and what is read of them."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from ase import Atoms

from phi_equivariant.errors import InputError
from training.data.labels import LabelReport
from training.data.sequences import Frames, picked
from zoo.store.download import download, sha256_of, writing


@dataclass
class Dataset:
    """A data set, split.

    Parameters
    ----------
    train, valid, test : sequences of ``ase.Atoms`` with labels under the keys of :data:`training.quantities.LABELS`
        (eV, eV/Å, e, e·Å), built when they are asked for
    e0s : energies of the isolated atoms at the same level of theory, atomic number -> eV; None if unknown
    provenance : files with their sha256, source and split, to which a loader's caller adds what was known before: for
        JSON
    keys : label -> its name in the files, for the log
    test_name : of the test set, where there are further ones
    further_tests : {name: structures} of these
    notes : lines for the log
    reports : label counts of each split
    """

    train: Sequence[Atoms]
    valid: Sequence[Atoms]
    test: Sequence[Atoms]
    e0s: dict[int, float] | None
    provenance: dict[str, Any]
    keys: dict[str, str]
    test_name: str = ""
    further_tests: dict[str, Sequence[Atoms]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    reports: dict[str, LabelReport] = field(default_factory=dict)

    @classmethod
    def split(
        cls,
        frames: Frames,
        indices: Mapping[str, Iterable[int]],
        files: dict[str, str],
        source: str | Path,
        keys: dict[str, str],
        **about: Any,
    ) -> Self:
        """Structures of one sequence, split.

        frames : all of them; indices : {train, valid, test: which}; files : {name: sha256}; source, keys : as of the
        class; about : what else is to be known of the split
        """
        parts: dict[str, Any] = {split: picked(frames, chosen) for split, chosen in indices.items()}
        listed = {f"{split}_indices": list(map(int, chosen)) for split, chosen in indices.items()}
        provenance = {"files": files, "source": str(source), "split": {**about, **listed}}
        return cls(**parts, e0s=None, provenance=provenance, keys=keys)


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


def record_of(path: Path) -> Path:
    """File beside ``path`` that keeps its sha256, in the form that ``sha256sum --check`` reads."""
    return path.with_name(path.name + ".sha256")


def verify(path: Path) -> str:
    """The sha256 of a file, equal to the recorded one if there is a record; raises InputError if they differ."""
    digest = sha256_of(path)
    record = record_of(path)
    if record.exists():
        words = record.read_text().split()
        if not words or words[0] != digest:
            raise InputError(
                f"{path} has changed: its sha256 is {digest}, but {words[0] if words else 'nothing'} was recorded when "
                f"it was downloaded. Delete {path} and {record}; the file will then be downloaded again."
            )
    return digest


def fetch(url: str, path: Path, check: Callable[[Path], object]) -> str:
    """Make sure that ``path`` holds the file at ``url``, which is downloaded if it is not there; returns its sha256.

    The transfer becomes ``path`` only after ``check``, which raises InputError if the complete transfer is not what was
    expected; a lock keeps a second process waiting meanwhile. The sha256 is recorded beside the file and compared at
    every later call, which needs no network.

    InputError if the server cannot be reached or answers with an error, the transfer ends early, the file fails the
    check, the folder is not writable or full, or the file on disk no longer has its recorded sha256.
    """
    if not (path.exists() and record_of(path).exists()):
        with writing(path):
            if not path.exists():
                download(path, url, check)
            elif not record_of(path).exists():
                check(path)  # put there by hand, or a run was killed between the last two steps of a download
            if not record_of(path).exists():
                _record(path)
    return verify(path)


def _record(path: Path) -> None:
    temporary = record_of(path).with_name(record_of(path).name + ".part")
    temporary.write_text(f"{sha256_of(path)}  {path.name}\n")
    os.replace(temporary, record_of(path))
