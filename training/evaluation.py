"""Energies, forces and charges of a trained model for the structures of a file."""

import io
import json
import logging
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import ase.io
import torch

from phi_equivariant import PhiPotential, attach_phi
from phi_equivariant.errors import InputError
from phi_equivariant.files import write_atomically
from phi_equivariant.weights import CONFIG_FILE, WEIGHTS_FILE, load_model
from training import distribution, run_folder
from training.data.labels import KEY_OPTIONS
from training.data.stream import Census, Frame, FrameStream
from training.fit.predictions import Predictor, Wanted, not_finite
from training.options.evaluation import OPENERS, Asked
from training.quantities import TARGETS
from training.report import tables
from training.report.error_sums import ErrorSums
from zoo import mace_host

logger = logging.getLogger("phi_mace_train")
NAMED_FRAMES = 20  # of those left out, on the terminal; --errors lists all


def read_model(asked: Asked) -> torch.nn.Module:
    """The model of ``--model`` in the precision asked for, on the device asked for.

    Raises
    ------
    InputError
        If it cannot be read, or is a pickle that the user has not said to trust.
    """
    distribution.check_device(asked.device)
    path = Path(asked.model)
    if not path.exists():
        raise InputError(f"--model: there is no {path}. Give the folder of a run, or a .model file.")
    if path.name in (WEIGHTS_FILE, CONFIG_FILE):
        path = path.parent
    if asked.enable_cueq:
        mace_host.check_kernels("cueq")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The TorchScript type system doesn't support")
        if path.is_dir():
            model = load_model(path, dtype=asked.default_dtype)
        else:
            model = mace_host.read_model(path, asked.trust_pickle).to(getattr(torch, asked.default_dtype))
        if asked.enable_cueq:
            model = _on_cueq(model, asked.device)
    return model.to(asked.device).eval()


def _on_cueq(model: torch.nn.Module, device: str) -> torch.nn.Module:
    """The model with its host on cuequivariance's kernels."""
    if not isinstance(model, PhiPotential):
        return mace_host.accelerate(model, "cueq", device)
    config, state = model.phi.config, model.phi.state_dict()
    fast = attach_phi(mace_host.accelerate(model.detach(), "cueq", device), config)
    fast.phi.load_state_dict(state)
    return fast


class Evaluation:
    """One pass over a file: predictions go to the output, errors into sums.

    Parameters
    ----------
    predictor : Predictor
    stream : FrameStream
    prefix : of the names of what is written
    """

    def __init__(self, predictor: Predictor, stream: FrameStream, prefix: str):
        self.predictor, self.stream, self.prefix = predictor, stream, prefix
        self.errors = ErrorSums()
        self.structures = self.atoms = 0

    def write(
        self, file: IO[str], max_structures: int, max_atoms: int, advance: Callable[[int], None] | None = None
    ) -> None:
        """Evaluate all structures and write them in their order."""
        for frames in self.stream.batches(max_structures, max_atoms):
            self._write_batch(frames, file)
            if advance is not None:
                advance(len(frames))
        if not self.structures:
            raise InputError(f"{self.stream.path}: no structure could be evaluated; nothing was written.")

    def _write_batch(self, frames: list[Frame], file: IO[str]) -> None:
        batch = self.predictor.batch([frame.labelled for frame in frames])
        output = self.predictor(batch)
        texts: list[str] = []
        good: list[Frame] = []
        for frame, prediction in zip(frames, self.predictor.split(output, batch), strict=True):
            reason = self._why_unusable(prediction) or self._add_text(frame, prediction, texts)
            if reason is None:
                good.append(frame)
            else:
                self.stream.reject(frame.index, f"{self.stream.where(frame.index)} {reason}")
        if len(good) == len(frames):
            self.errors.update(output, batch)
        elif good:  # without those that were rejected
            batch = self.predictor.batch([frame.labelled for frame in good])
            self.errors.update(self.predictor(batch), batch)
        file.writelines(texts)
        self.structures += len(good)
        self.atoms += sum(len(frame.atoms) for frame in good)

    @staticmethod
    def _why_unusable(prediction: Any) -> str | None:
        names = not_finite(prediction)
        return f"has predictions that are not finite ({', '.join(names)}): do atoms coincide?" if names else None

    def _add_text(self, frame: Frame, prediction: Any, texts: list[str]) -> str | None:
        """Write a frame to memory; the reason where ase cannot."""
        self.predictor.add_to(frame.atoms, prediction, self.prefix)
        text = io.StringIO()
        try:
            ase.io.write(text, frame.atoms, format="extxyz")
        except Exception as error:  # ase's writers raise whatever they meet: there is no narrower base class
            return f"cannot be written as extended XYZ: {type(error).__name__}: {error}."
        texts.append(text.getvalue())
        return None


def _check_labels(asked: Asked, census: Census) -> None:
    """A key that was named must be there; without labels there are no errors."""
    for option in KEY_OPTIONS:
        name, key = option.removesuffix("_key"), asked.keys.get(option)
        if key is not None and not census.report.counts.get(name):
            raise InputError(
                f"--{option}: no structure of {asked.configs} has {key!r}. The keys of its first one are "
                f"{census.first_keys}."
            )
    if set(census.report.counts) & set(TARGETS):
        return
    what = (
        f"{asked.configs} has no labels under the names {', '.join(census.report.keys.values())}. The keys of its "
        f"first structure are {census.first_keys}; name those of labels with --energy_key and so on"
    )
    if asked.errors:
        raise InputError(f"--errors: {what}.")
    logger.info(f"no errors: {what}")


def _report_bad(bad: dict[int, str]) -> None:
    for reason in list(bad.values())[:NAMED_FRAMES]:
        logger.info(f"left out: {reason}")
    if len(bad) > NAMED_FRAMES:
        logger.info(f"left out: {len(bad) - NAMED_FRAMES} more")


def evaluate_file(asked: Asked, model: torch.nn.Module) -> dict[str, Any]:
    """Write a model's predictions for the structures of ``--configs`` to ``--output``, and the table of errors.

    Parameters
    ----------
    asked : options as ``parse`` gives them
    model : ``PhiPotential`` or bare host, on the device and in the precision of the options

    Returns
    -------
    dict of structures, atoms, seconds, skipped (list of frame and reason) and errors, as ``--errors`` writes it

    Raises
    ------
    InputError
        For structures that cannot be evaluated unless they are skipped, keys that are not there, and what the model
        does not compute; nothing is written then.
    """
    torch.set_default_dtype(getattr(torch, asked.default_dtype))
    wanted = Wanted(
        stress=asked.compute_stress,
        contributions=asked.return_contributions,
        node_energies=asked.return_node_energies,
        descriptors=asked.return_descriptors,
        descriptor_num_layers=asked.descriptor_num_layers,
        descriptor_aggregation_method=asked.descriptor_aggregation_method,
        descriptor_invariants_only=asked.descriptor_invariants_only,
    )
    predictor = Predictor(model, asked.device, asked.head, wanted)
    operator = model.phi.config.operator if isinstance(model, PhiPotential) else None
    stream = FrameStream(
        asked.configs,
        predictor.numbers,
        {**predictor.keys, **asked.keys},
        allow_slabs=operator != "coulomb",
        allow_charged=operator != "graph",
        embeddings=predictor.embeddings,
        skip_bad=asked.skip_bad,
    )
    census = stream.take_census()
    _check_labels(asked, census)
    for line in census.report.lines():
        logger.info(line)
    evaluation = Evaluation(predictor, stream, asked.info_prefix)
    begin = time.perf_counter()

    def write(path: Path) -> None:
        opener: Any = OPENERS.get(Path(asked.output).suffix, open)
        with opener(path, "wt", encoding="utf-8") as file:
            evaluation.write(file, asked.batch_size, asked.batch_atoms, advance)

    with run_folder.structure_bar("evaluating", census.report.frames) as advance:
        write_atomically(asked.output, write)
    seconds = time.perf_counter() - begin
    return _finish(asked, evaluation, seconds)


def _finish(asked: Asked, evaluation: Evaluation, seconds: float) -> dict[str, Any]:
    """The table, the file of errors, and the last lines."""
    table, bad = evaluation.errors.table(), evaluation.stream.bad
    _report_bad(bad)
    summary = {
        "model": str(asked.model),
        "configs": str(asked.configs),
        "structures": evaluation.structures,
        "atoms": evaluation.atoms,
        "seconds": seconds,
        "skipped": [{"frame": index, "reason": reason} for index, reason in sorted(bad.items())],
        "errors": table,
    }
    if table:
        sets = {Path(asked.configs).name: {"structures": evaluation.structures, "errors": table}}
        tables.print_table(run_folder.console, f"{asked.model}: errors", *tables.error_rows(sets))
    if asked.errors:
        write_atomically(asked.errors, lambda path: path.write_text(json.dumps(summary, indent=1)))
    rate = evaluation.structures / seconds if seconds else math.inf
    skipped = f", {len(bad)} left out" if bad else ""
    logger.info(
        f"evaluated {evaluation.structures} structures ({evaluation.atoms} atoms{skipped}) in {seconds:.1f} s, "
        f"{rate:.4g} structures/s; predictions in {asked.output}"
    )
    return summary
