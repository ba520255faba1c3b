"""Energies of the isolated atoms, which a model's energies are counted from: ``--E0s`` in all its forms."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from phi_equivariant.errors import InputError
from training import mace_interface
from training.data.literals import literal, read_json

#: Where energies may come from, beside a dictionary and a JSON file.
WORDS = ("average", "estimated", "foundation")


def read_e0s(choice: Any, where: str = "") -> dict[int, float] | str | None:
    """``--E0s`` as {Z: eV}, or the word that says where they come from; None if there are none.

    Raises
    ------
    InputError
        If it is neither a word, nor a dictionary, nor a JSON file with one.
    """
    if choice is None or (isinstance(choice, str) and choice.lower() in WORDS):
        return choice if choice is None else choice.lower()
    name = f"--E0s: {where}"
    found = choice
    if isinstance(choice, str) and choice.endswith(".json"):
        found = read_json(choice, name)
    elif isinstance(choice, str):
        expected = f"a dictionary as in {{1: -13.6, 8: -2043.0}}, a JSON file, or one of {', '.join(WORDS)}"
        found = literal(choice, name, expected)
    try:
        energies = {int(number): float(energy) for number, energy in found.items()}
    except (AttributeError, TypeError, ValueError):
        energies = None
    if not energies or not all(map(math.isfinite, energies.values())):
        raise InputError(f"{name}expected energies (eV) by atomic number, got {found!r}.")
    return energies


def isolated_energies(
    frames: Any, elements: Sequence[int], numbers: Sequence[int], foundation: Any, options: Any
) -> Mapping[int, float]:
    """Isolated-atom energies {Z: eV} of a head: those in its training files, or what its ``E0s`` says.

    Parameters
    ----------
    frames : :class:`training.data.head_frames.HeadFrames`
    elements : of the head's structures
    numbers : of the model
    foundation : the trained model to start from, None without one
    options : of the run

    Raises
    ------
    InputError
        If there are none, or none for one of the head's elements.
    """
    name = frames.head.name
    choice, of = frames.head.E0s, "" if name == mace_interface.HEAD else f" for head {name!r}"
    if frames.e0s is not None:
        found = frames.e0s
        if choice is not None:
            frames.head.notes.append(
                "E0s: from isolated atoms in the training data, which come before --E0s as in mace"
            )
    elif choice is None:
        raise InputError(
            f"--E0s: energies of the isolated atoms are needed{of}. Give a dictionary as in --E0s '{{1: -13.6, 8: "
            "-2043.0}', a JSON file, 'average' (least squares over the training set), or frames with "
            "config_type=IsolatedAtom in the training file."
        )
    elif isinstance(choice, dict):
        found = choice
    elif choice == "average":
        found = mace_interface.average_energies(itertools.chain(*frames.train), elements)
    elif foundation is None:
        raise InputError(f"--E0s: {choice}{of} takes the energies of a trained model: give --foundation_model.")
    elif choice == "foundation":
        found, elements = foundation.energies, numbers
    else:
        structures = itertools.chain(*frames.train)
        found = mace_interface.estimated_energies(
            foundation.potential, foundation.energies, structures, elements, options.device, options.embedding_specs
        )
    if missing := [number for number in elements if number not in found]:
        absent = ", ".join(map(str, missing))
        if frames.e0s is not None:
            raise InputError(
                f"--E0s: among the isolated atoms of the training data{of}, which come before --E0s, there is none of "
                f"atomic number {absent}. Add them, or take the others out and give --E0s for {elements}."
            )
        raise InputError(f"--E0s: no isolated-atom energy{of} for atomic number {absent}. Give all of {elements}.")
    return found
