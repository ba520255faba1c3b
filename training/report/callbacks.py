"""What happens around the epochs of a run: metrics, plots, progress, the time limit."""

import csv
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from phi_equivariant.files import write_atomically
from training import distribution
from training.report import plots, tables
from training.report.error_sums import PLOTTED
from training.run import Output

logger = logging.getLogger("phi_mace_train")


class History(Callback):
    """Metrics of every epoch, in memory, in the checkpoint and in metrics.csv and metrics.json."""

    def __init__(self, folder, form="PerAtomRMSE", heads=()):
        self.folder, self.form, self.heads = folder, form, heads
        self.rows, self._start = [], 0.0

    def state_dict(self):
        """All rows."""
        return {"rows": self.rows}

    def load_state_dict(self, state):
        """Continue from the rows of a checkpoint."""
        self.rows = list(state["rows"])

    def on_train_epoch_start(self, trainer, module):
        """Start the clock."""
        self._start = time.perf_counter()

    def on_train_epoch_end(self, trainer, module):
        """Add the epoch's row and write the files."""
        module.finish_row()
        module.row["seconds"] = time.perf_counter() - self._start
        self.rows.append(dict(module.row))
        if distribution.is_main():
            write_rows(self.rows, self.folder)
            logger.info(tables.epoch_line(module.row, trainer.max_epochs, self.form, self.heads))


def write_rows(rows, folder):
    """metrics.csv and metrics.json."""
    names = list(dict.fromkeys(name for row in rows for name in row))

    def write_csv(path):
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)

    write_atomically(folder / "metrics.csv", write_csv)
    write_atomically(folder / "metrics.json", lambda path: path.write_text(json.dumps(rows, indent=1)))


class Plots(Callback):
    """Draw parity.png of the validation set and learning_curve.png anew after every ``plot_frequency`` epochs."""

    def __init__(self, folder: Path, history: History, output: Output, isolated: Callable[..., Any]):
        self.folder, self.history, self.every = folder, history, output.plot_frequency
        self.isolated = isolated if output.plot_interaction_e else None

    def _due(self, trainer):
        return (trainer.current_epoch + 1) % self.every == 0

    def on_validation_epoch_start(self, trainer, module):
        """Let the validation keep what the plot shows."""
        module.plotted, module.isolated = (PLOTTED, self.isolated) if self._due(trainer) else ((), None)

    def on_train_epoch_end(self, trainer, module):
        """Draw, after History has completed the row."""
        if not self._due(trainer) or not distribution.is_main():
            return
        plots.learning_curve(self.folder / "learning_curve.png", self.history.rows)
        if module.validated:
            title, interaction = f"valid, epoch {trainer.current_epoch + 1}", self.isolated is not None
            pairs, table = module.errors.pairs, module.errors.table()
            plots.parity_plot(self.folder / "parity.png", pairs, title, table, interaction)


class Bar(Callback):
    """Progress bar with rates and current errors, for terminals."""

    def __init__(self, console):
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[errors]}"),
            console=console,
            transient=True,
        )
        self.task, self._start = None, 0.0

    def on_train_start(self, trainer, module):
        """Show the bar."""
        self.progress.start()

    def on_train_epoch_start(self, trainer, module):
        """One bar per epoch."""
        errors = "" if self.task is None else self.progress.tasks[0].fields["errors"]
        if self.task is not None:
            self.progress.remove_task(self.task)
        self.task = self.progress.add_task(
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}",
            total=trainer.num_training_batches,
            rate="",
            errors=errors,
        )
        self._start = time.perf_counter()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_index):
        """Advance."""
        rate = (batch_index + 1) / (time.perf_counter() - self._start)
        self.progress.update(
            self.task, advance=1, rate=f"{rate:.1f} steps/s  {rate * batch.num_graphs:.0f} structures/s"
        )

    def on_validation_end(self, trainer, module):
        """Show the new errors."""
        energy, forces = (module.row.get(f"valid_rmse_{name}") for name in ("energy_per_atom", "forces"))
        text = "" if energy is None else f"E {energy:.1f} meV/atom "
        text += "" if forces is None else f"F {forces:.1f} meV/Å"
        if self.task is not None:
            self.progress.update(self.task, errors=text)

    def on_train_end(self, trainer, module):
        """Take the bar away."""
        self.progress.stop()

    def on_exception(self, trainer, module, exception):
        """Take the bar away."""
        self.progress.stop()


class TimeLimit(Callback):
    """Stop at an epoch end when the next epoch and the final test would not fit into the time that is left.

    Parameters
    ----------
    deadline : float
        ``time.monotonic()`` at which the run must be over, test included.
    to_test : int
        Structures that the final test evaluates.
    """

    def __init__(self, deadline, to_test):
        self.deadline, self.to_test = deadline, to_test
        self.epoch_seconds, self.test_seconds = [], 0.0
        self._epoch_start = self._valid_start = 0.0

    def on_train_epoch_start(self, trainer, module):
        """Tell a cosine schedule how many epochs are likely to fit."""
        self._epoch_start = time.monotonic()
        if self.epoch_seconds:
            left = self.deadline - self._epoch_start - self.test_seconds
            # Clocks of several processes differ, and they must do the same.
            module.epochs_that_fit = trainer.strategy.broadcast(max(1, int(left / self.expected())))

    def on_validation_start(self, trainer, module):
        """Start the clock."""
        self._valid_start = time.monotonic()

    def on_validation_end(self, trainer, module):
        """Estimate the final test from the validation."""
        seconds = time.monotonic() - self._valid_start
        self.test_seconds = 1.3 * seconds * self.to_test / module.validated_structures + 3.0

    def expected(self):
        """Seconds that the next epoch is expected to take."""
        recent = sorted(self.epoch_seconds[-5:])
        return recent[len(recent) // 2] * 1.02

    def on_train_epoch_end(self, trainer, module):
        """Stop if the next epoch would not fit."""
        now = time.monotonic()
        self.epoch_seconds.append(now - self._epoch_start)
        if trainer.strategy.broadcast(now + self.expected() + self.test_seconds > self.deadline):
            trainer.should_stop = True
            if trainer.current_epoch + 1 < trainer.max_epochs:
                logger.info(
                    f"time limit: stopping after epoch {trainer.current_epoch + 1}; another one of "
                    f"{self.expected():.0f} s and the test of {self.test_seconds:.0f} s would not fit"
                )
