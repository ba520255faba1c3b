"""mace as a host: the only module of ``zoo`` that imports mace."""

import argparse
import copy

import numpy as np
import torch
from e3nn import o3
from mace import modules
from mace.tools.scripts_utils import extract_config_mace_model, get_params_options

from phi_equivariant.errors import InputError
from zoo.hosts import Host

_CLASSES = {"MACE": modules.MACE, "ScaleShiftMACE": modules.ScaleShiftMACE}
# How the constructor arguments that JSON cannot hold are written, and read back.
_NAMED = {
    "interaction_cls": modules.interaction_classes,
    "interaction_cls_first": modules.interaction_classes,
    "readout_cls": modules.readout_classes,
    "gate": modules.gate_dict,
}
_IRREPS = ("hidden_irreps", "MLP_irreps", "edge_irreps")
_ARRAYS = ("atomic_energies", "atomic_inter_scale", "atomic_inter_shift")


class MaceHost(Host):
    """``MACE`` and ``ScaleShiftMACE`` of mace-torch."""

    @staticmethod
    def matches(model):
        """Whether ``model`` is one of mace's energy models, not a subclass with other physics."""
        return type(model).__name__ in _CLASSES and isinstance(model, modules.MACE)

    @staticmethod
    def describe(model):
        """Constructor arguments of a mace model, classes by mace's own names for them."""
        try:
            arguments = extract_config_mace_model(_as_scale_shift(model))
        except AttributeError as error:
            raise InputError(
                f"mace cannot name this model's settings ({error}), so that it cannot be saved."
            ) from error
        if arguments.pop("cueq_config") is not None:
            raise InputError("the model is in cuequivariance's layout; convert it to e3nn's before saving it.")
        for key, names in _NAMED.items():
            arguments[key] = next(name for name, value in names.items() if value is arguments[key])
        for key in _IRREPS:
            arguments[key] = None if arguments[key] is None else str(arguments[key])
        for key in _ARRAYS:
            arguments[key] = np.asarray(arguments[key]).tolist()
        arguments["avg_num_neighbors"] = float(arguments["avg_num_neighbors"])
        arguments["atomic_numbers"] = arguments["atomic_numbers"].tolist()
        arguments["distance_transform"] = arguments["distance_transform"] or "None"
        arguments["correlation"] = [_correlation(product) for product in model.products]
        last = o3.Irreps(str(model.products[-1].linear.irreps_out))
        arguments["keep_last_layer_irreps"] = last.lmax > 0
        if type(model).__name__ == "MACE":
            del arguments["atomic_inter_scale"], arguments["atomic_inter_shift"]
        return {"class": type(model).__name__, **arguments}

    @staticmethod
    def build(arguments):
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
        arguments["atomic_energies"] = np.array(arguments["atomic_energies"])
        return _CLASSES[name](**arguments)

    @staticmethod
    def parameter_groups(model):
        """mace's own groups in mace's order; weight decay only where mace has it."""
        settings = argparse.Namespace(
            lr=1.0, weight_decay=1.0, amsgrad=False, beta=0.9, lr_params_factors="{}", freeze=None
        )
        options = get_params_options(settings, model)
        return [
            {"name": group["name"], "params": list(group["params"]), "decay": group["weight_decay"] > 0}
            for group in options["params"]
        ]


def _as_scale_shift(model):
    """The model as mace's extraction wants it, which knows ``ScaleShiftMACE`` only; the model itself is not changed."""
    if type(model).__name__ == "ScaleShiftMACE":
        return model
    view = copy.copy(model)
    view._modules = dict(model._modules)
    view.__class__ = modules.ScaleShiftMACE
    view.scale_shift = modules.ScaleShiftBlock(scale=torch.tensor(1.0), shift=torch.tensor(0.0))
    return view


def _correlation(product):
    """Correlation order of one layer; mace's extraction reads the first layer's only."""
    return len(product.symmetric_contractions.contractions[0].weights) + 1
