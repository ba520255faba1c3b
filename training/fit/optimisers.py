"""How weights move: mace's four optimisers, over the parameter groups of a potential, and schedules of their rates.

Schedules are mace's two, stepped as mace does, and cosine annealing with a linear warm-up.
"""

import math
from typing import Any

import torch
from torch.optim.lr_scheduler import ExponentialLR, ReduceLROnPlateau

from phi_equivariant.errors import InputError
from training.run import Optimiser
from zoo import parameter_groups


def build_optimizer(model: torch.nn.Module, part: Optimiser) -> torch.optim.Optimizer:
    """Adam, AdamW, schedule-free AdamW or L-BFGS over a model's trainable parameters, with mace's settings.

    Each group has its own learning rate, factor · ``lr`` by ``lr_params_factors``, and weight decay only where mace
    decays. L-BFGS knows no groups: it has one rate, 1, and no decay.

    InputError if a trainable parameter would not be optimised.
    """
    groups = build_groups(model, part)
    if part.lbfgs:
        parameters = [parameter for group in groups for parameter in group["params"]]
        return torch.optim.LBFGS(parameters, history_size=200, max_iter=20, line_search_fn="strong_wolfe")
    if part.optimizer == "schedulefree":
        import schedulefree  # an optional package, whose absence the options have been checked for

        betas = (part.beta1_schedulefree, part.beta2_schedulefree)
        return schedulefree.AdamWScheduleFree(groups, lr=part.lr, betas=betas)
    kind = torch.optim.AdamW if part.optimizer == "adamw" else torch.optim.Adam
    # fused: the same update in one call for all parameters, half the time of a loop over them.
    return kind(groups, lr=part.lr, amsgrad=part.amsgrad, betas=(part.beta, 0.999), fused=True)


def build_groups(model: torch.nn.Module, part: Optimiser) -> list[dict[str, Any]]:
    """Optimiser groups with their rates; ``factor`` is what a group's rate is of the common one, in stage two as well.

    mace gives all groups the same rate in stage two, also those whose factor is 0.
    """
    factors = part.factors()
    groups = []
    for group in parameter_groups(model):
        factor = group.get("factor", 1.0) * factors.get(group["name"].removesuffix("_decay").removesuffix("_no"), 1.0)
        decay = part.weight_decay if group["decay"] else 0.0
        rates = {"lr": factor * part.lr, "factor": factor, "weight_decay": decay}
        groups.append({"name": group["name"], "params": group["params"], **rates})
    check_groups(model, groups)
    return groups


def check_groups(model: torch.nn.Module, groups: list[dict[str, Any]]) -> None:
    """Every trainable parameter must be in exactly one optimiser group.

    Raises InputError.
    """
    counts: dict[torch.nn.Parameter, int] = {}
    for group in groups:
        for parameter in group["params"]:
            counts[parameter] = counts.get(parameter, 0) + 1
    wrong = [name for name, p in model.named_parameters() if p.requires_grad and counts.get(p, 0) != 1]
    if wrong:
        raise InputError(f"these parameters are not in exactly one optimiser group: {', '.join(wrong)}.")


def set_training_mode(optimizer: torch.optim.Optimizer, training: bool) -> None:
    """A schedule-free optimiser changes between weights to train and their average, to validate and save."""
    if hasattr(optimizer, "train") and hasattr(optimizer, "eval"):
        (optimizer.train if training else optimizer.eval)()


def set_rates(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give all groups their part of a new common learning rate; L-BFGS, which takes no rate in mace, keeps its own."""
    if not isinstance(optimizer, torch.optim.LBFGS):
        for group in optimizer.param_groups:
            group["lr"] = group["factor"] * rate


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
