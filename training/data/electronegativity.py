"""The electronegativity χ̄ of Φ, which counts the energy of total charge as E0s count that of elements."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from ase import Atoms

from training.data.parts import HeadFrames
from training.data.sequences import on_disk
from training.quantities import LABELS
from training.run import Phi

LOOKED_AT = 2000  # structures on disk that tell it
DIGITS = 6  # in V, so that a run that goes on elsewhere has the same


def find(found: list[HeadFrames], phi: Phi, foundation: Any) -> None:
    """Say for each head what χ̄ is: what is given, what the trained model had, or what fits the energies best.

    Energies of another level of theory may change a trained model's, unless it is given, or several heads share it.
    """
    for frames in found:
        frames.charged = True
    value = phi.config.electronegativity
    trained = None if foundation is None else foundation.electronegativity
    may_change = foundation is not None and len(found) == 1 and value != 0 and value in (None, trained)
    if value is None:
        value = trained if foundation is not None else _fitted(found)
    for frames in found:
        frames.electronegativity, frames.estimates_charge = value, may_change


def may_move(frames: HeadFrames) -> bool:
    """Whether the electronegativity may change, and energies of several total charges may tell how."""
    return frames.estimates_charge and len({total_charge_of(atoms) for atoms in labelled(frames)}) > 1


def move(frames: HeadFrames, missed: float | None) -> None:
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


def _fitted(found: Sequence[HeadFrames]) -> float | None:
    """χ̄ in V with the least Σ_structures (E − Σ_Z n_Z x_Z − χ̄Q)², the x_Z of each head its own; None where total
    charges Q say nothing that elements do not. A note says it.

    An ion's energy lies a few eV per charge from what its atoms' surroundings tell: a host has to learn that from few
    structures, which one number says of all.
    """
    value = slope_of(found)
    if value is not None:
        text = f"electronegativity: {value:.3f} V, least squares: energies differ by that for each e of total charge"
        if len(found) > 1:
            own = {frames.head.name: slope_of([frames]) for frames in found}
            alone = ", ".join(f"{head} {slope:.3f}" for head, slope in own.items() if slope is not None)
            text += f" (heads alone: {alone})"
        found[0].head.notes.append(text)
    return value


def slope_of(found: Sequence[HeadFrames]) -> float | None:
    """That of the energies of some heads by total charge, beside those of elements, in V; None where there is none."""
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
    value = least_squares(table, energies)[1] if table else None
    return None if value is None else round(value, DIGITS)


def _rows(frames: HeadFrames) -> Iterator[tuple[Counter[int], float, float]]:
    """({Z: count}, Q, E) of structures whose energies weigh."""
    for atoms in labelled(frames):
        yield Counter(atoms.numbers.tolist()), total_charge_of(atoms), float(atoms.info[LABELS["energy"].canonical])


def labelled(frames: HeadFrames) -> Iterator[Atoms]:
    """Training structures whose energies weigh; of data on disk, which take long to read, some, evenly spaced."""
    for part in frames.train:
        step = max(1, len(part) // LOOKED_AT) if on_disk(part) else 1
        for index in range(0, len(part), step):
            atoms = part[index]
            if LABELS["energy"].acts(atoms, frames.head.config_type_weights):
                yield atoms


def total_charge_of(atoms: Atoms) -> float:
    """In e; 0 where the structure says nothing."""
    return float(atoms.info.get(LABELS["total_charge"].canonical, 0.0))


def least_squares(counts: list[list[float]], energies: list[float]) -> tuple[list[float], float | None]:
    """Energies for what a structure has of each element, and for its total charge, the last column; None for the latter
    where it is one for all, or follows from the former."""
    table, wanted = np.array(counts, float), np.array(energies)
    found, _, rank, _ = np.linalg.lstsq(table[:, :-1], wanted, rcond=None)
    if len(np.unique(table[:, -1])) > 1:
        with_charge, _, rank_with_charge, _ = np.linalg.lstsq(table, wanted, rcond=None)
        if rank_with_charge > rank:
            return with_charge[:-1].tolist(), float(with_charge[-1])
    return found.tolist(), None
