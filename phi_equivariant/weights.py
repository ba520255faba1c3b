"""A model on disk: ``model.safetensors`` and ``config.json``; nothing is ever unpickled."""

import dataclasses
import functools
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from phi_equivariant.attach import attach_phi
from phi_equivariant.commands import hidden
from phi_equivariant.errors import InputError
from phi_equivariant.files import CONFIG_FILE, CONFIG_LIMIT, WEIGHTS_FILE, read_json, write_atomically
from phi_equivariant.host_energy import atomic_energies, keep_exact
from phi_equivariant.host_protocol import HostType
from phi_equivariant.inputs.state import StateReader, kept_inputs, set_reader
from phi_equivariant.potential import PhiPotential
from phi_equivariant.precision import DTYPES, default_dtype, read_dtype
from phi_equivariant.taps import write_taps

FORMAT_VERSION = 3  # 1 had no "tensors": all of them; 2 no "inputs": charges and spins under their usual names


@functools.cache
def host_types() -> dict[str, importlib.metadata.EntryPoint]:
    """{name: entry point} of the hosts that can be saved and loaded, from installed packages."""
    return {point.name: point for point in importlib.metadata.entry_points(group="phi_equivariant.hosts")}


def host_type(name: str) -> HostType:
    """The class of an installed host type.

    Raises
    ------
    InputError
        If there is none of this name, or a file of the user's hides its package.
    """
    points = host_types()
    if name not in points:
        raise InputError(f"host type {name!r} is not installed; installed: {', '.join(points)}.")
    if message := hidden(points[name].module.partition(".")[0]):
        raise InputError(message)
    return points[name].load()


def describe_model(model: torch.nn.Module) -> dict[str, Any]:
    """What is needed to build a potential or a bare host again, except its weights: a JSON-able dictionary.

    Raises
    ------
    InputError
        If no installed host type knows the model, or it has settings that its host type cannot write down.
    """
    inputs, model = kept_inputs(model), portable(model)
    host, phi = model, None
    if isinstance(model, PhiPotential):
        host, phi = model.host, {"config": model.phi.config.to_dict(), "taps": write_taps(model.taps)}
    name, host_type = host_type_of(host)
    return {
        # A library that does not know "inputs" would read other entries of structures: it must not load such a model.
        "format_version": FORMAT_VERSION if inputs else FORMAT_VERSION - 1,
        "host": {"type": name, "arguments": host_type.describe(host)},
        "phi": phi,
        **({"inputs": inputs} if inputs else {}),
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "versions": {package: _version(package) for package in ("phi-equivariant", "torch", "e3nn", "mace-torch")},
    }


def portable(model: torch.nn.Module) -> torch.nn.Module:
    """The model in the form in which it is saved: the same, except for hosts that run on special kernels.

    Such a host is converted back by its host type, and a copy of Φ attached to it.
    """
    host = model.host if isinstance(model, PhiPotential) else model
    plain = host_type_of(host)[1].portable(host)
    if plain is host:
        return model
    keep_exact(plain, atomic_energies(host))
    if isinstance(model, PhiPotential):
        copied = attach_phi(plain, model.phi.config, model.taps)
        copied.phi.load_state_dict(model.phi.state_dict())
        plain = copied
    set_reader(plain, StateReader.from_dict(kept_inputs(model)))
    return plain.train(model.training)


def save_model(
    model: torch.nn.Module, folder: str | Path, notes: dict[str, Any] | None = None, parameters_only: bool = False
) -> None:
    """Write a potential, or a bare host, to ``folder``.

    Parameters
    ----------
    model: ``PhiPotential`` or host
    folder: made if it is not there; each file is written aside and renamed, the configuration last
    notes: JSON-able dictionary kept in the configuration
    parameters_only: leave out the buffers, often most of the file, which the constructor makes again; whether it makes
        the same ones is for the caller to check, by energies that are kept with the model

    Raises
    ------
    InputError
        If the model cannot be described; nothing is written then.
    """
    kind = "parameters" if parameters_only else "all"
    text = json.dumps({**describe_model(model), "tensors": kind, "notes": notes or {}}, indent=2) + "\n"
    model = portable(model)
    weights = safetensors.torch.save({k: v.detach().cpu().contiguous() for k, v in _tensors(model, kind).items()})
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / WEIGHTS_FILE, lambda path: path.write_bytes(weights))
    write_atomically(folder / CONFIG_FILE, lambda path: path.write_text(text))


@dataclasses.dataclass(frozen=True)
class SavedModel:
    """What a folder says of its model, before anything is built.

    config : the configuration
    shapes : {name: shape} of the tensors in the file of weights, from its header
    weights : that file, open
    """

    folder: Path
    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    weights: Any


def read_saved(folder: str | Path) -> SavedModel:
    """Configuration and header of the weights of a model that ``save_model`` wrote.

    Raises
    ------
    InputError
        If a file is missing or damaged, or of another format.
    """
    folder = Path(folder)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise InputError(
                f"{folder} has no {name}; give a folder written by training (model.safetensors + config.json)."
            )
    path = folder / CONFIG_FILE
    try:
        config = read_json(path, CONFIG_LIMIT, "configuration of a model")
        version, versions = config["format_version"], config["versions"]
        kind = config.get("tensors", "all")
    except (TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path} is not a configuration of a model ({error!r}).") from error
    if version not in range(1, FORMAT_VERSION + 1) or kind not in ("all", "parameters"):
        raise InputError(
            f"{path} has format version {version!r} ({kind}), this library reads up to {FORMAT_VERSION}; install the "
            f"version it was written with: {versions}."
        )
    path = folder / WEIGHTS_FILE
    try:
        file = safetensors.safe_open(path, framework="pt")
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118  (no mapping)
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a safetensors file ({error}): the file is damaged.") from error
    return SavedModel(folder, config, shapes, file)


def build_saved(
    saved: SavedModel, device: str | torch.device = "cpu", dtype: str | torch.dtype | None = None
) -> torch.nn.Module:
    """The model in evaluation mode.

    Parameters
    ----------
    device: where to put it
    dtype: ``float32`` or ``float64``; as saved where None

    Raises
    ------
    InputError
        If the configuration describes no model that can be built, or the tensors do not fit it or are not finite.
    """
    precision = read_dtype(dtype)
    try:
        model = _build(saved.config)
    except InputError as error:
        raise InputError(f"{saved.folder / CONFIG_FILE}: {error}") from error
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, AssertionError, RuntimeError) as error:
        raise InputError(
            f"{saved.folder / CONFIG_FILE} does not describe a model that can be built ({error!r})."
        ) from error
    _load_tensors(model, saved)
    if inputs := saved.config.get("inputs"):
        set_reader(model, StateReader.from_dict(inputs))
    return model.to(device=device, dtype=precision).eval()


def load_model(
    folder: str | Path, device: str | torch.device = "cpu", dtype: str | torch.dtype | None = None
) -> torch.nn.Module:
    """The potential or bare host saved in ``folder``, in evaluation mode.

    Parameters
    ----------
    folder: made by ``save_model``
    device: where to put it
    dtype: ``float32`` or ``float64``; as saved where None

    Raises
    ------
    InputError
        If a file is missing or does not fit: an unknown format or host type, other tensors than the model has, or
        weights that are not finite.
    """
    read_dtype(dtype)
    return build_saved(read_saved(folder), device, dtype)


def _tensors(model: torch.nn.Module, kind: str) -> dict[str, torch.Tensor]:
    """{name: tensor} that a file holds: ``all``, or ``parameters`` alone; one that has several names by its first."""
    if kind == "parameters":
        return dict(model.named_parameters())
    first: dict[int, tuple[str, torch.Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        first.setdefault(id(tensor), (name, tensor))
    return dict(first.values())


def _load_tensors(model: torch.nn.Module, saved: SavedModel) -> None:
    """Put the tensors of a file into a model, after checking that there are as many as it has, and of its shapes."""
    path, given = saved.folder / WEIGHTS_FILE, saved.shapes
    kind = saved.config.get("tensors", "all")
    expected = {key: tuple(value.shape) for key, value in _tensors(model, kind).items()}
    wrong = sorted(key for key in expected.keys() | given.keys() if expected.get(key) != given.get(key))
    if wrong:
        raise InputError(
            f"{path} does not fit its {CONFIG_FILE}: {len(wrong)} of {len(expected)} tensors differ, {wrong[0]} "
            f"(expected {expected.get(wrong[0])}, found {given.get(wrong[0])}) for one; the files are not from the "
            "same run."
        )
    try:
        state = {key: saved.weights.get_tensor(key) for key in given}
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a safetensors file ({error}): the file is damaged.") from error
    broken = [key for key, value in state.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise InputError(
            f"{path} holds values that are not finite (NaN or infinity), in {broken[0]} for one; these weights "
            "cannot be used."
        )
    model.load_state_dict(state, strict=False)  # the names were compared above


def host_type_of(host: torch.nn.Module) -> tuple[str, HostType]:
    """Name and class of the installed host type that knows a model.

    Raises
    ------
    InputError
        If there is none.
    """
    for name in host_types():
        kind = host_type(name)
        if kind.matches(host):
            return name, kind
    raise InputError(
        f"{type(host).__name__} does not belong to an installed host type ({', '.join(host_types())}); register "
        "one under the entry-point group phi_equivariant.hosts."
    )


def _build(config: dict[str, Any]) -> torch.nn.Module:
    """A fresh model from a configuration, in the precision it was saved in."""
    dtype = DTYPES[config["dtype"]]
    with default_dtype(dtype):
        model = host_type(config["host"]["type"]).build(config["host"]["arguments"])
        if config["phi"] is not None:
            model = attach_phi(model, config["phi"]["config"], config["phi"]["taps"])
    return model.to(dtype)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
