"""One run: build, train, test, and leave a folder with everything about it."""

import contextlib
import json
import logging
import signal
import time
import warnings

import lightning.pytorch as pl
import yaml

from phi_equivariant.errors import InputError
from phi_equivariant.files import write_atomically
from training import distribution, mace_interface, results, run_folder
from training.build import build, describe
from training.fit import checkpoints
from training.fit.lightning_module import PotentialModule
from training.fit.predict import isolated_energies
from training.fit.stages import Stages
from training.fit.whole_set import WholeSetModule
from training.report import callbacks, trackers

logger = logging.getLogger("phi_mace_train")


class Interrupted(Exception):
    """Training was stopped from outside; ``epochs`` are safe in the last checkpoint."""

    def __init__(self, epochs):
        super().__init__()
        self.epochs = epochs


def train(run, run_data, deadline=None, announce=True):
    """Train one potential; returns a summary of its folder.

    Parameters
    ----------
    run : command_line.RunOptions
    run_data : data.RunData
    deadline : float or None
        ``time.monotonic()`` by which the run must be over.
    announce : bool
        Log the command and what the data hold.
    """
    args = run.args
    folders = distribution.from_main(lambda: run_folder.check_folders(args))
    identity = checkpoints.identity_of(run.resolved(), run_data.digest)
    start = (
        distribution.from_main(lambda: checkpoints.read_last(folders.checkpoints, identity))
        if args.restart_latest
        else None
    )
    with distribution.together():
        built = build(run, run_data)
    with contextlib.ExitStack() as stack:
        with distribution.together():
            if distribution.is_main():
                stack.enter_context(run_folder.held(folders))
        log = run_folder.open_folders(folders) if distribution.is_main() else logging.NullHandler()
        stack.callback(run_folder.close_log, log)
        tracking = trackers.Tracking([])
        stack.callback(tracking.close, "failed")  # what is finished is closed already
        if announce:
            for line in (f"command: {run.command}", *run_data.lines):
                logger.info(line)
        if distribution.is_main():
            tracking.trackers = trackers.open_trackers(args, run.resolved(), folders.results)
        summary = _train(run, run_data, built, folders, identity, start, deadline, tracking)
        tracking.finish(summary["sets"], summary["epochs"])
        return summary


def _train(run, run_data, built, folders, identity, start, deadline, tracking):
    args = run.args
    if distribution.is_main():
        _write_start(run, run_data, folders.run)
    if args.restart_latest:
        logger.info(
            f"--restart_latest: {folders.checkpoints} has no checkpoint, starting from zero"
            if start is None
            else f"--restart_latest: going on after epoch {start['epochs_done']}"
        )
    parameters = sum(p.numel() for p in built.model.parameters())
    logger.info(
        f"{describe(run)}: {parameters} parameters; elements {run_data.atomic_numbers}; results in {folders.run}"
    )

    kind = WholeSetModule if args.lbfgs else PotentialModule
    heads = run_data.heads
    module = kind(built.model, built.objective, args, built.outputs, len(built.order), built.stage_two, heads)
    history, stages = callbacks.History(folders.results, args.error_table, run_data.heads), Stages(args)
    last = checkpoints.Checkpoints(
        folders.checkpoints, identity, start, args.save_all_checkpoints, args.keep_checkpoints
    )
    for callback in (history, stages):
        if start is not None:
            callback.load_state_dict(start["callbacks"][callback.state_key])
    extra = [tracking]
    if args.plot and args.plot_frequency:
        isolated = isolated_energies(built.model) if args.plot_interaction_e else None
        extra.append(callbacks.Plots(folders.results, history, args.plot_frequency, isolated))
    if run_folder.console.is_terminal and distribution.is_main():
        extra.append(callbacks.Bar(run_folder.console))
    if deadline is not None:
        to_test = sum(map(run_data.size, ("train", "valid", "test"))) * (2 if args.swa else 1)
        extra.append(callbacks.TimeLimit(deadline, to_test))
    begin = time.monotonic()
    built.order.set_epoch(0 if start is None else start["epochs_done"])
    if not stages.over:
        _fit(module, run_data, built.order, args, stages.epochs, [history, *extra, stages, last])
    if stages.over:
        logger.info(stages.reason())

    if not last.best:
        raise InputError(
            "--lr: the validation loss was not finite in any epoch, so there are no weights to test. Lower the "
            f"learning rate (now {args.lr}) or look for wrong labels; the log is in {folders.log}."
        )
    about = {"epochs": len(history.rows), "parameters": parameters, "training_seconds": time.monotonic() - begin}
    try:
        return results.finish(run, run_data, built, last.best, folders, {**about, "rows": history.rows})
    except KeyboardInterrupt:
        raise Interrupted(len(history.rows)) from None


def _fit(module, run_data, order, args, epochs, chosen):
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*GPU available but not used.*")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")
        warnings.filterwarnings("ignore", message=".*broadcast_buffers. is deprecated.*")  # older torch has no other
        warnings.filterwarnings(
            "ignore", message=".*Grad strides do not match.*"
        )  # of one-row weights: nothing to gain
        trainer = pl.Trainer(
            **distribution.trainer_settings(args),
            max_epochs=epochs,
            gradient_clip_val=args.clip_grad,
            num_sanity_val_steps=0,
            inference_mode=False,
            use_distributed_sampler=False,
            logger=False,
            enable_checkpointing=True,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[*chosen, _Epochs(order)],
        )
        try:
            trainer.fit(module, run_data.train_loader(order, args), list(run_data.loader("valid", args).values()))
        except (SystemExit, KeyboardInterrupt):  # Lightning ends the process on Ctrl-C and SIGTERM
            signal.signal(signal.SIGINT, signal.default_int_handler)  # which Lightning has switched off
            raise Interrupted(trainer.current_epoch) from None


class _Epochs(pl.Callback):
    """Shuffle anew for each epoch."""

    def __init__(self, order):
        self.order = order

    def on_train_epoch_start(self, trainer, module):
        self.order.set_epoch(trainer.current_epoch)


def _write_start(run, run_data, folder):
    text = yaml.safe_dump(run.resolved(), sort_keys=True, allow_unicode=True)
    write_atomically(folder / "config.yaml", lambda path: path.write_text(text))
    provenance = json.dumps(
        {**run_data.provenance, "sha256": run_data.digest, "mace": mace_interface.version()}, indent=1
    )
    write_atomically(folder / "data.json", lambda path: path.write_text(provenance))
