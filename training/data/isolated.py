"""Energies of the isolated atoms, which a model's energies are counted from: from wherever ``--E0s`` says."""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols

from phi_equivariant.errors import InputError
from phi_equivariant.inputs.graphs import collate
from phi_equivariant.potential import run_model
from training import mace_statistics
from training.data import electronegativity
from training.data.labelled_graphs import GraphMaker
from training.data.parts import HeadFrames, of_head
from training.quantities import LABELS


class _LabelledEnergies:
    """The training structures of a head whose energies weigh: those of weight zero may hold anything."""

    def __init__(self, frames: HeadFrames, choice: str) -> None:
        """For a word of ``--E0s``; InputError unless there is one."""
        self.frames, self.choice, self.weights = frames, choice, frames.head.config_type_weights
        self.used, self.elements = 0, Counter[int]()
        if next(iter(self), None) is None:
            raise InputError(
                f"--E0s: {choice} takes them from energies, and no training structure{of_head(frames.head)} has one "
                f"with a weight. {frames.first_keys} Give the energies of isolated atoms."
            )
        self.used = 0
        self.elements.clear()

    def __iter__(self) -> Iterator[Atoms]:
        for atoms in itertools.chain(*self.frames.train):
            if LABELS["energy"].acts(atoms, self.weights):
                self.used += 1
                self.elements.update(set(atoms.numbers.tolist()))
                yield atoms

    def notes(self, elements: list[int]) -> list[str]:
        """Lines for the log about structures and elements that were left out."""
        lines = []
        if self.used < self.frames.size():
            lines.append(
                f"E0s: {self.choice} over {self.used} of {self.frames.size()} training structures: others weigh nothing"
            )
        if absent := [number for number in elements if not self.elements[number]]:
            lines.append(f"E0s: {self.choice}: no energy tells of atomic number {', '.join(map(str, absent))}")
        return lines


def isolated_energies(
    frames: HeadFrames,
    elements: list[int],
    numbers: list[int],
    foundation: Any,
    device: str,
    embeddings: Any,
) -> dict[int, float]:
    """Isolated-atom energies {Z: eV} of a head: those in its training files, or what its ``E0s`` says.

    Where neither tells, and the run starts from a trained model, they are ``estimated``: the new data may be of another
    level of theory, whose energies lie keV apart. The electronegativity of Φ, which counts the energy of charge, is
    then estimated too, whatever the E0s but ``foundation``; it is kept with the head.

    InputError if there are none, or none for one of the head's elements, or if they are to come from energies and no
    training structure has one that weighs.
    """
    choice = frames.head.E0s
    if choice is None and frames.e0s is None and foundation is not None:
        choice = "estimated"
        frames.head.notes.append("E0s: estimated, as --foundation_model is there and no energies of isolated atoms are")
    of = of_head(frames.head).replace(" of ", " for ", 1)
    if frames.e0s is not None:
        found = frames.e0s
        if choice is not None:
            frames.head.notes.append(
                "E0s: from isolated atoms in the training data, which come before --E0s as in mace"
            )
    elif choice is None:
        raise InputError(
            f"--E0s: energies of the isolated atoms are needed{of}. Give --E0s '{{1: -13.6, 8: -2043.0}}' (Z: eV), "
            "a JSON file, 'average' (least squares), or training frames with config_type=IsolatedAtom."
        )
    elif isinstance(choice, dict):
        found = choice
    elif choice != "average" and foundation is None:
        raise InputError(f"--E0s: {choice}{of} takes the energies of a trained model: give --foundation_model.")
    elif choice == "foundation":
        found, elements = foundation.energies, numbers
    else:
        labelled = _LabelledEnergies(frames, choice)
        if choice == "average":
            slope = frames.electronegativity if foundation is None else electronegativity.slope_of([frames])
            found = mace_statistics.average_energies(labelled, elements, slope or 0.0)
        else:
            shifts, missed = _missed(frames, labelled, elements, foundation, device, embeddings)
            words = ", ".join(f"{chemical_symbols[number]} {shift:+.3f}" for number, shift in shifts.items())
            frames.head.notes.append(f"E0s: estimated: those of the trained model and, in eV, {words}")
            found = {number: foundation.energies.get(number, 0.0) + shift for number, shift in shifts.items()}
            electronegativity.move(frames, missed)
        frames.head.notes.extend(labelled.notes(elements))
    if foundation is not None and choice not in ("foundation", "estimated") and electronegativity.may_move(frames):
        some = electronegativity.labelled(frames)
        electronegativity.move(frames, _missed(frames, some, elements, foundation, device, embeddings)[1])
    if missing := [number for number in elements if number not in found]:
        absent = ", ".join(map(str, missing))
        if frames.e0s is not None:
            raise InputError(
                f"--E0s: among the isolated atoms of the training data{of}, which come before --E0s, there is none of "
                f"atomic number {absent}. Add them, or take the others out and give --E0s for {elements}."
            )
        raise InputError(f"--E0s: no isolated-atom energy{of} for atomic number {absent}. Give all of {elements}.")
    return found


def _missed(
    frames: HeadFrames, labelled: Iterable[Atoms], elements: list[int], foundation: Any, device: str, embeddings: Any
) -> tuple[dict[int, float], float | None]:
    """By what a trained model misses energies: {Z: x_Z} in eV, as in mace, and x_Q in V with the least
    Σ_structures (E_label − E_model − Σ_Z n_Z x_Z − x_Q Q)²; no x_Q for a host alone, or where Q does not tell it.

    E_model has the electronegativity that the head has now.
    """
    numbers: list[int] = torch.as_tensor(foundation.model.atomic_numbers).tolist()
    make = GraphMaker(numbers, float(torch.as_tensor(foundation.model.r_max)), specs=embeddings or {})
    model, counts, errors = foundation.potential.to(device).eval(), list[list[float]](), list[float]()
    trained = 0.0 if foundation.phi is None else foundation.phi.config.electronegativity or 0.0
    added = (frames.electronegativity or 0.0) - trained
    for atoms in labelled:
        with torch.no_grad():
            predicted = run_model(model, collate([make(atoms)]).to(device), compute_force=False)["energy"]
        assert predicted is not None
        charge = electronegativity.total_charge_of(atoms) if frames.charged else 0.0
        errors.append(atoms.info[LABELS["energy"].canonical] - predicted.item() - added * charge)
        counts.append([*(float(np.count_nonzero(atoms.numbers == number)) for number in elements), charge])
    shifts, slope = electronegativity.least_squares(counts, errors)
    return dict(zip(elements, shifts, strict=True)), slope
