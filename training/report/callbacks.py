"""What happens around the epochs of a run: metrics, plots, progress, the time limit."""

import csv
import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from phi_equivariant.files import write_atomically
from training import distribution, run_folder
from training.quantities import drawn
from training.report import curves, parity, tables
from training.report.error_sums import Energies
from training.report.pictures import attempted
from training.report.samples import LabelPairs

logger = logging.getLogger("phi_mace_train")


class History(Callback):
    """Metrics of every epoch, in memory, in the checkpoint and in metrics.csv and metrics.json.

    Lightning's CSVLogger keeps none of them in the checkpoint: a run that goes on would have those since then twice.
    """

    def __init__(self, folder: Path, form: str = "PerAtomRMSE", heads: Sequence[str] = ()) -> None:
        self.folder, self.form, self.heads = folder, form, heads
        self.rows: list[dict[str, Any]] = []
        self._start = 0.0

    def state_dict(self) -> dict[str, Any]:
        """All rows."""
        return {"rows": self.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the rows of a checkpoint."""
        self.rows = list(state["rows"])

    def on_train_epoch_start(self, trainer: pl.Trainer, module: Any) -> None:
        """Start the clock."""
        self._start = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        """Add the epoch's row and write the files."""
        module.finish_row()
        module.row["seconds"] = time.perf_counter() - self._start
        self.rows.append(dict(module.row))
        if distribution.is_main():
            write_rows(self.rows, self.folder)
            logger.info(tables.epoch_line(module.row, trainer.max_epochs, self.form, self.heads))


def write_rows(rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """metrics.csv and metrics.json."""
    names = list(dict.fromkeys(name for row in rows for name in row))

    def write_csv(path: Path) -> None:
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)

    content = json.dumps(rows, indent=1)
    write_atomically(folder / run_folder.METRICS_TABLE, write_csv)
    write_atomically(folder / run_folder.METRICS, lambda path: path.write_text(content))


class Plots(Callback):
    """Draw parity.png of the validation set and learning_curve.png anew after every ``frequency`` epochs.

    folder : of the plots
    history : the run's metrics
    frequency : in epochs
    isolated : as of :class:`training.report.samples.LabelPairs`
    """

    def __init__(self, folder: Path, history: History, frequency: int, isolated: Energies | None = None) -> None:
        self.folder, self.history, self.frequency, self.isolated = folder, history, frequency, isolated
        self.measures = drawn(history.form)[1]

    def _due(self, trainer: pl.Trainer) -> bool:
        return (trainer.current_epoch + 1) % self.frequency == 0

    def on_validation_epoch_start(self, trainer: pl.Trainer, module: Any) -> None:
        """Let the validation keep what the plot shows."""
        names = [measure.name for measure in self.measures if measure.plotted]
        module.plotted = (lambda: LabelPairs(names, self.isolated)) if self._due(trainer) else None

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        """Draw, after History has completed the row."""
        if not self._due(trainer) or not distribution.is_main():
            return
        with attempted(run_folder.LEARNING_CURVE):
            place, history = self.folder / run_folder.LEARNING_CURVE, self.history
            curves.learning_curve(place, history.rows, history.form, history.heads)
        if module.validated:
            name = f"valid, epoch {trainer.current_epoch + 1}"
            sets, errors = {name: module.pairs.samples}, {name: module.errors.table()}
            with attempted(run_folder.PARITY):
                place, interaction = self.folder / run_folder.PARITY, self.isolated is not None
                parity.parity_plot(place, sets, errors, self.measures, interaction=interaction)


class _BarOverErrors(Progress):
    """The bar, and the last validation's errors below it."""

    errors: Sequence[str] = ()

    def get_renderables(self) -> Iterable[RenderableType]:
        """The lines."""
        yield from super().get_renderables()
        yield from map(Text, self.errors)


class Bar(Callback):
    """Progress bar with rates and current errors, for terminals of 80 columns and more.

    Lightning's RichProgressBar has all metrics in the bar's own line, which 80 columns do not hold.

    console : the terminal
    form, heads : as of :func:`training.report.tables.validation_errors`
    """

    def __init__(self, console: Console, form: str = "PerAtomRMSE", heads: Sequence[str] = ()) -> None:
        self.form, self.heads = form, heads
        self.progress = _BarOverErrors(
            TextColumn("{task.description}"),
            BarColumn(bar_width=10),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self.task: TaskID | None = None
        self._start = 0.0

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        """Show the bar."""
        self.progress.start()

    def on_train_epoch_start(self, trainer: pl.Trainer, module: Any) -> None:
        """One bar per epoch."""
        if self.task is not None:
            self.progress.remove_task(self.task)
        self.task = self.progress.add_task(
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}",
            total=trainer.num_training_batches,
            rate="",
        )
        self._start = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_index: int) -> None:
        """Advance."""
        rate = (batch_index + 1) / (time.perf_counter() - self._start)
        assert self.task is not None  # Lightning begins an epoch before its batches
        self.progress.update(
            self.task, advance=1, rate=f"{rate:.1f} steps/s  {rate * batch.num_graphs:.0f} structures/s"
        )

    def on_validation_end(self, trainer: pl.Trainer, module: Any) -> None:
        """Show the new errors."""
        self.progress.errors = tables.validation_errors(module.row, self.form, self.heads)

    def on_train_end(self, trainer: pl.Trainer, module: Any) -> None:
        """Take the bar away."""
        self.progress.stop()

    def on_exception(self, trainer: pl.Trainer, module: Any, exception: BaseException) -> None:
        """Take the bar away."""
        self.progress.stop()


class TimeLimit(Callback):
    """Stop at an epoch end when the next epoch and the final test would not fit into the time that is left.

    Lightning's Timer stops when the time is over.

    deadline : ``time.monotonic()`` at which the run must be over, test included
    to_test : structures that the final test evaluates
    after : seconds that writing the results takes
    """

    def __init__(self, deadline: float, to_test: int, after: float = 3.0) -> None:
        self.deadline, self.to_test, self.after = deadline, to_test, after
        self.epoch_seconds: list[float] = []
        self.test_seconds = 0.0
        self._epoch_start = self._valid_start = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, module: Any) -> None:
        """Tell a cosine schedule how many epochs are likely to fit."""
        self._epoch_start = time.monotonic()
        if self.epoch_seconds:
            left = self.deadline - self._epoch_start - self.test_seconds
            # Clocks of several processes differ, and they must do the same.
            module.epochs_that_fit = trainer.strategy.broadcast(max(1, int(left / self.expected())))

    def on_validation_start(self, trainer: pl.Trainer, module: Any) -> None:
        """Start the clock."""
        self._valid_start = time.monotonic()

    def on_validation_end(self, trainer: pl.Trainer, module: Any) -> None:
        """Estimate the final test from the validation."""
        seconds = time.monotonic() - self._valid_start
        self.test_seconds = 1.3 * seconds * self.to_test / module.validated_structures + self.after

    def expected(self) -> float:
        """Seconds that the next epoch is expected to take."""
        recent = sorted(self.epoch_seconds[-5:])
        return recent[len(recent) // 2] * 1.02

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        """Stop if the next epoch would not fit."""
        now = time.monotonic()
        self.epoch_seconds.append(now - self._epoch_start)
        if trainer.strategy.broadcast(now + self.expected() + self.test_seconds > self.deadline):
            trainer.should_stop = True
            if trainer.max_epochs is not None and trainer.current_epoch + 1 < trainer.max_epochs:
                logger.info(
                    f"time limit: stopping after epoch {trainer.current_epoch + 1}; another one of "
                    f"{self.expected():.0f} s and the test of {self.test_seconds:.0f} s would not fit"
                )
