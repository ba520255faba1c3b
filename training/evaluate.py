"""``phi-mace-eval``: energies, forces and charges of a trained model for the structures of a file."""

import io
import json
import logging
import math
import sys
import time
import warnings
from pathlib import Path

import ase.io
import torch

from phi_equivariant import PhiPotential, attach_phi
from phi_equivariant.errors import InputError
from phi_equivariant.files import UNUSABLE_DISK, write_atomically
from phi_equivariant.weights import CONFIG_FILE, WEIGHTS_FILE, load_model
from training import mace_interface, run_folder
from training.data.heads import KEY_OPTIONS
from training.data.stream import FrameStream
from training.fit.predictions import Predictor, Wanted, not_finite
from training.options.evaluation import OPENERS, parse
from training.report import tables
from training.report.error_sums import QUANTITIES, ErrorSums
from zoo import mace_host

logger = logging.getLogger("phi_mace_train")
NAMED_FRAMES = 20  # of those left out, on the terminal; --errors lists all


def read_model(args):
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
            model = _on_cueq(model, args.device)
    return model.to(args.device).eval()


def _on_cueq(model, device):
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

    def __init__(self, predictor, stream, prefix):
        self.predictor, self.stream, self.prefix = predictor, stream, prefix
        self.errors = ErrorSums()
        self.structures = self.atoms = 0

    def write(self, file, max_structures, max_atoms, advance=None):
        """Evaluate all structures and write them in their order."""
        for frames in self.stream.batches(max_structures, max_atoms):
            self._write_batch(frames, file)
            if advance is not None:
                advance(len(frames))
        if not self.structures:
            raise InputError(f"{self.stream.path}: no structure could be evaluated; nothing was written.")

    def _write_batch(self, frames, file):
        batch = self.predictor.batch([frame.labelled for frame in frames])
        output = self.predictor(batch)
        texts, good = [], []
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
    def _why_unusable(prediction):
        names = not_finite(prediction)
        return f"has predictions that are not finite ({', '.join(names)}): do atoms coincide?" if names else None

    def _add_text(self, frame, prediction, texts):
        """Write a frame to memory; the reason where ase cannot."""
        self.predictor.add_to(frame.atoms, prediction, self.prefix)
        text = io.StringIO()
        try:
            ase.io.write(text, frame.atoms, format="extxyz")
        except Exception as error:  # ase's writers raise whatever they meet: there is no narrower base class
            return f"cannot be written as extended XYZ: {type(error).__name__}: {error}."
        texts.append(text.getvalue())
        return None


def _check_labels(args, census):
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


def _report_bad(bad):
    for reason in list(bad.values())[:NAMED_FRAMES]:
        logger.info(f"left out: {reason}")
    if len(bad) > NAMED_FRAMES:
        logger.info(f"left out: {len(bad) - NAMED_FRAMES} more")


def evaluate_file(args, model):
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
    phi = isinstance(model, PhiPotential)
    stream = FrameStream(
        args.configs,
        predictor.numbers,
        {**predictor.keys, **{option: key for option in KEY_OPTIONS if (key := getattr(args, option))}},
        allow_slabs=not phi or model.phi.operator.periodicities >= {1, 2},
        allow_charged=not phi or model.phi.operator.carries_charge,
        embeddings=predictor.embeddings,
        skip_bad=args.skip_bad,
    )
    census = stream.take_census()
    _check_labels(args, census)
    for line in census.report.lines():
        logger.info(line)
    evaluation = Evaluation(predictor, stream, args.info_prefix)
    begin = time.perf_counter()

    def write(path):
        opener = OPENERS.get(Path(args.output).suffix, open)
        with opener(path, "wt", encoding="utf-8") as file:
            evaluation.write(file, args.batch_size, args.batch_atoms, advance)

    with run_folder.structure_bar("evaluating", census.report.frames) as advance:
        write_atomically(args.output, write)
    seconds = time.perf_counter() - begin
    return _finish(args, evaluation, seconds)


def _finish(args, evaluation, seconds):
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


def main(words=None):
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
