"""What ``embedding_specs`` reads from structures beside their atoms: a temperature, a spin, a charge, a method."""

from collections.abc import Mapping
from typing import Any

from ase import Atoms

from phi_equivariant.errors import InputError
from phi_equivariant.inputs.embedded import embedded_value
from training.quantities import LABELS


def place_embeddings(atoms: Atoms, specs: Mapping[str, Mapping[str, Any]], where: str) -> None:
    """Put what ``embedding_specs`` reads under the specifications' names; labels are there already.

    A structure without a total charge, total spin or electronic temperature has mace's: 0 e, 1 and 0.

    Raises
    ------
    InputError
        If a structure has no such entry, or one that the embedding cannot take.
    """
    for name, spec in specs.items():
        per_atom = spec["per"] == "atom"
        place: dict[str, Any] = atoms.arrays if per_atom else atoms.info
        kind = "atom" if per_atom else "structure"
        key, label = spec.get("key") or name, LABELS.get(name)
        value = place.get(key, place.get(name)) if label is None else place.get(label.canonical)
        if value is not None:
            what = f"embedding_specs: {where}: the {key!r} that {name} reads"
            embedded = embedded_value(value, spec, len(atoms), what)
            if label is None:
                place[name] = embedded
        elif label is None:
            raise InputError(f"embedding_specs: {where} has no entry {key!r} per {kind}, which {name} reads. Add it.")
