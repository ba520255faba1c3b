"""Data sets that are trained on by name: MD22, downloaded once, and the one that comes with the project."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units

from phi_equivariant.errors import InputError
from training.data.fetched import cache_folder, fetch, verify
from training.data.geometry import describe_periodicity
from training.data.labels import LabelReport
from training.data.named import DATASETS, DatasetInfo, find_dataset, preset
from training.data.npz import NpzFrames, read_npz

__all__ = ["DATASETS", "Dataset", "load_dataset", "preset"]

SPLITS = ("train", "valid", "test")
VALID_FRACTION = 0.05  # of MD22's published train + validation sizes
MD22_URL = "http://www.quantum-machine.org/gdml/repo/datasets/"  # PHI_MD22_URL names a mirror
SHIPPED = "training.shipped.ala3_gfn2"
_MD22_CITATION = (
    "S. Chmiela, V. Vassilev-Galindo, O. T. Unke, A. Kabylda, H. E. Sauceda, A. Tkatchenko, K.-R. Müller, Accurate "
    "global machine learning force fields for molecules with hundreds of atoms, Sci. Adv. 9, eadf0873 (2023)"
)
_GFN2_CITATION = (
    "C. Bannwarth, S. Ehlert, S. Grimme, GFN2-xTB, J. Chem. Theory Comput. 15, 1652 (2019), as implemented in tblite"
)


@dataclass(frozen=True)
class Dataset:
    """A data set, split.

    Parameters
    ----------
    name : name in the registry
    train, valid, test : sequences of ``ase.Atoms`` with labels under the keys of :data:`training.quantities.LABELS`
        (eV, eV/Å, e, e·Å), built when they are asked for
    e0s : energies of the isolated atoms at the same level of theory, atomic number -> eV; None if unknown
    provenance : source, sha256, licence, citation, split: for JSON
    reports : label counts of each split
    """

    name: str
    train: Sequence[Atoms]
    valid: Sequence[Atoms]
    test: Sequence[Atoms]
    e0s: dict[int, float] | None
    provenance: dict[str, Any]
    reports: dict[str, LabelReport]


def load_dataset(
    name: str,
    *,
    data_dir: str | Path | None = None,
    cache: str | Path | None = None,
    seed: int = 123,
    test_size: int | None = None,
) -> Dataset:
    """Load a data set of the registry, downloading it if need be.

    Parameters
    ----------
    name : name in :data:`training.data.named.DATASETS`
    data_dir : folder that holds the published files; nothing is downloaded then
    cache : folder for downloads; :func:`training.data.fetched.cache_folder` by default
    seed : of the split, where the data set has no fixed one
    test_size : number of test frames to keep, the provenance then says so; None for all

    Raises
    ------
    InputError
        for an unknown name, a missing, damaged or changed file, or a download that failed.
    """
    info = find_dataset(name)
    if test_size is not None and test_size < 1:
        raise InputError(f"test_size is {test_size}; expected at least 1, or None for the whole test set.")
    if data_dir is not None and not Path(data_dir).is_dir():
        raise InputError(f"data_dir is {data_dir}, which is not a folder. Give the folder that holds the data files.")
    folder = None if data_dir is None else Path(data_dir)
    if info.file is None:
        frames, e0s, provenance = _load_split_files(info, folder)
    else:
        frames, e0s, provenance = _load_md22(info, folder, Path(cache) if cache else cache_folder(), seed)
    if test_size is not None and test_size < len(frames["test"]):
        provenance["split"]["test_left_out"] = len(frames["test"]) - test_size
        frames["test"] = frames["test"][:test_size]
    provenance["split"] |= {split: len(frames[split]) for split in SPLITS}
    reports = {split: _report(split, frames[split], provenance["files"]) for split in SPLITS}
    about = {"dataset": info.name, "description": info.description, "level_of_theory": info.level}
    return Dataset(info.name, **frames, e0s=e0s, provenance=about | provenance, reports=reports)


#: Frames of each split, energies of the isolated atoms, provenance.
_Found = tuple[dict[str, NpzFrames], dict[int, float] | None, dict[str, Any]]


def _load_md22(info: DatasetInfo, data_dir: Path | None, cache: Path, seed: int) -> _Found:
    assert info.file is not None and info.frames is not None and info.train_size is not None

    def check(path: Path) -> dict[str, np.ndarray]:
        return read_npz(path, info.formula, info.frames, unit="kcal/mol")

    url = os.environ.get("PHI_MD22_URL", MD22_URL).rstrip("/") + f"/{info.file}"
    if data_dir is None:
        path = cache / "md22" / info.file
        digest = fetch(url, path, check)
    else:
        path = _existing(data_dir / info.file, f"{MD22_URL}{info.file}")
        digest = verify(path)
    arrays = check(path)
    order = np.random.default_rng(seed).permutation(info.frames)
    n_valid = round(VALID_FRACTION * info.train_size)
    indices = {
        "train": order[n_valid : info.train_size],
        "valid": order[:n_valid],
        "test": order[info.train_size :],
    }
    frames = {split: NpzFrames(arrays, units.kcal / units.mol, chosen) for split, chosen in indices.items()}
    provenance = {
        "files": {info.file: digest},
        "source": url if data_dir is None else str(path),
        "licence": "not stated by the publisher; cite the paper",
        "citation": _MD22_CITATION,
        "split": {
            "seed": seed,
            "train_indices": indices["train"].tolist(),
            "valid_indices": indices["valid"].tolist(),
            "test_indices": "all other frames",
        },
    }
    return frames, None, provenance


def _load_split_files(info: DatasetInfo, data_dir: Path | None) -> _Found:
    frames: dict[str, NpzFrames] = {}
    digests: dict[str, str] = {}
    e0s: dict[int, float] | None = None
    extra = ("charges", "dipole", "trajectory", "atom_numbers", "atom_energies")
    for split in SPLITS:
        with as_file((files(SHIPPED) if data_dir is None else data_dir) / f"{split}.npz") as path:
            _existing(path, f"the project's folder {SHIPPED.replace('.', '/')}")
            digests[path.name] = verify(path)
            arrays = read_npz(path, info.formula, extra=extra)
        frames[split] = NpzFrames(arrays)
        numbers, energies = arrays["atom_numbers"], arrays["atom_energies"]
        if numbers.shape != energies.shape or set(arrays["z"].tolist()) - set(numbers.tolist()):
            raise InputError(f"{path} has no isolated-atom energy for every element of {info.formula}.")
        own = dict(zip(numbers.tolist(), energies.tolist(), strict=True))
        if e0s not in (None, own):
            raise InputError(f"The isolated-atom energies in {path} differ from those in the other files.")
        e0s = own
    provenance = {
        "files": digests,
        "source": SHIPPED if data_dir is None else str(data_dir),
        "licence": "MIT",
        "citation": _GFN2_CITATION,
        "split": {"by": "trajectory"},
    }
    return frames, e0s, provenance


def _existing(path: Path, source: str) -> Path:
    if not path.is_file():
        raise InputError(f"There is no {path.name} in {path.parent}. Put the file from {source} there.")
    return path


def _report(split: str, frames: NpzFrames, sources: Iterable[str]) -> LabelReport:
    keys = {"energy": "E", "forces": "F", "charges": "charges", "dipole": "dipole", "total_charge": "(neutral)"}
    counts = dict.fromkeys(frames.labels, len(frames))
    own = [name for name in sources if name == f"{split}.npz"]
    notes = [f"total charge: 0 in all {len(frames)} structures", describe_periodicity({0: len(frames)})]
    return LabelReport(split, own or list(sources), len(frames), keys=keys, counts=counts, notes=notes)
