"""The structures of one head: read from its files or from the registry, checked, and split."""

import functools
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from phi_equivariant.errors import InputError
from phi_equivariant.inputs.state import StateCount
from training.data import named_files
from training.data.chain import Chain, Picked
from training.data.embeddings import place_embeddings
from training.data.geometry import check_geometry, describe_periodicity
from training.data.head_frames import HeadFrames, Part, of_head, on_disk, random_split
from training.data.heads import Head
from training.data.labels import CANONICAL, LABELS, LabelReport, check_weights
from training.data.outliers import Outliers
from training.data.placing import LabelPlacer
from training.data.stored import open_stored
from training.data.stored_files import HDF5, is_stored, stored_files, test_sets_of_folder
from training.data.structures import read_structures

SAMPLE = 50  # structures of stored data that are looked at before training


def from_registry(head: Head, options: Any, needed: Iterable[str]) -> HeadFrames:
    """A data set of the registry as the only head's."""
    data = named_files.load_dataset(
        options.dataset, data_dir=options.data_dir, cache=options.downloads_dir, seed=options.seed
    )
    for name in needed:
        report = data.reports["train"]
        if report.counts.get(name, 0) < report.frames:
            raise InputError(
                f"--{name}_weight: the data set {options.dataset} has no {name}; it has {', '.join(report.counts)}. "
                "Leave the weight out."
            )
    own = None if head.E0s is not None else data.e0s
    reports = list(data.reports.values())
    neutral = StateCount()
    neutral.add({"total_charge": (0.0, "total_charge")})
    return HeadFrames(
        head, [data.train], [data.valid], {head.name: data.test}, own, reports, data.provenance, [neutral]
    )


class HeadReader:
    """Reads the files of a run's heads.

    Parameters
    ----------
    options : argparse.Namespace
    heads : all heads of the run
    needed : labels that a structure must have
    allow_slabs, allow_charged : what the model can take: one or two periodic directions, a net charge
    """

    def __init__(
        self, options: Any, heads: Sequence[Head], needed: Sequence[str], allow_slabs: bool, allow_charged: bool
    ) -> None:
        self.seed, self.needed, self.multi_processed_test = options.seed, needed, options.multi_processed_test
        self.embeddings = options.embedding_specs or {}
        self.embedded = [name for name, spec in self.embeddings.items() if spec["per"] == "graph"]
        self.names = [head.name for head in heads]
        self.allow_slabs, self.allow_charged = allow_slabs, allow_charged

    def train_and_valid(self, head: Head) -> HeadFrames:
        """Training and validation structures of a head."""
        provenance: dict[str, Any] = {"train_file": _shown(head.train_files)}
        frames = HeadFrames(head, provenance=provenance)
        train, e0s = self._read(head, head.train_files, "train", frames, keep=head.keep_isolated_atoms)
        if head.valid_files:
            # Only in training are isolated atoms taken out, as in mace.
            valid, _ = self._read(head, head.valid_files, "valid", frames, keep=True)
            provenance["valid_file"] = _shown(head.valid_files)
        else:
            # mace can split files that it reads whole only, and so they are split where there are any.
            chosen = next((part for part in train if not on_disk(part)), train[0])
            rest = [part for part in train if part is not chosen]
            kept, held_out = random_split(len(chosen), head.valid_fraction, self.seed)
            train, valid = [_picked(chosen, kept), *rest], [_picked(chosen, held_out)]
            provenance["split"] = {"seed": self.seed, "train_indices": kept, "valid_indices": held_out}
        frames.train, frames.valid, frames.e0s = train, valid, e0s or None
        met = {atoms.info.get("config_type", "Default") for part in train if not on_disk(part) for atoms in part}
        if met and (absent := sorted(set(map(str, head.config_type_weights)) - met - {"Default"})):
            head.notes.append(f"config_type_weights: no training structure has the config_type {', '.join(absent)}")
        if head.config_type_weights not in ({}, {"Default": 1.0}) and any(map(_is_hdf5, head.train_files)):
            head.notes.append("config_type_weights: those of HDF5 files were applied by mace_prepare_data")
        return frames

    def tests(self, frames: HeadFrames, elements: Sequence[int]) -> None:
        """Put a head's test sets in their place: files by config_type, as in mace, then those of ``test_dir``."""
        head = frames.head
        if head.test_files:
            parts, _ = self._read(head, head.test_files, "test", frames, keep=True, elements=elements)
            frames.provenance["test_file"] = _shown(head.test_files)
            by_type: dict[str, list[Atoms]] = {}
            for part in parts:
                if isinstance(part, Chain):
                    frames.tests[f"{Path(part.name).stem}_{head.name}"] = part
                    continue
                for atoms in part:
                    by_type.setdefault(f"{atoms.info.get('config_type', 'Default')}_{head.name}", []).append(atoms)
            frames.tests |= by_type
        if head.test_dir is not None:
            frames.provenance["test_dir"] = str(head.test_dir)
            for name, files in test_sets_of_folder(head.test_dir, self.multi_processed_test).items():
                several = name if len(self.names) == 1 else f"{name}_{head.name}"
                frames.tests[several] = self._stored(head, files, "test", frames, elements)

    def _read(
        self,
        head: Head,
        files: Sequence[str],
        split: str,
        frames: HeadFrames,
        keep: bool,
        elements: Sequence[int] | None = None,
    ) -> tuple[list[Part], dict[int, float]]:
        """Parts of a split: files that ase reads as one list, then each that stays on disk; E0s of isolated atoms."""
        for file in files:
            if not Path(file).exists():
                raise InputError(f"--{split}_file: there is no {file}{of_head(head)}. Correct the path.")
        whole = [file for file in files if not is_stored(file)]
        parts: list[Part] = []
        e0s: dict[int, float] = {}
        if whole:
            read = read_structures(
                whole, head.keys, self.needed, split,
                elements=elements, allow_slabs=self.allow_slabs, keep_isolated_atoms=keep, embedded=self.embedded,
                check=functools.partial(self._check_entries, head),
            )  # fmt: skip
            frames.reports.append(read.report)
            if split == "train":
                frames.states.append(read.states)
            parts, e0s = [self._of_this_head(read.frames, head, whole)], read.e0s
        parts += [self._stored(head, [file], split, frames, elements) for file in files if is_stored(file)]
        return parts, e0s

    def _check_entries(self, head: Head, atoms: Atoms, where: str) -> None:
        """Entries of a structure beside its labels: a charge that the model can carry, what the host embeds."""
        if len(self.names) > 1 and self._is_another_heads(head, atoms):
            return
        self._refuse_charged(atoms, where)
        place_embeddings(atoms, self.embeddings, where)

    def _is_another_heads(self, head: Head, atoms: Atoms) -> bool:
        return atoms.info.get(head.head_key) in set(self.names) - {head.name}

    def _of_this_head(self, frames: list[Atoms], head: Head, files: Sequence[str]) -> list[Atoms]:
        """Without the structures that name another head of the run."""
        if len(self.names) == 1:
            return frames
        own = [atoms for atoms in frames if not self._is_another_heads(head, atoms)]
        if not own:
            raise InputError(
                f"--head_key: every structure of {_shown(files)} names another head than {head.name!r} under "
                f"{head.head_key!r}. Give this head files of its own, or another head_key."
            )
        if len(own) < len(frames):
            head.notes.append(
                f"{len(frames) - len(own)} structures of {_shown(files)} are another head's ({head.head_key})"
            )
        return own

    def _stored(
        self, head: Head, files: Sequence[str | Path], split: str, frames: HeadFrames, elements: Sequence[int] | None
    ) -> Chain:
        """Structures that stay on disk, a sample of them checked before anything is computed."""
        known = set(elements or head.atomic_numbers or ()) or None

        def check(atoms: Atoms, where: str) -> None:
            check_geometry(atoms, where, known, self.allow_slabs)
            check_weights(atoms.info, where)
            self._refuse_charged(atoms, where)
            place_embeddings(atoms, self.embeddings, where)

        parts = [open_stored(file, head.keys, check, self.embedded) for file in files]
        stored = parts[0] if len(parts) == 1 else Chain(parts)
        stored.name = str(files[0])
        looked_at = np.unique(np.linspace(0, len(stored) - 1, min(SAMPLE, len(stored))).astype(int)).tolist()
        counts: Counter[str] = Counter()
        periodic: Counter[int] = Counter()
        states, outliers = StateCount(), Outliers()
        placer = LabelPlacer(CANONICAL, self.embedded)
        for index in looked_at:
            atoms = stored[index]
            found, state = placer.collect(atoms, f"structure {index} of {_shown(files)}")
            counts.update(found.keys())
            states.add(state)
            periodic[int(atoms.pbc.sum())] += 1
            outliers.add(atoms, f"structure {index}")
        for name in self.needed:
            if not counts[name]:
                have = ", ".join(found for found in LABELS if counts[found]) or "no labels"
                raise InputError(
                    f"--{split}_file: none of the {len(looked_at)} structures of {_shown(files)} that were looked at "
                    f"has {name}; they have {have}. Prepare the data with --{name}_key, or set {name}_weight to 0."
                )
        for name in LabelPlacer(head.keys).named:
            if not counts[name]:
                raise InputError(
                    f"--{name}_key: none of the {len(looked_at)} structures of {_shown(files)} that were looked at has "
                    f"{name.replace('_', ' ')}; mace_prepare_data does not keep it. Train on the files that it was "
                    f"given, or leave --{name}_key out."
                )
        some = len(looked_at) if len(looked_at) < len(stored) else None
        notes = [*states.lines(), describe_periodicity(periodic), *outliers.lines()]
        shown = [str(file) for file in files]
        frames.reports.append(LabelReport(split, shown, len(stored), 0, head.keys, dict(counts), some, notes))
        if split == "train":
            frames.states.append(states if some is None else None)
        return stored

    def _refuse_charged(self, atoms: Atoms, where: str) -> None:
        """The graph operator's charges sum to zero: a charged structure has no place there."""
        if not self.allow_charged and atoms.info.get("total_charge", 0.0) != 0.0:
            raise InputError(
                f"total_charge: {where} has {atoms.info['total_charge']:g} e, and the charges of operator: graph sum "
                "to zero by construction. Use operator: coulomb, or neutral structures."
            )


def _picked(part: Part, indices: list[int]) -> Part:
    """A list of the structures, or a view of those on disk."""
    return Picked(part, indices) if isinstance(part, Chain) else [part[i] for i in indices]


def _is_hdf5(file: str) -> bool:
    return is_stored(file) and any(inner.suffix.lower() in HDF5 for inner in stored_files(Path(file)))


def _shown(files: Iterable[str | Path]) -> str:
    return ", ".join(map(str, files))
