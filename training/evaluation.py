"""Energies, forces and charges of a trained model for the structures of a file."""

import json
import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from phi_equivariant import PhiPotential, attach_phi
from phi_equivariant.errors import InputError
from phi_equivariant.files import write_atomically
from phi_equivariant.inputs.state import reader_of, set_reader
from training import distribution, run_folder
from training.data.geometry import ALL_PERIODICITIES
from training.data.heads import own_keys, settings_of
from training.data.labels import KEY_OPTIONS, LabelReport
from training.data.placing import Accepted
from training.data.stream import FrameStream
from training.fit.file_evaluation import FileEvaluation
from training.fit.predictions import Predictor
from training.fit.trained import folder_of, load
from training.options.configuration_file import read_configuration
from training.options.evaluation import OPENERS, check_prefix
from training.quantities import TARGETS
from training.report import tables
from training.run.evaluation import EvaluationOptions
from zoo import mace_host

logger = logging.getLogger("phi_mace_train")
NAMED_FRAMES = 20  # of those left out, on the terminal; --errors lists all


def read_model(asked: EvaluationOptions) -> torch.nn.Module:
    """The model of ``--model`` in the precision asked for, on the device asked for.

    InputError if it cannot be read, or is a pickle that the user has not said to trust.
    """
    distribution.check_device(asked.device)
    if asked.enable_cueq:
        mace_host.check_kernels("cueq")
    try:
        model = load(asked.model, asked.trust_pickle, asked.default_dtype)
    except InputError as error:
        raise InputError(f"--model: {error}") from error
    if asked.enable_cueq:
        reader = reader_of(model)
        model = _on_cueq(model, asked.device)
        set_reader(model, reader)
    return model.to(asked.device).eval()


def _on_cueq(model: torch.nn.Module, device: str) -> torch.nn.Module:
    """The model with its host on cuequivariance's kernels."""
    if not isinstance(model, PhiPotential):
        return mace_host.accelerate(model, "cueq", device)
    config, state = model.phi.config, model.phi.state_dict()
    fast = attach_phi(mace_host.accelerate(model.detach(), "cueq", device), config)
    fast.phi.load_state_dict(state)
    return fast


def trained_keys(asked: EvaluationOptions) -> dict[str, str]:
    """{label: key in files} that the run was trained with, where ``--model`` is a run's folder and names no other.

    InputError if the run's configuration cannot be read.
    """
    folder = folder_of(asked.model)
    folder = folder.parent if folder.name == "stage_one" else folder
    if not (folder / run_folder.CONFIG).is_file():
        return {}
    try:
        options = read_configuration(folder / run_folder.CONFIG).options
        keys = {option: options[option] for option in KEY_OPTIONS if options.get(option)}
        settings = settings_of(options["heads"]) if options.get("heads") else {}
        if asked.head in settings:
            keys |= own_keys(settings[asked.head], f"head {asked.head!r}: ")
    except InputError as error:
        raise InputError(f"--model: {str(error).removeprefix('--config: ')}") from error
    return {option.removesuffix("_key"): key for option, key in keys.items() if option not in asked.keys}


def _check_labels(asked: EvaluationOptions, report: LabelReport, first_keys: str) -> None:
    """A key that was named must be there; without labels there are no errors."""
    for option in KEY_OPTIONS:
        name, key = option.removesuffix("_key"), asked.keys.get(option)
        if key is not None and not report.counts.get(name):
            raise InputError(
                f"--{option}: no structure of {asked.configs} has {key!r}. The keys of its first one are {first_keys}."
            )
    if set(report.counts) & set(TARGETS):
        return
    what = (
        f"{asked.configs} has no labels under the names {', '.join(report.keys.values())}. The keys of its "
        f"first structure are {first_keys}; name those of labels with --energy_key and so on"
    )
    if asked.errors:
        raise InputError(f"--errors: {what}.")
    logger.info(f"no errors: {what}")


def _report_bad(bad: Mapping[int, str]) -> None:
    for reason in list(bad.values())[:NAMED_FRAMES]:
        logger.info(f"left out: {reason}")
    if len(bad) > NAMED_FRAMES:
        logger.info(f"left out: {len(bad) - NAMED_FRAMES} more")


def evaluate_file(asked: EvaluationOptions, model: torch.nn.Module) -> dict[str, Any]:
    """Write a model's predictions for the structures of ``--configs`` to ``--output``, and the table of errors.

    asked : options as ``parse`` gives them
    model : ``PhiPotential`` or bare host, on the device and in the precision of the options

    Returns structures, atoms, seconds, skipped (list of frame and reason) and errors, as ``--errors`` writes them.

    InputError for structures that cannot be evaluated unless they are skipped, keys that are not there, and what the
    model does not compute; nothing is written then.
    """
    predictor = Predictor(model, asked.device, asked.head, asked)
    phi = model.phi if isinstance(model, PhiPotential) else None
    reader, trained = reader_of(model), trained_keys(asked)
    check_prefix(asked.info_prefix, trained)
    accepted = Accepted(
        set(predictor.numbers),
        operator="" if phi is None else phi.config.operator,
        periodicities=ALL_PERIODICITIES if phi is None else phi.operator.periodicities_with(phi.config),
        charged=phi is None or phi.operator.carries_charge,
        ions=reader.ions,
        embeddings=predictor.embeddings,
    )
    stream = FrameStream(asked.configs, asked.keys, accepted, asked.skip_bad, usual={**trained, **reader.keys})
    report = stream.take_census()
    _check_labels(asked, report, stream.first_keys)
    for line in report.lines():
        logger.info(line)
    evaluation = FileEvaluation(predictor, stream, asked.info_prefix)
    begin = time.perf_counter()

    def write(path: Path) -> None:
        opener: Any = OPENERS.get(Path(asked.output).suffix, open)
        evaluation.write(path, opener, asked.batch_size, asked.batch_atoms, advance)

    with run_folder.structure_bar("evaluating", report.frames) as advance:
        write_atomically(asked.output, write)
    seconds = time.perf_counter() - begin
    return _finish(asked, evaluation, seconds)


def _finish(asked: EvaluationOptions, evaluation: FileEvaluation, seconds: float) -> dict[str, Any]:
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
