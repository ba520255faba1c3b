"""Bounds on what may be built, from the types of a constructor's arguments.

A host need not be known here: numbers are held against its constructor's annotations, which may be the narrower types
below, and no count may be larger than a file with so many parameters can need.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError, ValidationInfo
from torch.nn.modules.module import register_module_parameter_registration_hook

from phi_equivariant.errors import InputError

#: Most channels, functions or layers of anything; most of them whatever the file's size; highest degree of irreps.
MOST, FEW, MOST_L = 8192, 128, 6
_IRREP = re.compile(r"((?P<mul>[0-9]{1,18})x)?(?P<l>[0-9]{1,9})(?P<p>[eo])")
_STRICT = ConfigDict(strict=True, allow_inf_nan=False)


def most_counts(parameters: int | None) -> int:
    """The largest count that a model with so many parameters can have; None: of any model.

    A map from n channels to n has n² parameters. Not all counts are those of channels, hence the factor and ``FEW``.
    """
    return MOST if parameters is None else min(MOST, max(FEW, int(4 * math.sqrt(parameters))))


def read_irreps(text: str, most: int = MOST) -> list[tuple[int, str]]:
    """[(multiplicity, "0e")] of irreps as text; not by e3nn, which takes memory for every single channel.

    Raises
    ------
    InputError
        For a text that is not irreps, or one with too many channels or too high a degree.
    """
    found = [_IRREP.fullmatch(part) for part in str(text).replace(" ", "").split("+")]
    irreps = [(int(match["mul"] or 1), f"{int(match['l'])}{match['p']}") for match in found if match]
    if len(irreps) < len(found):
        raise InputError("these are not irreps; write them as '32x0e+32x1o'")
    if sum(mul for mul, _ in irreps) > MOST or any(int(l_p[:-1]) > MOST_L for _, l_p in irreps):
        raise InputError(f"at most {MOST} channels and l = {MOST_L} are allowed")
    if (largest := max(mul for mul, _ in irreps)) > most:
        raise InputError(f"{largest} channels of a kind need more parameters than the file has")
    return irreps


def _irreps_within(text: str, info: ValidationInfo) -> str:
    read_irreps(text, (info.context or {}).get("most", MOST))
    return text


Layers = Annotated[int, Field(ge=1, le=16)]
Degree = Annotated[int, Field(ge=0, le=MOST_L)]
Count = Annotated[int, Field(ge=1, le=MOST)]
Length = Annotated[float, Field(gt=0, le=100)]  # Å
Neighbours = Annotated[float, Field(gt=0, le=1e5)]
Elements = Annotated[Sequence[Annotated[int, Field(ge=1, le=118)]], Field(min_length=1, max_length=118)]
Widths = Annotated[Sequence[Count], Field(max_length=64)]
Irreps = Annotated[str, AfterValidator(_irreps_within)]
Energies = float | Sequence[float] | Sequence[Sequence[float]]  # eV


def check_arguments(types: Mapping[str, Any], arguments: Mapping[str, Any], parameters: int | None = None) -> None:
    """Hold a constructor's arguments, as JSON can hold them, against their types.

    Parameters
    ----------
    types : {argument: annotation}
    parameters : how many the file has, None for a fresh model

    Raises
    ------
    InputError
        For the first argument that is not of its type or that the constructor does not have, or a count beyond all
        bounds.
    """
    most = most_counts(parameters)
    check_counts(arguments, most)
    for name, value in arguments.items():
        if name not in types:
            raise InputError(f"{name} is not an argument of this host; it has {', '.join(types)}")
        try:
            TypeAdapter(types[name], config=_STRICT).validate_python(value, context={"most": most})
        except ValidationError as error:
            what = error.errors()[0]["msg"].removeprefix("Value error, ").replace("Input", "it")
            raise InputError(f"{name} is {short(value)}; {what[0].lower()}{what[1:]}") from error


def check_counts(values: Any, most: int, name: str = "a value") -> None:
    """InputError for a whole number above ``most`` anywhere in nested lists and dictionaries."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            check_counts(value, most, str(key))
    elif isinstance(values, list | tuple):
        for value in values:
            check_counts(value, most, name)
    elif isinstance(values, int) and abs(values) > most:
        raise InputError(
            f"{name} is {short(values)}; expected at most {most}" + " for so few parameters" * (most < MOST)
        )


@contextmanager
def at_most(parameters: int) -> Iterator[None]:
    """Stop the construction of modules as soon as they have more than twice so many parameters: some are replaced.

    Raises
    ------
    InputError
        Within the block, where that happens.
    """
    seen: dict[int, torch.nn.Parameter] = {}  # they stay alive, so that no two have the same id

    def count(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:
        if parameter is not None:
            seen[id(parameter)] = parameter
        if sum(kept.numel() for kept in seen.values()) > 2 * parameters:
            raise InputError(f"it makes a model with more parameters than the {parameters} that the file has")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def short(value: object) -> str:
    """The value as Python writes it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
