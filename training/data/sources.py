"""Structures of a head read from its files or from the registry, checked, and split."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ase import Atoms

from phi_equivariant.errors import InputError
from phi_equivariant.inputs.state import StateCount
from training.data import named_files
from training.data.heads import read_value
from training.data.labels import CANONICAL, LabelReport
from training.data.needs import Needs, check_test, sample
from training.data.parts import HeadFrames, name_of, of_head, random_split
from training.data.placing import Accepted, LabelPlacer, named_quantities
from training.data.reading import Survey, read_structures
from training.data.replay import check_downloaded, select
from training.data.sequences import Chain, on_disk, picked
from training.data.stored import open_stored
from training.data.stored_files import is_hdf5, is_stored, test_sets_of_folder
from training.quantities import LABELS
from training.run import Data, Head, Replay
from training.run.replay import PT_HEAD


class HeadReader:
    """Reads the files of a run's heads; ``seed`` of the split into training and validation, ``names`` of all heads."""

    def __init__(
        self, data: Data, seed: int, names: list[str], needs: Needs, accepted: Accepted, replay: Replay
    ) -> None:
        self.data, self.seed, self.names, self.needs, self.accepted = data, seed, names, needs, accepted
        self.replay = replay

    def train_and_valid(self, head: Head) -> HeadFrames:
        """Training and validation structures of a head."""
        provenance: dict[str, Any] = {"train_file": _shown(head.train_files)}
        frames = HeadFrames(head, provenance=provenance)
        selects = head.name == PT_HEAD and self.replay.selects
        if selects:
            check_downloaded()
        train, e0s, keys = self._read(frames, head.train_files, "train", keep=head.keep_isolated_atoms)
        if selects:
            chosen_elements = read_value("atomic_numbers", self.data.atomic_numbers)
            train = [picked(train[0], select(train[0], chosen_elements, self.replay, self.seed))]
            for atoms in train[0]:
                atoms.info["config_weight"] = self.replay.weight_pt_head
        if head.valid_files:
            # Only in training are isolated atoms taken out, as in mace.
            valid, _, _ = self._read(frames, head.valid_files, "valid")
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
            parts, _, keys = self._read(frames, head.test_files, "test", elements=elements)
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
            for name, files in test_sets_of_folder(head.test_dir, self.data.multi_processed_test).items():
                several = name if len(self.names) == 1 else f"{name}_{head.name}"
                frames.tests[several], keys = self._stored(frames, files, "test", elements)
                check_test([frames.tests[several]], head, self.needs, _shown(files), keys)

    def _read(
        self,
        frames: HeadFrames,
        files: Sequence[str],
        split: str,
        keep: bool = True,
        elements: Sequence[int] | None = None,
    ) -> tuple[list[Sequence[Atoms]], dict[int, float], str]:
        """Parts of a split: files that ase reads as one list, then each that stays on disk.

        Returns them, the E0s of isolated atoms, and a sentence with the keys of the first structure.
        """
        head = frames.head
        for file in files:
            if not Path(file).exists():
                raise InputError(f"--{split}_file: there is no {file}{of_head(head)}. Correct the path.")
        whole = [file for file in files if not is_stored(file)]
        parts: list[Sequence[Atoms]] = []
        e0s: dict[int, float] = {}
        keys = ""
        if whole:
            accepted = replace(self.accepted, elements=elements)
            read = read_structures(whole, head.keys, split, accepted, keep)
            own = self._of_this_head(read.frames, head, whole)
            for atoms in own:
                self.accepted.check_entries(atoms, name_of(atoms))
            report = replace(read.report, frames=len(own), trained=self.needs.names())
            frames.reports.append(report.count(own, head.config_type_weights))
            if split == "train":
                frames.states.append(read.states)
            parts, e0s = [own], read.e0s
            keys = f"The keys of the first one are {read.first_keys}."
        for file in files:
            if is_stored(file):
                part, labels = self._stored(frames, [file], split, elements)
                parts.append(part)
                keys = keys or labels
        return parts, e0s, keys

    def _of_this_head(self, frames: list[Atoms], head: Head, files: Sequence[str]) -> list[Atoms]:
        """Without the structures that name another head of the run."""
        if len(self.names) == 1:
            return frames
        others = set(self.names) - {head.name}
        own = [atoms for atoms in frames if atoms.info.get(head.head_key) not in others]
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
        self, frames: HeadFrames, files: Sequence[str | Path], split: str, elements: Sequence[int] | None
    ) -> tuple[Chain, str]:
        """Structures that stay on disk, a sample of them checked, and a sentence that names the labels in it."""
        head = frames.head
        accepted = replace(self.accepted, elements=set(elements or head.atomic_numbers or ()) or None)
        parts = [open_stored(file, head.keys, accepted) for file in files]
        stored = parts[0] if len(parts) == 1 else Chain(parts)
        stored.name = str(files[0])
        looked_at = sample(len(stored))
        some = len(looked_at) if len(looked_at) < len(stored) else None
        seen = {index: stored[index] for index in looked_at}
        placer, survey, shown = LabelPlacer(CANONICAL, accepted), Survey(), [str(file) for file in files]
        for index, atoms in seen.items():
            state = placer.collect(atoms, f"structure {index} of {_shown(files)}")[1]
            survey.add(atoms, state, f"structure {index}")
        report = LabelReport(
            split, shown, len(stored), 0, head.keys, looked_at=some, trained=self.needs.names(), notes=survey.notes()
        )
        frames.reports.append(report.count(seen.values(), head.config_type_weights))
        for name in named_quantities(head.keys):
            if not report.counts.get(name):
                raise InputError(
                    f"--{name}_key: none of the {len(looked_at)} structures of {_shown(files)} that were looked at has "
                    f"{name.replace('_', ' ')}; mace_prepare_data does not keep it. Train on the files that it was "
                    f"given, or leave --{name}_key out."
                )
        if split == "train":
            frames.states.append(survey.states if some is None else None)
        found = ", ".join(name for name in LABELS if report.counts.get(name)) or "no labels"
        return stored, f"The first structures of {_shown(shown)} have {found} (mace_prepare_data has keys of its own)."


def from_registry(head: Head, data: Data, seed: int, needs: Needs) -> HeadFrames:
    """A data set of the registry as the only head's."""
    assert data.dataset is not None
    found = named_files.load_dataset(
        data.dataset,
        data_dir=data.data_dir,
        cache=data.downloads_dir,
        seed=seed,
        max_train=data.max_train,
        max_test=data.max_test,
    )
    for need in needs.labels:
        report = found.reports["train"]
        could_have = need.asked or any(need.label.defined(atoms) for atoms in found.train)
        if could_have and report.counts.get(need.label.name, 0) < report.frames:
            raise InputError(
                f"{' and '.join(f'--{option}' for option in need.options)}: the data set {data.dataset} has no "
                f"{need.label.name}; it has {', '.join(report.counts)}. Leave the weight out, or choose another --loss."
            )
    own = None if head.E0s is not None else found.e0s
    reports = [replace(report, trained=needs.names()) for report in found.reports.values()]
    states = StateCount()
    for charge in named_files.total_charges(found.train):
        states.add({"total_charge": (charge, "total_charge")})
    tests = {**found.further_tests, found.test_name or head.name: found.test}  # the last is the one that is shown
    head.notes.extend(found.notes)
    return HeadFrames(head, [found.train], [found.valid], tests, own, reports, found.provenance, states=[states])


def _shown(files: Iterable[str | Path]) -> str:
    return ", ".join(map(str, files))
