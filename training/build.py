"""From a run's options to a model that is ready to train."""

import dataclasses

import torch

from phi_equivariant import attach_phi
from phi_equivariant.errors import InputError
from phi_equivariant.weights import describe_model
from training import data, losses, mace_interface, schedules


@dataclasses.dataclass
class Built:
    """A model ready to train, and what goes with it."""

    model: torch.nn.Module
    objective: losses.Objective
    outputs: dict
    order: object


def check_run(run):
    """Find everything that is wrong with a run's options before reading data or making a folder."""
    args = run.args
    schedules.check_schedule(args)
    if args.model not in ("MACE", "ScaleShiftMACE"):
        raise InputError(
            f"--model: phi-mace-train trains MACE and ScaleShiftMACE; {args.model} is another architecture."
        )
    if args.optimizer == "schedulefree":
        raise InputError("--optimizer: schedulefree is not supported; choose adam or adamw.")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device: cuda was asked for, but torch finds no CUDA device. Use --device cpu.")
    if args.device not in ("cpu", "cuda"):
        raise InputError(f"--device: {args.device} is not supported; choose cpu or cuda.")
    losses.build_objective(args, run.phi)


def prepare(run):
    """Precision, then the data of a run."""
    mace_interface.set_default_dtype(run.args.default_dtype)
    return data.load(run.args, run.phi)


def build(run, run_data):
    """The model of a run, initialised from its seed."""
    args = run.args
    mace_interface.set_seeds(args.seed)
    order = run_data.order(args)
    model, outputs = mace_interface.build_host(
        args, run_data.statistics_pass(order), run_data.e0s, run_data.atomic_numbers
    )
    if run.phi is not None:
        model = attach_phi(model, run.phi.config)
        outputs = {**outputs, "stress": False, "virials": False}
    describe_model(model)  # what cannot be saved must not be trained
    return Built(model, losses.build_objective(args, run.phi), outputs, order)


def describe(run):
    """The kind of potential, for the log."""
    if run.phi is None:
        return run.args.model
    return f"{run.args.model} with Φ ({run.phi.config.operator}, {run.phi.config.poisson})"
