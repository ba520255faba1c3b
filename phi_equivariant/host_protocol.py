"""What a host and a type of host must offer: nothing is inherited, the attributes alone count."""

from typing import Any, NotRequired, Protocol, TypedDict

import torch


class MaceLike(Protocol):
    """The attributes of a model with mace's call signature that are read beside its output.

    r_max : cut-off radius in Å, a scalar
    atomic_numbers : the elements it knows, (n_elements,), in the order of ``node_attrs``
    """

    r_max: torch.Tensor
    atomic_numbers: torch.Tensor


class ParameterGroup(TypedDict):
    """Parameters that an optimiser treats alike.

    decay : whether they have weight decay
    factor : their part of the learning rate
    """

    name: str
    params: list[torch.nn.Parameter]
    decay: bool
    factor: NotRequired[float]


class HostType(Protocol):
    """A type of host under the entry-point group ``phi_equivariant.hosts``; a class serves as well as an object."""

    __name__: str

    def matches(self, model: torch.nn.Module, /) -> bool:
        """Whether ``model`` is of this type."""

    def describe(self, model: Any, /) -> dict[str, Any]:
        """Constructor arguments of a model of this type as a JSON-able dictionary."""

    def build(self, arguments: dict[str, Any], /) -> torch.nn.Module:
        """A fresh model from what ``describe`` gave, in torch's default precision."""

    def check_arguments(self, arguments: dict[str, Any], parameters: int | None = None, /) -> None:
        """InputError, before anything is built, unless arguments are of their types and of moderate size."""

    def portable(self, model: Any, /) -> torch.nn.Module:
        """The model as ``describe`` knows it, converted back from special kernels."""

    def parameter_groups(self, model: Any, /) -> list[ParameterGroup]:
        """Groups that hold every parameter of the model once."""
