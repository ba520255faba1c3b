"""The labels of a file: the keys that they have, the shape and the weights that they must have, how many there are."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase import Atoms
from ase.stress import voigt_6_to_full_3x3_stress

from phi_equivariant.errors import InputError, did_you_mean
from training.quantities import LABELS, TARGETS, Label

#: Options that say where labels stand.
KEY_OPTIONS = tuple(f"{name}_key" for name in LABELS)
#: Label -> key where the labels are in their canonical places already.
CANONICAL = {name: label.canonical for name, label in LABELS.items()}
# Keys of mace that name other entries of atoms.info: accepted and left where they are.
OTHER_KEYS = ("head",)


def resolve_keys(keys: Mapping[str, str | None] | None) -> dict[str, str]:
    """Key of every label: mace's default unless ``keys`` names another.

    ``keys`` may say ``{"energy_key": ...}``, as mace's options do, or ``{"energy": ...}``; None keeps the default.
    Raises InputError for a label that does not exist or a key that is not text.
    """
    resolved = {name: label.default_key for name, label in LABELS.items()}
    for option, key in (keys or {}).items():
        name = option.removesuffix("_key")
        if key is None or (name in OTHER_KEYS and name not in LABELS):
            continue
        if name not in LABELS:
            hint = did_you_mean(option, KEY_OPTIONS, f"The labels' options are {', '.join(KEY_OPTIONS)}.", n=3)
            raise InputError(f"{option!r} does not name a label. {hint}")
        if not isinstance(key, str) or not key:
            raise InputError(f"{name}_key is {key!r}; expected the name of the entry that holds the {name}.")
        resolved[name] = key
    return resolved


def clean_label(label: Label, value: Any, n_atoms: int, where: str) -> float | np.ndarray:
    """The label as a float or a float64 array of its proper shape.

    Charges may come as (N, 1), a dipole as (1, 3), stress and virials also in Voigt order (6,) or flat (9,).
    Raises InputError, naming the frame, for anything that is not numbers, not finite or of another shape.
    """
    try:
        array = np.asarray(value)
    except ValueError:  # rows of unequal length
        array = np.asarray(value, dtype=object)
    if array.dtype.kind not in "iuf":
        raise InputError(f"{where}: the {label.name.replace('_', ' ')} is {value!r}, not a number. Correct the file.")
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise InputError(f"{where}: the {label.name} label is not finite (nan or inf). Remove or recompute the frame.")
    expected = (n_atoms, *label.shape) if label.per_atom else label.shape
    if label.shape == (3, 3) and array.size in (6, 9):
        return voigt_6_to_full_3x3_stress(array.ravel()) if array.size == 6 else array.reshape(3, 3)
    if array.squeeze().shape != np.empty(expected).squeeze().shape:
        raise InputError(f"{where}: the {label.name} label has shape {array.shape}; expected {expected}.")
    return float(array.item()) if expected == () else array.reshape(expected)


def check_weights(info: Mapping[str, Any], where: str) -> None:
    """InputError, naming the frame, unless its weights in ``info`` are what mace's losses multiply by.

    They are ``config_weight`` and ``config_<label>_weight``: numbers, zero or more. One per component is taken for
    labels of structures that mace's losses do not train, such as the dipole.
    """
    keys = {"config_weight": None, **{f"config_{name}_weight": label for name, label in TARGETS.items()}}
    for key, label in keys.items():
        if (value := info.get(key)) is None:
            if key in info:
                raise InputError(f"{where}: {key} has no value. Give a number, or take the entry out.")
            continue
        array = np.asarray(value)
        shapes = {(), () if label is None or label.loss == "mace" or label.per_atom else label.shape}
        if array.dtype.kind not in "iuf" or array.shape not in shapes or not (np.isfinite(array) & (array >= 0)).all():
            raise InputError(f"{where}: {key} is {value!r}; expected a number, zero or more. Correct the file.")


@dataclass
class LabelReport:
    """How many labels of each kind one split has, and under which key each was found.

    split : "train", "valid" or "test"
    sources : the files
    frames : number of structures to train on or test, isolated atoms not counted
    isolated_atoms : number of structures that only give isolated-atom energies
    keys : label name -> key
    counts : label name -> number of structures that have the label
    undefined : label name -> number of those that are not periodic as the label needs it, so that it does not count
    unweighted : label name -> number of the others that have weight zero
    looked_at : number of structures that were read to count labels, where it is not all of them
    trained : labels that weigh in the loss; None where nothing is trained
    notes : further lines for the log: charges, periodic directions, what stands out
    """

    split: str
    sources: Sequence[str]
    frames: int
    isolated_atoms: int = 0
    keys: Mapping[str, str] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    undefined: Mapping[str, int] = field(default_factory=dict)
    unweighted: Mapping[str, int] = field(default_factory=dict)
    looked_at: int | None = None
    trained: Collection[str] | None = None
    notes: Sequence[str] = ()

    def count(self, structures: Iterable[Atoms], type_weights: Mapping[str, float]) -> "LabelReport":
        """Count the labels of structures, which are in their canonical places; returns this object."""
        counts: dict[str, Counter[str]] = {"counts": Counter(), "undefined": Counter(), "unweighted": Counter()}
        for atoms in structures:
            for name, label in LABELS.items():
                if label.within(atoms):
                    counts["counts"][name] += 1
                    if not label.defined(atoms):
                        counts["undefined"][name] += 1
                    elif name in TARGETS and label.weight(atoms, type_weights) == 0:
                        counts["unweighted"][name] += 1
        self.counts, self.undefined, self.unweighted = map(dict, counts.values())
        return self

    def lines(self) -> list[str]:
        """Lines for the log."""
        from phi_equivariant.inputs.state import QUANTITIES  # with torch, which options do without

        atoms = f", {self.isolated_atoms} isolated atoms for E0s" if self.isolated_atoms else ""
        sample = "" if self.looked_at is None else f"; labels of {self.looked_at} of them:"
        lines = [f"{self.split}: {self.frames} structures from {', '.join(self.sources)}{atoms}{sample}"]
        for name, label in LABELS.items():
            count = self.counts.get(name, 0)
            if (count or not label.seldom) and name not in QUANTITIES:  # of which the notes tell
                key = f"{name}_key: {self.keys.get(name, label.default_key)}"
                lines.append(f"  {label.plural:<13} {self._share(name, count):>7}   {key}{self._remark(label, count)}")
        return lines + [f"  {note}" for note in self.notes]

    def _share(self, name: str, count: int) -> str:
        """The number of labels, of how many structures where some of them lack it."""
        of = self.frames if self.looked_at is None else self.looked_at
        return f"{count} of {of}" if count and count < of and name in TARGETS else str(count)

    def _remark(self, label: Label, count: int) -> str:
        remarks = []
        if number := self.undefined.get(label.name):
            remarks.append(f"{number} do not count: {label.where_defined()}")
        if number := self.unweighted.get(label.name):
            remarks.append(f"{number} of weight 0")
        if count and label.name in TARGETS and self.trained is not None and label.name not in self.trained:
            remarks.append("not in the loss")
        return "".join(f", {remark}" for remark in remarks)

    def as_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        found = {name: {"key": key, "count": self.counts.get(name, 0)} for name, key in self.keys.items()}
        return {
            "split": self.split,
            "sources": list(self.sources),
            "structures": self.frames,
            "isolated_atoms": self.isolated_atoms,
            "looked_at": self.frames if self.looked_at is None else self.looked_at,
            "labels": found,
        }
