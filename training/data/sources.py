"""Structures of a head read from its files or from the registry, checked, and split."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Subset

from phi_equivariant.errors import InputError
from training.data import named_files
from training.data.embeddings import place_embeddings
from training.data.head_frames import HeadFrames, of_head, on_disk
from training.data.labels import LABELS, LabelReport, check_weights
from training.data.stored import Chain, open_stored
from training.data.stored_files import HDF5, is_stored, stored_files, test_sets_of_folder
from training.data.structures import check_geometry, read_structures
from training.run import Data, Head

SAMPLE = 50  # structures of stored data that are looked at before training


def random_split(size, fraction, seed):
    """Indices of training and validation, the same as mace's for that seed.

    Raises
    ------
    InputError
        If one structure is not enough for two sets.
    """
    if size < 2:
        raise InputError(
            f"--train_file holds {size} structure; a validation set cannot be split off. Give --valid_file."
        )
    order = list(range(size))
    np.random.default_rng(seed).shuffle(order)
    train_size = min(size - int(fraction * size), size - 1)
    return order[:train_size], order[train_size:]


def from_registry(head: Head, data: Data, seed: int, needed: Iterable[str]) -> HeadFrames:
    """A data set of the registry as the only head's."""
    found = named_files.load_dataset(data.dataset, data_dir=data.data_dir, cache=data.downloads_dir, seed=seed)
    for name in needed:
        report = found.reports["train"]
        if report.counts.get(name, 0) < report.frames:
            raise InputError(
                f"--{name}_weight: the data set {data.dataset} has no {name}; it has {', '.join(report.counts)}. "
                "Leave the weight out."
            )
    own = None if head.E0s is not None else found.e0s
    reports, tests = list(found.reports.values()), {head.name: found.test}
    return HeadFrames(head, [found.train], [found.valid], tests, own, reports, found.provenance)


class HeadReader:
    """Reads the files of a run's heads.

    Parameters
    ----------
    data : the run's options for data
    seed : of the split into training and validation
    embeddings : mace's ``embedding_specs``
    names : of all heads of the run
    needed : labels that a structure must have
    allow_slabs, allow_charged : what the model can take: one or two periodic directions, a net charge
    """

    def __init__(
        self,
        data: Data,
        seed: int,
        embeddings: Mapping[str, Any],
        names: list[str],
        needed: list[str],
        allow_slabs: bool,
        allow_charged: bool,
    ):
        self.seed, self.needed, self.multi_processed_test = seed, needed, data.multi_processed_test
        self.embeddings, self.names = embeddings, names
        self.allow_slabs, self.allow_charged = allow_slabs, allow_charged

    def train_and_valid(self, head):
        """Training and validation structures of a head."""
        reports, provenance = [], {"train_file": _shown(head.train_files)}
        train, e0s = self._read(head, head.train_files, "train", reports, keep=head.keep_isolated_atoms)
        if head.valid_files:
            # Only in training are isolated atoms taken out, as in mace.
            valid, _ = self._read(head, head.valid_files, "valid", reports, keep=True)
            provenance["valid_file"] = _shown(head.valid_files)
        else:
            # mace can split files that it reads whole only, and so they are split where there are any.
            chosen = next((part for part in train if not on_disk(part)), train[0])
            rest = [part for part in train if part is not chosen]
            kept, held_out = random_split(len(chosen), head.valid_fraction, self.seed)
            train, valid = [_picked(chosen, kept), *rest], [_picked(chosen, held_out)]
            provenance["split"] = {"seed": self.seed, "train_indices": kept, "valid_indices": held_out}
        frames = HeadFrames(head, train, valid, {}, e0s or None, reports, provenance)
        met = {atoms.info.get("config_type", "Default") for part in train if not on_disk(part) for atoms in part}
        if met and (absent := sorted(set(map(str, head.config_type_weights)) - met - {"Default"})):
            head.notes.append(f"config_type_weights: no training structure has the config_type {', '.join(absent)}")
        if head.config_type_weights not in ({}, {"Default": 1.0}) and any(map(_is_hdf5, head.train_files)):
            head.notes.append("config_type_weights: those of HDF5 files were applied by mace_prepare_data")
        return frames

    def tests(self, frames, elements):
        """Put a head's test sets in their place: files by config_type, as in mace, then those of ``test_dir``."""
        head = frames.head
        if head.test_files:
            parts, _ = self._read(head, head.test_files, "test", frames.reports, keep=True, elements=elements)
            frames.provenance["test_file"] = _shown(head.test_files)
            for part in parts:
                if on_disk(part):
                    frames.tests[f"{Path(part.name).stem}_{head.name}"] = part
                else:
                    for atoms in part:
                        name = f"{atoms.info.get('config_type', 'Default')}_{head.name}"
                        frames.tests.setdefault(name, []).append(atoms)
        if head.test_dir is not None:
            frames.provenance["test_dir"] = str(head.test_dir)
            for name, files in test_sets_of_folder(head.test_dir, self.multi_processed_test).items():
                several = name if len(self.names) == 1 else f"{name}_{head.name}"
                frames.tests[several] = self._stored(head, files, "test", frames.reports, elements)

    def _read(self, head, files, split, reports, keep, elements=None):
        """Parts of a split: files that ase reads as one list, then each that stays on disk; E0s of isolated atoms."""
        for file in files:
            if not Path(file).exists():
                raise InputError(f"--{split}_file: there is no {file}{of_head(head)}. Correct the path.")
        whole = [file for file in files if not is_stored(file)]
        parts, e0s = [], {}
        if whole:
            read = read_structures(
                whole, head.keys, self.needed, split,
                elements=elements, allow_slabs=self.allow_slabs, keep_isolated_atoms=keep,
            )  # fmt: skip
            frames = self._of_this_head(read.frames, head, whole)
            for index, atoms in enumerate(frames):
                where = f"structure {index} of the {split} set"
                self._refuse_charged(atoms, where)
                place_embeddings(atoms, self.embeddings, where)
            reports.append(read.report)
            parts, e0s = [frames], read.e0s
        parts += [self._stored(head, [file], split, reports, elements) for file in files if is_stored(file)]
        return parts, e0s

    def _of_this_head(self, frames, head, files):
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

    def _stored(self, head, files, split, reports, elements):
        """Structures that stay on disk, a sample of them checked before anything is computed."""
        known = set(elements or head.atomic_numbers or ()) or None

        def check(atoms, where):
            check_geometry(atoms, where, known, self.allow_slabs)
            check_weights(atoms.info, where)
            self._refuse_charged(atoms, where)
            place_embeddings(atoms, self.embeddings, where)

        parts = [open_stored(file, head.keys, check) for file in files]
        frames = parts[0] if len(parts) == 1 else Chain(parts)
        frames.name = str(files[0])
        looked_at = np.unique(np.linspace(0, len(frames) - 1, min(SAMPLE, len(frames))).astype(int)).tolist()
        counts = Counter()
        for index in looked_at:
            atoms = frames[index]
            for name, label in LABELS.items():
                place = atoms.arrays if label.per_atom else atoms.info
                counts[name] += label.canonical in place
        shown = [str(file) for file in files]
        for name in self.needed:
            if not counts[name]:
                have = ", ".join(found for found in LABELS if counts[found]) or "no labels"
                raise InputError(
                    f"--{split}_file: none of the {len(looked_at)} structures of {_shown(shown)} that were looked at "
                    f"has {name}; they have {have}. Prepare the data with --{name}_key, or set {name}_weight to 0."
                )
        some = len(looked_at) if len(looked_at) < len(frames) else None
        reports.append(LabelReport(split, shown, len(frames), 0, head.keys, dict(counts), some))
        return frames

    def _refuse_charged(self, atoms, where):
        """The graph operator's charges sum to zero: a charged structure has no place there."""
        if not self.allow_charged and atoms.info.get("total_charge", 0.0) != 0.0:
            raise InputError(
                f"total_charge: {where} has {atoms.info['total_charge']:g} e, and the charges of operator: graph sum "
                "to zero by construction. Use operator: coulomb, or neutral structures."
            )


def _picked(part, indices):
    """A list of the structures, or a view of those on disk."""
    return Subset(part, indices) if on_disk(part) else [part[i] for i in indices]


def _is_hdf5(file):
    return is_stored(file) and any(inner.suffix.lower() in HDF5 for inner in stored_files(Path(file)))


def _shown(files):
    return ", ".join(map(str, files))
