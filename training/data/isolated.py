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
from training.data.sequences import on_disk
from training.quantities import LABELS

LOOKED_AT = 2000  # structures on disk that tell the electronegativity
DIGITS = 6  # of it, in V, so that a run that goes on elsewhere has the same


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
            slope = frames.electronegativity if foundation is None else _slope_of([frames])
            found = mace_statistics.average_energies(labelled, elements, slope or 0.0)
        else:
            shifts, missed = _missed(frames, labelled, elements, foundation, device, embeddings)
            words = ", ".join(f"{chemical_symbols[number]} {shift:+.3f}" for number, shift in shifts.items())
            frames.head.notes.append(f"E0s: estimated: those of the trained model and, in eV, {words}")
            found = {number: foundation.energies.get(number, 0.0) + shift for number, shift in shifts.items()}
            _move(frames, missed)
        frames.head.notes.extend(labelled.notes(elements))
    if foundation is not None and choice not in ("foundation", "estimated") and _may_move(frames):
        labelled = _LabelledEnergies(frames, "estimated")
        _move(frames, _missed(frames, labelled, elements, foundation, device, embeddings)[1])
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
        charge = _total_charge(atoms) if frames.charged else 0.0
        errors.append(atoms.info[LABELS["energy"].canonical] - predicted.item() - added * charge)
        counts.append([*(float(np.count_nonzero(atoms.numbers == number)) for number in elements), charge])
    shifts, slope = _least_squares(counts, errors)
    return dict(zip(elements, shifts, strict=True)), slope


def _may_move(frames: HeadFrames) -> bool:
    """Whether the electronegativity may change, and energies of several total charges may tell how."""
    return frames.estimates_charge and len({_total_charge(atoms) for atoms in _some(frames)}) > 1


def _move(frames: HeadFrames, missed: float | None) -> None:
    """Change the electronegativity by what is missed, or say that it stays."""
    value = frames.electronegativity or 0.0
    if missed is None:
        return
    if not frames.estimates_charge:
        frames.head.notes.append(
            f"electronegativity: {value:.3f} V is kept; energies of this head ask for {missed:+.3f} V"
        )
        return
    frames.electronegativity = round(value + missed, DIGITS)
    moved = f"{frames.electronegativity:.3f} V, the trained model's and {missed:+.3f} V, least squares"
    frames.head.notes.append(f"electronegativity: {moved}")


def fitted_electronegativity(found: Sequence[HeadFrames]) -> float | None:
    """χ̄ in V with the least Σ_structures (E − Σ_Z n_Z x_Z − χ̄Q)², the x_Z of each head its own; None where total
    charges Q say nothing that elements do not. A note says it.

    An ion's energy lies a few eV per charge from what its atoms' surroundings tell: a host has to learn that from few
    structures, which one number says of all.
    """
    value = _slope_of(found)
    if value is not None:
        text = f"electronegativity: {value:.3f} V, least squares: energies differ by that for each e of total charge"
        if len(found) > 1:
            own = {frames.head.name: _slope_of([frames]) for frames in found}
            alone = ", ".join(f"{head} {slope:.3f}" for head, slope in own.items() if slope is not None)
            text += f" (heads alone: {alone})"
        found[0].head.notes.append(text)
    return value


def _slope_of(found: Sequence[HeadFrames]) -> float | None:
    states = [state for frames in found for state in frames.states]
    known = [state.seen()["total_charge"] for state in states if state is not None and state.frames]
    if not found[0].charged or len(known) == len(states) and len({one for seen in known for one in seen}) < 2:
        return None
    rows = {frames.head.name: list(_rows(frames)) for frames in found}
    # A head of one total charge tells nothing: beside its energies of elements, Q would be a constant.
    rows = {head: own for head, own in rows.items() if len({charge for _, charge, _ in own}) > 1}
    keys = dict.fromkeys((head, number) for head, own in rows.items() for counts, _, _ in own for number in counts)
    columns = {key: place for place, key in enumerate(keys)}
    table, energies = list[list[float]](), list[float]()
    for head, own in rows.items():
        for counts, charge, energy in own:
            row = [0.0] * len(columns)
            for number, count in counts.items():
                row[columns[head, number]] = count
            table.append([*row, charge])
            energies.append(energy)
    value = _least_squares(table, energies)[1] if table else None
    return None if value is None else round(value, DIGITS)


def _rows(frames: HeadFrames) -> Iterator[tuple[Counter[int], float, float]]:
    """({Z: count}, Q, E) of structures whose energies weigh."""
    for atoms in _some(frames):
        yield Counter(atoms.numbers.tolist()), _total_charge(atoms), float(atoms.info[LABELS["energy"].canonical])


def _some(frames: HeadFrames) -> Iterator[Atoms]:
    """Training structures whose energies weigh; of data on disk, which take long to read, some, evenly spaced."""
    for part in frames.train:
        step = max(1, len(part) // LOOKED_AT) if on_disk(part) else 1
        for index in range(0, len(part), step):
            atoms = part[index]
            if LABELS["energy"].acts(atoms, frames.head.config_type_weights):
                yield atoms


def _total_charge(atoms: Atoms) -> float:
    return float(atoms.info.get(LABELS["total_charge"].canonical, 0.0))


def _least_squares(counts: list[list[float]], energies: list[float]) -> tuple[list[float], float | None]:
    """Energies for what a structure has of each element, and for its total charge, the last column; None for the latter
    where it is one for all, or follows from the former."""
    table, wanted = np.array(counts, float), np.array(energies)
    found, _, rank, _ = np.linalg.lstsq(table[:, :-1], wanted, rcond=None)
    if len(np.unique(table[:, -1])) > 1:
        with_charge, _, rank_with_charge, _ = np.linalg.lstsq(table, wanted, rcond=None)
        if rank_with_charge > rank:
            return with_charge[:-1].tolist(), float(with_charge[-1])
    return found.tolist(), None
