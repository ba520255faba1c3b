"""Learning-rate schedules: mace's two, stepped as mace does, and cosine annealing with a linear warm-up."""

import math
from typing import Any

import torch
from torch.optim.lr_scheduler import ExponentialLR, ReduceLROnPlateau

from training.run import Optimiser


class Schedule:
    """One of torch's, stepped after each epoch, or none: schedule-free optimisers and L-BFGS take none, as in mace."""

    def __init__(self, scheduler: Any = None) -> None:
        self.scheduler = scheduler

    def before_step(self, epochs_left: int) -> None:
        """Change rates from step to step; ``epochs_left`` counts the present epoch."""

    def after_epoch(self, valid_loss: float) -> None:
        """Change rates from epoch to epoch."""
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(metrics=valid_loss)
        elif self.scheduler is not None:
            self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for the checkpoint."""
        return {} if self.scheduler is None else self.scheduler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state)


class Cosine(Schedule):
    """lr·p/p_w during the warm-up, then lr·(f + (1 − f)(1 + cos π(p − p_w)/(1 − p_w))/2); p runs from 0 to 1.

    p advances by what is left of it over the steps that are left: a run that a time limit shortens still ends at p = 1.
    A run with a stage two ends its cosine where that begins.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, part: Optimiser, epochs: int, steps_per_epoch: int) -> None:
        self.optimizer, self.steps_per_epoch = optimizer, steps_per_epoch
        self.warmup = min(1.0, part.warmup_epochs / epochs)
        self.final = part.final_lr_factor
        self.base = [group["lr"] for group in optimizer.param_groups]
        self.progress = 0.0
        self.step_in_epoch = 0

    def factor(self, progress: float) -> float:
        """Rate over the base rate."""
        if progress < self.warmup:
            return progress / self.warmup
        phase = (progress - self.warmup) / max(1.0 - self.warmup, 1e-12)
        return self.final + (1.0 - self.final) * 0.5 * (1.0 + math.cos(math.pi * phase))

    def before_step(self, epochs_left: int) -> None:
        """Advance by one step and set the rates; ``epochs_left`` counts the present epoch."""
        steps_left = epochs_left * self.steps_per_epoch - self.step_in_epoch
        self.progress += (1.0 - self.progress) / max(1, steps_left)
        self.step_in_epoch += 1
        for group, base in zip(self.optimizer.param_groups, self.base, strict=True):
            group["lr"] = base * self.factor(self.progress)

    def after_epoch(self, valid_loss: float) -> None:
        """Count steps from zero again."""
        self.step_in_epoch = 0

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for the checkpoint."""
        return {"progress": self.progress, "base": self.base}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        self.progress, self.base = state["progress"], state["base"]


def build_schedule(optimizer: torch.optim.Optimizer, part: Optimiser, epochs: int, steps_per_epoch: int) -> Schedule:
    """The schedule that ``--scheduler`` names, over the epochs of stage one."""
    if not part.scheduled:
        return Schedule()
    if part.scheduler == "CosineAnnealingLR":
        return Cosine(optimizer, part, epochs, steps_per_epoch)
    if part.scheduler == "ExponentialLR":
        return Schedule(ExponentialLR(optimizer, gamma=part.lr_scheduler_gamma))
    return Schedule(ReduceLROnPlateau(optimizer, factor=part.lr_factor, patience=part.scheduler_patience))
