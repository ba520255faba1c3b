"""A published data set as it is read, whatever the form of its files."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from ase import Atoms

from phi_equivariant.errors import InputError
from training.data.fetched import verify
from training.data.labels import LabelReport
from training.data.sequences import Frames, picked


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
