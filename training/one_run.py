"""One run: build, train, test, and leave a folder with everything about it."""

import contextlib
import json
import logging
import signal
import time
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from phi_equivariant.errors import InputError
from phi_equivariant.files import write_atomically
from training import distribution, mace_interface, results, run_folder
from training.build import Built, build, describe
from training.data.order import EpochOrder
from training.data.run_data import RunData
from training.fit import checkpoints
from training.fit.lightning_module import PotentialModule, WholeSetModule
from training.fit.predict import isolated_energies
from training.fit.stages import StageChanges
from training.messages import Interrupted
from training.report import callbacks, trackers
from training.run import Run
from training.run_folder import Folders

logger = logging.getLogger("phi_mace_train")


def rehearse(run: Run, data: RunData) -> None:
    """Build the model and say what would be trained; nothing is written."""
    for line in data.lines:
        logger.info(line)
    built = build(run, data)
    logger.info(f"dry run: {sum(p.numel() for p in built.model.parameters())} parameters; nothing was written")


def train(run: Run, data: RunData, deadline: float | None = None, announce: bool = True) -> dict[str, Any]:
    """Train one potential; returns a summary of its folder.

    run, data : as :func:`training.build.load` gives them
    deadline : ``time.monotonic()`` by which the run must be over
    announce : log the command and what the data hold
    """
    restart = run.task.restart_latest
    folders = distribution.from_main(lambda: run_folder.check_folders(run.output, restart))
    identity = checkpoints.identity_of(run.resolved(), data.digest)
    start = distribution.from_main(lambda: checkpoints.read_last(folders.checkpoints, identity)) if restart else None
    with distribution.together():
        built = build(run, data)
    with contextlib.ExitStack() as stack:
        with distribution.together():
            if distribution.is_main():
                stack.enter_context(run_folder.held(folders))
        log = run_folder.open_folders(folders) if distribution.is_main() else logging.NullHandler()
        stack.callback(run_folder.close_log, log)
        tracking = trackers.Tracking([])
        stack.callback(tracking.close, "failed")  # what is finished is closed already
        if announce:
            for line in (f"command: {run.command}", *data.lines):
                logger.info(line)
        if distribution.is_main():
            tracking.trackers = trackers.open_trackers(run.output, run.values(), run.resolved(), folders.results)
        summary = _train(run, data, built, folders, identity, start, deadline, tracking)
        tracking.finish(summary["sets"], summary["epochs"])
        return summary


def _train(
    run: Run,
    data: RunData,
    built: Built,
    folders: Folders,
    identity: dict[str, Any],
    start: dict[str, Any] | None,
    deadline: float | None,
    tracking: trackers.Tracking,
) -> dict[str, Any]:
    output = run.output
    if distribution.is_main():
        _write_start(run, data, folders.run)
    if run.task.restart_latest:
        logger.info(
            f"--restart_latest: {folders.checkpoints} has no checkpoint, starting from zero"
            if start is None
            else f"--restart_latest: going on after epoch {start['epochs_done']}"
        )
    parameters = sum(p.numel() for p in built.model.parameters())
    what = f"{describe(run.host, run.phi)}: {parameters} parameters; elements {data.atomic_numbers}"
    logger.info(f"{what}; results in {folders.run}")

    kind = WholeSetModule if run.optimiser.lbfgs else PotentialModule
    module = kind(
        built.model, built.objective, run.optimiser, run.stages, built.outputs, len(built.order), built.stage_two,
        data.heads,
    )  # fmt: skip
    history, stages = callbacks.History(folders.results, output.error_table, data.heads), StageChanges(run.stages)
    last = checkpoints.Checkpoints(
        folders.checkpoints, identity, start, output.save_all_checkpoints, output.keep_checkpoints
    )
    for callback in (history, stages):
        if start is not None:
            callback.load_state_dict(start["callbacks"][callback.state_key])
    extra: list[pl.Callback] = [tracking]
    if output.plot and output.plot_frequency:
        isolated = isolated_energies(built.model) if output.plot_interaction_e else None
        extra.append(callbacks.Plots(folders.results, history, output.plot_frequency, isolated))
    if run_folder.console.is_terminal and distribution.is_main():
        extra.append(callbacks.Bar(run_folder.console, output.error_table, data.heads))
    if deadline is not None:
        stages_to_test = 2 if run.stages.swa else 1
        to_test = sum(map(data.size, ("train", "valid", "test"))) * stages_to_test
        after = 3.0 + (results.PICTURE_SECONDS * stages_to_test if output.plot else 0.0)
        extra.append(callbacks.TimeLimit(deadline, to_test, after))
    begin = time.monotonic()
    built.order.set_epoch(0 if start is None else start["epochs_done"])
    if not stages.over:
        _fit(module, data, built.order, run, stages.epochs, [history, *extra, stages, last])
    if stages.over:
        logger.info(stages.reason())

    if not last.best:
        raise InputError(
            "--lr: the validation loss was not finite in any epoch, so there are no weights to test. Lower the "
            f"learning rate (now {run.optimiser.lr}) or look for wrong labels; the log is in {folders.log}."
        )
    about = {"epochs": len(history.rows), "parameters": parameters, "training_seconds": time.monotonic() - begin}
    try:
        return results.finish(run, data, built, last.best, folders, {**about, "rows": history.rows})
    except KeyboardInterrupt:
        raise Interrupted(len(history.rows)) from None


def _fit(
    module: PotentialModule, data: RunData, order: EpochOrder, run: Run, epochs: int, chosen: list[pl.Callback]
) -> None:
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        # Older torch has no other name for broadcast_buffers; strides that differ are of weights of one row.
        for known in ("does not have many workers", "GPU available but not used", "LeafSpec",
                      "broadcast_buffers. is deprecated", "Grad strides do not match"):  # fmt: skip
            warnings.filterwarnings("ignore", message=f".*{known}")
        trainer = pl.Trainer(
            **distribution.trainer_settings(run.machine),
            max_epochs=epochs,
            gradient_clip_val=run.optimiser.clip_grad,
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
            trainer.fit(module, data.train_loader(order), list(data.loader("valid").values()))
        except (SystemExit, KeyboardInterrupt):  # Lightning ends the process on Ctrl-C and SIGTERM
            signal.signal(signal.SIGINT, signal.default_int_handler)  # which Lightning has switched off
            raise Interrupted(trainer.current_epoch) from None


class _Epochs(pl.Callback):
    """Shuffle anew for each epoch."""

    def __init__(self, order: EpochOrder):
        self.order = order

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.order.set_epoch(trainer.current_epoch)


def _write_start(run: Run, data: RunData, folder: Path) -> None:
    write_atomically(folder / run_folder.CONFIG, lambda path: path.write_text(run.as_yaml()))
    provenance = json.dumps({**data.provenance, "sha256": data.digest, "mace": mace_interface.version()}, indent=1)
    write_atomically(folder / run_folder.DATA, lambda path: path.write_text(provenance))
