"""Structures of a head read from its files or from the registry, checked, and split."""

import functools
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from phi_equivariant.errors import InputError
from phi_equivariant.inputs.state import StateCount
from training.data.chain import Chain
from training.data.embeddings import place_embeddings
from training.data.geometry import check_geometry, describe_periodicity
from training.data.heads import parse_atomic_numbers
from training.data.labels import CANONICAL, LabelReport, check_weights
from training.data.needs import Needs, check_test, sample
from training.data.outliers import Outliers
from training.data.parts import HeadFrames, Part, of_head, on_disk, picked, random_split
from training.data.placing import LabelPlacer
from training.data.replay import check_downloaded, select
from training.data.stored import open_stored
from training.data.stored_files import is_hdf5, is_stored, test_sets_of_folder
from training.data.structures import read_structures
from training.quantities import LABELS
from training.run import Data, Head, Replay
from training.run.replay import PT_HEAD


class HeadReader:
    """Reads the files of a run's heads.

    Parameters
    ----------
    data : the run's options for data
    seed : of the split into training and validation
    embeddings : mace's ``embedding_specs``
    names : of all heads of the run
    needs : what the loss asks of the data
    periodicities, allow_charged, allow_fields : what the model can take: numbers of periodic directions, a net charge,
        external fields
    ions : whether a total charge must be one that the atoms can have
    replay : what of the trained model's data is trained on
    """

    def __init__(
        self,
        data: Data,
        seed: int,
        embeddings: Mapping[str, Any],
        names: list[str],
        needs: Needs,
        periodicities: Collection[int],
        allow_charged: bool,
        allow_fields: bool,
        ions: bool,
        replay: Replay,
    ) -> None:
        self.seed, self.needs, self.multi_processed_test = seed, needs, data.multi_processed_test
        self.embeddings, self.names = embeddings, names
        self.embedded = [name for name, spec in embeddings.items() if spec["per"] == "graph"]
        self.periodicities, self.allow_charged, self.allow_fields = periodicities, allow_charged, allow_fields
        self.ions, self.replay, self.replay_elements = ions, replay, data.atomic_numbers

    def train_and_valid(self, head: Head) -> HeadFrames:
        """Training and validation structures of a head."""
        provenance: dict[str, Any] = {"train_file": _shown(head.train_files)}
        frames = HeadFrames(head, provenance=provenance)
        selects = head.name == PT_HEAD and self.replay.selects
        if selects:
            check_downloaded()
        train, e0s, keys = self._read(head, head.train_files, "train", frames, keep=head.keep_isolated_atoms)
        if selects:
            chosen_elements = parse_atomic_numbers(self.replay_elements, "")
            train = [picked(train[0], select(train[0], chosen_elements, self.replay, self.seed))]
            for atoms in train[0]:
                atoms.info["config_weight"] = self.replay.weight_pt_head
        if head.valid_files:
            # Only in training are isolated atoms taken out, as in mace.
            valid, _, _ = self._read(head, head.valid_files, "valid", frames, keep=True)
            provenance["valid_file"] = _shown(head.valid_files)
        else:
            # mace can split files that it reads whole only, and so they are split where there are any.
            chosen = next((part for part in train if not on_disk(part)), train[0])
            rest = [part for part in train if part is not chosen]
            kept, held_out = random_split(len(chosen), head.valid_fraction, self.seed)
            train, valid = [picked(chosen, kept), *rest], [picked(chosen, held_out)]
            provenance["split"] = {"seed": self.seed, "train_indices": kept, "valid_indices": held_out}
        replayed = head.name == PT_HEAD and self.replay.active  # its energies are the trained model's in any case
        frames.e0s = None if replayed else e0s or None
        frames.train, frames.valid, frames.first_keys = train, valid, keys
        met = {atoms.info.get("config_type", "Default") for part in train if not on_disk(part) for atoms in part}
        if met and (absent := sorted(set(map(str, head.config_type_weights)) - met - {"Default"})):
            head.notes.append(f"config_type_weights: no training structure has the config_type {', '.join(absent)}")
        if head.config_type_weights not in ({}, {"Default": 1.0}) and any(map(is_hdf5, head.train_files)):
            head.notes.append("config_type_weights: those of HDF5 files were applied by mace_prepare_data")
        return frames

    def tests(self, frames: HeadFrames, elements: Sequence[int]) -> None:
        """Put a head's test sets in their place: files by config_type, as in mace, then those of ``test_dir``."""
        head = frames.head
        if head.test_files:
            parts, _, keys = self._read(head, head.test_files, "test", frames, keep=True, elements=elements)
            check_test(parts, head, self.needs, _shown(head.test_files), keys)
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
                frames.tests[several], keys = self._stored(head, files, "test", frames, elements)
                check_test([frames.tests[several]], head, self.needs, _shown(files), keys)

    def _read(
        self,
        head: Head,
        files: Sequence[str],
        split: str,
        frames: HeadFrames,
        keep: bool,
        elements: Sequence[int] | None = None,
    ) -> tuple[list[Part], dict[int, float], str]:
        """Parts of a split: files that ase reads as one list, then each that stays on disk.

        Returns them, the E0s of isolated atoms, and a sentence with the keys of the first structure.
        """
        for file in files:
            if not Path(file).exists():
                raise InputError(f"--{split}_file: there is no {file}{of_head(head)}. Correct the path.")
        whole = [file for file in files if not is_stored(file)]
        parts: list[Part] = []
        e0s: dict[int, float] = {}
        keys = ""
        if whole:
            read = read_structures(
                whole, head.keys, split,
                elements=elements, periodicities=self.periodicities, keep_isolated_atoms=keep, embedded=self.embedded,
                ions=self.ions, check=functools.partial(self._check_entries, head),
            )  # fmt: skip
            own = self._of_this_head(read.frames, head, whole)
            report = replace(read.report, frames=len(own), trained=self.needs.names())
            frames.reports.append(report.count(own, head.config_type_weights))
            if split == "train":
                frames.states.append(read.states)
            parts, e0s = [own], read.e0s
            keys = f"The keys of the first one are {read.first_keys}."
        for file in files:
            if is_stored(file):
                part, labels = self._stored(head, [file], split, frames, elements)
                parts.append(part)
                keys = keys or labels
        return parts, e0s, keys

    def _check_entries(self, head: Head, atoms: Atoms, where: str) -> None:
        """Entries of a structure beside its labels: a charge that the model can carry, what the host embeds."""
        if len(self.names) > 1 and self._is_another_heads(head, atoms):
            return
        self._refuse(atoms, where)
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
    ) -> tuple[Chain, str]:
        """Structures that stay on disk, a sample of them checked, and a sentence that names the labels in it."""
        known = set(elements or head.atomic_numbers or ()) or None

        def check(atoms: Atoms, where: str) -> None:
            check_geometry(atoms, where, known, self.periodicities)
            check_weights(atoms.info, where)
            self._refuse(atoms, where)
            place_embeddings(atoms, self.embeddings, where)

        parts = [open_stored(file, head.keys, check, self.embedded, self.ions) for file in files]
        stored = parts[0] if len(parts) == 1 else Chain(parts)
        stored.name = str(files[0])
        looked_at = sample(len(stored))
        some = len(looked_at) if len(looked_at) < len(stored) else None
        seen = {index: stored[index] for index in looked_at}
        states, notes = _about(seen, LabelPlacer(CANONICAL, self.embedded, self.ions), _shown(files))
        shown = [str(file) for file in files]
        report = LabelReport(
            split, shown, len(stored), 0, head.keys, looked_at=some, trained=self.needs.names(), notes=notes
        )
        frames.reports.append(report.count(seen.values(), head.config_type_weights))
        for name in LabelPlacer(head.keys).named:
            if not report.counts.get(name):
                raise InputError(
                    f"--{name}_key: none of the {len(looked_at)} structures of {_shown(files)} that were looked at has "
                    f"{name.replace('_', ' ')}; mace_prepare_data does not keep it. Train on the files that it was "
                    f"given, or leave --{name}_key out."
                )
        if split == "train":
            frames.states.append(states if some is None else None)
        found = ", ".join(name for name in LABELS if report.counts.get(name)) or "no labels"
        return stored, f"The first structures of {_shown(shown)} have {found} (mace_prepare_data has keys of its own)."

    def _refuse(self, atoms: Atoms, where: str) -> None:
        """The graph operator's charges sum to zero, and a bare host has none for a field to act on."""
        charge, reason = atoms.info.get("total_charge", 0.0), ""
        if not self.allow_charged and charge != 0.0:
            reason = f"total_charge: {where} has {charge:g} e; charges of operator: graph sum to zero by construction"
        if not self.allow_fields and np.any(atoms.info.get("external_field", 0.0)):
            reason = f"external_field: {where} is in one, and a bare host has no charges for it to act on"
        if reason:
            raise InputError(f"{reason}. Use operator: coulomb, or leave such structures out.")


def _about(seen: Mapping[int, Atoms], placer: LabelPlacer, files: str) -> tuple[StateCount, list[str]]:
    """Total charges and the like of stored structures, by their numbers, and lines for the log."""
    states, outliers, periodic = StateCount(), Outliers(), Counter[int]()
    for index, atoms in seen.items():
        states.add(placer.collect(atoms, f"structure {index} of {files}")[1])
        periodic[int(atoms.pbc.sum())] += 1
        outliers.add(atoms, f"structure {index}")
    return states, [*states.lines(), describe_periodicity(periodic), *outliers.lines()]


def _shown(files: Iterable[str | Path]) -> str:
    return ", ".join(map(str, files))
