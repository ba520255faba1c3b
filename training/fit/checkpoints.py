"""Checkpoints: all that an interrupted run needs to go on exactly, written whole or not at all, read without pickle."""

import io
import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from phi_equivariant.errors import InputError
from phi_equivariant.files import write_atomically
from phi_equivariant.weights import save_model
from training import distribution
from training.run import options_that_may_change
from training.run_folder import BEST, LAST

FORMAT = 2


def random_state() -> dict[str, Any]:
    """State of the global generators of Python, numpy and torch, as plain values and tensors."""
    version, words, gauss = random.getstate()
    of_numpy: Any = np.random.get_state()  # the legacy form, a tuple
    kind, keys, position, has_gauss, cached = of_numpy
    state = {
        "python": [version, list(words), gauss],
        "numpy": [kind, keys.tolist(), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """Give the global generators a state from :func:`random_state`."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def _callbacks(trainer: pl.Trainer) -> list[pl.Callback]:
    return trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it without declaring it


class Checkpoints(Checkpoint):
    """Keep the last state of the run and its best weights, of stage two apart from those of stage one.

    Lightning calls callbacks of this base class after all others, so the state is that of a finished epoch.

    identity : what a continuation must have in common: resolved options and a digest of the data
    start : a checkpoint from :func:`read_last` to go on from
    keep_all, keep_better : save the model after every validated epoch, or after every epoch that was the best so far,
        to ``epoch-<number>/``, which ``load_model`` and ``--foundation_model`` read
    """

    def __init__(
        self,
        folder: str | Path,
        identity: Mapping[str, Any],
        start: dict[str, Any] | None = None,
        keep_all: bool = False,
        keep_better: bool = False,
    ) -> None:
        self.keep_all, self.keep_better = keep_all, keep_better
        self.folder, self.identity, self.start = Path(folder), identity, start
        self.best: dict[int, dict[str, Any]] = {} if start is None else dict(start["best"])  # {stage: loss, epoch}

    def on_fit_start(self, trainer: pl.Trainer, module: Any) -> None:
        """Go on from the checkpoint, where there is one."""
        if self.start is None:
            return
        start = self.start
        try:
            module.model.load_state_dict(start["model"])
            if start["optimizer"] is not None:
                trainer.optimizers[0].load_state_dict(start["optimizer"])
                module.schedule.load_state_dict(start["schedule"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise InputError(
                f"--restart_latest: {self.folder / LAST} holds another model or optimiser than these options make: "
                f"{error}"
            ) from error
        if module.ema is not None:
            module.ema.load_state_dict(start["ema"])
        module.valid_loss = start["valid_loss"]
        for callback in _callbacks(trainer):
            if callback.state_key in start["callbacks"]:
                callback.load_state_dict(start["callbacks"][callback.state_key])
        progress: Any = trainer.fit_loop.epoch_progress.current  # declared without ``processed``, which it has
        progress.processed = progress.completed = start["epochs_done"]

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        """Random numbers go on where they were (after Lightning's own set-up has drawn its share)."""
        if self.start is not None:
            set_random_state(self.start["random"])
            self.start = None

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        """Write the best weights if they are, then the state. A kill between the two repeats the epoch, exactly."""
        loss, epochs = module.valid_loss, module.current_epoch + 1
        lowest = self.best[module.stage]["loss"] if module.stage in self.best else math.inf
        better = module.validated and loss < lowest
        if better:
            self.best = {**self.best, module.stage: {"loss": loss, "epoch": module.current_epoch}}
        if not distribution.is_main():
            return
        if better:
            weights = save({name: value.cpu() for name, value in module.averaged_weights().items()})
            write_atomically(self.folder / BEST[module.stage], lambda path: path.write_bytes(weights))
        if module.validated and self.keep_all or better and self.keep_better:
            with module.weights_to_test():
                save_model(module.model, self.folder / f"epoch-{epochs:04d}", notes={"epochs": epochs, "loss": loss})
        state = {
            "format": FORMAT,
            "epochs_done": epochs,
            "model": module.model.state_dict(),
            "optimizer": trainer.optimizers[0].state_dict(),
            "schedule": module.schedule.state_dict(),
            "ema": None if module.ema is None else module.ema.state_dict(),
            "random": random_state(),
            "valid_loss": module.valid_loss,
            "best": self.best,
            "callbacks": {callback.state_key: callback.state_dict() for callback in _callbacks(trainer)},
            "identity": self.identity,
        }
        # Through memory: torch reports a full disk by an error of its own kind, Python by OSError.
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomically(self.folder / LAST, lambda path: path.write_bytes(buffer.getbuffer()))


def read_last(folder: str | Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """The last checkpoint of a folder, checked against the run that wants to go on; None if there is none.

    InputError if the file, or the best weights, are damaged, of another format, or of a run with other options or data.
    """
    path = Path(folder) / LAST
    if not path.exists():
        return None
    try:
        # weights_only must be said: mace switches torch's default off for the whole process.
        state = torch.load(path, map_location="cpu", weights_only=True)
        found, saved = state["format"], state["identity"]
    except Exception as error:  # torch reports a damaged file by many types
        raise InputError(
            f"--restart_latest: {path} cannot be read as a checkpoint ({type(error).__name__}: {error}). Move the "
            "run's folder away or choose another --name to start from zero."
        ) from error
    if found != FORMAT:
        raise InputError(f"--restart_latest: {path} has checkpoint format {found}, this version reads {FORMAT}.")
    if identity.get("lbfgs") and not saved.get("lbfgs"):
        # As in mace, L-BFGS may go on from another optimiser's weights.
        state |= {"optimizer": None, "schedule": None}
        saved = {**saved, "lbfgs": identity["lbfgs"]}
    saved, identity = _flat(saved, identity), _flat(identity, saved)
    differences = [
        f"{key} was {saved.get(key)!r} and is {identity.get(key)!r}"
        for key in sorted(saved.keys() | identity.keys())
        if saved.get(key) != identity.get(key)
    ]
    if differences:
        raise InputError(
            f"--restart_latest: {path} belongs to another run: {'; '.join(differences)}. Give the options and data of "
            "that run, or choose another --name."
        )
    for stage in state["best"]:
        read_best(folder, stage)
    return state


def identity_of(resolved: Mapping[str, Any], data_digest: str) -> dict[str, Any]:
    """What must agree for a checkpoint to fit; a cosine schedule depends on the number of epochs too.

    The number of processes may change if the structures per step, all processes together, do not.
    """
    resolved = {**resolved, "batch_size": resolved.get("batch_size", 0) * distribution.size()}
    skip = options_that_may_change()
    if resolved.get("scheduler") == "CosineAnnealingLR":
        skip.discard("max_num_epochs")
    return {key: value for key, value in resolved.items() if key not in skip} | {"data": data_digest}


def _flat(identity: Mapping[str, Any], other: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of Φ one by one where both have some."""
    if not (identity.get("phi") and other.get("phi")):
        return identity
    flat = {key: value for key, value in identity.items() if key != "phi"}
    return flat | {f"phi: {key}": value for key, value in identity["phi"].items()}


def read_best(folder: str | Path, stage: int) -> dict[str, torch.Tensor]:
    """{parameter: tensor} of the best weights of a stage.

    InputError if the file is missing or damaged.
    """
    path = Path(folder) / BEST[stage]
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"--restart_latest: {path}, the best weights so far, cannot be read ({error}). Put it back, or choose "
            "another --name to start from zero."
        ) from error


def load_best(model: torch.nn.Module, folder: str | Path, stage: int) -> None:
    """Put the best weights of a stage into a model."""
    weights = distribution.from_main(lambda: read_best(folder, stage))
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            parameters[name].copy_(value)
