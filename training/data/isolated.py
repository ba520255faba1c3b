"""What energies are counted from: those of the isolated atoms, from wherever ``--E0s`` says, and that of charge."""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols

from phi_equivariant.errors import InputError
from phi_equivariant.inputs.graphs import collate
from phi_equivariant.potential import run_model
from training import mace_statistics
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
    level of theory, whose energies lie keV apart. The electronegativity of Φ, which counts the energy of charge, may be
    estimated with them; it is kept with the head.

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
            found = mace_statistics.average_energies(labelled, elements, frames.electronegativity or 0.0)
        else:
            found = _estimated(frames, labelled, elements, foundation, device, embeddings)
        frames.head.notes.extend(labelled.notes(elements))
    if missing := [number for number in elements if number not in found]:
        absent = ", ".join(map(str, missing))
        if frames.e0s is not None:
            raise InputError(
                f"--E0s: among the isolated atoms of the training data{of}, which come before --E0s, there is none of "
                f"atomic number {absent}. Add them, or take the others out and give --E0s for {elements}."
            )
        raise InputError(f"--E0s: no isolated-atom energy{of} for atomic number {absent}. Give all of {elements}.")
    return found


def _estimated(
    frames: HeadFrames, labelled: Iterable[Atoms], elements: list[int], foundation: Any, device: str, embeddings: Any
) -> dict[int, float]:
    """A trained model's E0s {Z: eV} + x_Z, as in mace, and χ̄ + x_Q, with the least Σ_structures (E_label − E_model −
    Σ_Z n_Z x_Z − x_Q Q)²; x_Q is 0 if the head does not estimate it, or where Q says nothing that elements do not.
    """
    numbers: list[int] = torch.as_tensor(foundation.model.atomic_numbers).tolist()
    make = GraphMaker(numbers, float(torch.as_tensor(foundation.model.r_max)), specs=embeddings or {})
    model, counts, errors = foundation.potential.to(device).eval(), list[list[float]](), list[float]()
    start = frames.electronegativity or 0.0
    trained = 0.0 if foundation.phi is None else foundation.phi.config.electronegativity or 0.0
    for atoms in labelled:
        with torch.no_grad():
            predicted = run_model(model, collate([make(atoms)]).to(device), compute_force=False)["energy"]
        assert predicted is not None
        charge = _total_charge(atoms)
        errors.append(atoms.info[LABELS["energy"].canonical] - predicted.item() - (start - trained) * charge)
        of_elements = [float(np.count_nonzero(atoms.numbers == number)) for number in elements]
        counts.append([*of_elements, charge if frames.estimates_charge else 0.0])
    corrections, slope = _least_squares(counts, errors)
    shifts = ", ".join(f"{chemical_symbols[z]} {x:+.3f}" for z, x in zip(elements, corrections, strict=True))
    frames.head.notes.append(f"E0s: estimated: those of the trained model and, in eV, {shifts}")
    if slope is not None:
        frames.electronegativity = start + slope
        frames.head.notes.append(f"electronegativity: estimated with them: {start + slope:.3f} V, {slope:+.3f} V")
    return {z: foundation.energies.get(z, 0.0) + x for z, x in zip(elements, corrections, strict=True)}


def fitted_electronegativity(found: Sequence[HeadFrames]) -> float | None:
    """χ̄ in V with the least Σ_structures (E − Σ_Z n_Z x_Z − χ̄Q)², the x_Z of each head its own; None where total
    charges Q say nothing that elements do not.

    An ion's energy lies a few eV per charge from what its atoms' surroundings tell: a host has to learn that from few
    structures, which one number says of all.
    """
    states = [state for frames in found for state in frames.states]
    known = [state.seen()["total_charge"] for state in states if state is not None and state.frames]
    if len(known) == len(states) and len({charge for seen in known for charge in seen}) < 2:
        return None
    elements = {frames.head.name: frames.elements() for frames in found}
    columns = {key: i for i, key in enumerate((name, z) for name, numbers in elements.items() for z in numbers)}
    counts, energies = list[list[float]](), list[float]()
    for frames in found:
        for atoms in itertools.chain(*frames.train):
            if LABELS["energy"].acts(atoms, frames.head.config_type_weights):
                row = [0.0] * len(columns)
                for number, count in Counter(atoms.numbers.tolist()).items():
                    row[columns[frames.head.name, number]] = count
                counts.append([*row, _total_charge(atoms)])
                energies.append(atoms.info[LABELS["energy"].canonical])
    value = _least_squares(counts, energies)[1] if counts else None
    if value is not None:
        text = f"electronegativity: {value:.3f} V, least squares: energies differ by that for each e of total charge"
        found[0].head.notes.append(text)
    return value


def _total_charge(atoms: Atoms) -> float:
    return float(atoms.info.get(LABELS["total_charge"].canonical, 0.0))


def _least_squares(counts: list[list[float]], energies: list[float]) -> tuple[list[float], float | None]:
    """Energies for what a structure has of each element, and for its total charge, the last column; None for the latter
    where it follows from the former."""
    table, wanted = np.array(counts, float), np.array(energies)
    found, _, rank, _ = np.linalg.lstsq(table[:, :-1], wanted, rcond=None)
    with_charge, _, rank_with_charge, _ = np.linalg.lstsq(table, wanted, rcond=None)
    if rank_with_charge == rank:
        return found.tolist(), None
    return with_charge[:-1].tolist(), float(with_charge[-1])
