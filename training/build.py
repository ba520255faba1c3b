"""From a run to its data, and from both to a model that is ready to train."""

import dataclasses

import torch

from phi_equivariant import PhiPotential, attach_phi
from phi_equivariant.errors import InputError
from phi_equivariant.inputs.state import set_reader
from phi_equivariant.precision import set_default_dtype
from phi_equivariant.weights import describe_model
from training import distribution, mace_hosts, mace_interface, mace_statistics
from training.data import run_data
from training.data.order import EpochOrder
from training.data.run_data import RunData
from training.fit import foundation
from training.fit.losses import Objective, build_objective, idle_weights, needs
from training.options import named_models
from training.run import Host, Phi, Run
from zoo.mace_host import accelerate, accelerated, check_kernels


@dataclasses.dataclass(frozen=True)
class Built:
    """A model ready to train, and what goes with it."""

    model: torch.nn.Module
    objective: Objective
    stage_two: Objective | None
    outputs: dict[str, bool]
    order: EpochOrder


def check_machine(run: Run) -> None:
    """Find out whether this machine has what a run asks for.

    Raises InputError.
    """
    distribution.check_device(run.machine.device)
    for name in (*run.host.kernels, *(["use_reduced_cg"] if run.host.use_reduced_cg else [])):
        try:
            check_kernels("oeq" if name == "enable_oeq" else "cueq")
        except InputError as error:
            raise InputError(f"--{name}: {error}") from None


def load(run: Run) -> tuple[Run, RunData]:
    """Precision, then the trained model to start from, then the data of a run.

    The run has the architecture of the trained model where there is one, and the electronegativity that was found.
    """
    set_default_dtype(run.machine.default_dtype)
    torch.set_float32_matmul_precision("highest")  # no TF32, whose ten bits are too few for energies
    trained = foundation.read(run.host, run.phi)
    if trained is not None:
        run = foundation.settled(run, trained)
    objectives = {1: build_objective(run.loss, run.phi)}
    if run.stages.swa:
        objectives[2] = build_objective(run.loss, run.phi, stage=2)
    optional = ("stress",) if run.replay.active else ()  # its loss is mace's universal one, whatever was asked for
    data = run_data.load(run, needs(run.loss, objectives, run.given, optional), trained)
    if run.phi is not None:
        config = dataclasses.replace(run.phi.config, electronegativity=data.electronegativity)
        run = dataclasses.replace(run, phi=dataclasses.replace(run.phi, config=config))
    data.lines += [f"loss{_of_stage(stage)}: {made.describe()}" for stage, made in objectives.items()]
    data.lines += idle_weights(run.loss, objectives, run.given)
    data.lines[:0] = run.notes
    if trained is not None:
        data.lines.insert(0, trained.line())
        data.provenance["foundation_model"] = trained.path
    return run, data


def _of_stage(stage: int) -> str:
    return "" if stage == 1 else " of stage two"


def build(run: Run, data: RunData) -> Built:
    """The model of a run, initialised from its seed."""
    mace_interface.set_seeds(run.machine.seed)
    order = data.order()
    host, outputs = _build_host(run, data, order)
    model = host if run.phi is None else _attach(host, run.phi, data)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError(f"--freeze: {run.host.freeze} leaves nothing to train. Choose a smaller number.")
    if run.output.save_mace_model:
        mace_hosts.check_host(model)
    set_reader(model, data.state)  # what it is evaluated on is read as this was
    describe_model(model)  # what cannot be saved must not be trained
    stage_two = build_objective(run.loss, run.phi, stage=2) if run.stages.swa else None
    objective = build_objective(run.loss, run.phi)
    polarizability = any("polarizability" in one.labels() for one in (objective, stage_two) if one is not None)
    return Built(model, objective, stage_two, {**outputs, "polarizability": polarizability}, order)


def _build_host(run: Run, data: RunData, order: EpochOrder) -> tuple[torch.nn.Module, dict[str, bool]]:
    """A fresh host or one with trained weights, in the layout of the kernels that were asked for."""
    training = mace_statistics.TrainingSet(
        data.statistics_pass(order), data.atomic_numbers, data.settings, data.e0s, data.electronegativity or 0.0
    )
    if named_models.is_named(run.host.model):
        host, outputs = named_models.build_host(run.host, run.data, run.loss, training)
    elif data.foundation is None:
        host, outputs = mace_hosts.build_host(run.host, run.data, run.loss, training)
    else:
        host, outputs = mace_hosts.fine_tuned_host(run.host, run.data, run.loss, training, data.foundation.model)
    return _with_kernels(host, run.host, run.machine.device), outputs


def _with_kernels(made: torch.nn.Module, host: Host, device: str) -> torch.nn.Module:
    """The host on the kernels that were asked for, its frozen layers frozen."""
    if host.kernels and accelerated(made) is None:
        made = accelerate(made, "oeq" if host.enable_oeq else "cueq", device)
    if host.freeze:
        mace_hosts.freeze_layers(made, host.freeze)
    return made


def _attach(host: torch.nn.Module, phi: Phi, data: RunData) -> PhiPotential:
    """The host with Φ, trained Φ of the foundation model where there is one, and the host's part in training."""
    model: PhiPotential = attach_phi(host, phi.config)
    model.host_lr_factor = phi.host_lr_factor
    if phi.freeze_host:
        host.requires_grad_(False)
    if data.foundation is not None and data.foundation.phi is not None:
        foundation.take_over_phi(model.phi, data.foundation, data.atomic_numbers)
    return model


def describe(host: Host, phi: Phi | None) -> str:
    """The kind of potential, for the log."""
    if phi is None:
        return f"{host.model} without Φ"
    config = phi.config
    words = [config.operator, config.poisson]
    if config.responds:
        words = [config.operator, config.charge_model, *(["polarizable"] if config.polarizable else [])]
    return f"{host.model} with Φ ({', '.join(words)})"
