"""Structures of the trained model that are trained on again: which of them, and how often the new ones are repeated."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ase import Atoms

from phi_equivariant.errors import InputError
from training.data.parts import HeadFrames
from training.data.sequences import on_disk
from training.run import Replay
from training.run.replay import PT_HEAD


def materials_project() -> Path:
    """Where mace keeps its selection of the Materials Project once it has downloaded it."""
    cache = os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")
    return Path(cache) / "mace" / "mp_traj_combinedxyz"


def check_downloaded() -> None:
    """InputError unless mace has its selection of the Materials Project on this machine."""
    if not materials_project().is_file():
        raise InputError(
            f"--pt_train_file: mp is a file that mace downloads, and there is no {materials_project()}. Let a run of "
            "mace_run_train download it, or give a file of structures."
        )


def select(frames: Sequence[Atoms], elements: Sequence[int] | None, replay: Replay, seed: int) -> list[int]:
    """Indices of the structures to replay, those that mace's ``fine_tuning_select`` takes with the same seed.

    InputError if there are fewer structures than asked for, or a filter has no elements.
    """
    if replay.filter_type_pt != "none" and not elements:
        raise InputError(f"--filter_type_pt: {replay.filter_type_pt} chooses by elements. Give --atomic_numbers.")
    wanted = set(elements or ())
    keep = {
        "none": lambda found: True,
        "combinations": lambda found: found <= wanted,
        "exclusive": lambda found: found == wanted,
        "inclusive": lambda found: found >= wanted,
    }[replay.filter_type_pt]
    passing = [keep(set(atoms.numbers.tolist())) for atoms in frames]
    chosen = [index for index, passes in enumerate(passing) if passes]
    others = [index for index, passes in enumerate(passing) if not passes]
    missing = replay.num_samples_pt - len(chosen)
    if missing == 0:
        return chosen
    if missing > 0 and (not replay.allow_random_padding_pt or missing > len(others)):
        raise InputError(
            f"--num_samples_pt: {replay.num_samples_pt} structures are asked for, and of {len(frames)} "
            f"{len(chosen)} pass --filter_type_pt {replay.filter_type_pt}. Ask for fewer."
        )
    source, count = (others, missing) if missing > 0 else (chosen, replay.num_samples_pt)
    drawn = np.random.RandomState(seed).choice(source, count, replace=False).tolist()
    return chosen + drawn if missing > 0 else drawn


def repeat_new_structures(heads: Sequence[HeadFrames], threshold: float) -> None:
    """Repeat the structures of all heads but ``pt_head`` where they are few beside its own, as mace does.

    ``threshold`` : the share of the replayed ones below which they are repeated. Nothing is done if some stay on disk.
    """
    if any(on_disk(part) for frames in heads for part in frames.train):
        return
    replayed = sum(frames.size() for frames in heads if frames.head.name == PT_HEAD)
    new = sum(frames.size() for frames in heads) - replayed
    ratio = new / replayed
    if ratio >= threshold:
        return
    times = int(threshold / ratio)
    for frames in heads:
        if frames.head.name != PT_HEAD:
            frames.train = [[*part] * (1 + times) for part in frames.train]
    # mace's own words, by which its users find the line.
    heads[0].head.notes.append(
        f"Ratio of the number of configurations in the training set and the in the pt_train_file is {ratio}, "
        f"increasing the number of configurations in the fine-tuning heads by {times}"
    )
