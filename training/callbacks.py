"""What happens around the epochs of a run: metrics, progress, the time limit."""

import csv
import json
import logging
import time

from lightning.pytorch.callbacks import Callback
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from phi_equivariant.files import write_atomically

logger = logging.getLogger("phi_mace_train")


class History(Callback):
    """Metrics of every epoch, in memory, in the checkpoint and in metrics.csv and metrics.json."""

    def __init__(self, folder):
        self.folder, self.rows, self._start = folder, [], 0.0

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
        write_rows(self.rows, self.folder)
        logger.info(epoch_line(module.row, module.options.max_num_epochs))


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


def epoch_line(row, epochs):
    """One line for the log: epoch, seconds, loss and current errors."""
    parts = [f"epoch {row['epoch'] + 1:4d}/{epochs}", f"{row['seconds']:7.1f} s", f"loss {row['train_loss']:.5g}"]
    shown = (
        ("valid_rmse_energy_per_atom", "E", "meV/atom", ".2f"),
        ("valid_rmse_forces", "F", "meV/Å", ".1f"),
        ("valid_rmse_charges", "q", "e", ".4f"),
        ("valid_rmse_dipole", "μ", "e·Å", ".4f"),
    )
    errors = [f"{symbol} {row[name]:{style}} {unit}" for name, symbol, unit, style in shown if name in row]
    if errors:
        parts.append("valid RMSE " + "  ".join(errors))
    if row.get("valid_pde_residual"):
        parts.append(f"R {row['valid_pde_residual']:.3g}")
    return "  ".join(parts)


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
            module.epochs_left = max(1, int(left / self.expected()))

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
        if now + self.expected() + self.test_seconds > self.deadline:
            trainer.should_stop = True
            if trainer.current_epoch + 1 < module.options.max_num_epochs:
                logger.info(
                    f"time limit: stopping after epoch {trainer.current_epoch + 1}; another one of "
                    f"{self.expected():.0f} s and the test of {self.test_seconds:.0f} s would not fit"
                )
