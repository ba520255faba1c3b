"""The structures of one head: parts in memory or on disk, and what was found in them."""

from dataclasses import dataclass, field
from typing import Any

from torch.utils.data import Subset

from phi_equivariant.errors import InputError
from training.data.labels import LabelReport
from training.data.stored import Chain
from training.run import HEAD, Head


@dataclass
class HeadFrames:
    """What a head trains and is tested on.

    train, valid : parts, each a list of structures or data that stays on disk; tests : {name: structures};
    e0s : {Z: eV} of isolated atoms, None if the data have none; reports, provenance : what was found.
    """

    head: Head
    train: list[Any]
    valid: list[Any]
    tests: dict[str, Any] = field(default_factory=dict)
    e0s: dict[int, float] | None = None
    reports: list[LabelReport] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)

    def size(self) -> int:
        """Number of training structures."""
        return sum(map(len, self.train))

    def elements(self) -> list[int]:
        """Atomic numbers: those given for the head, or those of its training and validation structures.

        Raises
        ------
        InputError
            If they are not given and the data are on disk, or if they lack one of the data's.
        """
        given = self.head.atomic_numbers
        parts = [*self.train, *self.valid]
        if given is None and any(map(on_disk, parts)):
            raise InputError(
                f"--atomic_numbers: the elements of HDF5 and LMDB data must be given{of_head(self.head)}, as in "
                "--atomic_numbers '[1, 6, 8]' or by the statistics_file of mace_prepare_data."
            )
        found = {int(z) for part in parts if not on_disk(part) for atoms in part for z in set(atoms.numbers)}
        if given is None:
            return sorted(found)
        if unknown := found - set(given):
            raise InputError(
                f"--atomic_numbers: the data{of_head(self.head)} hold elements {sorted(unknown)} that are not among "
                f"{given}."
            )
        return given


def on_disk(part: Any) -> bool:
    """Whether structures are read from disk each time that they are asked for."""
    return isinstance(part.dataset if isinstance(part, Subset) else part, Chain)


def of_head(head: Head) -> str:
    """Which head, for messages, where it has a name."""
    return "" if head.name == HEAD else f" of head {head.name!r}"
