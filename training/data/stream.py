"""Structures of a file one at a time, checked: files of any length are read in constant memory."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ase import Atoms

from phi_equivariant.errors import InputError
from phi_equivariant.inputs.frames import check_readable, read_frames
from training.data.labels import LabelReport, resolve_keys
from training.data.placing import Accepted, LabelPlacer, State, describe_keys, named_quantities
from training.data.reading import Survey


@dataclass(frozen=True)
class Frame:
    """A structure of a file: ``atoms`` as they were read, ``labelled`` with labels under the canonical keys."""

    index: int
    atoms: Atoms
    labelled: Atoms


class FrameStream:
    """The structures of a file that a model can be evaluated on.

    path : any file that ase reads
    keys : label name -> key, as mace's options; None for mace's default
    accepted : what the model can take
    skip_bad : leave unusable frames out instead of refusing the file
    usual : {quantity: key} of the total charge and the like that the model was trained with: where no structure has the
        key, that is not a mistake of the one who evaluates, who has named none

    InputError if there is no such file, or it is empty; while reading, for a frame that cannot be used, unless
    ``skip_bad``.
    """

    def __init__(
        self,
        path: str | Path,
        keys: Mapping[str, str | None],
        accepted: Accepted,
        skip_bad: bool = False,
        usual: Mapping[str, str] | None = None,
    ) -> None:
        self.path, self.skip_bad = Path(path), skip_bad
        check_readable(self.path)
        given = resolve_keys(keys)
        self._named = named_quantities(given)
        self.keys = given | {name: key for name, key in (usual or {}).items() if name not in self._named}
        self._placer = LabelPlacer(self.keys, accepted)
        self.bad: dict[int, str] = {}  # {index: reason}
        self.first_keys = ""  # the entries of the first frame, for messages

    def take_census(self) -> LabelReport:
        """Read the file once, so that whatever is wrong with it is known before anything is computed."""
        counts, survey = Counter[str](), Survey(self._named, self.where)
        structures = 0
        for index, raw in self._read():
            if index == 0 and isinstance(raw, Atoms):
                self.first_keys = describe_keys(raw)
            checked = self._check(index, raw)
            if checked is not None:
                frame, found, state = checked
                structures += 1
                counts.update(found)
                survey.add(frame.labelled, state, index)
        if not structures:
            raise InputError(f"{self.path} holds no structure that can be evaluated; {len(self.bad)} were skipped.")
        survey.states.check_named(str(self.path))
        return LabelReport("configs", [str(self.path)], structures, 0, self.keys, dict(counts), notes=survey.notes())

    def __iter__(self) -> Iterator[Frame]:
        """The usable structures in the file's order."""
        for index, raw in self._read():
            if index not in self.bad:
                checked = self._check(index, raw)
                if checked is not None:
                    yield checked[0]

    def batches(self, max_structures: int, max_atoms: int) -> Iterator[list[Frame]]:
        """Consecutive structures, at most so many and with so many atoms; a larger structure comes alone."""
        batch: list[Frame] = []
        atoms = 0
        for frame in self:
            if batch and atoms + len(frame.atoms) > max_atoms:
                yield batch
                batch, atoms = [], 0
            batch.append(frame)
            atoms += len(frame.atoms)
            if len(batch) == max_structures:
                yield batch
                batch, atoms = [], 0
        if batch:
            yield batch

    def reject(self, index: int, reason: str) -> None:
        """Leave a frame out; InputError unless bad frames are skipped."""
        if not self.skip_bad:
            sentence = reason if reason.endswith((".", "?")) else f"{reason}."
            raise InputError(f"{sentence} With --skip_bad such frames are reported and left out.")
        self.bad[index] = reason

    def where(self, index: int) -> str:
        """The frame's name in messages."""
        return f"frame {index} of {self.path}"

    def _read(self) -> Iterator[tuple[int, Atoms | InputError]]:
        return read_frames(self.path, self.keys.values())

    def _check(self, index: int, raw: Atoms | InputError) -> tuple[Frame, list[str], State] | None:
        """The frame, the names of its labels and its state, or None where it was rejected."""
        where = self.where(index)
        try:
            if isinstance(raw, InputError):
                raise raw
            labelled, found, state = self._placer.labelled_copy(raw, where)
            self._placer.accepted.check_entries(labelled, where)
        except InputError as error:
            self.reject(index, str(error))
            return None
        return Frame(index, raw, labelled), found, state
