"""What a type of host must offer, and the optimiser groups of any model."""

import abc
import typing

import torch

from phi_equivariant import PhiPotential
from phi_equivariant.errors import InputError
from phi_equivariant.host_energy import atomic_energies
from phi_equivariant.host_protocol import ParameterGroup
from phi_equivariant.quiet import importing
from phi_equivariant.weights import host_type_of
from zoo.bounds import check_arguments
from zoo.energy_model import EnergyModel

with importing():
    from e3nn import o3


class Host(abc.ABC):
    """A type of host; registered under the entry-point group ``phi_equivariant.hosts``."""

    @staticmethod
    @abc.abstractmethod
    def matches(model: torch.nn.Module) -> bool:
        """Whether ``model`` is of this type."""

    @staticmethod
    @abc.abstractmethod
    def describe(model: typing.Any) -> dict[str, typing.Any]:
        """Constructor arguments of ``model``, one of this type, as a JSON-able dictionary."""

    @staticmethod
    @abc.abstractmethod
    def build(arguments: dict[str, typing.Any]) -> torch.nn.Module:
        """A fresh model from what ``describe`` gave, in torch's default precision."""

    @classmethod
    @abc.abstractmethod
    def argument_types(cls) -> dict[str, typing.Any]:
        """{argument of ``build``: its type}, from the constructor: what a file asks for is held against them.

        The types of ``zoo.bounds`` are narrower than Python's own.
        """

    @classmethod
    def check_arguments(cls, arguments: dict[str, typing.Any], parameters: int | None = None) -> None:
        """InputError, before anything is built, unless arguments are of their types and of moderate size.

        Parameters
        ----------
        arguments: as JSON can hold them
        parameters: how many there are in the file of weights; None for a fresh model
        """
        check_arguments(cls.argument_types(), arguments, parameters)

    @staticmethod
    def load_named(name: str, dtype: torch.dtype | None = None) -> torch.nn.Module:
        """A trained model by a name or an address of the zoo; InputError if there is none."""
        from zoo import load_pretrained  # which knows all types of hosts

        return load_pretrained(name, dtype=dtype)

    @staticmethod
    def portable(model: typing.Any) -> torch.nn.Module:
        """The model as ``describe`` knows it: where training may use other kernels, converted back, else as it is."""
        return model

    @staticmethod
    @abc.abstractmethod
    def parameter_groups(model: typing.Any) -> list[ParameterGroup]:
        """List of {"name", "params", "decay"} that holds every parameter of ``model`` once."""


class EnergyModelHost(Host):
    """A type of host for one class of ``EnergyModel`` that keeps its constructor's arguments as ``arguments``."""

    model_class: type[EnergyModel]

    @classmethod
    def matches(cls, model: torch.nn.Module) -> bool:
        """Whether ``model`` is of the class, not a subclass with other physics."""
        return type(model) is cls.model_class

    @staticmethod
    def describe(model: EnergyModel) -> dict[str, typing.Any]:
        """Constructor arguments as JSON can hold them, E0, scale and shift as they are now."""
        now = {
            "atomic_energies": atomic_energies(model)[0],
            "atomic_inter_scale": model.scale.detach(),
            "atomic_inter_shift": model.shift.detach(),
        }
        return {name: _plain(value) for name, value in {**model.arguments, **now}.items()}

    @classmethod
    def build(cls, arguments: dict[str, typing.Any]) -> torch.nn.Module:
        """A fresh model from what ``describe`` gave."""
        return cls.model_class(**arguments)

    @classmethod
    def argument_types(cls) -> dict[str, typing.Any]:
        """The annotations of the constructor."""
        hints = typing.get_type_hints(cls.model_class.__init__, include_extras=True)
        return {name: hint for name, hint in hints.items() if name != "return"}

    @staticmethod
    def parameter_groups(model: torch.nn.Module) -> list[ParameterGroup]:
        """Weight decay on the matrices of linear layers, and on nothing else."""
        linear = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Linear)}
        return [
            {"name": name, "params": [p for p in model.parameters() if (id(p) in linear) == decay], "decay": decay}
            for name, decay in (("linear", True), ("others", False))
        ]


def parameter_groups(model: torch.nn.Module) -> list[ParameterGroup]:
    """Optimiser groups of a potential or a bare host: the host's own, then ``phi`` without weight decay.

    Parameters
    ----------
    model: ``PhiPotential`` or a host of an installed type

    Returns
    -------
    list of {"name": str, "params": list of parameters, "decay": bool, "factor": part of the learning rate}, every
    trainable parameter in exactly one; factor is the potential's ``host_lr_factor`` for the host, 1 for Φ

    Raises
    ------
    InputError
        If the host is of no installed type, or its type leaves out a parameter or names one twice.
    """
    host = model.host if isinstance(model, PhiPotential) else model
    _, host_type = host_type_of(host)
    factor = model.host_lr_factor if isinstance(model, PhiPotential) else 1.0
    groups: list[ParameterGroup] = [
        {"name": group["name"], "params": group["params"], "decay": group["decay"], "factor": factor}
        for group in host_type.parameter_groups(host)
    ]
    if isinstance(model, PhiPotential):
        groups.append({"name": "phi", "params": list(model.phi.parameters()), "decay": False, "factor": 1.0})
    groups = [{**group, "params": [p for p in group["params"] if p.requires_grad]} for group in groups]
    grouped = [id(p) for group in groups for p in group["params"]]
    trainable = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    missing = [name for key, name in trainable.items() if key not in set(grouped)]
    if missing or len(grouped) != len(set(grouped)):
        raise InputError(f"host type {host_type.__name__} groups parameters wrongly; missing: {missing or 'none'}.")
    return [group for group in groups if group["params"]]


def _plain(value: typing.Any) -> typing.Any:
    """Lists for arrays and tuples, Python's numbers for others', text for irreps."""
    if isinstance(value, o3.Irreps):
        return str(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.tolist() if hasattr(value, "tolist") else value
