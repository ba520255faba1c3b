"""From a run's options to a model that is ready to train."""

import dataclasses

import torch

from phi_equivariant import attach_phi
from phi_equivariant.errors import InputError
from phi_equivariant.inputs.state import set_reader
from phi_equivariant.weights import describe_model
from training import mace_interface
from training.data.run_data import load
from training.fit import foundation, losses, optimisers, schedules, stages
from training.options import named_models
from training.report import tables, trackers
from zoo.mace_host import accelerate, accelerated, check_kernels


@dataclasses.dataclass
class Built:
    """A model ready to train, and what goes with it."""

    model: torch.nn.Module
    objective: losses.Objective
    stage_two: losses.Objective | None
    outputs: dict
    order: object


def check_run(run):
    """Find everything that is wrong with a run's options before reading data or making a folder."""
    args = run.args
    schedules.check_schedule(args)
    if args.model not in ("MACE", "ScaleShiftMACE", *named_models.NAMES):
        raise InputError(
            f"--model: phi-mace-train trains MACE, ScaleShiftMACE, {', '.join(named_models.NAMES)}; {args.model} is "
            "another architecture."
        )
    optimisers.check_optimizer(args)
    stages.check_stages(args)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device: cuda was asked for, but torch finds no CUDA device. Use --device cpu.")
    if args.device not in ("cpu", "cuda"):
        raise InputError(f"--device: {args.device} is not supported; choose cpu or cuda.")
    _check_architecture(args)
    foundation.check_options(run)
    losses.build_objective(args, run.phi)
    tables.check_reports(args, run.phi)
    trackers.check_trackers(args, run.given)


def _check_architecture(args):
    """Options of the host that mace would ignore or fail on with a message of its own."""
    kernels = [name for name in ("enable_cueq", "only_cueq", "enable_oeq") if getattr(args, name)]
    if args.enable_oeq and len(kernels) > 1:
        raise InputError(f"--enable_oeq and --{kernels[0]} are both given; choose one kind of kernels.")
    for name in [*kernels, *(["use_reduced_cg"] if args.use_reduced_cg else [])]:
        try:
            check_kernels("oeq" if name == "enable_oeq" else "cueq")
        except InputError as error:
            raise InputError(f"--{name}: {error}") from None
    if args.enable_oeq and args.device != "cuda":
        raise InputError(
            "--enable_oeq: openequivariance's kernels run on CUDA only. Leave it out, or use --device cuda."
        )
    if args.freeze is not None and args.freeze < 0:
        raise InputError(
            f"--freeze: expected 0 (nothing) to 7 (all but what embeds charge and spin), got {args.freeze}."
        )
    if args.foundation_model is not None:
        return
    if args.use_last_readout_only and args.num_interactions == 1:
        raise InputError("--use_last_readout_only: with one interaction no readout would be left. Leave it out.")
    if args.use_edge_irreps_first and args.edge_irreps is None:
        raise InputError("--use_edge_irreps_first acts with --edge_irreps only; give them, or leave it out.")
    if args.use_embedding_readout and not args.embedding_specs:
        raise InputError("--use_embedding_readout acts with --embedding_specs only; give them, or leave it out.")


def prepare(run):
    """Precision, then the trained model to start from, then the data of a run."""
    mace_interface.set_default_dtype(run.args.default_dtype)
    torch.set_float32_matmul_precision("highest")  # no TF32, whose ten bits are too few for energies
    trained = foundation.read(run)
    run_data = load(run.args, run.phi, trained)
    if trained is not None:
        run_data.lines.insert(0, trained.line())
        run_data.provenance["foundation_model"] = trained.path
    return run_data


def build(run, run_data):
    """The model of a run, initialised from its seed."""
    args = run.args
    mace_interface.set_seeds(args.seed)
    order = run_data.order(args)
    host, outputs = _build_host(args, run_data, order)
    model = host if run.phi is None else _attach(host, run.phi, run_data)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError(f"--freeze: {args.freeze} leaves nothing to train. Choose a smaller number.")
    set_reader(model, run_data.state)  # what it is evaluated on is read as this was
    describe_model(model)  # what cannot be saved must not be trained
    stage_two = losses.build_objective(args, run.phi, stage=2) if args.swa else None
    return Built(model, losses.build_objective(args, run.phi), stage_two, outputs, order)


def _build_host(args, run_data, order):
    """A fresh host or one with trained weights, in the layout of the kernels that were asked for."""
    arguments = (args, run_data.statistics_pass(order), run_data.e0s, run_data.atomic_numbers, run_data.settings)
    if named_models.is_named(args):
        host, outputs = named_models.build_host(*arguments)
    elif run_data.foundation is None:
        host, outputs = mace_interface.build_host(*arguments)
    else:
        host, outputs = mace_interface.fine_tuned_host(*arguments, run_data.foundation.model)
    if (args.enable_cueq or args.only_cueq or args.enable_oeq) and accelerated(host) is None:
        host = accelerate(host, "oeq" if args.enable_oeq else "cueq", args.device)
    if args.freeze:
        mace_interface.freeze_layers(host, args.freeze)
    return host, outputs


def _attach(host, settings, run_data):
    """The host with Φ, trained Φ of the foundation model where there is one, and the host's part in training."""
    model = attach_phi(host, settings.config)
    model.host_lr_factor = settings.host.host_lr_factor
    if settings.host.freeze_host:
        host.requires_grad_(False)
    if run_data.foundation is not None and run_data.foundation.phi is not None:
        foundation.take_over_phi(model.phi, run_data.foundation, run_data.atomic_numbers)
    return model


def describe(run):
    """The kind of potential, for the log."""
    if run.phi is None:
        return run.args.model
    return f"{run.args.model} with Φ ({run.phi.config.operator}, {run.phi.config.poisson})"
