"""What a run is: frozen parts, each with its options and their checks, and what must hold between the parts."""

import dataclasses
from typing import Any, Self

import yaml

from phi_equivariant.errors import InputError
from training.quantities import OF_PHI
from training.run.data import Data, Head
from training.run.host import Host
from training.run.loss import Loss
from training.run.optimiser import Optimiser, Stages
from training.run.option import HEAD, RunPart
from training.run.output import Output
from training.run.phi import Phi
from training.run.replay import Replay
from training.run.task import Machine, Task

__all__ = [
    "HEAD", "PARTS", "Data", "Head", "Host", "Loss", "Machine", "Optimiser", "Output", "Phi", "Replay", "Run", "Stages",
    "Task", "options", "options_that_may_change",
]  # fmt: skip

#: The parts that hold options: attribute of :class:`Run` -> (class, title).
PARTS: dict[str, tuple[type[RunPart], str]] = {
    "task": (Task, "What to do"),
    "data": (Data, "Data"),
    "host": (Host, "Host"),
    "replay": (Replay, "Replay"),
    "loss": (Loss, "Loss"),
    "optimiser": (Optimiser, "Optimiser"),
    "stages": (Stages, "Stages"),
    "output": (Output, "Output"),
    "machine": (Machine, "Machine"),
}
#: Options that mace turns off by a switch: {option: the switch}.
_SWITCHES_OFF = {
    "foundation_model_readout": "foundation_model_readout",
    "allow_random_padding_pt": "disallow_random_padding_pt",
}


def options() -> dict[str, dataclasses.Field[Any]]:
    """{option: its field} of all parts."""
    return {field.name: field for kind, _ in PARTS.values() for field in kind.options()}


def options_that_may_change() -> set[str]:
    """Options that may differ between an interrupted run and its continuation."""
    return {name for name, field in options().items() if field.metadata["restart"]}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Everything that defines a run.

    task, …, machine : the options, by part; phi : the ``phi:`` section, None for the bare host; heads : as the options
    describe them; given : options that the user gave another value than the default, on the command line or in a file;
    said : options that the user gave any value; command : how to call it again; notes : lines for the log about options
    that were settled otherwise than given, or cannot act.
    """

    task: Task
    data: Data
    host: Host
    replay: Replay
    loss: Loss
    optimiser: Optimiser
    stages: Stages
    output: Output
    machine: Machine
    phi: Phi | None
    heads: tuple[Head, ...] = ()
    given: frozenset[str] = frozenset()
    said: frozenset[str] = frozenset()
    command: str = ""
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, values: dict[str, Any], **others: Any) -> Self:
        """A run from the values of all options."""
        parts: dict[str, Any] = {name: kind.of(values) for name, (kind, _) in PARTS.items()}
        return cls(**parts, **others)

    def changed(self, **values: Any) -> Self:
        """The same run with other values of some options."""
        parts = {}
        for name, (kind, _) in PARTS.items():
            own = {field.name: values.pop(field.name) for field in kind.options() if field.name in values}
            if own:
                parts[name] = dataclasses.replace(getattr(self, name), **own)
        if values:
            raise TypeError(f"no option of a run: {', '.join(values)}")
        return dataclasses.replace(self, **parts)

    def values(self) -> dict[str, Any]:
        """{option: value}."""
        return {key: value for name in PARTS for key, value in getattr(self, name).values().items()}

    def resolved(self) -> dict[str, Any]:
        """Every option with its final value, as it could stand in a YAML file."""
        plain = {key: value for key, value in self.values().items() if value is not None and key != "config"}
        # In mace these are switches that turn something off: true in a file means that the switch was given.
        for name, switch in _SWITCHES_OFF.items():
            if not plain.pop(name):
                plain[switch] = True
        for name in ("num_channels", "max_L"):  # which hidden_irreps tell, and more exactly
            plain.pop(name, None)
        for key, value in plain.items():
            if not isinstance(value, bool | int | float | str | list | dict):
                plain[key] = str(value)
        return {**plain, "phi": None if self.phi is None else self.phi.section()}

    def as_yaml(self) -> str:
        """The same as text, as config.yaml has it."""
        return yaml.safe_dump(self.resolved(), sort_keys=True, allow_unicode=True)

    def __post_init__(self) -> None:
        if self.phi is None:
            self._check_bare_host()
        if self.loss.polarizability_weight and self.phi is not None and not self.phi.config.responds:
            raise InputError(
                "--polarizability_weight: with charge_model: direct and polarizable: false nothing responds to a "
                "field. Leave it out, or choose charge_model: qeq, sqe or polarizable: true."
            )
        if self.stages.start_swa is not None and self.loss.loss == "forces_only":
            raise InputError("--swa: stage two is for the energy, which --loss forces_only does not train.")
        if self.host.enable_oeq and self.machine.device != "cuda":
            raise InputError("--enable_oeq: openequivariance's kernels run on CUDA only. Use --device cuda.")
        self._check_processes()
        self._check_replay()
        self._check_trained_host()
        self._check_trackers()

    def _check_bare_host(self) -> None:
        """What a host without Φ does not predict; a comparison has rows with Φ."""
        if self.task.compare:
            return
        for name, value in self.loss.values().items():
            label = OF_PHI.get(name.removeprefix("swa_").removesuffix("_weight"))
            if value and label is not None:
                raise InputError(
                    f"--{name}: the bare host does not predict {label.plural}, so this weight would do nothing. "
                    "Leave it out, or train with Φ (a phi: section or --phi operator=coulomb)."
                )
        if "Dipole" in self.output.error_table:
            raise InputError(
                f"--error_table: {self.output.error_table} shows dipoles, which the bare host does not predict. Train "
                "with Φ (a phi: section or --phi operator=coulomb), or choose another form."
            )

    def _check_processes(self) -> None:
        """What a distributed run and a comparison cannot do."""
        if self.optimiser.lbfgs and self.machine.distributed:
            raise InputError("--lbfgs takes a single process. Leave --distributed out, or choose adam or adamw.")
        if self.optimiser.lbfgs and self.task.compare:
            raise InputError("--lbfgs: --compare trains its rows with a step per batch; leave one of them out.")
        if self.machine.distributed and self.task.compare:
            raise InputError("--compare: its rows are trained by a single process. Leave --distributed out.")

    def _check_replay(self) -> None:
        """What mace's replay cannot do, and a data set of the registry."""
        if not self.replay.active:
            return
        if self.host.foundation_model is None:
            raise InputError("--multiheads_finetuning: nothing is fine-tuned without --foundation_model. Give one.")
        if self.data.dataset is not None:
            raise InputError("--pt_train_file: a data set of the registry has one head. Give files, or leave it out.")
        if isinstance(self.data.E0s, str) and self.data.E0s.lower() == "average":
            raise InputError(
                "--E0s: average would shift the new heads against the trained model's. Give the energies of isolated "
                "atoms, or estimated, or foundation."
            )

    def _check_trained_host(self) -> None:
        """Options of fine-tuning that would have no effect."""
        frozen = self.phi is not None and self.phi.freeze_host
        if self.host.foundation_model is None:
            if frozen:
                raise InputError("phi: freeze_host needs a trained host. Give --foundation_model, or leave it out.")
            if self.phi is not None and self.phi.fresh:
                raise InputError(
                    "phi: fresh starts the Φ of a trained model anew. Give --foundation_model, or leave it out."
                )
            return
        if self.host.freeze and frozen:
            raise InputError("--freeze: phi: freeze_host freezes all of the host already; give one of the two.")

    def _check_trackers(self) -> None:
        """Whether what a tracker records are options."""
        unknown = [name for name in self.output.wandb_log_hypers if name not in options()]
        if unknown and self.output.wandb:
            raise InputError(f"--wandb_log_hypers: {', '.join(unknown)} is not an option of phi-mace-train.")
