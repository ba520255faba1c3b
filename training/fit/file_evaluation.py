"""A model's predictions for the structures of a file, written to another file, and their errors."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from phi_equivariant.errors import InputError
from training.data.frame_text import frame_text
from training.data.stream import Frame, FrameStream
from training.fit.predictions import Prediction, Predictor, not_finite
from training.report.error_sums import ErrorSums

_BLOCK = 1 << 20  # bytes that are read at once


class FileEvaluation:
    """One pass over a file: predictions go to the output, errors into sums; ``prefix`` of the names of predictions."""

    def __init__(self, predictor: Predictor, stream: FrameStream, prefix: str) -> None:
        self.predictor, self.stream, self.prefix = predictor, stream, prefix
        self.errors = ErrorSums()
        self.structures = self.atoms = 0

    def write(
        self,
        path: Path,
        opener: Callable[[Path, str], BinaryIO],
        max_structures: int,
        max_atoms: int,
        advance: Callable[[int], None] | None = None,
    ) -> None:
        """Evaluate all structures and write them in their order to a file, which is read again when it is done.

        ``opener`` opens it, compressed or not; ``advance`` is called with the number of structures after each batch.

        InputError if nothing could be evaluated, or the file does not hold what was written.
        """
        written = hashlib.sha256()
        with opener(path, "wb") as file:
            for frames in self.stream.batches(max_structures, max_atoms):
                for text in self._texts(frames):
                    content = text.encode()
                    written.update(content)
                    file.write(content)
                if advance is not None:
                    advance(len(frames))
        if not self.structures:
            raise InputError(f"{self.stream.path}: no structure could be evaluated; nothing was written.")
        found = hashlib.sha256()
        with opener(path, "rb") as file:
            while block := file.read(_BLOCK):
                found.update(block)
        if found.digest() != written.digest():
            raise InputError(f"{path} does not hold what was written to it. Is the disk damaged?")

    def _texts(self, frames: list[Frame]) -> list[str]:
        """Evaluate a batch: its good structures as text."""
        batch = self.predictor.batch([frame.labelled for frame in frames])
        output = self.predictor(batch)
        texts: list[str] = []
        good = []
        for frame, prediction in zip(frames, self.predictor.split(output, batch), strict=True):
            reason = self._add_text(frame, prediction, texts)
            if reason is None:
                good.append(frame)
            else:
                self.stream.reject(frame.index, reason)
        if len(good) == len(frames):
            self.errors.update(output, batch)
        elif good:  # without those that were rejected
            batch = self.predictor.batch([frame.labelled for frame in good])
            self.errors.update(self.predictor(batch), batch)
        self.structures += len(good)
        self.atoms += sum(len(frame.atoms) for frame in good)
        return texts

    def _add_text(self, frame: Frame, prediction: Prediction, texts: list[str]) -> str | None:
        """Write a frame to memory; the reason why it cannot be evaluated or written."""
        where = self.stream.where(frame.index)
        if names := not_finite(prediction):
            return f"{where} has predictions that are not finite ({', '.join(names)}): is it far from what was trained?"
        self.predictor.add_to(frame.atoms, prediction, self.prefix)
        try:
            texts.append(frame_text(frame.atoms, where))
        except InputError as error:
            return str(error)
        return None
