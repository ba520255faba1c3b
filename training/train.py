"""``phi-mace-train``: train a potential, with Φ or without, and leave a folder with everything about it."""

import errno
import json
import logging
import math
import shlex
import signal
import sys
import time
import warnings

import lightning.pytorch as pl
import yaml
from lightning.pytorch.callbacks import EarlyStopping

from phi_equivariant.errors import InputError
from phi_equivariant.files import write_atomically
from phi_equivariant.weights import save_model
from training import callbacks, checkpoints, mace_interface, options, report, run_folder
from training.build import build, check_run, describe, prepare
from training.errors import evaluate
from training.module import PotentialModule

logger = logging.getLogger("phi_mace_train")
UNUSABLE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO)


class Interrupted(Exception):
    """Training was stopped from outside; ``epochs`` are safe in the last checkpoint."""

    def __init__(self, epochs):
        super().__init__()
        self.epochs = epochs


def train(run, run_data, deadline=None, announce=True):
    """Train one potential; returns a summary of its folder.

    Parameters
    ----------
    run : options.RunOptions
    run_data : data.RunData
    deadline : float or None
        ``time.monotonic()`` by which the run must be over.
    announce : bool
        Log the command and what the data hold.
    """
    args = run.args
    folder = run_folder.check_folder(args)
    identity = checkpoints.identity_of(run.resolved(), run_data.digest)
    start = checkpoints.read_last(folder / "checkpoints", identity) if args.restart_latest else None
    built = build(run, run_data)
    log = run_folder.open_folder(folder)
    try:
        if announce:
            for line in (f"command: {run.command}", *run_data.lines):
                logger.info(line)
        return _train(run, run_data, built, folder, identity, start, deadline)
    finally:
        run_folder.close_log(log)


def _train(run, run_data, built, folder, identity, start, deadline):
    args = run.args
    _write_start(run, run_data, folder)
    if args.restart_latest:
        logger.info(
            f"--restart_latest: {folder} has no checkpoint, starting from zero"
            if start is None
            else f"--restart_latest: going on after epoch {start['epochs_done']}"
        )
    parameters = sum(p.numel() for p in built.model.parameters())
    logger.info(f"{describe(run)}: {parameters} parameters; elements {run_data.atomic_numbers}; results in {folder}")

    module = PotentialModule(built.model, built.objective, args, built.outputs, len(built.order))
    history = callbacks.History(folder)
    last = checkpoints.Checkpoints(folder / "checkpoints", identity, start)
    stopping = EarlyStopping(
        "valid_loss", patience=args.patience, mode="min", min_delta=0.0, check_on_train_epoch_end=False
    )
    extra = [callbacks.Bar(run_folder.console)] if run_folder.console.is_terminal else []
    if deadline is not None:
        to_test = sum(len(s) for s in (run_data.train, run_data.valid, run_data.test or ()))
        extra.append(callbacks.TimeLimit(deadline, to_test))
    done = 0 if start is None else start["epochs_done"]
    begin = time.monotonic()
    built.order.set_epoch(done)
    if not _already_stopped(start, stopping, args.patience):
        _fit(module, run_data, built.order, args, [history, *extra, stopping, last])
    else:
        last.best, history.rows = start["best"], start["callbacks"][history.state_key]["rows"]
    if not math.isfinite(history.rows[-1].get("valid_loss_mace", 0.0)):
        logger.info("stopped: the validation loss is not finite; a smaller --lr may help")
    elif stopping.stopped_epoch:
        logger.info(f"stopped: {args.patience} epochs without a better validation loss")

    if last.best["loss"] is None:
        raise InputError(
            "--lr: the validation loss was not finite in any epoch, so there are no weights to test. Lower the "
            f"learning rate (now {args.lr}) or look for wrong labels; the log is in {folder}."
        )
    checkpoints.load_best(built.model, folder / "checkpoints")
    summary = _test(run, run_data, built, history.rows, folder)
    summary |= {"epochs": len(history.rows), "best_epoch": last.best["epoch"] + 1, "parameters": parameters}
    summary["training_seconds"] = time.monotonic() - begin
    _write_end(run, built.model, history.rows, summary, folder)
    return summary


def _already_stopped(start, stopping, patience):
    if start is None:
        return False
    state = start["callbacks"].get(stopping.state_key)
    return state is not None and state["wait_count"] >= patience


def _fit(module, run_data, order, args, chosen):
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*GPU available but not used.*")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")
        trainer = pl.Trainer(
            accelerator="gpu" if args.device == "cuda" else "cpu",
            devices=1,
            max_epochs=args.max_num_epochs,
            gradient_clip_val=args.clip_grad,
            check_val_every_n_epoch=args.eval_interval,
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
            trainer.fit(module, run_data.train_loader(order, args), run_data.loader("valid", args))
        except (SystemExit, KeyboardInterrupt):  # Lightning ends the process on Ctrl-C and SIGTERM
            signal.signal(signal.SIGINT, signal.default_int_handler)  # which Lightning has switched off
            raise Interrupted(trainer.current_epoch) from None


class _Epochs(pl.Callback):
    """Shuffle anew for each epoch."""

    def __init__(self, order):
        self.order = order

    def on_train_epoch_start(self, trainer, module):
        self.order.set_epoch(trainer.current_epoch)


def _test(run, run_data, built, rows, folder):
    """Errors of the best weights on all sets, and the parity plot."""
    tables, device = {}, run.args.device
    built.model.to(device)
    last = "valid" if run_data.test is None else "test"
    for split in ("train", "valid", "test"):
        if getattr(run_data, split) is None:
            continue
        begin = time.monotonic()
        keep = ("energy_per_atom", "forces", "charges", "dipole") if split == last else ()
        with run_folder.structure_bar(f"testing on {split}", len(getattr(run_data, split))) as advance:
            errors = evaluate(built.model, run_data.loader(split, run.args), built.outputs, device, keep, advance)
        tables[split] = {"structures": len(getattr(run_data, split)), "errors": errors.table()}
        tables[split]["seconds"] = time.monotonic() - begin
        if split == last and run.args.plot:
            report.parity_plot(folder / "parity.png", errors.pairs, split, tables[split]["errors"])
    return {"name": run.args.name, "folder": str(folder), "sets": tables}


def _write_start(run, run_data, folder):
    text = yaml.safe_dump(run.resolved(), sort_keys=True, allow_unicode=True)
    write_atomically(folder / "config.yaml", lambda path: path.write_text(text))
    provenance = json.dumps(
        {**run_data.provenance, "sha256": run_data.digest, "mace": mace_interface.version()}, indent=1
    )
    write_atomically(folder / "data.json", lambda path: path.write_text(provenance))


def _write_end(run, model, rows, summary, folder):
    if run.args.plot:
        report.learning_curve(folder / "learning_curve.png", rows)
    about = {key: summary[key] for key in ("name", "epochs", "best_epoch", "parameters", "training_seconds")}
    save_model(model, folder, notes={**about, "errors": summary["sets"]})
    title = f"{run.args.name}: errors of the weights of epoch {summary['best_epoch']}"
    report.print_table(run_folder.console, title, *report.error_rows(summary["sets"]))
    # Last, because its presence says that the run is complete.
    report.write_errors(folder, summary["sets"], about)
    logger.info(f"done: {folder}")


def run_command(words=None):
    """Parse the command line and train."""
    begin = time.monotonic()
    run = options.parse(words)
    run_folder.start_console(run.args.log_level)
    check_run(run)
    run_folder.check_folder(run.args)
    run_data = prepare(run)
    deadline = None if run.args.time_limit is None else begin + 60.0 * run.args.time_limit
    if run.args.compare:
        from training.compare import compare

        return compare(run, run_data, deadline)
    if run.args.dry_run:
        for line in run_data.lines:
            logger.info(line)
        built = build(run, run_data)
        logger.info(f"dry run: {sum(p.numel() for p in built.model.parameters())} parameters; nothing was written")
        return None
    return train(run, run_data, deadline)


def main(words=None):
    """Entry point: exit status 0, 2 for unusable input, 130 when interrupted."""
    try:
        run_command(words)
    except InputError as error:
        print(f"phi-mace-train: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in UNUSABLE_DISK:
            raise
        where = f" {error.filename}" if error.filename else ""
        print(
            f"phi-mace-train: cannot write{where}: {error.strerror}. What was complete is still there; make room or "
            "choose another --work_dir, then go on with --restart_latest.",
            file=sys.stderr,
        )
        return 2
    except Interrupted as interrupted:
        given = [word for word in (sys.argv[1:] if words is None else words) if word != "--restart_latest"]
        print(
            f"phi-mace-train: interrupted; {interrupted.epochs} epochs are safe. Go on with: "
            f"{shlex.join(['phi-mace-train', *map(str, given), '--restart_latest'])}",
            file=sys.stderr,
        )
        return 130
    except KeyboardInterrupt:
        print("phi-mace-train: interrupted before training began.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
