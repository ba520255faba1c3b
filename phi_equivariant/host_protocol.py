"""What a host and a type of host must offer: nothing is inherited, the attributes alone count."""

from typing import Any, NotRequired, Protocol, TypedDict

import torch

from phi_equivariant.errors import InputError


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


def chosen_head(model: torch.nn.Module, head: str | None, option: str = "head") -> tuple[list[str], str]:
    """Names of a model's heads and the one to evaluate, which may be left out where there is one.

    Parameters
    ----------
    head: its name; option: what the caller's users call it

    Raises
    ------
    InputError
        For a head that the model does not have, or none where it has several.
    """
    heads = [str(name) for name in getattr(model, "heads", None) or ["Default"]]
    if head is None and len(heads) == 1:
        return heads, heads[0]
    if head is None or head not in heads:
        raise InputError(f"{option} is {head!r}; the model has the heads {', '.join(heads)}: name one of them.")
    return heads, head
