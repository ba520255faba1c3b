"""Values and combinations of options that mace's parser lets through."""

import math
from pathlib import Path

from phi_equivariant.errors import InputError
from training import mace_interface
from training.fit.losses import weight_options
from training.fit.terms import TERMS
from training.options.table import HONOURED, MEANINGLESS, REFUSED
from training.quantities import TARGETS

LONGEST_NAME = 200  # bytes: most file systems take 255, of which suffixes need some


def refuse_unhonoured(args, parser, given):
    """An option that is understood but that the trainer does not act on is refused by name."""
    for name, value in vars(args).items():
        if name not in HONOURED and name in given and value != parser.get_default(name):
            reason = {**REFUSED, **MEANINGLESS}.get(name, "phi-mace-train does not act on it")
            raise InputError(f"--{name}: {reason}. Leave it out (got {value!r}).")


def settle_width(args):
    """mace's own checks, which also fill in hidden_irreps, num_channels and max_L from each other.

    Raises
    ------
    InputError
        Where mace refuses the options, or would drop one of the three for another.
    """
    names = ("hidden_irreps", "num_channels", "max_L")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    mace_interface.check_options(args)
    for name, value in given.items():
        value = mace_interface.irreps(value) if name == "hidden_irreps" else value
        made = mace_interface.irreps(args.hidden_irreps) if name == "hidden_irreps" else getattr(args, name)
        if value != made:
            told = ", ".join(f"{name} {value}" for name, value in given.items())
            raise InputError(
                f"--{name}: {told} contradict each other. Give hidden_irreps alone, or num_channels and max_L."
            )


def check(args, phi):
    """Values and combinations that mace's parser lets through.

    Raises
    ------
    InputError
    """
    positive = ("r_max", "lr", "max_num_epochs", "batch_size", "valid_batch_size", "patience", "eval_interval")
    positive += ("swa_lr", "clip_grad", "lr_factor", "lr_scheduler_gamma", "huber_delta")
    for name in (*positive, "num_interactions", "num_radial_basis", "num_cutoff_basis", "correlation", "time_limit"):
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"--{name}: expected a number above zero, got {value}.")
    weights = [option for name in TARGETS for option in weight_options(args, name)]
    counts = ("warmup_epochs", "num_workers", "scheduler_patience", "seed")
    for name in (*weights, "weight_decay", "compare_pde_weight", *counts):
        if not 0 <= getattr(args, name) < math.inf:
            raise InputError(f"--{name}: expected zero or more, got {getattr(args, name)}.")
    for name in ("ema_decay", "final_lr_factor"):
        if not 0 <= getattr(args, name) <= 1:
            raise InputError(f"--{name}: expected a number from 0 to 1, got {getattr(args, name)}.")
    for name in ("beta", "beta1_schedulefree", "beta2_schedulefree", "lr_factor"):
        if not 0 <= getattr(args, name) < 1:
            raise InputError(f"--{name}: expected a number from 0 to less than 1, got {getattr(args, name)}.")
    name = args.name
    if name is not None and (not name or Path(name).name != name or name == ".." or len(name.encode()) > LONGEST_NAME):
        raise InputError(f"--name: {name!r} cannot be the name of a folder; expected a word, without slashes.")
    if (args.dataset is None) == (args.train_file is None and args.heads is None):
        what = "both were given" if args.dataset else "neither was given"
        raise InputError(f"--dataset and --train_file: exactly one of them says what to train on; {what}.")
    if phi is None and not args.compare:
        for name in (option for term in TERMS.values() if term.label for option in weight_options(args, term.name)):
            if getattr(args, name):
                raise InputError(
                    f"--{name}: the bare host predicts neither charges nor dipoles, so this weight would do nothing. "
                    "Leave it out, or train with Φ (a phi: section or --phi operator=coulomb)."
                )
    if args.warmup_epochs and args.scheduler != "CosineAnnealingLR":
        raise InputError(
            f"--warmup_epochs acts with --scheduler CosineAnnealingLR only; the scheduler is {args.scheduler}."
        )
