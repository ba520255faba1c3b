"""What a visitor wants to know of a trained model, from its card: elements, charges, errors with Φ and without."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

_RMSE = re.compile(r"RMSE (-?[\d.]+(?:e[+-]?\d+)?) (\S+)")
#: Quantities of a card's errors that are shown: {key: (name, unit)}.
SHOWN = {
    "energy_per_atom": ("energy", "meV/atom"),
    "forces": ("forces", "meV/Å"),
    "charges": ("charges", "e"),
    "dipole": ("dipole", "e·Å"),
}


@dataclasses.dataclass(frozen=True)
class Summary:
    """A card in short.

    what : one line; elements : symbols; charge_states : total charges among the training structures; labels : which of
    charges and dipoles were trained on labels; tests : {set: {quantity: (RMSE with Φ, of the bare host or None)}}, the
    main test set first, means over seeds, in the units of ``SHOWN``.
    """

    what: str
    elements: tuple[str, ...]
    charge_states: tuple[int, ...]
    labels: tuple[str, ...]
    tests: Mapping[str, Mapping[str, tuple[float, float | None]]]

    @property
    def errors(self) -> Mapping[str, tuple[float, float | None]]:
        """On the main test set."""
        return next(iter(self.tests.values()), {})

    def lines(self) -> list[str]:
        """For a list of models."""
        found = [f"{self.what}; {' '.join(self.elements)}", f"{self.charges()}"]
        parts = []
        for key, (with_phi, bare) in self.errors.items():
            name, unit = SHOWN[key]
            parts.append(f"{name} {with_phi:.3g}{'' if bare is None else f' ({bare:.3g})'} {unit}")
        return [*found, *([", ".join(parts)] if parts else [])]

    def charges(self) -> str:
        """Which total charges, and where the charges of atoms come from."""
        states = ", ".join("0" if q == 0 else f"{q:+d}".replace("-", "−") for q in self.charge_states)
        trained = f"{' and '.join(self.labels)} from labels" if self.labels else "charges without labels"
        return f"total charge {states or 'not stated'}; {trained}"


def summary_of(card: Mapping[str, Any]) -> Summary:
    """From a card; what it does not say, or says in another form, is left out."""
    rows = [row for row in card.get("errors") or [] if isinstance(row, Mapping)]
    sets = dict.fromkeys(str(row.get("set") or "") for row in rows if row.get("model") == "phi")
    training = card.get("training")
    asked = training.get("configuration") if isinstance(training, Mapping) else None
    weights = asked if isinstance(asked, Mapping) else {}
    return Summary(
        what=str(card.get("description") or ""),
        elements=tuple(map(str, _list(card.get("elements")))),
        charge_states=tuple(one for one in _list(card.get("charge_states")) if isinstance(one, int)),
        labels=tuple(name for name, key in (("charges", "charges"), ("dipoles", "dipole")) if _weighs(weights, key)),
        tests={name: _errors([row for row in rows if str(row.get("set") or "") == name]) for name in sets},
    )


def _errors(rows: list[Mapping[str, Any]]) -> dict[str, tuple[float, float | None]]:
    with_phi, bare = _means(rows, "phi"), _means(rows, "bare host")
    return {key: (value, bare.get(key)) for key, value in with_phi.items()}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _weighs(weights: Mapping[str, Any], label: str) -> bool:
    value = weights.get(f"{label}_weight")
    return isinstance(value, int | float) and value > 0


def _means(rows: list[Mapping[str, Any]], model: str) -> dict[str, float]:
    """{quantity: mean RMSE over the seeds} of a kind of model."""
    values: dict[str, list[float]] = {}
    for row in rows:
        for key, (_, unit) in SHOWN.items():
            match = _RMSE.search(str(row.get(key, "")))
            if row.get("model") == model and match and _in(match[2], unit):
                values.setdefault(key, []).append(float(match[1]))
    return {key: sum(found) / len(found) for key, found in values.items()}


def _in(written: str, unit: str) -> bool:
    """Whether a card's unit is the one that is shown: of energies it writes meV, per atom by its key."""
    return written.rstrip(",") in (unit, unit.removesuffix("/atom"))
