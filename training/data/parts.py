"""The structures of one head: parts that are in memory or stay on disk, and what was found in them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase import Atoms

from phi_equivariant.errors import InputError
from phi_equivariant.inputs.state import StateCount, StateReader
from training.data.labels import LabelReport
from training.data.placing import named_quantities
from training.data.sequences import on_disk
from training.run import HEAD, Head

MANY_CHARGES = 20  # more of them are not listed


@dataclass
class HeadFrames:
    """What a head trains and is tested on.

    head : its settings; train, valid : parts, each a list of structures or data that stays on disk;
    tests : {name: structures}; e0s : {Z: eV} of isolated atoms, None if the data have none; reports, provenance : what
    was found; first_keys : a sentence with the entries of the first training structure, for messages; states : total
    charges and the like of the training data, None for a part of which not all was read; charged : whether the model
    has Φ with total charges; electronegativity : of that, in V, None for 0; estimates_charge : whether energies of
    another level of theory may change it.
    """

    head: Head
    train: list[Sequence[Atoms]] = field(default_factory=list)
    valid: list[Sequence[Atoms]] = field(default_factory=list)
    tests: dict[str, Sequence[Atoms]] = field(default_factory=dict)
    e0s: dict[int, float] | None = None
    reports: list[LabelReport] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)
    first_keys: str = ""
    states: list[StateCount | None] = field(default_factory=list)
    charged: bool = False
    electronegativity: float | None = None
    estimates_charge: bool = False

    def size(self) -> int:
        """Number of training structures."""
        return sum(map(len, self.train))

    def total_charges(self) -> list[float] | None:
        """Those of the training structures, whole numbers as such; None where not all was read, or there are many."""
        if any(state is None for state in self.states):
            return None
        found = {charge for state in self.states if state is not None for charge in state.distinct("total_charge")}
        return [int(one) if one == int(one) else one for one in sorted(found)] if len(found) <= MANY_CHARGES else None

    def elements(self) -> list[int]:
        """Atomic numbers: those given for the head, or those of its structures.

        Of the test structures only those that are there before the model is built count, which a data set by name has:
        a few of its frames may lack an element of the others.

        InputError if they are not given and the data are on disk, or if they lack one of the data's.
        """
        given: list[int] | None = self.head.atomic_numbers
        parts = [*self.train, *self.valid, *self.tests.values()]
        if given is None and any(map(on_disk, parts)):
            raise InputError(
                f"--atomic_numbers: the elements of HDF5 and LMDB data must be given{of_head(self.head)}, as in "
                "--atomic_numbers '[1, 6, 8]' or by the statistics_file of mace_prepare_data."
            )
        found = {int(z) for part in parts if not on_disk(part) for atoms in part for z in set(atoms.numbers)}
        if given is None:
            return sorted(found)
        if unknown := found - set(given):
            lacks = f"hold elements {sorted(unknown)} that are not among {given}"
            raise InputError(f"--atomic_numbers: the data{of_head(self.head)} {lacks}.")
        return given


def state_reader(found: Sequence[HeadFrames], read: Iterable[str]) -> StateReader:
    """What a model keeps of how its training structures were read: keys that all heads share, and ranges.

    ``read`` : quantities that the model reads; only of these is a range worth a warning.
    """
    named = [named_quantities(frames.head.keys) for frames in found]
    keys = {name: key for name, key in named[0].items() if all(other.get(name) == key for other in named)}
    states = [state for frames in found for state in frames.states]
    if any(state is None for state in states):
        return StateReader(keys)  # of data on disk not all was looked at
    ranges = [state.seen() for state in states if state is not None and state.frames]
    seen = {
        name: (min(one[name][0] for one in ranges), max(one[name][1] for one in ranges))
        for name in read
        if ranges and all(name in one for one in ranges)
    }
    return StateReader(keys, seen)


def of_head(head: Head) -> str:
    """`` of head …`` for messages; nothing where there are no heads."""
    return "" if head.name == HEAD else f" of head {head.name!r}"


def random_split(size: int, fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices of training and validation, the same as mace's for that seed.

    InputError if one structure is not enough for two sets.
    """
    if size < 2:
        raise InputError(
            f"--train_file holds {size} structure; a validation set cannot be split off. Give --valid_file."
        )
    order = list(range(size))
    np.random.default_rng(seed).shuffle(order)
    train_size = min(size - int(fraction * size), size - 1)
    return order[:train_size], order[train_size:]


def set_name(atoms: Atoms, name: str) -> None:
    """Remember which frame of which file a structure was; copies forget it."""
    atoms.__dict__["frame_name"] = name


def name_of(atoms: Atoms) -> str:
    """What :func:`set_name` has set; "" where nothing."""
    return str(atoms.__dict__.get("frame_name", ""))
