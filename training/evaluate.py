"""``phi-mace-eval``: energies, forces and charges of a trained model for the structures of a file."""

import argparse
import json
import logging
import math
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from phi_equivariant import PhiPotential, attach_phi
from phi_equivariant.errors import InputError
from phi_equivariant.files import UNUSABLE_DISK, write_atomically
from phi_equivariant.inputs.state import reader_of, set_reader
from phi_equivariant.weights import CONFIG_FILE, WEIGHTS_FILE, load_model
from training import mace_interface, run_folder
from training.data.heads import KEY_OPTIONS
from training.data.stream import Census, FrameStream
from training.fit.file_evaluation import Evaluation
from training.fit.predictions import Predictor, Wanted
from training.options.evaluation import OPENERS, parse
from training.report import tables
from training.report.error_sums import QUANTITIES
from zoo import mace_host

logger = logging.getLogger("phi_mace_train")
NAMED_FRAMES = 20  # of those left out, on the terminal; --errors lists all


def read_model(args: argparse.Namespace) -> torch.nn.Module:
    """The model of ``--model`` in the precision asked for, on the device asked for.

    Raises
    ------
    InputError
        If it cannot be read, or is a pickle that the user has not said to trust.
    """
    path = Path(args.model)
    if not path.exists():
        raise InputError(f"--model: there is no {path}. Give the folder of a run, or a .model file.")
    if path.name in (WEIGHTS_FILE, CONFIG_FILE):
        path = path.parent
    if args.enable_cueq:
        mace_host.check_kernels("cueq")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The TorchScript type system doesn't support")
        if path.is_dir():
            model = load_model(path, dtype=args.default_dtype)
        else:
            model = mace_host.read_model(path, args.trust_pickle).to(getattr(torch, args.default_dtype))
        if args.enable_cueq:
            reader = reader_of(model)
            model = _on_cueq(model, args.device)
            set_reader(model, reader)
    return model.to(args.device).eval()


def _on_cueq(model: torch.nn.Module, device: str) -> torch.nn.Module:
    """The model with its host on cuequivariance's kernels."""
    if not isinstance(model, PhiPotential):
        return mace_host.accelerate(model, "cueq", device)
    config, state = model.phi.config, model.phi.state_dict()
    fast = attach_phi(mace_host.accelerate(model.detach(), "cueq", device), config)
    fast.phi.load_state_dict(state)
    return fast


def _check_labels(args: argparse.Namespace, census: Census) -> None:
    """A key that was named must be there; without labels there are no errors."""
    for option in KEY_OPTIONS:
        name, key = option.removesuffix("_key"), getattr(args, option)
        if key is not None and not census.report.counts.get(name):
            raise InputError(
                f"--{option}: no structure of {args.configs} has {key!r}. The keys of its first one are "
                f"{census.first_keys}."
            )
    if set(census.report.counts) & set(QUANTITIES):
        return
    what = (
        f"{args.configs} has no labels under the names {', '.join(census.report.keys.values())}. The keys of its first "
        f"structure are {census.first_keys}; name those of labels with --energy_key and so on"
    )
    if args.errors:
        raise InputError(f"--errors: {what}.")
    logger.info(f"no errors: {what}")


def _report_bad(bad: Mapping[int, str]) -> None:
    for reason in list(bad.values())[:NAMED_FRAMES]:
        logger.info(f"left out: {reason}")
    if len(bad) > NAMED_FRAMES:
        logger.info(f"left out: {len(bad) - NAMED_FRAMES} more")


def evaluate_file(args: argparse.Namespace, model: torch.nn.Module) -> dict[str, Any]:
    """Write a model's predictions for the structures of ``--configs`` to ``--output``, and the table of errors.

    Parameters
    ----------
    args : options as ``parse`` gives them
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
    mace_interface.set_default_dtype(args.default_dtype)
    wanted = Wanted(
        stress=args.compute_stress,
        contributions=args.return_contributions,
        node_energies=args.return_node_energies,
        descriptors=args.return_descriptors,
        descriptor_num_layers=args.descriptor_num_layers,
        descriptor_aggregation_method=args.descriptor_aggregation_method,
        descriptor_invariants_only=args.descriptor_invariants_only,
    )
    predictor = Predictor(model, args.device, args.head, wanted)
    operator = model.phi.config.operator if isinstance(model, PhiPotential) else None
    stream = FrameStream(
        args.configs,
        predictor.numbers,
        {option: key for option in KEY_OPTIONS if (key := getattr(args, option))},
        allow_slabs=operator != "coulomb",
        allow_charged=operator != "graph",
        embeddings=predictor.embeddings,
        skip_bad=args.skip_bad,
        usual=reader_of(model).keys,
    )
    census = stream.take_census()
    _check_labels(args, census)
    for line in census.report.lines():
        logger.info(line)
    evaluation = Evaluation(predictor, stream, args.info_prefix)
    begin = time.perf_counter()

    def write(path: Path) -> None:
        opener: Any = OPENERS.get(Path(args.output).suffix, open)
        evaluation.write(path, opener, args.batch_size, args.batch_atoms, advance)

    with run_folder.structure_bar("evaluating", census.report.frames) as advance:
        write_atomically(args.output, write)
    seconds = time.perf_counter() - begin
    return _finish(args, evaluation, seconds)


def _finish(args: argparse.Namespace, evaluation: Evaluation, seconds: float) -> dict[str, Any]:
    """The table, the file of errors, and the last lines."""
    table, bad = evaluation.errors.table(), evaluation.stream.bad
    _report_bad(bad)
    summary = {
        "model": str(args.model),
        "configs": str(args.configs),
        "structures": evaluation.structures,
        "atoms": evaluation.atoms,
        "seconds": seconds,
        "skipped": [{"frame": index, "reason": reason} for index, reason in sorted(bad.items())],
        "errors": table,
    }
    if table:
        sets = {Path(args.configs).name: {"structures": evaluation.structures, "errors": table}}
        tables.print_table(run_folder.console, f"{args.model}: errors", *tables.error_rows(sets))
    if args.errors:
        write_atomically(args.errors, lambda path: path.write_text(json.dumps(summary, indent=1)))
    rate = evaluation.structures / seconds if seconds else math.inf
    skipped = f", {len(bad)} left out" if bad else ""
    logger.info(
        f"evaluated {evaluation.structures} structures ({evaluation.atoms} atoms{skipped}) in {seconds:.1f} s, "
        f"{rate:.4g} structures/s; predictions in {args.output}"
    )
    return summary


def main(words: Sequence[str] | None = None) -> int:
    """Entry point: exit status 0, 2 for unusable input, 130 when interrupted; nothing is written but with 0."""
    try:
        args = parse(words)
        run_folder.start_console("INFO")
        evaluate_file(args, read_model(args))
    except InputError as error:
        print(f"phi-mace-eval: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in UNUSABLE_DISK:
            raise
        where = f" {error.filename}" if error.filename else ""
        print(f"phi-mace-eval: cannot write{where}: {error.strerror}; nothing was written.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("phi-mace-eval: interrupted; nothing was written.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
