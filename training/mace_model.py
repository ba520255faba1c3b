"""The ``.model`` file of a trained potential: what mace's own tools read."""

import copy
from pathlib import Path

import torch

from phi_equivariant import PhiPotential
from phi_equivariant.errors import InputError
from phi_equivariant.files import write_atomically
from phi_equivariant.quiet import quiet
from phi_equivariant.weights import portable
from zoo.mace_host import MaceHost, readable_by_mace


def check(model: torch.nn.Module) -> None:
    """Find out whether mace's tools can run a potential from a file.

    InputError for a host that mace does not know.
    """
    host = model.host if isinstance(model, PhiPotential) else model
    if not MaceHost.matches(host):
        raise InputError(
            f"--save_mace_model: the host is a {type(host).__name__}, which mace's tools do not know. Leave it out; "
            "PhiCalculator and phi-mace-eval read the run's folder."
        )


def write(model: torch.nn.Module, path: Path) -> None:
    """Write the pickle that ``MACECalculator`` and ``mace_eval_configs`` load.

    A bare host is a mace model in e3nn's layout, as ``mace_run_train`` saves it. One with Φ is a ``PhiPotential``:
    reading it needs phi_equivariant installed.
    """
    with quiet():
        whole = copy.deepcopy(portable(model)).cpu().eval()
    readable_by_mace(whole.host if isinstance(whole, PhiPotential) else whole)
    with quiet():
        write_atomically(path, lambda place: torch.save(whole, place))
