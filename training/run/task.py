"""What is to be done, and on which machine."""

import dataclasses

from phi_equivariant.errors import InputError
from training.run.option import ABOVE_ZERO, ZERO_OR_MORE, RunPart, option


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Task(RunPart):
    """What the command is asked to do with the run."""

    config: str | None = option("YAML or JSON file with options and a phi: section", restart=True)
    phi: list[str] | None = option("settings of Φ as KEY=VALUE, for example operator=coulomb channels=4")
    no_phi: bool = option("train the bare host")
    compare: bool = option("train plain MACE, Φ learned and Φ exact with the same budget, and compare", restart=True)
    compare_pde_weight: float = option("λ_pde of the row with learned Φ of a comparison")
    dry_run: bool = option("check everything, write nothing, do not train", restart=True)
    restart_latest: bool = option("go on from the run's last checkpoint", restart=True)
    time_limit: float | None = option(
        "minutes for the whole run: an epoch starts only if it can end and be tested in time", restart=True
    )

    def __post_init__(self) -> None:
        self.expect(ABOVE_ZERO, "time_limit")
        self.expect(ZERO_OR_MORE, "compare_pde_weight")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Machine(RunPart):
    """Where a run computes, how exactly, and from which seed."""

    device: str = option("cpu or cuda", restart=True)
    default_dtype: str = option("precision of the run")
    seed: int = option("seed of the weights, the shuffling and the validation split")
    distributed: bool = option("one process per device, by Lightning's DDP", restart=True)
    launcher: str = option(
        "who starts the processes of a distributed run: slurm, torchrun or mpi (Open MPI); none is refused",
        restart=True,
    )
    num_workers: int = option("processes that load batches", restart=True)
    pin_memory: bool = option("page-locked batches on CUDA", restart=True)

    def __post_init__(self) -> None:
        if self.device not in ("cpu", "cuda"):
            raise InputError(f"--device: {self.device} is not supported; choose cpu or cuda.")
        self.expect(ZERO_OR_MORE, "seed", "num_workers")
