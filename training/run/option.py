"""What an option of a run is: a field that knows its meaning, and whether a restart may change it."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any, Self

from phi_equivariant.errors import InputError

#: The head of a run that names none, as in mace.
HEAD = "Default"


def option(means: str, *, restart: bool = False, architecture: bool = False) -> Any:
    """A field of a part, named as the option is: its default is that of the command line.

    means : what the option does, for the help and the page of options
    restart : whether it may differ between an interrupted run and its continuation
    architecture : whether it describes the host's network
    """
    return dataclasses.field(metadata={"means": means, "restart": restart, "architecture": architecture})


ABOVE_ZERO = ("a number above zero", lambda value: 0 < value < math.inf)
ZERO_OR_MORE = ("zero or more", lambda value: 0 <= value < math.inf)
UP_TO_ONE = ("a number from 0 to 1", lambda value: 0 <= value <= 1)
BELOW_ONE = ("a number from 0 to less than 1", lambda value: 0 <= value < 1)


class RunPart:
    """Some options of a run, which are fields made by :func:`option`."""

    __slots__ = ()

    @classmethod
    def options(cls) -> Iterator[dataclasses.Field[Any]]:
        """The fields."""
        assert dataclasses.is_dataclass(cls)
        yield from dataclasses.fields(cls)

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        """The part whose fields are some of the values."""
        return cls(**{field.name: values[field.name] for field in cls.options()})

    def values(self) -> dict[str, Any]:
        """{option: value}."""
        return {field.name: getattr(self, field.name) for field in self.options()}

    def expect(self, what: tuple[str, Callable[[float], bool]], *names: str) -> None:
        """InputError unless the options, where they have a value, are such numbers."""
        expected, holds = what
        for name in names:
            value = getattr(self, name)
            if value is not None and not holds(value):
                raise InputError(f"--{name}: expected {expected}, got {value}.")
