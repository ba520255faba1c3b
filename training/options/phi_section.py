"""The ``phi:`` section, from a file, the command line or a trained model: strictly checked."""

import dataclasses
import functools
import re
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

import pydantic
import yaml

from phi_equivariant.config import PhiConfig
from phi_equivariant.errors import InputError, did_you_mean
from phi_equivariant.files import CONFIG_FILE, CONFIG_LIMIT, read_json
from training.fit.trained import folder_of
from training.options.configuration_file import read_configuration
from training.run import Phi
from training.run_folder import CONFIG
from zoo.store.find import locate

#: Numbers that YAML takes for text, because it wants 1.0e+2; mace's own options take them as they are.
EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")
#: Keys of a trained model that say how Φ is trained and go with its fields; the others belong to one run.
WEIGHTS = ("pde_weight", "net_charge_weight")


@functools.cache
def section_model() -> type[pydantic.BaseModel]:
    """The keys with their types, from the fields of PhiConfig and of :class:`training.run.Phi`."""
    fields: dict[str, Any] = {}
    for kind, own in ((PhiConfig, dataclasses.fields(PhiConfig)), (Phi, Phi.own())):
        hints = typing.get_type_hints(kind)
        for field in own:
            default = field.default
            if default is dataclasses.MISSING:
                default = ... if field.default_factory is dataclasses.MISSING else field.default_factory()
            fields[field.name] = (hints[field.name], default)
    strict = pydantic.ConfigDict(extra="forbid", strict=True)
    model: type[pydantic.BaseModel] = pydantic.create_model("phi", __config__=strict, **fields)
    return model


def _readable(annotation: Any) -> str:
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


def check_mapping(section: object) -> dict[str, Any]:
    """A copy of the section, numbers such as 1e2 read; InputError unless it is keys and values."""
    if not isinstance(section, dict):
        raise InputError(f"phi: expected a section of keys and values, or null for the bare host, got {section!r}.")
    return {
        key: float(value) if isinstance(value, str) and EXPONENT.fullmatch(value) else value
        for key, value in section.items()
    }


def validate(section: object, lines: Mapping[str, str] | None = None, trained_host: bool = False) -> Phi:
    """Check a ``phi:`` section.

    ``lines`` : {key: where it stands}, for messages; ``trained_host`` : Φ is attached to a trained model: it starts
    ``small`` unless ``init`` says otherwise.

    InputError for an unknown key (with the nearest name), a value of the wrong type, or a combination that PhiConfig
    refuses.
    """
    lines = lines or {}
    model = section_model()
    known = model.model_fields
    told = check_mapping(section)
    for key in told:
        if key not in known:
            hint = did_you_mean(key, known)
            raise InputError(
                f"phi: unknown key {key!r}{lines.get(key, '')}. {hint and hint + ' '}Valid keys: "
                f"{', '.join(sorted(known))}."
            )
    try:
        checked = model.model_validate(told)
    except pydantic.ValidationError as error:
        key = str(error.errors()[0]["loc"][0])
        raise InputError(
            f"phi: {key} = {told[key]!r}{lines.get(key, '')} is not valid ({error.errors()[0]['msg']}); expected "
            f"{_readable(known[key].annotation)}."
        ) from error
    values = checked.model_dump()
    if trained_host and "init" not in told:
        values["init"] = "small"
    own = {field.name: values.pop(field.name) for field in Phi.own()}
    try:
        return Phi(config=PhiConfig(**values), **own)
    except InputError as error:
        text = str(error).removeprefix("phi: ").removesuffix(".")
        raise InputError(f"phi: {text}{lines.get(text.split()[0], '')}.") from None


def from_command_line(assignments: Iterable[str]) -> dict[str, Any]:
    """``KEY=VALUE`` words to a section; values are read as YAML (``null``, numbers, text).

    InputError for a word that is not an assignment.
    """
    section: dict[str, Any] = {}
    for word in assignments:
        key, separator, value = word.partition("=")
        if not separator or not key:
            raise InputError(f"--phi: expected KEY=VALUE as in --phi operator=coulomb channels=4, got {word!r}.")
        try:
            section[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise InputError(f"--phi: {word!r} has no valid value ({getattr(error, 'problem', error)}).") from error
    return section


def of_trained_model(model: str | None) -> dict[str, Any]:
    """Settings of the Φ that a trained model has and the weights of its loss terms; empty where it has none.

    ``model`` is what ``--foundation_model`` names. What cannot be read is not judged here: loading it says why.
    """
    if model is None:
        return {}
    folder = folder_of(model)
    try:
        if not folder.exists():
            folder = locate(model)
        if not (folder / CONFIG_FILE).is_file():
            return {}
        saved = read_json(folder / CONFIG_FILE, CONFIG_LIMIT)
        section = dict(saved["phi"]["config"]) if saved.get("phi") else {}
        if section and (folder / CONFIG).is_file():
            trained = read_configuration(folder / CONFIG).section or {}
            section |= {name: trained[name] for name in WEIGHTS if trained.get(name)}
    except (InputError, AttributeError, KeyError, TypeError, ValueError):
        return {}
    section.pop("init", None)  # where a fresh Φ would start: this one is trained
    return section
