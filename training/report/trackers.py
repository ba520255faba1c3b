"""Weights and Biases and TensorBoard: the rows of metrics.csv, under the same names, as training goes on."""

import json
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

from phi_equivariant.files import write_atomically
from training.run import Output

ID_FILE = "wandb_id.txt"
NOT_METRICS = ("epoch",)


def open_trackers(
    output: Output, values: Mapping[str, Any], resolved: Mapping[str, Any], folder: Path
) -> list[WandbLogger | TensorBoardLogger]:
    """The trackers that the options ask for.

    output : which trackers
    values : {option: value}, of which Weights and Biases records those that were named
    resolved : the options as a file would have them, for the run's record
    folder : the run's: TensorBoard's files are in ``tensorboard/``, those of Weights and Biases too unless
        ``wandb_dir`` says otherwise. The id of the run there is kept, so that ``--restart_latest`` goes on with it.

    Returns the loggers of Lightning.
    """
    opened: list[WandbLogger | TensorBoardLogger] = []
    if output.wandb:
        directory = folder if output.wandb_dir is None else output.wandb_dir
        wandb = WandbLogger(
            name=output.wandb_name or output.name,
            project=output.wandb_project or None,
            entity=output.wandb_entity or None,
            save_dir=str(directory),
            id=_kept_id(folder),
            resume="allow",
            config={name: values[name] for name in output.wandb_log_hypers},
        )
        wandb.experiment.summary["params"] = json.dumps(resolved)
        opened.append(wandb)
    if output.tensorboard:
        tensorboard = TensorBoardLogger(folder, name="tensorboard", version="")
        tensorboard.experiment.add_text("options", f"```\n{json.dumps(resolved, indent=1)}\n```")
        opened.append(tensorboard)
    return opened


def _kept_id(folder: Path) -> str:
    path = folder / ID_FILE
    if not path.is_file():
        write_atomically(path, lambda temporary: temporary.write_text(uuid.uuid4().hex[:12]))
    return path.read_text().strip()


class Tracking(Callback):
    """Send every epoch's row to the trackers, and the errors of the final test when they are known."""

    def __init__(self, trackers: Sequence[WandbLogger | TensorBoardLogger]) -> None:
        self.trackers = list(trackers)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        """After History, which completes the row."""
        row = {name: value for name, value in module.row.items() if name not in NOT_METRICS}
        for tracker in self.trackers:
            tracker.log_metrics(row, step=module.row["epoch"] + 1)

    def finish(self, sets: Mapping[str, Mapping[str, Any]], epochs: int) -> None:
        """Send ``{set: {"errors": table}}`` and close."""
        final = {
            f"{name}_{kind}_{quantity}": found[kind]
            for name, entry in sets.items()
            for quantity, found in entry["errors"].items()
            for kind in ("mae", "rmse")
        }
        for tracker in self.trackers:
            if isinstance(tracker, WandbLogger):
                # Not as metrics: the names of the validation set's are those of its curves.
                tracker.experiment.summary.update({f"final/{name}": value for name, value in final.items()})
            else:
                tracker.log_metrics({f"final/{name}": value for name, value in final.items()}, step=epochs)
        self.close("success")

    def close(self, status: str) -> None:
        """Write what is buffered; ``status`` is ``success`` or ``failed``."""
        for tracker in self.trackers:
            tracker.finalize(status)
            if isinstance(tracker, WandbLogger):
                tracker.experiment.finish(exit_code=0 if status == "success" else 1)
        self.trackers = []
