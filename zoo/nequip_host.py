"""NequIP as a type of host."""

import torch

from phi_equivariant.host_protocol import ParameterGroup
from zoo.hosts import EnergyModelHost
from zoo.nequip import NequIP


class NequIPHost(EnergyModelHost):
    """``zoo.nequip.NequIP``."""

    model_class = NequIP

    @staticmethod
    def parameter_groups(model: torch.nn.Module) -> list[ParameterGroup]:
        """Groups by mace's names; weight decay on the maps between node features, as in mace."""
        maps = ("linear_up", "linear_down", "self_connection")
        names = ("embedding", "interactions_decay", "interactions_no_decay", "readouts")
        groups: dict[str, list[torch.nn.Parameter]] = {name: [] for name in names}
        for name, parameter in model.named_parameters():
            if name.startswith("interactions."):
                group = "interactions_decay" if name.split(".")[2] in maps else "interactions_no_decay"
            else:
                group = "embedding" if name.startswith(("embedding", "radial_basis")) else "readouts"
            groups[group].append(parameter)
        return [
            {"name": name, "params": params, "decay": name == "interactions_decay"} for name, params in groups.items()
        ]
