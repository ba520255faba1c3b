"""What decides how a run goes on after an epoch: intervals of validation, patience, and the change to stage two."""

import logging
import math
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from training import run

logger = logging.getLogger("phi_mace_train")


class StageChanges(Callback):
    """Validate every ``eval_interval`` epochs, change to stage two at epoch ``start_swa``, stop when patience is over.

    In stage two the loss has other weights, the learning rate is ``swa_lr``, and the search for the best epoch begins
    anew. Patience that ends in stage one brings stage two forward, and the end of the run with it: stage two keeps its
    number of epochs. (mace's patience counts the epoch ``start_swa`` as done.)
    """

    def __init__(self, part: run.Stages) -> None:
        self.part = part
        self.start = part.start_swa if part.swa else None  # first epoch of stage two
        self.stage, self.lowest, self.waited, self.diverged = 1, math.inf, 0, False

    @property
    def epochs(self) -> int:
        """Number of epochs of the run."""
        planned = self.part.start_swa
        brought_forward = 0 if self.start is None or planned is None else planned - self.start
        return self.part.max_num_epochs - brought_forward

    @property
    def over(self) -> bool:
        """Whether no further epoch shall be trained, however many are left."""
        impatient = self.waited >= self.part.patience and (self.start is None or self.stage == 2)
        return impatient or self.diverged

    def reason(self) -> str:
        """Why the run is over."""
        if self.diverged:
            return "stopped: the validation loss is not finite; a smaller --lr may help"
        return f"stopped: {self.waited} validations without a better loss"

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for the checkpoint."""
        return {name: getattr(self, name) for name in ("start", "stage", "lowest", "waited", "diverged")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        for name, value in state.items():
            setattr(self, name, value)

    def on_train_epoch_start(self, trainer: pl.Trainer, module: Any) -> None:
        """Change the stage where it is time, and say whether this epoch is to be validated."""
        epoch = trainer.current_epoch
        self._share_time(epoch, module.epochs_that_fit)
        trainer.fit_loop.max_epochs = self.epochs
        if self.stage == 1 and self.start is not None and epoch >= self.start:
            self.stage, self.lowest, self.waited = 2, math.inf, 0
            module.begin_stage_two()
            logger.info(
                f"stage two from epoch {epoch + 1} on: its own weights of the loss, learning rate {module.rate}"
            )
        module.stage = self.stage
        module.epochs_left = (self.start if self.stage == 1 and self.start is not None else self.epochs) - epoch
        if module.epochs_that_fit is not None:
            module.epochs_left = max(1, min(module.epochs_left, module.epochs_that_fit))
        due = epoch % self.part.eval_interval == 0 or epoch + 1 >= self.epochs
        trainer.check_val_every_n_epoch = 1 if due else epoch + 2  # Lightning's remainder of epoch + 1

    def _share_time(self, epoch: int, epochs_that_fit: int | None) -> None:
        """Under a time limit that the run will not fit into, stage two gets its share of the epochs that fit."""
        planned = self.part.start_swa
        if self.stage == 1 and self.start is not None and planned is not None and epochs_that_fit is not None:
            total = epoch + epochs_that_fit
            if total < self.part.max_num_epochs:
                share = planned / self.part.max_num_epochs
                self.start = min(self.start, max(epoch, 1, round(share * total)))

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        """Count epochs without a better validation loss."""
        if not module.validated:
            return
        if not math.isfinite(module.valid_loss):
            self.diverged = True
        elif module.valid_loss < self.lowest:
            self.lowest, self.waited = module.valid_loss, 0
        else:
            self.waited += 1
        if self.over:
            trainer.should_stop = True
        elif self.start is not None and self.waited >= self.part.patience and self.start > trainer.current_epoch + 1:
            self.start = trainer.current_epoch + 1
            logger.info(f"{self.waited} validations without a better loss: stage two begins")
