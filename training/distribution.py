"""The processes of a distributed run: which one this is, what they agree on, and who writes."""

import contextlib
import datetime
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment as TorchrunEnvironment
from lightning.pytorch.strategies import DDPStrategy

from phi_equivariant.errors import InputError
from training.messages import started_first
from training.run import Machine

T = TypeVar("T")

#: A peer that died closes its sockets, which gloo reports at once; NCCL finds out only by waiting this long.
NCCL_TIMEOUT = datetime.timedelta(minutes=30)
#: Slow work before a meeting point (reading data, a download) may take long on one process.
GLOO_TIMEOUT = datetime.timedelta(hours=4)

_objects = None  # a gloo group beside NCCL's, for values that live on the CPU


def environment(machine: Machine) -> ClusterEnvironment:
    """Lightning's cluster environment of a ``--distributed`` run, read from the launcher's variables.

    InputError if the launcher's variables are not there or do not fit together.
    """
    launcher = machine.launcher
    if launcher == "slurm" and "SLURM_PROCID" not in os.environ and "RANK" in os.environ:
        launcher = "torchrun"  # slurm is mace's default, and outside SLURM mace reads torchrun's variables too
    if launcher == "none":
        raise InputError(
            "--launcher: none starts no processes, so --distributed would have one. Start them with torchrun "
            "--nproc_per_node N -m training.train … --distributed --launcher torchrun, or leave --distributed out."
        )
    if launcher == "mpi":
        _read_open_mpi()
        return TorchrunEnvironment()
    needed = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID") if launcher == "slurm" else ("RANK", "WORLD_SIZE")
    if missing := [name for name in needed if name not in os.environ]:
        how = "srun" if launcher == "slurm" else "torchrun --nproc_per_node N -m training.train …"
        raise InputError(
            f"--launcher {machine.launcher}: {', '.join(missing)} not set, so this process was not started by "
            f"{how.split()[0]}. Start it by {how}, or leave --distributed out for a single process."
        )
    if launcher == "torchrun":
        return TorchrunEnvironment()
    try:
        # Lightning would requeue the job with a checkpoint of its own; ours are written after every epoch.
        return SLURMEnvironment(auto_requeue=False)
    except RuntimeError as error:
        raise InputError(f"--launcher slurm: {error}") from error


def _read_open_mpi() -> None:
    """Give torch the variables it reads, from Open MPI's."""
    names = {"RANK": "RANK", "WORLD_SIZE": "SIZE", "LOCAL_RANK": "LOCAL_RANK", "LOCAL_WORLD_SIZE": "LOCAL_SIZE"}
    found = {name: os.environ.get(f"OMPI_COMM_WORLD_{theirs}", "") for name, theirs in names.items()}
    if "" in found.values() or "MASTER_ADDR" not in os.environ:
        raise InputError(
            "--launcher mpi: expected Open MPI's OMPI_COMM_WORLD_* variables and MASTER_ADDR, the name of the first "
            "node. Start by mpirun -x MASTER_ADDR=…, or choose --launcher slurm or torchrun."
        )
    os.environ.update(found, GROUP_RANK=str(int(found["RANK"]) // int(found["LOCAL_WORLD_SIZE"])))


def processes_per_node(found: ClusterEnvironment) -> int:
    """Number of processes on each node, which must be the same everywhere."""
    if isinstance(found, SLURMEnvironment):
        nodes = int(os.environ.get("SLURM_NNODES", 1))
        count = found.world_size() // nodes
    else:
        count = int(os.environ.get("LOCAL_WORLD_SIZE", found.world_size()))
        nodes = found.world_size() // count
    if count * nodes != found.world_size():
        raise InputError(
            f"--distributed: {found.world_size()} processes do not spread evenly over {nodes} nodes. Start the same "
            "number on each node, one per GPU."
        )
    return count


def start(machine: Machine) -> None:
    """Join the other processes; does nothing without ``--distributed``.

    InputError if a launcher started several processes without ``--distributed``, or there is no GPU for each.
    """
    global _objects
    if not machine.distributed:
        if "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise InputError(
                f"--distributed: torchrun started {os.environ['WORLD_SIZE']} processes, which would all write the same "
                "run. Add --distributed --launcher torchrun."
            )
        return
    found = environment(machine)
    count = processes_per_node(found)
    on_gpu = machine.device == "cuda"
    if on_gpu and torch.cuda.device_count() < count:
        raise InputError(
            f"--distributed: {count} processes on this node and {torch.cuda.device_count()} visible CUDA devices; each "
            "process needs one, and must see all of its node (in SLURM --gpus-per-node, not --gpus-per-task)."
        )
    if on_gpu:
        torch.cuda.set_device(found.local_rank())
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = found.main_address, str(found.main_port)
    if dist.is_initialized():
        return
    dist.init_process_group(
        _backend(machine),
        rank=found.global_rank(),
        world_size=found.world_size(),
        timeout=NCCL_TIMEOUT if on_gpu else GLOO_TIMEOUT,
    )
    _objects = dist.new_group(backend="gloo", timeout=GLOO_TIMEOUT) if on_gpu else None


def _backend(machine: Machine) -> str:
    return "nccl" if machine.device == "cuda" else "gloo"


def stop() -> None:
    """Leave the other processes."""
    global _objects
    if dist.is_initialized():
        dist.destroy_process_group()
        _objects = None


def size() -> int:
    """Number of processes of the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this is the process that writes files and prints (also before the processes have met)."""
    if dist.is_initialized():
        return dist.get_rank() == 0
    return started_first()


def device(machine: Machine) -> torch.device:
    """The device of this process."""
    if machine.device == "cuda" and machine.distributed:
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device(machine.device)


def check_device(name: str) -> None:
    """InputError if ``cuda`` was asked for and is not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device: cuda was asked for, but torch finds no CUDA device. Use --device cpu.")


def gather(value: Any) -> list[Any]:
    """[value of every process], on every process; values are picklable and on the CPU."""
    if size() == 1:
        return [value]
    values = [None] * size()
    dist.all_gather_object(values, value, group=_objects)
    return values


def from_main(function: Callable[[], T]) -> T:
    """What ``function`` returns on the first process, on every process; the others do not call it."""
    if size() == 1:
        return function()
    with together():
        box: list[Any] = [function() if is_main() else None]
    dist.broadcast_object_list(box, src=0, group=_objects)
    return box[0]


def total(numbers: Mapping[str, Any]) -> dict[str, float]:
    """{name: sum over the processes}; a name may be missing on some of them."""
    summed: dict[str, float] = {}
    for part in gather({name: float(number) for name, number in numbers.items()}):
        for name, number in part.items():
            summed[name] = summed.get(name, 0.0) + number
    return summed


@contextlib.contextmanager
def together() -> Iterator[None]:
    """A block that every process leaves, or none: what one cannot use stops all, which then say the same.

    InputError: the first process's own, or on the others one with its text.
    """
    failure = None
    try:
        yield
    except (InputError, OSError) as error:
        if size() == 1:
            raise
        failure = error
    texts = gather(None if failure is None else str(failure))
    if failure is not None and (rank() == 0 or texts[0] is None):
        raise failure
    for number, text in enumerate(texts):
        if text is not None:
            raise InputError(text if number == 0 else f"process {number} of {size()}: {text}")


def trainer_settings(machine: Machine) -> dict[str, Any]:
    """Arguments of Lightning's Trainer that say where it runs."""
    accelerator = "gpu" if machine.device == "cuda" else "cpu"
    if not machine.distributed:
        # Named, so that Lightning does not take a batch job's single process for one of many.
        return {"accelerator": accelerator, "devices": 1, "plugins": [LightningEnvironment()]}
    found = environment(machine)
    count = processes_per_node(found)
    strategy = DDPStrategy(
        cluster_environment=found,
        process_group_backend=_backend(machine),
        # Nothing changes buffers in training; sending them in validation would want equal numbers of batches.
        broadcast_buffers=False,
    )
    return {
        "accelerator": accelerator,
        "devices": count,
        "num_nodes": found.world_size() // count,
        "strategy": strategy,
    }
