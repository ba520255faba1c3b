"""Total charge, spin multiplicity and electronic temperature of a structure: one reader for files and calculators."""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from ase import Atoms

from phi_equivariant.errors import InputError
from phi_equivariant.inputs.headers import letters


@dataclass(frozen=True)
class Quantity:
    """A number that belongs to a structure beside its atoms.

    Parameters
    ----------
    name: mace's name, under which models are given it
    names: entries it is read from; all that a structure has must agree
    absent: its value where a structure has none of them, mace's
    words, unit: for messages
    """

    name: str
    names: tuple[str, ...]
    absent: float
    words: str
    unit: str


#: What structures may say. mace's ``total_spin``, fairchem's and MACECalculator's ``spin`` and quantum chemistry's
#: ``multiplicity`` all mean the spin multiplicity 2S + 1: 1 is a singlet, and one unpaired electron makes it 2.
QUANTITIES = {
    quantity.name: quantity
    for quantity in (
        Quantity("total_charge", ("total_charge", "charge"), 0.0, "total charge", "e"),
        Quantity(
            "total_spin", ("total_spin", "spin", "multiplicity", "spin_multiplicity"), 1.0, "spin multiplicity", ""
        ),
        Quantity("elec_temp", ("elec_temp",), 0.0, "electronic temperature", ""),
    )
}
_ATTRIBUTE = "state_inputs"  # of a model: plain values, so that a pickle of it needs no class of ours


@dataclass(frozen=True)
class StateReader:
    """Reads the quantities of ``QUANTITIES`` from ase's structures, the same way for every program.

    An entry is looked for in ``atoms.info``, in ``key_value_pairs`` and ``data`` there, where ase's databases put it,
    and in the results of ``atoms.calc``. It must be one finite number: Python's, numpy's or an array of one value.
    ase's initial charges and magnetic moments are not read, but must not contradict: some programs take the total
    charge from their sum.

    Parameters
    ----------
    keys: {quantity: entry} where a user named one, looked for beside the usual names
    seen: {quantity: (lowest, highest)} of the structures a model was trained on; values outside give a warning
    ions: whether the total charge must be one that the atoms can have; to a bare host it is a label like any other

    Raises
    ------
    InputError
        For a quantity that does not exist, a key that is not text, or bounds that are not two numbers.
    """

    keys: Mapping[str, str] = field(default_factory=dict)
    seen: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    ions: bool = True

    def __post_init__(self) -> None:
        for name in (*self.keys, *self.seen):
            if name not in QUANTITIES:
                raise InputError(f"{name!r} is not read from structures; {', '.join(QUANTITIES)} are.")
        for name, key in self.keys.items():
            if not isinstance(key, str) or not key:
                raise InputError(f"{name}_key is {key!r}; give the name of an entry of the structures.")
        for name, bounds in self.seen.items():
            if len(bounds) != 2 or not bounds[0] <= bounds[1]:
                raise InputError(f"the range of {name} is {bounds!r}; expected the lowest and the highest value.")

    def find(self, atoms: Atoms, name: str) -> tuple[float, str] | None:
        """The value of a quantity and the entry it stands in; None where the structure has none.

        Raises
        ------
        InputError
            For an entry that is not a finite number, entries that differ, one that is spelt in another way, a total
            charge that the atoms cannot have, or initial charges or magnetic moments that say something else.
        """
        quantity = QUANTITIES[name]
        keys = tuple(dict.fromkeys((self.keys.get(name, name), *quantity.names)))
        found = [
            (number_of(value, place, quantity), key, place)
            for key in keys
            for place, value in entries(atoms, key)
            if value is not None
        ]
        if len({value for value, _, _ in found}) > 1:
            shown = ", ".join(f"{place} = {value:g}" for value, _, place in found)
            raise InputError(f"the {quantity.words} is given twice and differs: {shown}; leave one out.")
        if not found:
            _check_spelling(atoms, keys, quantity)
        value = found[0][0] if found else None
        if name == "total_charge":
            _check_initial(atoms, "initial_charges", value, quantity, lambda total: total)
            if self.ions:
                _check_electrons(value or 0.0, atoms)
        elif name == "total_spin":
            _check_initial(atoms, "initial_magmoms", value, quantity, lambda unpaired: abs(unpaired) + 1)
        return found[0][:2] if found else None

    def read(self, atoms: Atoms, names: Iterable[str] = ("total_charge",)) -> dict[str, float]:
        """{quantity: value} with mace's values where a structure says nothing; warns outside of what was trained on.

        Raises
        ------
        InputError
            As :meth:`find`.
        """
        values = {}
        for name in names:
            found = self.find(atoms, name)
            values[name] = QUANTITIES[name].absent if found is None else found[0]
            lowest, highest = self.seen.get(name, (-math.inf, math.inf))
            if not lowest <= values[name] <= highest:
                warnings.warn(
                    f"{name} is {values[name]:g}, but the model was trained on {_range(lowest, highest)}; what it says "
                    "of this structure is a guess.",
                    stacklevel=2,
                )
        return values

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """What :meth:`from_dict` reads, as JSON can hold it."""
        return {
            name: {
                **({"key": self.keys[name]} if name in self.keys else {}),
                **({"seen": list(self.seen[name])} if name in self.seen else {}),
            }
            for name in QUANTITIES
            if name in self.keys or name in self.seen
        }

    @classmethod
    def from_dict(cls, written: Mapping[str, Mapping[str, Any]]) -> "StateReader":
        """The reader that :meth:`to_dict` wrote down; InputError if it is not that."""
        try:
            return cls(
                {name: entry["key"] for name, entry in written.items() if "key" in entry},
                {name: (float(e["seen"][0]), float(e["seen"][1])) for name, e in written.items() if "seen" in e},
            )
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            raise InputError(f"the state of structures is described by {written!r} ({error}).") from error


@dataclass
class StateCount:
    """How many structures of a set say what, in which range and under which key.

    Parameters
    ----------
    keys: {quantity: entry} where a user named one
    """

    keys: Mapping[str, str] = field(default_factory=dict)
    frames: int = 0
    _values: dict[str, list[float]] = field(default_factory=dict)
    _found: dict[str, dict[str, int]] = field(default_factory=dict)

    def add(self, found: Mapping[str, tuple[float, str] | None]) -> None:
        """Count one structure: what :meth:`StateReader.find` said of each quantity."""
        self.frames += 1
        for name, one in found.items():
            self._values.setdefault(name, []).append(QUANTITIES[name].absent if one is None else one[0])
            counts = self._found.setdefault(name, {})
            if one is not None:
                counts[one[1]] = counts.get(one[1], 0) + 1

    def lines(self) -> list[str]:
        """Lines for a log, as in "total charge: 43 of 43 frames, −1…+1, key total_charge"."""
        lines = []
        for name, counts in self._found.items():
            quantity, total = QUANTITIES[name], sum(counts.values())
            if not total:
                if name in self.keys or name == "total_charge":
                    lines.append(f"{quantity.words}: none of {self.frames} frames, all taken as {quantity.absent:g}")
                continue
            others = f", the others taken as {quantity.absent:g}" if total < self.frames else ""
            lines.append(
                f"{quantity.words}: {total} of {self.frames} frames, {_range(*self.seen()[name])}, "
                f"key {', '.join(counts)}{others}"
            )
        return lines

    def seen(self) -> dict[str, tuple[float, float]]:
        """{quantity: (lowest, highest)}, structures that say nothing counted with mace's value."""
        return {name: (min(values), max(values)) for name, values in self._values.items()}

    def distinct(self, name: str) -> list[float]:
        """The values of a quantity, ascending, each once."""
        return sorted(set(self._values.get(name, ())))

    def check_named(self, where: str) -> None:
        """InputError if a key that a user named stands in no structure: ``where`` names the files."""
        for name, key in self.keys.items():
            if name in self._found and key not in self._found[name]:
                others = ", ".join(self._found[name])
                raise InputError(
                    f"{name}_key is {key!r}, but none of the {self.frames} frames of {where} has it"
                    + (f"; they have {others}" if others else "")
                    + f". Name the entry that holds the {QUANTITIES[name].words}, or leave {name}_key out."
                )


def reader_of(model: torch.nn.Module) -> StateReader:
    """How the structures that a model is given are read: as it was trained, the usual names where nothing is known."""
    specs = getattr(getattr(model, "host", model), "embedding_specs", None) or {}
    keys = {name: spec["key"] for name, spec in specs.items() if name in QUANTITIES and spec.get("key")}
    kept = StateReader.from_dict(kept_inputs(model))
    return StateReader({**keys, **kept.keys}, kept.seen, ions=hasattr(model, "phi"))


def kept_inputs(model: torch.nn.Module) -> dict[str, Any]:
    """What :func:`set_reader` kept with a model, as JSON can hold it."""
    return dict(getattr(model, _ATTRIBUTE, {}))


def set_reader(model: torch.nn.Module, reader: StateReader) -> None:
    """Keep with a model how the structures that it was trained on were read; ``save_model`` writes it down."""
    setattr(model, _ATTRIBUTE, reader.to_dict())


def check_charge_labels(charges: np.ndarray, total_charge: float) -> None:
    """Find out whether labelled charges sum to the total charge, but for rounding and the grids of population analyses.

    Parameters
    ----------
    charges: (n_atoms,) in e
    total_charge: in e, 0 where a structure says nothing

    Raises
    ------
    InputError
        If they differ by more than (0.05 + 0.01 √n_atoms) e.
    """
    total = float(np.sum(charges))
    if not abs(total - total_charge) <= _rounding(np.size(charges)):
        raise InputError(
            f"the charges sum to {total:+.3f} e, but the total charge is {total_charge:+g} e. Correct one of them: "
            "total_charge is 0 where a structure does not give it."
        )


def entries(atoms: Atoms, key: str) -> Iterator[tuple[str, Any]]:
    """(place, value) of an entry of a structure, wherever ase puts it."""
    for place, held in places_of(atoms).items():
        if key in held:
            yield f"{place}[{key!r}]", held[key]


def places_of(atoms: Atoms) -> dict[str, Mapping[str, Any]]:
    """{name: entries} of every place in which ase keeps what belongs to a whole structure."""
    places = {"info": atoms.info, "calc.results": getattr(atoms.calc, "results", None) or {}}
    for inner in ("key_value_pairs", "data"):  # of ase's databases
        if isinstance(atoms.info.get(inner), Mapping):
            places[f"info[{inner!r}]"] = atoms.info[inner]
    return places


def number_of(value: Any, what: str, quantity: Quantity) -> float:
    """The value as a number; ``what`` names it in messages.

    Raises
    ------
    InputError
        Unless it is one finite number: Python's, numpy's, torch's or an array of one value.
    """
    given = np.asarray(value.detach().cpu() if torch.is_tensor(value) else value)
    number = float(given.item()) if given.size == 1 and given.dtype.kind in "iuf" else math.nan
    if not math.isfinite(number):
        unit = f", in {quantity.unit}" if quantity.unit else ""
        raise InputError(f"{what} is {value!r}; the {quantity.words} must be a finite number{unit}.")
    return number


def _check_spelling(atoms: Atoms, keys: tuple[str, ...], quantity: Quantity) -> None:
    """InputError for an entry that is a known name in other letters, or a column of one value for each atom."""
    known = {letters(key) for key in keys}
    for place, held in places_of(atoms).items():
        for entry in held:
            if isinstance(entry, str) and entry not in keys and letters(entry) in known:
                raise InputError(
                    f"{place} has {entry!r}, from which the {quantity.words} is not read; call it {quantity.name}."
                )
    if column := next((key for key in keys if key in atoms.arrays and key in (quantity.name, keys[0])), None):
        raise InputError(
            f"{column!r} has one value for each atom; the {quantity.words} belongs to the whole structure. Put it into "
            f"info[{quantity.name!r}]."
        )


def _check_initial(
    atoms: Atoms, column: str, value: float | None, quantity: Quantity, of_sum: Callable[[float], float]
) -> None:
    """InputError if ase's initial charges or moments say something else: some programs read them, we do not."""
    given = atoms.arrays.get(column)
    if given is None or given.ndim != 1 or not np.any(given):
        return
    total = of_sum(float(given.sum()))
    expected = quantity.absent if value is None else value
    if not abs(total - expected) <= _rounding(len(given)):
        said = f"{quantity.name} is {value:g}" if value is not None else f"no {quantity.name} is given"
        raise InputError(
            f"the structure's {column.replace('_', ' ')} make a {quantity.words} of {total:g}, but {said}. Set "
            f"atoms.info[{quantity.name!r}], and take the {column.replace('_', ' ')} away if they mean something else "
            f"(del atoms.arrays[{column!r}])."
        )


def _rounding(n_atoms: int) -> float:
    """What rounding may make of a sum over atoms."""
    return 0.05 + 0.01 * math.sqrt(n_atoms)


def _check_electrons(charge: float, atoms: Atoms) -> None:
    """InputError for a total charge that leaves fewer electrons than none, or doubles them."""
    electrons = int(atoms.numbers.sum())
    if abs(charge) > electrons and len(atoms):
        raise InputError(
            f"total_charge is {charge:+g} e, but {atoms.symbols.formula:hill} has {electrons} electrons when neutral: "
            "such an ion does not exist. Correct the charge."
        )


def _range(lowest: float, highest: float) -> str:
    """ "0" or "−1…+1"."""
    texts = [f"{value:+g}".replace("-", "−") if value else "0" for value in (lowest, highest)]
    return texts[0] if lowest == highest else "…".join(texts)
