"""mace as a host: the only module of ``zoo`` that imports mace.

Where attributes of mace's submodules are read, a model is ``Any``: torch declares all of them tensor or module.
"""

import argparse
import copy
import typing
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from pydantic import Field

from phi_equivariant.errors import InputError
from phi_equivariant.files import CONFIG_FILE
from phi_equivariant.host_energy import atomic_energies, keep_exact
from phi_equivariant.host_protocol import ParameterGroup
from phi_equivariant.precision import default_dtype
from phi_equivariant.quiet import importing, quiet
from zoo.bounds import (
    Count,
    Degree,
    Elements,
    Energies,
    Irreps,
    Layers,
    Length,
    Neighbours,
    Widths,
    read_irreps,
    short,
)
from zoo.hosts import Host
from zoo.probe import energy_difference

with importing():
    from e3nn import o3
    from mace import modules
    from mace.modules.wrapper_ops import CUET_AVAILABLE, OEQ_AVAILABLE
    from mace.tools.cg import U_matrix_real
    from mace.tools.scripts_utils import extract_radial_MLP, get_params_options

_CLASSES = {"MACE": modules.MACE, "ScaleShiftMACE": modules.ScaleShiftMACE}
# How the constructor arguments that JSON cannot hold are written, and read back.
_NAMED: dict[str, Mapping[str, typing.Any]] = {
    "interaction_cls": modules.interaction_classes,
    "interaction_cls_first": modules.interaction_classes,
    "readout_cls": modules.readout_classes,
    "gate": modules.gate_dict,
}
_IRREPS = ("hidden_irreps", "MLP_irreps", "edge_irreps")
_RADIAL = {"BesselBasis": "bessel", "GaussianBasis": "gaussian", "ChebychevBasis": "chebyshev"}
_TRANSFORM = {"AgnesiTransform": "Agnesi", "SoftTransform": "Soft"}
# Settings that models saved by an early mace 0.3 do not have, with what the installed mace takes in their place.
_SETTINGS = {
    "edge_irreps": None,
    "embedding_specs": None,
    "apply_cutoff": True,
    "use_so3": False,
    "use_agnostic_product": False,
    "use_last_readout_only": False,
    "use_edge_irreps_first": False,
}
Model = typing.TypeVar("Model", bound=torch.nn.Module)
Kernels = typing.Literal["cueq", "oeq"]
Conversion = Callable[..., modules.MACE]  # what mace's converters are called as
Order = typing.Annotated[int, Field(ge=1, le=4)]
# What the annotations of mace's constructors leave open, or JSON holds in another form.
_TYPES = {
    "class": str,
    "r_max": Length,
    "num_interactions": Layers,
    "max_ell": Degree,
    "correlation": Order | typing.Annotated[list[Order], Field(min_length=1)],
    "radial_type": typing.Literal["bessel", "gaussian", "chebyshev"],
    "num_bessel": Count,
    "num_polynomial_cutoff": Count,
    "radial_MLP": Widths,
    "atomic_numbers": Elements,
    "avg_num_neighbors": Neighbours,
    "atomic_energies": Energies,
    "atomic_inter_scale": Energies,
    "atomic_inter_shift": Energies,
    **{name: str | None for name in _NAMED},
    **{name: Irreps | None for name in _IRREPS},
}
# Layouts of faster kernels, which are never saved.
_NEVER = ("cueq_config", "oeq_config", "lammps_mliap")
#: (max_ell + 1)^(2 correlation), entries of mace's largest coupling matrix for each of its outputs.
MOST_COUPLINGS = 2e5

#: Relative difference in energy that two builds of the same model may have.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}


class MaceHost(Host):
    """``MACE`` and ``ScaleShiftMACE`` of mace-torch."""

    @staticmethod
    def matches(model: torch.nn.Module) -> typing.TypeGuard[modules.MACE]:
        """Whether ``model`` is one of mace's energy models, not a subclass with other physics."""
        return type(model).__name__ in _CLASSES and isinstance(model, modules.MACE)

    @staticmethod
    def describe(model: typing.Any) -> dict[str, typing.Any]:
        """Constructor arguments of a mace model, classes by mace's own names for them."""
        if accelerated(model):
            raise InputError("the model is in the layout of faster kernels; convert it to e3nn's before saving it.")
        if not len(model.readouts):
            raise InputError("use_last_readout_only would leave a model of one interaction without readout; use two.")
        heads = list(getattr(model, "heads", ["Default"]))
        radial, readout = model.radial_embedding, model.readouts[-1]
        linear = type(readout) is modules.LinearReadoutBlock
        arguments = {
            "class": type(model).__name__,
            "r_max": float(model.r_max),
            "num_bessel": int(radial.out_dim),
            "num_polynomial_cutoff": int(radial.cutoff_fn.p),
            "radial_type": _RADIAL[type(radial.bessel_fn).__name__],
            "distance_transform": _TRANSFORM.get(type(getattr(radial, "distance_transform", None)).__name__, "None"),
            "max_ell": int(model.spherical_harmonics._lmax),
            "interaction_cls": type(model.interactions[-1]),
            "interaction_cls_first": type(model.interactions[0]),
            "num_interactions": int(model.num_interactions),
            "num_elements": len(model.atomic_numbers),
            "atomic_numbers": model.atomic_numbers.tolist(),
            "atomic_energies": atomic_energies(model).view_as(model.atomic_energies_fn.atomic_energies).tolist(),
            "avg_num_neighbors": float(model.interactions[0].avg_num_neighbors),
            "hidden_irreps": str(model.products[0].linear.irreps_out),
            "keep_last_layer_irreps": o3.Irreps(str(model.products[-1].linear.irreps_out)).lmax > 0,
            # With one interaction there is a linear readout only, and these two have no effect.
            "MLP_irreps": "1x0e" if linear else f"{readout.hidden_irreps.count('0e') // len(heads)}x0e",
            "gate": None if linear else getattr(readout.non_linearity.acts[0], "f", None),
            "readout_cls": modules.NonLinearReadoutBlock if linear else type(readout),
            "radial_MLP": [int(width) for width in extract_radial_MLP(model)],
            "correlation": [_correlation(product) for product in model.products],
            "pair_repulsion": hasattr(model, "pair_repulsion_fn"),
            "use_embedding_readout": hasattr(model, "embedding_readout"),
            "use_reduced_cg": _has_reduced_basis(model),
            "heads": heads,
            **{name: getattr(model, name, default) for name, default in _SETTINGS.items()},
        }
        if hasattr(model, "scale_shift"):
            arguments["atomic_inter_scale"] = model.scale_shift.scale.tolist()
            arguments["atomic_inter_shift"] = model.scale_shift.shift.tolist()
        for key, names in _NAMED.items():
            arguments[key] = next(name for name, value in names.items() if value is arguments[key])
        if arguments["edge_irreps"] is not None:
            arguments["edge_irreps"] = str(arguments["edge_irreps"])
        return arguments

    @classmethod
    def argument_types(cls) -> dict[str, typing.Any]:
        """The annotations of mace's constructors, narrowed where they leave too much open."""
        hints = {**typing.get_type_hints(modules.MACE.__init__), **_TYPES}
        return {name: hint for name, hint in hints.items() if name not in (*_NEVER, "return")}

    @classmethod
    def check_arguments(cls, arguments: dict[str, typing.Any], parameters: int | None = None) -> None:
        """The same, and that they fit each other: mace computes its couplings before it has a parameter."""
        super().check_arguments(arguments, parameters)
        given, layers, max_ell = arguments["correlation"], arguments["num_interactions"], arguments["max_ell"]
        order = max(given) if isinstance(given, list) else given
        if isinstance(given, list) and len(given) != layers:
            raise InputError(f"correlation is {short(given)} for {layers} interactions; expected one for each")
        if (max_ell + 1) ** (2 * order) > MOST_COUPLINGS:
            raise InputError(f"correlation {order} with max_ell {max_ell} makes too many couplings")
        if all(l_p != "0e" for _, l_p in read_irreps(arguments["hidden_irreps"])):
            raise InputError(
                f"hidden_irreps is {arguments['hidden_irreps']}; without 0e channels nothing gives energies"
            )

    @staticmethod
    @quiet()
    def build(arguments: dict[str, typing.Any]) -> modules.MACE:
        """A fresh mace model from what ``describe`` gave."""
        arguments = dict(arguments)
        name = arguments.pop("class")
        if name not in _CLASSES:
            raise InputError(f"mace model class {name!r} is not known here; known: {', '.join(_CLASSES)}.")
        for key, names in _NAMED.items():
            if arguments[key] not in names:
                raise InputError(f"mace's {key} {arguments[key]!r} is not known here; known: {', '.join(names)}.")
            arguments[key] = names[arguments[key]]
        for key in _IRREPS:
            arguments[key] = None if arguments[key] is None else o3.Irreps(arguments[key])
        if arguments["use_reduced_cg"] and not CUET_AVAILABLE:
            raise InputError(
                "the model has mace's reduced basis (use_reduced_cg), which needs cuequivariance: pip install "
                "cuequivariance cuequivariance-torch."
            )
        arguments["atomic_energies"] = np.array(arguments["atomic_energies"])
        arguments.setdefault("num_elements", len(arguments["atomic_numbers"]))
        model = _CLASSES[name](**arguments)
        keep_exact(model, arguments["atomic_energies"])
        return model

    @staticmethod
    def portable(model: modules.MACE) -> modules.MACE:
        """The model in e3nn's layout; the model itself unless it was converted to faster kernels."""
        kernels = accelerated(model)
        return model if kernels is None else _converted(model, _to_e3nn(kernels), "cpu")

    @staticmethod
    def parameter_groups(model: modules.MACE) -> list[ParameterGroup]:
        """mace's own groups in mace's order; weight decay only where mace has it."""
        settings = argparse.Namespace(
            lr=1.0, weight_decay=1.0, amsgrad=False, beta=0.9, lr_params_factors="{}", freeze=None
        )
        options = get_params_options(settings, model)
        return [
            {"name": group["name"], "params": list(group["params"]), "decay": group["weight_decay"] > 0}
            for group in options["params"]
        ]


def read_model(path: str | Path, trust_pickle: bool = False) -> modules.MACE:
    """A mace model from a ``.model`` file, built anew by the installed mace and checked against the one in the file.

    Parameters
    ----------
    path: written by ``torch.save(model)``, as mace 0.3 does
    trust_pickle: the file is a pickle, and reading one can run any code: without this it is refused

    Raises
    ------
    InputError
        If the file is not there or not to be trusted, holds no ``MACE`` or ``ScaleShiftMACE``, or one that the
        installed mace cannot build again.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no file {path}.")
    if _is_torchscript(path):
        raise InputError(
            f"{path} is compiled (TorchScript), for LAMMPS say, and cannot be trained; give the .model file from which "
            "it was made."
        )
    if path.suffix == ".safetensors":
        raise InputError(
            f"{path} holds weights alone; give the folder of a finished run, in which {CONFIG_FILE} says of what model "
            "they are."
        )
    if not trust_pickle:
        raise InputError(
            f"{path} is a pickle, and reading a pickle runs whatever code its maker put into it. If you trust where it "
            "comes from, allow it by --trust_pickle (trust_pickle=True). Folders of phi-mace-train need no such trust."
        )
    try:
        with quiet():
            model = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # unpickling raises whatever the pickled classes do
        raise InputError(f"{path} cannot be read as a model ({type(error).__name__}: {error}).") from error
    if not isinstance(model, torch.nn.Module):
        raise InputError(
            f"{path} holds a {type(model).__name__}, not a model (a checkpoint?); give the .model file that "
            "mace_run_train writes at its end."
        )
    if not MaceHost.matches(model):
        raise InputError(
            f"{path} holds a {type(model).__name__}; Φ starts from MACE and ScaleShiftMACE. Models with an "
            "electrostatics or dipoles of their own (MACELES, PolarMACE, AtomicDipolesMACE) are not taken."
        )
    try:
        return rebuilt(MaceHost.portable(model)).eval()
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except Exception as error:  # attributes that another version of mace named otherwise, for one
        raise InputError(
            f"{path} was saved by a mace that the installed one does not understand ({type(error).__name__}: {error})."
        ) from error


def rebuilt(model: modules.MACE) -> modules.MACE:
    """A fresh model with the same settings and weights; buffers that the constructor makes may be missing in the old.

    Raises
    ------
    InputError
        If parameters are left over or missing, or energies differ.
    """
    with default_dtype(next(model.parameters()).dtype):
        fresh = MaceHost.build(MaceHost.describe(model))
        state = model.state_dict()
        missing, unexpected = fresh.load_state_dict(state, strict=False)
        parameters = {name for name, _ in fresh.named_parameters()}
        lost = sorted(parameters.intersection(missing) | set(unexpected))
        if lost:
            raise InputError(f"the installed mace builds a model with other parameters: {', '.join(lost)}.")
        check_energies(fresh, model)
    return fresh


def check_energies(model: modules.MACE, other: torch.nn.Module, heads: Iterable[tuple[int, int]] | None = None) -> None:
    """InputError if two models that should agree give other energies.

    Parameters
    ----------
    model, other: mace models; ``other`` knows all elements of ``model``
    heads: pairs of indices of the heads to compare, all in their order where None
    """
    heads = [(i, i) for i in range(len(model.heads))] if heads is None else heads
    difference = energy_difference(model, other, heads)
    if not difference < TOLERANCE[next(model.parameters()).dtype]:
        raise InputError(f"mace makes a model with other energies of this one (relative difference {difference:.1e}).")


def readable_by_mace(model: Model) -> Model:
    """The model, so that mace's own tools can read its settings: they count radial functions by Bessel weights."""
    radial = typing.cast(modules.MACE, model).radial_embedding
    if not hasattr(radial.bessel_fn, "bessel_weights"):
        radial.bessel_fn.register_buffer("bessel_weights", torch.zeros(radial.out_dim), persistent=False)
    return model


def accelerated(model: torch.nn.Module) -> Kernels | None:
    """``cueq`` or ``oeq`` if the model runs on the kernels of cuequivariance or openequivariance, else None."""
    block = typing.cast(modules.MACE, model).interactions[0]
    for kernels in ("cueq", "oeq"):
        config = getattr(block, f"{kernels}_config", None)
        if config is not None and config.enabled:
            return kernels
    return None


def accelerate(model: torch.nn.Module, kernels: Kernels, device: str | torch.device) -> modules.MACE:
    """The model converted to faster kernels by mace, on ``device``.

    Parameters
    ----------
    model: a mace model in e3nn's layout; it is not changed
    kernels: ``cueq`` (cuequivariance) or ``oeq`` (openequivariance)

    Raises
    ------
    InputError
        If mace cannot convert the model or a package is missing.
    """
    check_kernels(kernels)
    return _converted(typing.cast(modules.MACE, model), _from_e3nn(kernels), device)


def check_kernels(kernels: Kernels) -> None:
    """InputError if the packages that ``cueq`` or ``oeq`` needs are not installed."""
    if kernels == "cueq" and not CUET_AVAILABLE:
        raise InputError("cuequivariance is not installed: pip install cuequivariance cuequivariance-torch.")
    if kernels == "oeq" and not OEQ_AVAILABLE:
        raise InputError("openequivariance is not installed or finds no CUDA compiler: pip install openequivariance.")


def _from_e3nn(kernels: Kernels) -> Conversion:
    if kernels == "cueq":
        from mace.cli import convert_e3nn_cueq

        return convert_e3nn_cueq.run
    from mace.cli import convert_e3nn_oeq

    return convert_e3nn_oeq.run


def _to_e3nn(kernels: Kernels) -> Conversion:
    if kernels == "cueq":
        from mace.cli import convert_cueq_e3nn

        return convert_cueq_e3nn.run
    from mace.cli import convert_oeq_e3nn

    return convert_oeq_e3nn.run


def _converted(model: modules.MACE, run: Conversion, device: str | torch.device) -> modules.MACE:
    """What mace's conversion makes of the model, checked."""
    try:
        # Random numbers, too, go on as if nothing had been built: Φ then starts the same on all kernels.
        with torch.random.fork_rng(devices=[]), default_dtype(next(model.parameters()).dtype), quiet():
            converted = run(readable_by_mace(copy.deepcopy(model)), device=device, return_model=True).to(device)
            keep_exact(converted, atomic_energies(model))
            check_energies(model, converted)
    except (NotImplementedError, AttributeError, KeyError, TypeError, RuntimeError, ImportError) as error:
        raise InputError(
            f"mace cannot convert this model between e3nn and faster kernels ({type(error).__name__}: {error}); leave "
            "enable_cueq, only_cueq and enable_oeq out."
        ) from error
    return converted


def _is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive, found without unpickling anything."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _correlation(product: typing.Any) -> int:
    """Correlation order of one layer; it may differ from layer to layer."""
    return len(product.symmetric_contractions.contractions[0].weights) + 1


def _has_reduced_basis(model: typing.Any) -> bool:
    """Whether the products have mace's reduced basis: without cuequivariance mace builds the full one in silence."""
    if not getattr(model, "use_reduced_cg", False):
        return False
    for product in model.products:
        block = product.symmetric_contractions
        for (_, ir), contraction in zip(block.irreps_out, block.contractions, strict=True):
            order = contraction.correlation
            full = U_matrix_real(contraction.coupling_irreps, o3.Irreps([(1, ir)]), order, use_cueq_cg=False)[-1]
            if full.shape != contraction.U_tensors(order).shape:
                return True
    return False
