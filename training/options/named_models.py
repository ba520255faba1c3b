"""Training a model of the zoo by its name: ``--model phi-<host>-<size>``."""

from collections.abc import Collection, Mapping
from typing import Any

import torch

from phi_equivariant.errors import InputError, did_you_mean
from training import mace_hosts, mace_statistics
from training.data.literals import literal
from training.run import Data, Host, Loss
from zoo.architectures import ARCHITECTURES, architecture, check_installed, create_model

#: Settings of hosts that are options of mace too, and their names there: given with a named model they change its size.
SETTINGS = {
    "r_max": "r_max",
    "hidden_irreps": "hidden_irreps",
    "hidden_channels": "num_channels",
    "num_interactions": "num_interactions",
    "max_ell": "max_ell",
    "correlation": "correlation",
    "num_bessel": "num_radial_basis",
    "num_gaussians": "num_radial_basis",
    "num_rbf": "num_radial_basis",
    "num_polynomial_cutoff": "num_cutoff_basis",
    "radial_MLP": "radial_MLP",
    "MLP_irreps": "MLP_irreps",
    "gate": "gate",
}
#: Options that act on models made from mace's options only.
MACE_ONLY = ("foundation_model", "heads", "freeze", "enable_cueq", "only_cueq", "enable_oeq", "compare")
OF_MACE = ("MACE", "ScaleShiftMACE")


def check_name(model: str) -> None:
    """InputError unless ``--model`` is one of mace's two or a name of the zoo."""
    names = [*OF_MACE, *ARCHITECTURES]
    if model not in names:
        hint = did_you_mean(model, names, "It is another architecture.")
        raise InputError(f"--model: phi-mace-train trains {', '.join(names)}, not {model}. {hint}")


def is_named(model: str) -> bool:
    """Whether ``--model`` is a name of the zoo."""
    return model in ARCHITECTURES


def settings_of_phi(model: str) -> dict[str, Any]:
    """The ``phi:`` section that a size brings."""
    return dict(ARCHITECTURES[model].phi) if is_named(model) else {}


def settings(values: Mapping[str, Any], given: Collection[str], said: Collection[str]) -> dict[str, Any]:
    """Options of the architecture as a named model has them: None where it has no such setting.

    values : {option: value}
    given, said : options that the user gave another value than the default, and all that the user gave; what a data
        set's preset says of mace's architecture does not count

    InputError for an option that the model does not have.
    """
    model = values["model"]
    size = architecture(model)
    check_installed(model)
    for option in MACE_ONLY:
        if option in given and values[option]:
            raise InputError(
                f"--{option} acts on models that mace's options describe; leave it out with --model {model}, or "
                "choose --model ScaleShiftMACE."
            )
    own = {SETTINGS[name]: value for name, value in size.arguments.items() if name in SETTINGS}
    for option in Host.architecture():
        if option in given and option not in own:
            raise InputError(
                f"--{option}: {model} has no such setting, but {', '.join(own)}. Leave it out, or choose --model "
                "ScaleShiftMACE."
            )
    told = {option: _read(option, values[option], like) if option in said else like for option, like in own.items()}
    return dict.fromkeys(Host.architecture()) | told


def _read(option: str, value: Any, like: Any) -> Any:
    """A list from text, where the setting is a list."""
    return literal(value, f"--{option}", f"a list as in {like}") if isinstance(like, list) else value


def build_host(
    host: Host, data: Data, loss: Loss, training: mace_statistics.TrainingSet
) -> tuple[torch.nn.Module, dict[str, bool]]:
    """A fresh host of a named size with one head, as :func:`training.mace_hosts.build_host` makes those of mace."""
    neighbours, (scale,), (shift,) = mace_statistics.statistics(data, training)
    size = architecture(host.model).arguments
    given: dict[str, Any] = {name: getattr(host, option) for name, option in SETTINGS.items() if name in size}
    arguments = {name: value for name, value in given.items() if value is not None}
    if "avg_num_neighbors" in size:
        arguments["avg_num_neighbors"] = neighbours
    energies = training.energies[training.names[0]]
    statistics: dict[str, Any] = {"E0s": energies, "scale": scale, "shift": shift}
    model = create_model(host.model, training.atomic_numbers, with_phi=False, **statistics, **arguments)
    return model, mace_hosts.derivatives(loss)
