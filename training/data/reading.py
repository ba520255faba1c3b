"""Read labelled structures from any file that ase reads, and refuse what cannot be trained on."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ase import Atoms
from ase.data import chemical_symbols

from phi_equivariant.errors import InputError
from phi_equivariant.inputs.frames import read_frames
from phi_equivariant.inputs.state import StateCount
from training.data.geometry import describe_periodicity
from training.data.labels import LabelReport, resolve_keys
from training.data.outliers import Outliers
from training.data.parts import set_name
from training.data.placing import Accepted, LabelPlacer, State, describe_keys
from training.quantities import LABELS

ISOLATED_ATOM = "IsolatedAtom"  # mace's config_type of the frames that give E0s


@dataclass(frozen=True)
class ReadStructures:
    """What one split's files held.

    frames : structures with their labels under the canonical keys of :data:`training.quantities.LABELS`
    e0s : energies (eV) of the isolated atoms in the files by atomic number; empty if there are none
    report : how many labels were found under which key
    first_keys : the entries of the first of these structures as it was read, for messages
    states : total charges and whatever else was read of each structure
    """

    frames: list[Atoms]
    e0s: dict[int, float]
    report: LabelReport
    first_keys: str
    states: StateCount


class Survey:
    """What was met in a set: total charges and the like, periodic directions, and what stands out.

    ``keys`` : {quantity: entry} where a user named one; ``name`` : makes names of what :meth:`add` is given.
    """

    def __init__(self, keys: Mapping[str, str] | None = None, name: Callable[[Any], str] = str) -> None:
        self.states, self._outliers, self._periodic = StateCount(keys or {}), Outliers(name), Counter[int]()

    def add(self, atoms: Atoms, state: State, where: Any) -> None:
        """Take in a structure with its labels in their places."""
        self.states.add(state)
        self._periodic[int(atoms.pbc.sum())] += 1
        self._outliers.add(atoms, where)

    def notes(self) -> list[str]:
        """Lines for the log."""
        return [*self.states.lines(), describe_periodicity(self._periodic), *self._outliers.lines()]


def read_structures(
    path: str | Path | Sequence[str | Path],
    keys: Mapping[str, str | None] | None = None,
    split: str = "train",
    accepted: Accepted | None = None,
    keep_isolated_atoms: bool = False,
) -> ReadStructures:
    """Read structures and put their labels in canonical places.

    Energy (eV) goes to ``info["REF_energy"]``, forces (eV/Å) to ``arrays["REF_forces"]``, charges (e) to
    ``arrays["REF_charges"]``, dipole (e·Å) to ``info["REF_dipole"]``, stress and virials to ``info["REF_stress"]`` and
    ``info["REF_virials"]``, the total charge (e), wherever it stands, to ``info["total_charge"]``.
    Keys that ase moves into a calculator (``energy``, ``forces``, …) are found there. All other entries are kept.

    path : one file or several
    keys : label name -> key, as mace's options (``energy_key`` …)
    split : name of the split, for the report
    accepted : what the model can take; its charges, fields and embeddings are not looked at
    keep_isolated_atoms : keep isolated atoms among the frames as well

    InputError for a file that is missing, empty or unreadable; a frame whose comment line ase would read as something
    else, or that :meth:`training.data.placing.LabelPlacer.collect` refuses; an isolated atom without an energy in
    training; or if a named key of the total charge, spin or temperature stands in no frame.
    """
    resolved = resolve_keys(keys)
    paths = [path] if isinstance(path, str | Path) else list(path)
    placer = LabelPlacer(resolved, accepted)
    survey = Survey(placer.named)
    frames: list[Atoms] = []
    e0s: dict[int, float] = {}
    isolated_atoms, first_keys = 0, ""
    for file in map(Path, paths):
        for index, atoms in _readable(file, resolved.values()):
            where = f"frame {index} of {file}"
            found, state = placer.collect(atoms, where)
            isolated = len(atoms) == 1 and atoms.info.get("config_type") == ISOLATED_ATOM
            keep = not isolated or keep_isolated_atoms
            if keep and not frames:
                first_keys = describe_keys(atoms)
            gives_e0 = isolated and split == "train" and atoms.info.get("config_energy_weight") != 0
            if gives_e0 and "energy" not in found:
                raise InputError(
                    f"{where} is an isolated atom and has no energy under the key {resolved['energy']!r}. Its keys are "
                    f"{describe_keys(atoms)}. Set energy_key to the right one, or remove the frame."
                )
            placer.place(atoms, found)
            if gives_e0:
                isolated_atoms += 1
                _add_e0(e0s, atoms, where)
            if keep:
                set_name(atoms, where)
                frames.append(atoms)
                survey.add(atoms, state, where)
    sources = list(map(str, paths))
    if not frames:
        raise InputError(f"The {split} files ({', '.join(sources)}) hold only isolated atoms: nothing to {split} on.")
    survey.states.check_named(", ".join(sources))
    report = LabelReport(split, sources, len(frames), isolated_atoms, resolved, notes=survey.notes())
    return ReadStructures(frames, e0s, report.count(frames, {}), first_keys, survey.states)


def _readable(path: Path, names: Iterable[str]) -> Iterator[tuple[int, Atoms]]:
    """The structures of a file with their numbers; InputError if there is none or one cannot be read."""
    index = -1
    for index, atoms in read_frames(path, names):
        if isinstance(atoms, InputError):
            raise atoms
        yield index, atoms
    if index < 0:
        raise InputError(f"{path} holds no structure.")


def _add_e0(e0s: dict[int, float], atoms: Atoms, where: str) -> None:
    number, energy = int(atoms.numbers[0]), atoms.info[LABELS["energy"].canonical]
    if e0s.setdefault(number, energy) != energy:
        raise InputError(
            f"{where} is a second isolated {chemical_symbols[number]} atom, with {energy:g} eV instead of "
            f"{e0s[number]:g} eV. Keep one of them."
        )
