"""The labels a structure may carry: where they are kept, which shape they must have, how many were found."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches

import numpy as np
from ase.stress import voigt_6_to_full_3x3_stress

from phi_equivariant.errors import InputError
from phi_equivariant.inputs.state import QUANTITIES


@dataclass(frozen=True)
class Label:
    """One kind of label.

    Parameters
    ----------
    name : name in mace's options, without ``_key``
    canonical : key under which the trainer finds it in ``atoms.info`` or ``atoms.arrays``
    default_key : mace's default for ``<name>_key``
    per_atom : whether it lives in ``atoms.arrays``
    shape : shape of one structure's label, or of one atom's if ``per_atom``
    plural : for reports
    """

    name: str
    canonical: str
    default_key: str
    per_atom: bool
    shape: tuple[int, ...]
    plural: str


LABELS = {
    label.name: label
    for label in (
        Label("energy", "REF_energy", "REF_energy", False, (), "energies"),
        Label("forces", "REF_forces", "REF_forces", True, (3,), "forces"),
        Label("charges", "REF_charges", "REF_charges", True, (), "charges"),
        Label("dipole", "REF_dipole", "dipole", False, (3,), "dipoles"),
        Label("total_charge", "total_charge", "total_charge", False, (), "total charges"),
        Label("total_spin", "total_spin", "total_spin", False, (), "total spins"),
        Label("elec_temp", "elec_temp", "elec_temp", False, (), "el. temperatures"),
        Label("stress", "REF_stress", "REF_stress", False, (3, 3), "stresses"),
        Label("virials", "REF_virials", "REF_virials", False, (3, 3), "virials"),
    )
}
#: Label -> key where the labels are in their canonical places already.
CANONICAL = {name: label.canonical for name, label in LABELS.items()}
# Labels that reports name only where they are.
SELDOM = ("stress", "virials")
# Labels that a structure may weigh, each by ``info["config_<name>_weight"]``.
WEIGHTED = ("energy", "forces", "stress", "virials", "dipole", "charges")
# Keys of mace that name other entries of atoms.info: accepted and left where they are.
OTHER_KEYS = ("head", "polarizability")


def resolve_keys(keys: Mapping[str, str | None] | None) -> dict[str, str]:
    """Key of every label: mace's default unless ``keys`` names another.

    ``keys`` may say ``{"energy_key": ...}``, as mace's options do, or ``{"energy": ...}``; None keeps the default.
    Raises InputError for a label that does not exist or a key that is not text.
    """
    resolved = {name: label.default_key for name, label in LABELS.items()}
    for option, key in (keys or {}).items():
        name = option.removesuffix("_key")
        if name in OTHER_KEYS or key is None:
            continue
        if name not in LABELS:
            near = get_close_matches(name, LABELS, n=3, cutoff=0.5) or list(LABELS)
            raise InputError(f"{option!r} names no label. The nearest are {', '.join(f'{n}_key' for n in near)}.")
        if not isinstance(key, str) or not key:
            raise InputError(f"{name}_key is {key!r}; expected the name of the entry that holds the {name}.")
        resolved[name] = key
    return resolved


def clean_label(label: Label, value, n_atoms: int, where: str) -> float | np.ndarray:
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


def check_weights(info, where):
    """InputError, naming the frame, unless its weights in ``info`` are what mace's losses multiply by.

    They are ``config_weight`` and ``config_<label>_weight``: numbers, zero or more; that of the dipole may be a vector.
    """
    for key in ("config_weight", *(f"config_{name}_weight" for name in WEIGHTED)):
        if (value := info.get(key)) is None:
            if key in info:
                raise InputError(f"{where}: {key} has no value. Give a number, or take the entry out.")
            continue
        array = np.asarray(value)
        shapes = ((), (3,)) if key == "config_dipole_weight" else ((),)
        if array.dtype.kind not in "iuf" or array.shape not in shapes or not (np.isfinite(array) & (array >= 0)).all():
            raise InputError(f"{where}: {key} is {value!r}; expected a number, zero or more. Correct the file.")


@dataclass
class LabelReport:
    """How many labels of each kind one split has, and under which key each was found.

    Parameters
    ----------
    split : "train", "valid" or "test"
    sources : the files
    frames : number of structures to train on or test, isolated atoms not counted
    isolated_atoms : number of structures that only give isolated-atom energies
    keys : label name -> key
    counts : label name -> number of structures that have the label
    looked_at : number of structures that were read to count labels, where it is not all of them
    notes : further lines for the log: charges, periodic directions, what stands out
    """

    split: str
    sources: Sequence[str]
    frames: int
    isolated_atoms: int = 0
    keys: Mapping[str, str] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    looked_at: int | None = None
    notes: Sequence[str] = ()

    def lines(self) -> list[str]:
        """Lines for the log."""
        atoms = f", {self.isolated_atoms} isolated atoms for E0s" if self.isolated_atoms else ""
        sample = "" if self.looked_at is None else f"; labels of {self.looked_at} of them:"
        lines = [f"{self.split}: {self.frames} structures from {', '.join(self.sources)}{atoms}{sample}"]
        for name, label in LABELS.items():
            count = self.counts.get(name, 0)
            if (count or name not in SELDOM) and name not in QUANTITIES:
                lines.append(f"  {label.plural:<13} {count:>7}   {name}_key: {self.keys.get(name, label.default_key)}")
        return lines + [f"  {note}" for note in self.notes]

    def as_dict(self) -> dict:
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
