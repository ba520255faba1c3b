"""Optimisers: mace's four, over the parameter groups of a potential."""

from typing import Any

import torch

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
