"""What ``embedding_specs`` reads from structures beside their atoms: a temperature, a spin, a charge, a method."""

import numpy as np

from phi_equivariant.errors import InputError
from training.quantities import LABELS


def place_embeddings(atoms, specs, where):
    """Put what ``embedding_specs`` reads under the specifications' names; labels are there already.

    A structure without a total charge, total spin or electronic temperature has mace's: 0 e, 1 and 0.

    Raises
    ------
    InputError
        If a structure has no such entry, or one that the embedding cannot take.
    """
    for name, spec in specs.items():
        per_atom = spec["per"] == "atom"
        place, kind = (atoms.arrays, "atom") if per_atom else (atoms.info, "structure")
        key, label = spec.get("key") or name, LABELS.get(name)
        value = place.get(key, place.get(name)) if label is None else place.get(label.canonical)
        if value is not None:
            embedded = _embedded(value, spec, len(atoms), f"embedding_specs: {where}: the {key!r} that {name} reads")
            if label is None:
                place[name] = embedded
        elif label is None:
            raise InputError(f"embedding_specs: {where} has no entry {key!r} per {kind}, which {name} reads. Add it.")


def _embedded(value, spec, n_atoms, what):
    """The value as mace's embedding takes it: whole numbers of classes, or floats."""
    array, per_atom = np.asarray(value), spec["per"] == "atom"
    if array.dtype.kind not in "biuf" or not np.isfinite(array).all():
        raise InputError(f"{what} is {value!r}; expected finite numbers. Correct the file.")
    classes = spec.get("num_classes") if spec["type"] == "categorical" else None
    shape = (n_atoms, spec.get("in_dim", 1)) if per_atom and classes is None else (n_atoms,) if per_atom else ()
    if array.size != np.prod(shape) or (per_atom and len(array) != n_atoms):
        raise InputError(f"{what} has shape {array.shape}; expected {shape}. Correct the file or the specification.")
    if classes is not None:
        number, offset = array.astype(np.int64), spec.get("offset", 0)
        if (number != array).any() or (number + offset < 0).any() or (number + offset >= classes).any():
            raise InputError(
                f"{what} is {value!r}; expected whole numbers from {-offset} to {classes - 1 - offset}, the "
                f"{classes} classes of the specification. Correct the file, num_classes or offset."
            )
        return number.reshape(shape) if per_atom else int(number.item())
    return array.astype(np.float64).reshape(shape) if per_atom else float(array.item())
