"""Labels of one structure: found under the keys that were named, checked, and put in their canonical places."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
from ase import Atoms

from phi_equivariant.errors import InputError
from phi_equivariant.inputs.external_field import check_directions
from phi_equivariant.inputs.headers import letters
from phi_equivariant.inputs.state import QUANTITIES, StateReader, check_charge_labels
from training.data.geometry import check_geometry
from training.data.labels import check_weights, clean_label
from training.quantities import LABELS, Label

#: What ``StateReader.find`` says of each quantity of a structure.
State = dict[str, tuple[float, str] | None]


class LabelPlacer:
    """Finds the labels of structures and puts them where the trainer looks for them.

    Parameters
    ----------
    keys : label name -> key, as :func:`labels.resolve_keys` gives them
    embedded : names of the quantities of a structure that the host embeds; the total charge is always read, others only
        where they are embedded or a key other than mace's is named
    ions : whether the total charge must be one that the atoms can have, as of
        :class:`phi_equivariant.inputs.state.StateReader`
    """

    def __init__(self, keys: Mapping[str, str], embedded: Iterable[str] = (), ions: bool = True) -> None:
        self.keys = keys
        self.named = {name: keys[name] for name in QUANTITIES if keys[name] != LABELS[name].default_key}
        self.reader = StateReader(self.named, ions=ions)
        wanted = {"total_charge", *self.named, *embedded}
        self.quantities = tuple(name for name in QUANTITIES if name in wanted)

    def collect(self, atoms: Atoms, where: str) -> tuple[dict[str, Any], State]:
        """{label: value} of a structure as it was read, and what it says of each quantity.

        Raises
        ------
        InputError
            For a label that is not what it should be, one under a misspelt key, or charges that do not sum to the total
            charge; it begins with ``where``.
        """
        config_type = atoms.info.get("config_type", "Default")
        if not isinstance(config_type, str | int | float | np.generic):
            raise InputError(f"{where}: config_type is {config_type!r}; expected a word. Correct it or take it out.")
        found: dict[str, Any] = {}
        for name, label in LABELS.items():
            if name in self.quantities:
                continue
            value = _value(atoms, label, self.keys[name])
            if value is not None:
                found[name] = clean_label(label, value, len(atoms), where)
            elif name not in QUANTITIES:
                _check_spelling(atoms, name, self.keys[name], where)
        try:
            state: State = {name: self.reader.find(atoms, name) for name in self.quantities}
            found |= {name: one[0] for name, one in state.items() if one is not None}
            if "external_field" in found:
                check_directions(found["external_field"][None], np.asarray(atoms.cell)[None], atoms.pbc[None])
            if "charges" in found and LABELS["charges"].weight(atoms, {}) != 0:
                check_charge_labels(found["charges"], found.get("total_charge", 0.0))
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        return found, state

    def place(self, atoms: Atoms, found: Mapping[str, Any]) -> None:
        """Put labels in their places, and nothing else there; what ase read as results is gone then."""
        for name, label in LABELS.items():
            place = atoms.arrays if label.per_atom else atoms.info
            # An entry under the canonical name that the user's key does not point to must not be taken for a label.
            place.pop(label.canonical, None)
            if name in found:
                place[label.canonical] = found[name]
        atoms.calc = None

    def labelled_copy(
        self, atoms: Atoms, where: str, elements: set[int] | None, periodicities: Collection[int]
    ) -> tuple[Atoms, list[str], State]:
        """A copy of a structure with its labels in their places, the names of the labels it has, and its state.

        ``where`` names the structure in messages; ``elements``, ``periodicities`` and what is raised are as for
        :func:`structures.read_structures`.
        """
        check_geometry(atoms, where, elements, periodicities)
        check_weights(atoms.info, where)
        found, state = self.collect(atoms, where)
        copy = atoms.copy()
        self.place(copy, found)
        return copy, list(found), state


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


def _value(atoms: Atoms, label: Label, key: str) -> Any:
    """The raw value under a key: in atoms, or in the calculator that ase makes of keys such as ``energy``."""
    place = atoms.arrays if label.per_atom else atoms.info
    if place.get(key) is not None:
        return place[key]
    # The stored result as it is: atoms.get_forces() would set the forces of constrained atoms to zero.
    return None if atoms.calc is None else atoms.calc.results.get(key)


def _check_spelling(atoms: Atoms, name: str, key: str, where: str) -> None:
    """InputError where a structure lacks a key and has it in other letters, as ``Energy`` for ``energy``."""
    results = {} if atoms.calc is None else atoms.calc.results
    for entry in (*atoms.info, *atoms.arrays, *results):
        if isinstance(entry, str) and entry != key and letters(entry) == letters(key):
            raise InputError(
                f"{where} has {entry!r}, but the {LABELS[name].plural} are read from {key!r}. Rename it, or set "
                f"{name}_key to {entry!r}."
            )
