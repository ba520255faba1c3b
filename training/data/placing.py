"""Labels of one structure: found under the keys that were named, checked, and put in their canonical places."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase import Atoms

from phi_equivariant.errors import InputError
from phi_equivariant.inputs.embedded import embedded_value, read_embedded
from phi_equivariant.inputs.external_field import check_directions
from phi_equivariant.inputs.headers import letters
from phi_equivariant.inputs.state import QUANTITIES, StateReader, check_charge_labels, entries
from training.data.geometry import ALL_PERIODICITIES, check_geometry
from training.data.labels import check_weights, clean_label
from training.quantities import LABELS, Label

#: What ``StateReader.find`` says of each quantity of a structure.
State = dict[str, tuple[float, str] | None]


@dataclass(frozen=True)
class Accepted:
    """What a model can be given beside labels.

    elements : atomic numbers; None for any
    periodicities : numbers of periodic directions
    charged, fields : whether net charges and external fields
    ions : whether a total charge must be one that the atoms can have, as of
        :class:`phi_equivariant.inputs.state.StateReader`
    embeddings : mace's ``embedding_specs``: entries that every structure must have
    operator : of Φ, for messages
    """

    elements: Collection[int] | None = None
    periodicities: Collection[int] = ALL_PERIODICITIES
    charged: bool = True
    fields: bool = True
    ions: bool = True
    embeddings: Mapping[str, Any] = field(default_factory=dict)
    operator: str = ""

    @property
    def embedded(self) -> list[str]:
        """Entries of structures that the host embeds."""
        return [name for name, spec in self.embeddings.items() if spec["per"] == "graph"]

    def check_entries(self, atoms: Atoms, where: str) -> None:
        """Find out whether a model takes the charge and the field of a structure, whose labels are in their places.

        What ``embedding_specs`` reads is put under the specifications' names; without a total charge, total spin or
        electronic temperature it is mace's: 0 e, 1 and 0.

        Raises InputError.
        """
        charge, reason = atoms.info.get("total_charge", 0.0), ""
        if not self.charged and charge != 0.0:
            reason = f"{where} has total_charge {charge:g} e, and charges of operator: {self.operator} sum to zero"
        if not self.fields and np.any(atoms.info.get("external_field", 0.0)):
            reason = f"external_field: {where} is in one, and a bare host has no charges for it to act on"
        if reason:
            raise InputError(f"{reason}. Use operator: coulomb, or leave such structures out.")
        for name, spec in self.embeddings.items():
            place: dict[str, Any] = atoms.arrays if spec["per"] == "atom" else atoms.info
            if name not in LABELS:
                place.update(read_embedded(atoms, {name: spec}, f"embedding_specs: {where}"))
            elif (value := place.get(LABELS[name].canonical)) is not None:
                what = f"embedding_specs: {where}: the {spec.get('key') or name!r} that {name} reads"
                embedded_value(value, spec, len(atoms), what)


class LabelPlacer:
    """Finds the labels of structures and puts them where the trainer looks for them.

    The total charge is always read, the spin and the like only where the host embeds them or a key other than mace's is
    named. ``keys`` : label name -> key, as :func:`labels.resolve_keys` gives them.
    """

    def __init__(self, keys: Mapping[str, str], accepted: Accepted | None = None) -> None:
        self.keys, self.accepted = keys, accepted or Accepted()
        self.named = named_quantities(keys)
        self.reader = StateReader(self.named, ions=self.accepted.ions)
        wanted = {"total_charge", *self.named, *self.accepted.embedded}
        self.quantities = tuple(name for name in QUANTITIES if name in wanted)

    def collect(self, atoms: Atoms, where: str) -> tuple[dict[str, Any], State]:
        """{label: value} of a structure as it was read, and what it says of each quantity.

        InputError for a structure that the model cannot take, weights that are none, a label that is not what it should
        be, one under a misspelt key, or charges that do not sum to the total charge; it begins with ``where``.
        """
        check_geometry(atoms, where, self.accepted.elements, self.accepted.periodicities)
        check_weights(atoms.info, where)
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

    def labelled_copy(self, atoms: Atoms, where: str) -> tuple[Atoms, list[str], State]:
        """A copy of a structure with its labels in their places, the names of the labels it has, and its state.

        ``where`` and what is raised are as for :meth:`collect`.
        """
        found, state = self.collect(atoms, where)
        copy = atoms.copy()
        self.place(copy, found)
        return copy, list(found), state


def named_quantities(keys: Mapping[str, str]) -> dict[str, str]:
    """{quantity of a structure: its key} where the key is not mace's."""
    return {name: keys[name] for name in QUANTITIES if keys[name] != LABELS[name].default_key}


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
    """The raw value under a key: in atoms, in the calculator that ase makes of keys such as ``energy``, or in the data
    of ase's databases."""
    # The other place too: what ase's databases hold for each atom stands there, and what does not belong is refused.
    for place in (atoms.arrays, atoms.info) if label.per_atom else (atoms.info, atoms.arrays):
        if place.get(key) is not None:
            return place[key]
    # The stored result as it is: atoms.get_forces() would set the forces of constrained atoms to zero.
    return next((value for _, value in entries(atoms, key) if value is not None), None)


def _check_spelling(atoms: Atoms, name: str, key: str, where: str) -> None:
    """InputError where a structure lacks a key and has it in other letters, as ``Energy`` for ``energy``."""
    results = {} if atoms.calc is None else atoms.calc.results
    for entry in (*atoms.info, *atoms.arrays, *results):
        if isinstance(entry, str) and entry != key and letters(entry) == letters(key):
            raise InputError(
                f"{where} has {entry!r}, but the {LABELS[name].plural} are read from {key!r}. Rename it, or set "
                f"{name}_key to {entry!r}."
            )
