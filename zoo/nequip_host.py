"""NequIP as a type of host."""

from zoo.hosts import Host
from zoo.nequip import NequIP

from e3nn import o3  # isort: skip  (after phi_equivariant, which makes e3nn 0.4.4 importable)


class NequIPHost(Host):
    """``zoo.nequip.NequIP``."""

    @staticmethod
    def matches(model):
        """Whether ``model`` is a ``NequIP``, not a subclass with other physics."""
        return type(model) is NequIP

    @staticmethod
    def describe(model):
        """Constructor arguments as JSON can hold them, E0, scale and shift as they are now."""
        now = {
            "atomic_energies": model.atomic_energies_fn.atomic_energies[0],
            "atomic_inter_scale": model.scale.detach(),
            "atomic_inter_shift": model.shift.detach(),
        }
        return {name: _plain(value) for name, value in {**model.arguments, **now}.items()}

    @staticmethod
    def build(arguments):
        """A fresh model from what ``describe`` gave."""
        return NequIP(**arguments)

    @staticmethod
    def parameter_groups(model):
        """Groups by mace's names; weight decay on the maps between node features, as in mace."""
        maps = ("linear_up", "linear_down", "self_connection")
        groups = {name: [] for name in ("embedding", "interactions_decay", "interactions_no_decay", "readouts")}
        for name, parameter in model.named_parameters():
            if name.startswith("interactions."):
                group = "interactions_decay" if name.split(".")[2] in maps else "interactions_no_decay"
            else:
                group = "embedding" if name.startswith(("embedding", "radial_basis")) else "readouts"
            groups[group].append(parameter)
        return [
            {"name": name, "params": params, "decay": name == "interactions_decay"} for name, params in groups.items()
        ]


def _plain(value):
    """Lists for arrays and tuples, Python's numbers for others', text for irreps."""
    if isinstance(value, o3.Irreps):
        return str(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.tolist() if hasattr(value, "tolist") else value
