"""The hosts that mace makes, with statistics of the training set; and the ``.model`` file that its own tools read."""

import copy
import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from phi_equivariant import PhiPotential
from phi_equivariant.errors import InputError
from phi_equivariant.files import write_atomically
from phi_equivariant.host_energy import atomic_energies, keep_exact
from phi_equivariant.quiet import importing, quiet
from phi_equivariant.weights import portable
from training.mace_interface import irreps, namespace
from training.mace_statistics import TrainingSet, mean_and_scale
from training.run import Data, Host, Loss
from zoo.mace_host import MaceHost, check_energies, readable_by_mace

with importing():
    from mace.tools import finetuning_utils, model_script_utils, scripts_utils

Outputs = dict[str, bool]


def build_host(host: Host, data: Data, loss: Loss, training: TrainingSet) -> tuple[torch.nn.Module, Outputs]:
    """A mace model from mace's options, scaled by the training set's statistics.

    Returns the model, and which of energy, forces, stress and virials it has to compute for the loss.

    InputError where mace refuses the architecture.
    """
    options = namespace(host, data, loss, compute_energy=True, compute_dipole=False, compute_polarizability=False)
    loader, heads, isolated = training.loader, training.heads, training.isolated
    try:
        options.avg_num_neighbors = scripts_utils.get_avg_num_neighbors(heads, options, loader, torch.device("cpu"))
        if not options.avg_num_neighbors > 0:
            raise InputError(
                f"--r_max: no two atoms of the training set are within {host.r_max} Å. Give a larger one, "
                "structures in Å, or avg_num_neighbors with compute_avg_num_neighbors False."
            )
        options.mean, options.std = mean_and_scale(host.model, data, training)
        written = [SimpleNamespace(**dataclasses.asdict(head)) for head in heads]  # mace changes them
        with quiet():
            model, outputs = model_script_utils.configure_model(
                options, loader, isolated, None, training.names, training.table, written
            )
        keep_exact(model, isolated)
    except InputError:
        raise
    except (AssertionError, ValueError, KeyError, RuntimeError, SyntaxError) as error:
        raise InputError(f"mace cannot build this model: {type(error).__name__}: {error}") from error
    return model, {name: outputs[name] for name in ("forces", "stress", "virials")}


def freeze_layers(model: torch.nn.Module, level: int) -> None:
    """Stop training of layers, by mace's ``--freeze``: embedding (1), interactions (5), products (6), readouts (7)."""
    scripts_utils.get_params_options(namespace(freeze=level, lr_params_factors="{}"), model)


def single_head(model: Any, head: str | None = None) -> Any:
    """A trained model as mace's fine-tuning takes it: a ``ScaleShiftMACE`` with one head.

    ``model`` is in e3nn's layout; ``head`` is kept, the first that is not ``pt_head`` where None.

    InputError if there is no such head or mace cannot take it out.
    """
    heads = list(model.heads)
    if head is not None and head not in heads:
        raise InputError(f"the model has the heads {', '.join(heads)}, not {head!r}: choose one by --foundation_head.")
    if not hasattr(model, "scale_shift"):
        description = {**MaceHost.describe(model), "class": "ScaleShiftMACE"}
        scaled = {"atomic_inter_scale": [1.0] * len(heads), "atomic_inter_shift": [0.0] * len(heads)}
        fresh = MaceHost.build({**description, **scaled})
        fresh.load_state_dict(model.state_dict(), strict=False)
        model = fresh
    if len(heads) == 1:
        return model
    kept = heads.index(head) if head else next((i for i, name in enumerate(heads) if name != "pt_head"), 0)
    try:
        with quiet():
            single = scripts_utils.remove_pt_head(readable_by_mace(model), heads[kept])
    except (ValueError, AttributeError, RuntimeError, KeyError) as error:
        raise InputError(f"mace cannot take the head {heads[kept]!r} out of the model: {error}") from error
    keep_exact(single, atomic_energies(model)[kept])
    check_energies(model, single, [(kept, 0)])
    return single


def fine_tuned_host(
    host: Host, data: Data, loss: Loss, training: TrainingSet, trained: Any
) -> tuple[torch.nn.Module, Outputs]:
    """A mace model with the weights of a trained one, as mace_run_train's fine-tuning makes it.

    Scale, shift, cut-off and avg_num_neighbors stay those of the trained model; each head gets a copy of its readouts.

    ``trained`` is a ``ScaleShiftMACE`` with one head, which knows all elements. Returns what :func:`build_host` does.

    InputError where mace cannot carry the weights over.
    """
    # mace reads the training set for statistics that it then does not use.
    to_scale = data.std is None and data.scaling != "no_scaling"
    for read in (all(head.compute_avg_num_neighbors for head in training.heads), to_scale):
        if read:
            training.loader.skip()
    names, own = training.names, training.isolated
    description = MaceHost.describe(trained)
    description |= {
        "atomic_numbers": list(training.atomic_numbers),
        "num_elements": len(training.atomic_numbers),
        "atomic_energies": own,
        "heads": names,
        "atomic_inter_scale": [1.0] * len(names),
        "atomic_inter_shift": [0.0] * len(names),
    }
    fresh = MaceHost.build(description)
    readouts = host.foundation_model_readout
    try:
        model = finetuning_utils.load_foundations_elements(
            fresh,
            trained,
            training.table,
            load_readout=readouts,
            max_L=irreps(description["hidden_irreps"]).lmax,
            default_dtype=torch.get_default_dtype(),
        )
    except (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, ValueError) as error:
        raise InputError(
            "--foundation_model: mace cannot carry the weights of this architecture over to other elements or heads "
            f"({type(error).__name__}: {error})."
        ) from error
    # mace takes the trained model's E0s over those that were given where the elements are the same, and makes a
    # parameter that nothing trains of a buffer.
    model.atomic_energies_fn.atomic_energies = torch.tensor(own)
    keep_exact(model, own)
    basis = model.radial_embedding.bessel_fn
    if isinstance(getattr(basis, "bessel_weights", None), torch.nn.Parameter):
        weights = basis.bessel_weights.detach().clone()
        del basis.bessel_weights
        basis.register_buffer("bessel_weights", weights)
    if readouts:
        check_energies(model, trained, [(i, 0) for i in range(len(names))])
    return model, derivatives(loss)


def derivatives(loss: Loss) -> Outputs:
    """Which derivatives the loss needs, as mace decides: {forces, stress, virials: bool}."""
    stress = loss.loss in ("stress", "huber", "universal")
    return {"forces": True, "stress": stress, "virials": loss.loss == "virials"}


def check_host(model: torch.nn.Module) -> None:
    """Find out whether mace's tools can run a potential from a file.

    InputError for a host that mace does not know.
    """
    host = model.host if isinstance(model, PhiPotential) else model
    if not MaceHost.matches(host):
        raise InputError(
            f"--save_mace_model: the host is a {type(host).__name__}, which mace's tools do not know. Leave it out; "
            "PhiCalculator and phi-mace-eval read the run's folder."
        )


def write_model(model: torch.nn.Module, path: Path) -> None:
    """Write the pickle that ``MACECalculator`` and ``mace_eval_configs`` load.

    A bare host is a mace model in e3nn's layout, as ``mace_run_train`` saves it. One with Φ is a ``PhiPotential``:
    reading it needs phi_equivariant installed.
    """
    with quiet():
        whole = copy.deepcopy(portable(model)).cpu().eval()
    readable_by_mace(whole.host if isinstance(whole, PhiPotential) else whole)
    with quiet():
        write_atomically(path, lambda place: torch.save(whole, place))
