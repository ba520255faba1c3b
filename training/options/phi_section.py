"""The ``phi:`` section of a configuration: PhiConfig's fields and the weights of its loss terms, strictly checked."""

import dataclasses
import difflib
import functools
import re
import types
import typing

import pydantic
import yaml

from phi_equivariant import PhiConfig
from phi_equivariant.errors import InputError
from phi_equivariant.operators.registry import operator_class

#: Numbers that YAML takes for text, because it wants 1.0e+2; mace's own options take them as they are.
EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


class LossSettings(pydantic.BaseModel):
    """Weights of the terms that regularise Φ.

    pde_weight: λ_pde, multiplies the mean Poisson residual of a batch's structures; net_charge_weight: λ_q, multiplies
    the mean squared excess charge; pde_warmup_epochs: both are zero during that many first epochs.
    """

    model_config = pydantic.ConfigDict(extra="forbid", strict=True)

    pde_weight: float = pydantic.Field(0.0, ge=0.0)
    net_charge_weight: float = pydantic.Field(0.0, ge=0.0)
    pde_warmup_epochs: int = pydantic.Field(0, ge=0)


class HostSettings(pydantic.BaseModel):
    """How the host trains beside Φ.

    freeze_host: not at all; host_lr_factor: its part of the learning rate, which Φ has in full.
    """

    model_config = pydantic.ConfigDict(extra="forbid", strict=True)

    freeze_host: bool = False
    host_lr_factor: float = pydantic.Field(1.0, gt=0.0)


@dataclasses.dataclass(frozen=True)
class PhiSettings:
    """A validated ``phi:`` section."""

    config: PhiConfig
    loss: LossSettings
    host: HostSettings = dataclasses.field(default_factory=HostSettings)

    def to_dict(self):
        """The section as it could stand in a YAML file."""
        return {**self.config.to_dict(), **self.loss.model_dump(), **self.host.model_dump()}


@functools.cache
def section_model():
    """The pydantic model of the section, made from PhiConfig so that the two cannot differ."""
    hints = typing.get_type_hints(PhiConfig)
    fields = {}
    for field in dataclasses.fields(PhiConfig):
        if field.init:
            default = field.default
            if default is dataclasses.MISSING:
                default = ... if field.default_factory is dataclasses.MISSING else field.default_factory()
            fields[field.name] = (hints[field.name], default)
    return pydantic.create_model("phi", __base__=(LossSettings, HostSettings), **fields)


def _readable(annotation):
    if typing.get_origin(annotation) is typing.Literal:
        return " or ".join(repr(choice) for choice in typing.get_args(annotation))
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return " or ".join(_readable(part) for part in typing.get_args(annotation))
    name = getattr(annotation, "__name__", str(annotation))
    return {
        "NoneType": "null",
        "bool": "true or false",
        "str": "text",
        "int": "a whole number",
        "float": "a number",
    }.get(name, name)


def check_mapping(section):
    """A copy of the section, numbers such as 1e2 read; InputError unless it is keys and values."""
    if not isinstance(section, dict):
        raise InputError(f"phi: expected a section of keys and values, or null for the bare host, got {section!r}.")
    return {
        key: float(value) if isinstance(value, str) and EXPONENT.fullmatch(value) else value
        for key, value in section.items()
    }


def validate(section, lines=None, trained_host=False):
    """Check a ``phi:`` section.

    Parameters
    ----------
    section : dict
        Keys and values as read from YAML or the command line.
    lines : dict or None
        ``{key: where it stands}`` for messages.
    trained_host : bool
        Φ is attached to a trained model: it starts ``small`` unless ``init`` says otherwise.

    Raises
    ------
    InputError
        For an unknown key (with the nearest name), a value of the wrong type, or a combination that PhiConfig refuses.
    """
    lines = lines or {}
    model = section_model()
    section = check_mapping(section)
    for key in section:
        if key not in model.model_fields:
            near = difflib.get_close_matches(str(key), model.model_fields, n=2, cutoff=0.4)
            hint = f"Did you mean {' or '.join(near)}? " if near else ""
            raise InputError(
                f"phi: unknown key {key!r}{lines.get(key, '')}. {hint}Valid keys: "
                f"{', '.join(sorted(model.model_fields))}."
            )
    try:
        checked = model.model_validate(section)
    except pydantic.ValidationError as error:
        key = error.errors()[0]["loc"][0]
        expected = _readable(model.model_fields[key].annotation)
        raise InputError(
            f"phi: {key} = {section[key]!r}{lines.get(key, '')} is not valid ({error.errors()[0]['msg']}); expected "
            f"{expected}."
        ) from error
    values = checked.model_dump()
    if trained_host and "init" not in section:
        values["init"] = "small"
    loss = LossSettings(**{name: values.pop(name) for name in LossSettings.model_fields})
    host = HostSettings(**{name: values.pop(name) for name in HostSettings.model_fields})
    if host.freeze_host and host.host_lr_factor != 1.0:
        raise InputError("phi: freeze_host and host_lr_factor are both given, but a frozen host has no learning rate.")
    try:
        config = PhiConfig(**values)
    except InputError as error:
        name = str(error).split()[0]
        raise InputError(f"phi: {str(error).removesuffix('.')}{lines.get(name, '')}.") from None
    settings = PhiSettings(config, loss, host)
    _refuse_zero_terms(settings)
    return settings


def _refuse_zero_terms(settings):
    """A weight on a term that is zero by construction would be ignored in silence: refuse it by name."""
    config, loss = settings.config, settings.loss
    if loss.pde_weight and config.poisson == "exact":
        raise InputError(
            f"phi: pde_weight = {loss.pde_weight} weighs the Poisson residual, which is zero by construction with "
            "poisson: exact. Leave pde_weight out, or choose poisson: learned."
        )
    if loss.net_charge_weight and not operator_class(config).carries_charge:
        raise InputError(
            f"phi: net_charge_weight = {loss.net_charge_weight} weighs the net charge, which is zero by construction "
            f"with operator: {config.operator}. Leave net_charge_weight out, or choose operator: coulomb."
        )
    if loss.pde_warmup_epochs and not (loss.pde_weight or loss.net_charge_weight):
        raise InputError(
            f"phi: pde_warmup_epochs = {loss.pde_warmup_epochs} delays pde_weight and net_charge_weight, which are "
            "both zero. Give one of them, or leave pde_warmup_epochs out."
        )


def from_command_line(assignments):
    """``KEY=VALUE`` words to a section; values are read as YAML (``null``, numbers, text).

    Raises
    ------
    InputError
        For a word that is no assignment.
    """
    section = {}
    for word in assignments:
        key, separator, value = word.partition("=")
        if not separator or not key:
            raise InputError(f"--phi: expected KEY=VALUE as in --phi operator=coulomb channels=4, got {word!r}.")
        try:
            section[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise InputError(f"--phi: {word!r} has no valid value ({getattr(error, 'problem', error)}).") from error
    return section
