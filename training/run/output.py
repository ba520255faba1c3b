"""What a run leaves, where, and what it tells."""

import dataclasses
import importlib.util
import logging
from pathlib import Path
from typing import Any

from phi_equivariant.errors import InputError
from training.quantities import FORMS
from training.run.option import RunPart, option

LONGEST_NAME = 200  # bytes: most file systems take 255, of which suffixes need some


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Output(RunPart):
    """The run's folder, log, tables, plots and trackers."""

    name: str = option("name of the run and of its folder (derived from the data when absent)", restart=True)
    work_dir: str = option("the run's folder <work_dir>/<name> is made in here", restart=True)
    log_dir: str | None = option("the log goes to <log_dir>/<name>.log, in place of the run's folder", restart=True)
    model_dir: str | None = option("the trained model goes to <model_dir>/<name>/", restart=True)
    checkpoints_dir: str | None = option("checkpoints go to <checkpoints_dir>/<name>/", restart=True)
    results_dir: str | None = option("metrics, errors and plots go to <results_dir>/<name>/", restart=True)
    save_all_checkpoints: bool = option(
        "save the model of every validated epoch, to checkpoints/epoch-<number>/", restart=True
    )
    save_mace_model: bool = option(
        "write <name>.model too, the pickle that mace's own tools take, beside the model of each stage", restart=True
    )
    keep_checkpoints: bool = option("save the model of every epoch that was the best so far, likewise", restart=True)
    save_cpu: bool = option("always so: saved models load on a CPU", restart=True)
    log_level: str = option("level of the log on the terminal", restart=True)
    error_table: str = option("which errors the log and the tables show: mace's ten forms", restart=True)
    skip_evaluate_heads: str | None = option("heads left out of the error tables")
    plot: bool = option("write parity.png, learning_curve.png, charges.png and report.html", restart=True)
    plot_frequency: int = option("draw them after every so many epochs too", restart=True)
    plot_interaction_e: bool = option("parity of the interaction energy, E minus the E0s", restart=True)
    tensorboard: bool = option("write the metrics for TensorBoard, to tensorboard/ in the run's folder", restart=True)
    wandb: bool = option("log to Weights and Biases", restart=True)
    wandb_dir: str | None = option("its folder", restart=True)
    wandb_project: str = option("its project", restart=True)
    wandb_entity: str = option("its entity", restart=True)
    wandb_name: str = option("name of the run there", restart=True)
    wandb_log_hypers: list[Any] = option("options that it records", restart=True)

    def __post_init__(self) -> None:
        name = self.name
        if not name or Path(name).name != name or name == ".." or len(name.encode()) > LONGEST_NAME:
            raise InputError(f"--name: {name!r} cannot be the name of a folder; expected a word, without slashes.")
        if self.log_level.upper() not in logging.getLevelNamesMapping():
            raise InputError(f"--log_level: expected DEBUG, INFO, WARNING or ERROR, got {self.log_level!r}.")
        if self.plot_frequency < 0:
            raise InputError(f"--plot_frequency: expected 0 (at the end only) or more, got {self.plot_frequency}.")
        if self.error_table not in FORMS:
            raise InputError(f"--error_table: {self.error_table} is not shown here. Choose {', '.join(FORMS)}.")
        for tracker in ("wandb", "tensorboard"):
            if getattr(self, tracker) and importlib.util.find_spec(tracker) is None:
                needs = f"needs the package {tracker}: pip install 'phi-equivariant[{tracker}]'"
                raise InputError(f"--{tracker} {needs}, or leave --{tracker} out.")

    def unknown_heads(self, heads: list[str]) -> list[str]:
        """Names in ``skip_evaluate_heads`` that no head has; mace has pt_head there by default."""
        return sorted(self._named() - {"pt_head"} - set(heads))

    def skipped(self, heads: list[str]) -> set[str]:
        """Those of a run's heads that tables leave out.

        InputError if no head is left.
        """
        found = self._named() & set(heads)
        if found == set(heads):
            raise InputError("--skip_evaluate_heads: no head would be evaluated. Leave one in.")
        return found

    def _named(self) -> set[str]:
        return {name.strip() for name in (self.skip_evaluate_heads or "").split(",")} - {""}
