"""Data sets by name: MD22, downloaded once, the shipped one, and those that are read from a folder as published."""

import os
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units

from phi_equivariant.errors import InputError
from training.data import named_oe62, named_rmd17, named_xyz
from training.data.dataset_info import DatasetInfo
from training.data.geometry import describe_periodicity
from training.data.labels import LabelReport
from training.data.named import DATASETS, find_dataset, preset
from training.data.npz import NpzFrames, read_npz
from training.data.published import Dataset, existing, fetch, verify
from training.data.sequences import Frames, picked
from training.quantities import LABELS
from zoo.store.download import cache_folder

__all__ = ["DATASETS", "Dataset", "load_dataset", "preset"]

SPLITS = ("train", "valid", "test")
#: Those that are read from a folder: {form: what reads it}.
READERS = {"oe62": named_oe62.load, "rmd17": named_rmd17.load, "xyz": named_xyz.load}
VALID_FRACTION = 0.05  # of MD22's published train + validation sizes
MD22_URL = "http://www.quantum-machine.org/gdml/repo/datasets/"  # PHI_MD22_URL names a mirror
SHIPPED = "training.shipped.ala3_gfn2"
KEYS = {"energy": "E", "forces": "F", "charges": "charges", "dipole": "dipole"}  # of npz files


def load_dataset(
    name: str,
    *,
    data_dir: str | Path | None = None,
    cache: str | Path | None = None,
    seed: int = 123,
    max_train: int | None = None,
    max_test: int | None = None,
) -> Dataset:
    """Load a data set of the registry; MD22 is downloaded where it is not there.

    Parameters
    ----------
    name : name in :data:`training.data.named.DATASETS`
    data_dir : folder that holds the published files; nothing is downloaded then
    cache : folder for downloads; :func:`zoo.store.download.cache_folder` by default
    seed : of the split, where the data set has no fixed one
    max_train : train on at most so many frames, drawn by the seed, and validate on no more; None for all
    max_test : test on at most so many frames of each test set, drawn by the seed; None for all

    Raises
    ------
    InputError
        for an unknown name, a missing, damaged or changed file, a download that failed, or a data set that is not
        downloaded and for which no folder is given.
    """
    info = find_dataset(name)
    for option, size in (("max_train", max_train), ("max_test", max_test)):
        if size is not None and size < 1:
            raise InputError(f"{option} is {size}; expected at least 1, or None for all frames.")
    if data_dir is not None and not Path(data_dir).is_dir():
        raise InputError(f"data_dir is {data_dir}, which is not a folder. Give the folder that holds the data files.")
    folder = None if data_dir is None else Path(data_dir)
    if info.form in READERS:
        if folder is None:
            raise InputError(
                f"--data_dir: {info.name} is not downloaded. Get it from {info.source}, and give the folder of its "
                "files."
            )
        found = READERS[info.form](info, folder, seed)
    elif info.form == "shipped":
        found = _load_split_files(info, folder)
    else:
        found = _load_md22(info, folder, Path(cache) if cache else cache_folder(), seed)
    about = {"dataset": info.name, "description": info.description, "level_of_theory": info.level}
    if info.source:  # where others find it; the folder is of this machine
        about["source"], found.provenance["folder"] = info.source, found.provenance.pop("source")
    found.provenance = {**about, "licence": info.licence, "citation": info.citation, **found.provenance}
    _shorten(found, {"train": max_train, "valid": max_train, "test": max_test}, seed)
    found.provenance["split"] |= {split: len(getattr(found, split)) for split in SPLITS}
    found.reports = {split: _report(split, found) for split in SPLITS}
    return found


def _shorten(found: Dataset, sizes: dict[str, int | None], seed: int) -> None:
    """Keep at most so many frames of each set, and let the provenance say so."""
    split = found.provenance["split"]

    def some(size: int, of: int) -> np.ndarray:
        return np.sort(np.random.default_rng(seed).permutation(of)[:size])

    for name, size in sizes.items():
        frames = getattr(found, name)
        if size is None or size >= len(frames):
            continue
        chosen = some(size, len(frames))
        setattr(found, name, picked(frames, chosen))
        split[f"{name}_left_out"] = len(frames) - size
        if isinstance(indices := split.get(f"{name}_indices"), list):
            split[f"{name}_indices"] = [indices[i] for i in chosen]
        found.notes.append(f"{name}: {size} of {len(frames)} structures, drawn by the seed")
    if (size := sizes["test"]) is not None:
        for name, frames in found.further_tests.items():
            found.further_tests[name] = picked(frames, some(size, len(frames)))


def _load_md22(info: DatasetInfo, data_dir: Path | None, cache: Path, seed: int) -> Dataset:
    assert info.file is not None and info.frames is not None and info.train_size is not None

    def check(path: Path) -> dict[str, np.ndarray]:
        return read_npz(path, info.formula, info.frames, unit="kcal/mol")

    url = os.environ.get("PHI_MD22_URL", MD22_URL).rstrip("/") + f"/{info.file}"
    if data_dir is None:
        path = cache / "md22" / info.file
        try:
            digest = fetch(url, path, check)
        except InputError as error:
            raise InputError(
                f"{error} A file that you have got otherwise is read from its folder: --data_dir FOLDER, with "
                f"{info.file} in it."
            ) from error
    else:
        path = existing(data_dir, info.file, f"{MD22_URL}{info.file}")
        digest = verify(path)
    arrays = check(path)
    order = np.random.default_rng(seed).permutation(info.frames)
    n_valid = round(VALID_FRACTION * info.train_size)
    indices = {
        "train": order[n_valid : info.train_size],
        "valid": order[:n_valid],
        "test": order[info.train_size :],
    }
    source = url if data_dir is None else path
    found = Dataset.split(
        NpzFrames(arrays, units.kcal / units.mol), indices, {info.file: digest}, source, KEYS, seed=seed
    )
    found.provenance["split"]["test_indices"] = "all other frames"
    return found


def _load_split_files(info: DatasetInfo, data_dir: Path | None) -> Dataset:
    frames: dict[str, Any] = {}
    digests: dict[str, str] = {}
    e0s: dict[int, float] | None = None
    extra = ("charges", "dipole", "trajectory", "atom_numbers", "atom_energies")
    for split in SPLITS:
        with as_file((files(SHIPPED) if data_dir is None else data_dir) / f"{split}.npz") as path:
            existing(path.parent, path.name, f"the project's folder {SHIPPED.replace('.', '/')}")
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
    source = SHIPPED if data_dir is None else str(data_dir)
    provenance = {"files": digests, "source": source, "split": {"by": "trajectory"}}
    return Dataset(**frames, e0s=e0s, provenance=provenance, keys=KEYS)


def total_charges(frames: Sequence[Atoms]) -> list[float]:
    """Those of a set in e; one for all structures where they are of one neutral kind."""
    key = LABELS["total_charge"].canonical
    return [0.0] if isinstance(frames, Frames) else [float(atoms.info.get(key, 0.0)) for atoms in frames]


def _report(split: str, found: Dataset) -> LabelReport:
    frames, sources = getattr(found, split), list(found.provenance["files"])
    charges = total_charges(frames)
    keys = {**found.keys, "total_charge": "total_charge" if any(charges) else "(neutral)"}
    own = [name for name in sources if name.partition(".")[0] == split]
    if any(charges):
        charge = f"total charge: {min(charges):+g}…{max(charges):+g} e"
    else:
        charge = f"total charge: 0 in all {len(frames)} structures"
    notes = [charge, describe_periodicity({0: len(frames)})]
    report = LabelReport(split, own or sources, len(frames), keys=keys, notes=notes)
    if isinstance(frames, Frames):  # which have the same labels each
        report.counts = {name: len(frames) for name, label in LABELS.items() if frames and label.within(frames[0])}
        return report
    return report.count(frames, {})
