"""Weights and Biases and TensorBoard: the rows of metrics.csv, under the same names, as training goes on."""

import importlib.util
import json
import uuid

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

from phi_equivariant.errors import InputError
from phi_equivariant.files import write_atomically

ID_FILE = "wandb_id.txt"
NOT_METRICS = ("epoch",)


def check_trackers(options, given=()):
    """Find out whether the trackers that are asked for are installed, and know the options they shall record.

    ``given``: names of the options that the user gave.

    Raises
    ------
    InputError
    """
    if options.wandb:
        _require("wandb", "--wandb", "wandb")
        unknown = [name for name in options.wandb_log_hypers if name not in vars(options)]
        if unknown:
            raise InputError(f"--wandb_log_hypers: {', '.join(unknown)} is no option of phi-mace-train.")
    else:
        for name in sorted(name for name in given if name.startswith("wandb_")):
            raise InputError(f"--{name}: nothing is sent to Weights and Biases without --wandb. Add it.")
    if options.tensorboard:
        _require("tensorboard", "--tensorboard", "tensorboard")


def _require(package, option, extra):
    if importlib.util.find_spec(package) is None:
        raise InputError(
            f"{option}: the package {package} is not installed. Run pip install 'phi-equivariant[{extra}]', or leave "
            f"{option} out."
        )


def open_trackers(options, resolved, folder):
    """The trackers that the options ask for.

    Parameters
    ----------
    options : argparse.Namespace
    resolved : dict
        Every option with its value, for the run's record.
    folder : Path
        The run's: TensorBoard's files are in ``tensorboard/``, those of Weights and Biases too unless ``wandb_dir``
        says otherwise. The id of the run there is kept, so that ``--restart_latest`` goes on with the same one.

    Returns
    -------
    list of lightning loggers
    """
    opened = []
    if options.wandb:
        directory = folder if options.wandb_dir is None else options.wandb_dir
        logger = WandbLogger(
            name=options.wandb_name or options.name,
            project=options.wandb_project or None,
            entity=options.wandb_entity or None,
            save_dir=str(directory),
            id=_kept_id(folder),
            resume="allow",
            config={name: getattr(options, name) for name in options.wandb_log_hypers},
        )
        logger.experiment.summary["params"] = json.dumps(resolved)
        opened.append(logger)
    if options.tensorboard:
        logger = TensorBoardLogger(folder, name="tensorboard", version="")
        logger.experiment.add_text("options", f"```\n{json.dumps(resolved, indent=1)}\n```")
        opened.append(logger)
    return opened


def _kept_id(folder):
    path = folder / ID_FILE
    if not path.is_file():
        write_atomically(path, lambda temporary: temporary.write_text(uuid.uuid4().hex[:12]))
    return path.read_text().strip()


class Tracking(Callback):
    """Send every epoch's row to the trackers, and the errors of the final test when they are known."""

    def __init__(self, trackers):
        self.trackers = trackers

    def on_train_epoch_end(self, trainer, module):
        """After History, which completes the row."""
        row = {name: value for name, value in module.row.items() if name not in NOT_METRICS}
        for tracker in self.trackers:
            tracker.log_metrics(row, step=module.row["epoch"] + 1)

    def finish(self, sets, epochs):
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

    def close(self, status):
        """Write what is buffered; ``status`` is ``success`` or ``failed``."""
        for tracker in self.trackers:
            tracker.finalize(status)
            if isinstance(tracker, WandbLogger):
                tracker.experiment.finish(exit_code=0 if status == "success" else 1)
        self.trackers = []
