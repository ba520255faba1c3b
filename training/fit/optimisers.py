"""Optimisers: mace's four, over the parameter groups of a potential."""

import json
import math

import torch

from phi_equivariant.errors import InputError
from zoo import parameter_groups

#: What ``lr_params_factors`` may name: layers of a mace model, by mace's own names.
FACTORS = ("embedding_lr_factor", "interactions_lr_factor", "products_lr_factor", "readouts_lr_factor")


def build_optimizer(model, options):
    """Adam, AdamW, schedule-free AdamW or L-BFGS over a model's trainable parameters, with mace's settings.

    Each group has its own learning rate, factor · ``lr`` by ``lr_params_factors``, and weight decay only where mace
    decays. L-BFGS knows no groups: it has one rate, 1, and no decay.

    Raises
    ------
    InputError
        If a trainable parameter would not be optimised, or an optional package is missing.
    """
    groups = build_groups(model, options)
    if options.lbfgs:
        parameters = [parameter for group in groups for parameter in group["params"]]
        return torch.optim.LBFGS(parameters, history_size=200, max_iter=20, line_search_fn="strong_wolfe")
    if options.optimizer == "schedulefree":
        betas = (options.beta1_schedulefree, options.beta2_schedulefree)
        return schedule_free().AdamWScheduleFree(groups, lr=options.lr, betas=betas)
    kind = torch.optim.AdamW if options.optimizer == "adamw" else torch.optim.Adam
    # fused: the same update in one call for all parameters, half the time of a loop over them.
    return kind(groups, lr=options.lr, amsgrad=options.amsgrad, betas=(options.beta, 0.999), fused=True)


def build_groups(model, options):
    """Optimiser groups with their rates; ``factor`` is what a group's rate is of the common one, in stage two as well.

    mace gives all groups the same rate in stage two, also those whose factor is 0.
    """
    factors = read_factors(options)
    groups = []
    for group in parameter_groups(model):
        factor = group.get("factor", 1.0) * factors.get(group["name"].removesuffix("_decay").removesuffix("_no"), 1.0)
        decay = options.weight_decay if group["decay"] else 0.0
        groups.append(
            {
                "name": group["name"],
                "params": group["params"],
                "lr": factor * options.lr,
                "factor": factor,
                "weight_decay": decay,
            }
        )
    check_groups(model, groups)
    return groups


def read_factors(options):
    """{layers: factor} of ``lr_params_factors``; layers that it does not name, and those not in it, have 1.

    Raises
    ------
    InputError
        If it is no JSON of mace's four names with numbers, zero or more.
    """
    text = options.lr_params_factors
    try:
        factors = json.loads(text.replace("'", '"'))  # a dictionary in a file comes as Python writes it
    except ValueError:
        factors = None
    good = isinstance(factors, dict) and all(
        name in FACTORS and type(value) in (int, float) and 0 <= value < math.inf for name, value in factors.items()
    )
    if not good:
        raise InputError(
            f"--lr_params_factors: expected JSON with numbers, zero or more, for some of {', '.join(FACTORS)}, as in "
            f"'{{\"readouts_lr_factor\": 0.1}}', got {text!r}."
        )
    return {name.removesuffix("_lr_factor"): value for name, value in factors.items()}


def check_groups(model, groups):
    """Every trainable parameter must be in exactly one optimiser group.

    Raises
    ------
    InputError
    """
    counts = {}
    for group in groups:
        for parameter in group["params"]:
            counts[parameter] = counts.get(parameter, 0) + 1
    wrong = [name for name, p in model.named_parameters() if p.requires_grad and counts.get(p, 0) != 1]
    if wrong:
        raise InputError(f"these parameters are not in exactly one optimiser group: {', '.join(wrong)}.")


def schedule_free():
    """The package of the schedule-free optimisers, which is optional.

    Raises
    ------
    InputError
    """
    try:
        import schedulefree
    except ImportError:
        raise InputError(
            "--optimizer: schedulefree needs the package of that name: pip install schedulefree, or choose adam or "
            "adamw."
        ) from None
    return schedulefree


def check_optimizer(options):
    """Combinations that would leave an option without effect.

    Raises
    ------
    InputError
    """
    read_factors(options)
    if options.optimizer == "schedulefree":
        schedule_free()
    own = "lbfgs" if options.lbfgs else "optimizer schedulefree" if options.optimizer == "schedulefree" else None
    if own and options.scheduler == "CosineAnnealingLR":
        raise InputError(f"--scheduler: CosineAnnealingLR has no effect with --{own}, which takes no schedule.")
    if options.lbfgs and options.distributed:
        raise InputError(
            "--lbfgs: its line search takes many gradients of the whole training set per step, which this trainer does "
            "in a single process. Leave --distributed out, or choose adam or adamw."
        )
    if options.lbfgs and options.compare:
        raise InputError("--lbfgs: --compare trains its rows with a step per batch; leave one of them out.")


def set_training_mode(optimizer, training):
    """A schedule-free optimiser changes between weights to train and their average, to validate and save."""
    if hasattr(optimizer, "train"):
        (optimizer.train if training else optimizer.eval)()


def set_rates(optimizer, rate):
    """Give all groups their part of a new common learning rate; L-BFGS, which takes no rate in mace, keeps its own."""
    if not isinstance(optimizer, torch.optim.LBFGS):
        for group in optimizer.param_groups:
            group["lr"] = group["factor"] * rate
