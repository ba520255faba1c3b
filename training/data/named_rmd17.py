"""Revised MD17: 100,000 frames of each of ten molecules, and five published splits of 1,000 + 1,000 frames."""

from pathlib import Path

import numpy as np
from ase import units

from phi_equivariant.errors import InputError
from training.data.dataset_info import DatasetInfo
from training.data.npz import NpzFrames, read_npz
from training.data.published import Dataset, digests, existing

VALID_FRACTION = 0.05  # of the published training frames
#: How the files call what MD22 calls E, F, R and z.
NAMES = {"E": "energies", "F": "forces", "R": "coords", "z": "nuclear_charges"}


def load(info: DatasetInfo, folder: Path, seed: int) -> Dataset:
    """A molecule from the folder ``rmd17`` as it is published, or from one that holds its files.

    info : ``file`` is rmd17_<molecule>.npz, ``part`` the number of the split
    folder : with ``npz_data`` and ``splits`` in it, or the files themselves
    seed : of the validation frames, which are taken from those for training

    InputError if a file is missing, or is not what it should be.
    """
    assert info.file is not None
    path = existing(folder, [f"npz_data/{info.file}", info.file], info.source)
    lists = {}
    for split in ("train", "test"):
        name = f"index_{split}_{info.part:02d}.csv"
        lists[split] = existing(folder, [f"splits/{name}", name], info.source)
    arrays = read_npz(path, info.formula, info.frames, names=NAMES)
    chosen = {split: _indices(file, len(arrays["E"])) for split, file in lists.items()}
    if shared := set(chosen["train"].tolist()) & set(chosen["test"].tolist()):
        raise InputError(f"{lists['train']} and {lists['test']} share {len(shared)} frames. Are they of one split?")
    order = np.random.default_rng(seed).permutation(chosen["train"])
    n_valid = max(1, round(VALID_FRACTION * len(order)))
    parts = {"train": order[n_valid:], "valid": order[:n_valid], "test": chosen["test"]}
    frames = NpzFrames(arrays, units.kcal / units.mol)
    files, keys = digests([path, *lists.values()]), {"energy": NAMES["E"], "forces": NAMES["F"]}
    return Dataset.split(frames, parts, files, folder, keys, published=info.part, seed=seed)


def _indices(path: Path, frames: int) -> np.ndarray:
    """The frames that a file lists, one a line."""
    try:
        found = np.loadtxt(path, dtype=np.int64, ndmin=1, delimiter=",")
    except ValueError as error:
        raise InputError(f"{path} is not a list of frame numbers: {error}.") from error
    if found.ndim != 1 or len(found) < 2 or len(set(found.tolist())) < len(found):
        raise InputError(f"{path} holds {found.size} numbers; expected two or more different ones, one a line.")
    if found.min() < 0 or found.max() >= frames:
        raise InputError(f"{path} names frame {found.max()}; the molecule has frames 0 to {frames - 1}.")
    return found
