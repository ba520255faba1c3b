"""Read labelled structures from any file that ase reads, and refuse what cannot be trained on."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ase.io
import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols

from phi_equivariant.errors import InputError
from phi_equivariant.inputs.cells import check_cells, describe_pbc
from phi_equivariant.inputs.total_charge import total_charge_of
from training.data.labels import LabelReport, check_weights, clean_label, resolve_keys
from training.quantities import LABELS, Label

ISOLATED_ATOM = "IsolatedAtom"  # mace's config_type of the frames that give E0s


@dataclass(frozen=True)
class Structures:
    """What one split's files held.

    Parameters
    ----------
    frames : structures with their labels under the canonical keys of :data:`training.quantities.LABELS`
    e0s : energies (eV) of the isolated atoms in the files by atomic number; empty if there are none
    report : how many labels were found under which key
    first_keys : the entries of the first of these structures as it was read, for messages
    """

    frames: list[Atoms]
    e0s: dict[int, float]
    report: LabelReport
    first_keys: str


def read_structures(
    path: str | Path | Sequence[str | Path],
    keys: Mapping[str, str | None] | None = None,
    split: str = "train",
    *,
    elements: Iterable[int] | None = None,
    allow_slabs: bool = True,
    keep_isolated_atoms: bool = False,
) -> Structures:
    """Read structures and put their labels in canonical places.

    Energy (eV) goes to ``info["REF_energy"]``, forces (eV/Å) to ``arrays["REF_forces"]``, charges (e) to
    ``arrays["REF_charges"]``, dipole (e·Å) to ``info["REF_dipole"]``, stress and virials to ``info["REF_stress"]`` and
    ``info["REF_virials"]``, the total charge (e) to ``info["total_charge"]``; ``info["charge"]`` is a total charge too.
    Keys that ase moves into a calculator (``energy``, ``forces``, …) are found there. All other entries are kept.

    Parameters
    ----------
    path : one file or several
    keys : label name -> key, as mace's options (``energy_key`` …)
    split : name of the split, for the report
    elements : atomic numbers that the model knows; None for any
    allow_slabs : accept frames with one or two periodic directions
    keep_isolated_atoms : keep isolated atoms among the frames as well

    Raises
    ------
    InputError
        for a file that is missing, empty or unreadable, for a frame with positions or labels that are not finite or
        have a wrong shape, a cell that is singular, a slab where it cannot be treated, an unknown element, an isolated
        atom without an energy in training, or contradictory total charges.
    """
    resolved = resolve_keys(keys)
    paths = [path] if isinstance(path, str | Path) else list(path)
    known = None if elements is None else {int(number) for number in elements}
    frames: list[Atoms] = []
    e0s: dict[int, float] = {}
    isolated_atoms, first_keys = 0, ""
    for file in map(Path, paths):
        for index, atoms in enumerate(_load(file)):
            where = f"frame {index} of {file}"
            check_geometry(atoms, where, known, allow_slabs)
            check_weights(atoms.info, where)
            found = _collect_labels(atoms, resolved, where)
            isolated = len(atoms) == 1 and atoms.info.get("config_type") == ISOLATED_ATOM
            keep = not isolated or keep_isolated_atoms
            if keep and not frames:
                first_keys = describe_keys(atoms)
            gives_e0 = isolated and split == "train" and atoms.info.get("config_energy_weight") != 0
            if gives_e0 and "energy" not in found:
                raise InputError(
                    f"{where} is an isolated atom and has no energy under the key {resolved['energy']!r}. Its keys are "
                    f"{describe_keys(atoms)}. Set energy_key to the right one, or remove the frame."
                )
            _place_labels(atoms, found)
            if gives_e0:
                isolated_atoms += 1
                _add_e0(e0s, atoms, where)
            if keep:
                frames.append(atoms)
    if not frames:
        raise InputError(
            f"The {split} files ({', '.join(map(str, paths))}) hold only isolated atoms: nothing to {split} on."
        )
    report = LabelReport(split, [str(p) for p in paths], len(frames), isolated_atoms, resolved)
    return Structures(frames, e0s, report.count(frames, {}), first_keys)


def labelled_copy(
    atoms: Atoms, keys: Mapping[str, str], where: str, elements: set[int] | None, allow_slabs: bool
) -> tuple[Atoms, list[str]]:
    """A copy of one structure with its labels in the canonical places, and the names of the labels it has.

    ``keys`` are those of :func:`labels.resolve_keys`, ``where`` names the frame in messages; the rest, and
    what is raised, is as for :func:`read_structures`.
    """
    check_geometry(atoms, where, elements, allow_slabs)
    check_weights(atoms.info, where)
    found = _collect_labels(atoms, keys, where)
    copy = atoms.copy()
    _place_labels(copy, found)
    return copy, list(found)


def check_readable(path: Path) -> None:
    """InputError unless there is a file with something in it."""
    if not path.exists():
        raise InputError(f"There is no file {path}. Give the path of a file with structures that ase reads.")
    if path.is_dir():
        raise InputError(f"{path} is a folder; expected a file with structures that ase reads, such as extended XYZ.")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty; expected a file with structures that ase reads.")


def _load(path: Path) -> list[Atoms]:
    check_readable(path)
    try:
        frames = ase.io.read(path, index=":")
    except Exception as error:  # ase's readers raise whatever their parser meets: there is no narrower base class
        raise InputError(f"ase cannot read {path}: {type(error).__name__}: {error}. Is the file complete?") from error
    if not frames:
        raise InputError(f"{path} holds no structure.")
    return frames


def check_geometry(atoms: Atoms, where: str, elements: set[int] | None, allow_slabs: bool) -> None:
    """InputError, naming the frame, unless a model of these elements can take its atoms, positions and cell."""
    if len(atoms) == 0:
        raise InputError(f"{where} has no atoms. Remove it.")
    if not np.isfinite(atoms.positions).all():
        raise InputError(f"{where} has positions that are not finite (nan or inf). Remove the frame.")
    if not np.isfinite(atoms.cell.array).all():
        raise InputError(f"{where} has a cell that is not finite (nan or inf). Remove the frame.")
    if atoms.pbc.any():
        # mace would take a cell of zeros for one of 1 Å.
        check_cells(torch.tensor(atoms.cell.array)[None], torch.tensor(atoms.pbc)[None], where)
    if atoms.pbc.any() and not atoms.pbc.all() and not allow_slabs:
        raise InputError(
            f"{where} is a slab or a wire (pbc {describe_pbc(atoms.pbc)}), and operator: coulomb treats structures "
            'that are periodic in three directions or none. Use operator: graph, or write pbc="T T T" or "F F F" '
            "into the file if that is meant."
        )
    if atoms.pbc.any() and not _spans_space(atoms):
        raise InputError(
            f"{where} is a slab or a wire (pbc {describe_pbc(atoms.pbc)}) whose periodic vectors point where mace puts "
            "those of open directions: along the axes of these. Turn the structure, or correct its pbc or Lattice."
        )
    if len(np.unique(atoms.positions, axis=0)) < len(atoms):
        raise InputError(f"{where} has atoms that coincide. Remove the frame.")
    if elements is not None and (unknown := set(atoms.numbers.tolist()) - elements):
        raise InputError(
            f"{where} holds {_symbols(unknown)}, which the model does not know: its elements are {_symbols(elements)}. "
            "Remove the frame or train a model on these elements too."
        )
    if 0 in atoms.numbers:
        raise InputError(f"{where} holds an atom without an element (X). Correct the file.")


def _spans_space(atoms: Atoms) -> bool:
    """Whether periodic vectors are independent, of each other and of the axes that mace puts in open directions."""
    vectors = np.where(atoms.pbc[:, None], atoms.cell.array, np.eye(3))
    lengths = np.linalg.norm(vectors, axis=1)
    return bool(abs(np.linalg.det(vectors)) > 1e-8 * lengths.prod())


def _symbols(numbers: Iterable[int]) -> str:
    return ", ".join(chemical_symbols[number] for number in sorted(numbers))


def _value(atoms: Atoms, label: Label, key: str):
    """The raw value under a key: in atoms, or in the calculator that ase makes of keys such as ``energy``."""
    place = atoms.arrays if label.per_atom else atoms.info
    if place.get(key) is not None:
        return place[key]
    # The stored result as it is: atoms.get_forces() would set the forces of constrained atoms to zero.
    return None if atoms.calc is None else atoms.calc.results.get(key)


def _collect_labels(atoms: Atoms, keys: Mapping[str, str], where: str) -> dict:
    found = {}
    for name, label in LABELS.items():
        value = None if name == "total_charge" else _value(atoms, label, keys[name])
        if value is not None:
            found[name] = clean_label(label, value, len(atoms), where)
    charge_keys = [key for key in (keys["total_charge"], "charge") if atoms.info.get(key) is not None]
    if charge_keys:
        try:
            found["total_charge"] = total_charge_of(atoms.info, charge_keys)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
    return found


def _place_labels(atoms: Atoms, found: Mapping) -> None:
    for name, label in LABELS.items():
        place = atoms.arrays if label.per_atom else atoms.info
        # An entry under the canonical name that the user's key does not point to must not be taken for a label.
        place.pop(label.canonical, None)
        if name in found:
            place[label.canonical] = found[name]
    atoms.calc = None


def _add_e0(e0s: dict[int, float], atoms: Atoms, where: str) -> None:
    number, energy = int(atoms.numbers[0]), atoms.info[LABELS["energy"].canonical]
    if e0s.setdefault(number, energy) != energy:
        raise InputError(
            f"{where} is a second isolated {chemical_symbols[number]} atom, with {energy:g} eV instead of "
            f"{e0s[number]:g} eV. Keep one of them."
        )


def describe_keys(atoms: Atoms) -> str:
    """The entries of a structure by place, for messages."""
    arrays = [key for key in atoms.arrays if key not in ("numbers", "positions")]
    results = [] if atoms.calc is None else list(atoms.calc.results)
    return "; ".join(
        f"{place}: {', '.join(map(str, names)) or 'none'}"
        for place, names in (
            ("per structure", atoms.info),
            ("per atom", arrays),
            ("read by ase as calculator results", results),
        )
    )
