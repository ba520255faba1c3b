"""Everything that the trainer takes from mace; no other module of ``training`` imports it."""

import argparse
import copy
import dataclasses
import random
import warnings
from types import SimpleNamespace

import numpy as np
import torch

import phi_equivariant  # noqa: F401  (lets torch read e3nn's constants, which mace imports)
from phi_equivariant.errors import InputError
from phi_equivariant.inputs.empty_space import compact, mostly_empty

# isort: split
import mace
from e3nn import o3
from mace import data as mace_data
from mace import modules
from mace import tools as mace_tools
from mace.tools import finetuning_utils, model_script_utils, scripts_utils

from zoo.mace_host import MaceHost, check_energies, readable_by_mace

HEAD = "Default"

#: Where ``training.data.structures`` puts the labels, whatever their names were in the file.
CANONICAL_KEYS = {
    "energy_key": "REF_energy",
    "forces_key": "REF_forces",
    "stress_key": "REF_stress",
    "virials_key": "REF_virials",
    "dipole_key": "REF_dipole",
    "charges_key": "REF_charges",
    "total_charge_key": "total_charge",
    "total_spin_key": "total_spin",
    "elec_temp_key": "elec_temp",
    "head_key": "head",
}

#: Fields of a mace graph that only other architectures (PolarMACE, dielectric models) read.
UNUSED_FIELDS = (
    "density_coefficients",
    "rcell",
    "volume",
    "fermi_level",
    "external_field",
    "elec_temp",
    "polarizability",
    "polarizability_weight",
)


def version():
    """The installed mace's version."""
    return mace.__version__


def argument_parser():
    """mace's own option parser: names, aliases, types and defaults of the installed version."""
    return mace_tools.build_default_arg_parser()


def check_options(options):
    """Run mace's own consistency checks on parsed options; returns its messages.

    Raises
    ------
    InputError
        Where mace refuses the combination.
    """
    try:
        _, messages = mace_tools.check_args(options)
    except (AssertionError, ValueError, SyntaxError) as error:
        raise InputError(f"mace refuses these options: {error}") from error
    return [text for text, _ in messages]


def set_seeds(seed):
    """Seed numpy and torch as mace does, and Python's own generator."""
    random.seed(seed)
    mace_tools.set_seeds(seed)


def set_default_dtype(name):
    """Make ``float32`` or ``float64`` the default of new tensors."""
    mace_tools.set_default_dtype(name)


def configurations(frames, config_type_weights=None, head=HEAD, embeddings=None):
    """mace configurations of ase.Atoms whose labels are under the canonical keys (lazily, one at a time).

    Parameters
    ----------
    frames : iterable of ase.Atoms
    config_type_weights : dict or None
        Weights of structures by ``info["config_type"]``.
    head : str
        Head of the model that these structures belong to.
    embeddings : dict or None
        mace's ``embedding_specs``; their entries stand under the specifications' own names.
    """
    keys = mace_data.update_keyspec_from_kwargs(mace_data.KeySpecification(), CANONICAL_KEYS)
    for name, spec in (embeddings or {}).items():
        (keys.arrays_keys if spec["per"] == "atom" else keys.info_keys).setdefault(name, name)
    weights = config_type_weights or {}
    for atoms in frames:
        yield mace_data.config_from_atoms(atoms, key_specification=keys, config_type_weights=weights, head_name=head)


def graph(configuration, atomic_numbers, r_max, heads=(HEAD,), kept=()):
    """A structure with its neighbour list and labels, as mace's models and losses read it.

    ``kept`` names fields of :data:`UNUSED_FIELDS` that this model reads after all.
    """
    table = mace_tools.AtomicNumberTable(list(atomic_numbers))
    positions, cell, pbc = configuration.positions, np.array(configuration.cell, float), np.array(configuration.pbc)
    tight = compact(positions, cell, pbc, r_max) if mostly_empty(positions, cell, pbc, r_max) else None
    if tight is not None:
        configuration = dataclasses.replace(
            configuration, positions=tight.positions, cell=tight.cell, pbc=(True, True, True)
        )
    data = mace_data.AtomicData.from_config(configuration, z_table=table, cutoff=r_max, heads=list(heads))
    fields = {
        key: value
        for key, value in data.to_dict().items()
        if value is not None and (key not in UNUSED_FIELDS or key in kept)
    }
    if tight is not None:
        _unpack(fields, tight, positions, cell, pbc, r_max)
    for key in ("shifts", "unit_shifts"):
        if not fields[key].any():
            # An open structure: one row of zeros stands for all edges, which would fill most of the memory.
            fields[key] = fields[key].new_zeros(1, 3).expand(len(fields[key]), 3)
    return fields


def _unpack(fields, tight, positions, cell, pbc, r_max):
    """Give a graph that was made without empty space its own positions, cell and images."""
    number = {"dtype": torch.get_default_dtype()}
    sender, receiver = fields["edge_index"].numpy()
    images = fields["unit_shifts"].double().numpy() + tight.wraps[receiver] - tight.wraps[sender]
    made_up = np.eye(3) * (np.abs(positions).max() + 1) * 5 * r_max  # mace's vectors of open directions
    cell = np.where(pbc[:, None], cell, made_up)
    fields["positions"], fields["cell"] = torch.tensor(positions, **number), torch.tensor(cell, **number)
    fields["unit_shifts"], fields["shifts"] = torch.tensor(images, **number), torch.tensor(images @ cell, **number)
    fields["pbc"] = torch.tensor(pbc)[None]


def average_energies(frames, atomic_numbers):
    """Isolated-atom energies {Z: eV} that fit the labelled energies best (least squares)."""
    records = [
        SimpleNamespace(properties={"energy": atoms.info[CANONICAL_KEYS["energy_key"]]}, atomic_numbers=atoms.numbers)
        for atoms in frames
        if CANONICAL_KEYS["energy_key"] in atoms.info
    ]
    found = mace_data.compute_average_E0s(records, mace_tools.AtomicNumberTable(list(atomic_numbers)))
    return {int(number): float(energy) for number, energy in found.items()}


def estimated_energies(model, energies, frames, atomic_numbers, device="cpu", embeddings=None):
    """A trained model's isolated-atom energies {Z: eV}, corrected so that its energies fit the labels best.

    The model is moved to the device.
    """
    table = mace_tools.AtomicNumberTable(list(atomic_numbers))
    labelled = list(configurations(frames, embeddings=embeddings))
    found = mace_data.estimate_e0s_from_foundation(model, energies, labelled, table, device)
    return {int(number): float(energy) for number, energy in found.items()}


class LmdbDatabase:
    """An LMDB file in ase's form, read by mace's reader."""

    def __init__(self, path):
        from mace.tools.fairchem_dataset import AseDBDataset

        self._database = AseDBDataset(config={"src": [str(path)]})

    def __len__(self):
        return len(self._database)

    def atoms(self, index):
        """One structure with everything that the file says of it."""
        return self._database.get_atoms(self._database.ids[index])


def loss_function(options, stage=1):
    """mace's loss of that name, with the weights of stage one or two; called as ``loss(pred=output, ref=batch)``."""
    if stage == 1:
        return scripts_utils.get_loss_fn(options, dipole_only=False, compute_dipole=False)
    # mace makes it together with a schedule and an average of a model's weights (which it never evaluates).
    model = torch.nn.Linear(1, 1)
    made, _ = scripts_utils.get_swa(copy.copy(options), model, torch.optim.SGD(model.parameters()), [])
    return made.loss_fn


def build_host(options, loader, energies, atomic_numbers, heads):
    """A mace model from mace's options, scaled by the training set's statistics.

    Parameters
    ----------
    options : argparse.Namespace
    loader : training.data.batches.StatisticsPass
        Read as often as mace_run_train reads its own, so that its shuffling continues as there.
    energies : dict
        {head: {Z: eV}} of the isolated atoms.
    atomic_numbers : list of int
    heads : list of training.data.heads.Head
        In the model's order, with the statistics that were given for them.

    Returns
    -------
    model, outputs
        The model, and which of energy, forces, stress and virials it has to compute for the loss.

    Raises
    ------
    InputError
        Where mace refuses the architecture.
    """
    options = copy.copy(options)
    options.compute_energy, options.compute_dipole, options.compute_polarizability = True, False, False
    options.distributed = False
    names = [head.name for head in heads]
    table = mace_tools.AtomicNumberTable(list(atomic_numbers))
    energies = np.array([[energies[name][number] for number in atomic_numbers] for name in names])
    warnings.filterwarnings("ignore", message="The TorchScript type system doesn't support")
    try:
        options.avg_num_neighbors = scripts_utils.get_avg_num_neighbors(heads, options, loader, torch.device("cpu"))
        if not options.avg_num_neighbors > 0:
            raise InputError(
                f"--r_max: no two atoms of the training set are within {options.r_max} Å of each other, so there is "
                "nothing to learn from. Give a larger r_max, structures in Å, or avg_num_neighbors with "
                "compute_avg_num_neighbors False."
            )
        options.mean, options.std = _mean_and_scale(options, loader, energies, heads)
        model, outputs = model_script_utils.configure_model(options, loader, energies, None, names, table, heads)
    except InputError:
        raise
    except (AssertionError, ValueError, KeyError, RuntimeError, SyntaxError) as error:
        raise InputError(f"mace cannot build this model: {type(error).__name__}: {error}") from error
    return model, {name: outputs[name] for name in ("forces", "stress", "virials")}


def statistics(options, loader, energies, atomic_numbers, heads):
    """What a host with a scale and a shift takes from the training set, by mace's options for it.

    Parameters
    ----------
    options, loader, energies, atomic_numbers, heads : as for :func:`build_host`

    Returns
    -------
    avg_num_neighbors, scales, shifts
        The last two by head, in eV per atom.

    Raises
    ------
    InputError
        Where mace cannot compute them.
    """
    options = copy.copy(options)
    options.model, options.distributed = "ScaleShiftMACE", False
    energies = np.array([[energies[head.name][number] for number in atomic_numbers] for head in heads])
    try:
        neighbours = scripts_utils.get_avg_num_neighbors(heads, options, loader, torch.device("cpu"))
        means, scales = _mean_and_scale(options, loader, energies, heads)
    except (AssertionError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(f"mace cannot take statistics from the training set: {error}") from error
    return float(neighbours), scales, means


def _mean_and_scale(options, loader, energies, heads):
    """Shift and scale of each head: what was given for it, the rest from the training set by mace's ``--scaling``."""
    if options.scaling == "no_scaling":
        return [head.mean or 0.0 for head in heads], [1.0] * len(heads)
    needs_mean = options.model == "ScaleShiftMACE"
    if all(head.std is not None and (head.mean is not None or not needs_mean) for head in heads):
        if options.std is None:
            loader.skip()  # mace looks again at what a statistics_file or a head has told
        return [head.mean or 0.0 for head in heads], [head.std for head in heads]
    means, scales = (np.ravel(found) for found in modules.scaling_classes[options.scaling](loader, energies))
    if len(scales) != len(heads):
        raise ValueError("a head has too few structures to take its mean and scale from; give it a mean and a std")
    return (
        [float(mean) if head.mean is None else head.mean for head, mean in zip(heads, means, strict=True)],
        [float(scale) if head.std is None else head.std for head, scale in zip(heads, scales, strict=True)],
    )


def irreps(text):
    """e3nn's irreps from text.

    Raises
    ------
    InputError
    """
    try:
        return o3.Irreps(str(text))
    except ValueError as error:
        raise InputError(f"{text!r} are no irreps ({error}); write them as '32x0e+32x1o'.") from error


def names_of_downloads():
    """Names by which mace downloads trained models."""
    from mace.calculators import foundations_models

    found = {*foundations_models.mace_mp_names, *foundations_models.polar_model_names}
    return (found - {None}) | {"small_off", "medium_off", "large_off", "mace_omol"}


def freeze_layers(model, level):
    """Stop training of layers, by mace's ``--freeze``: embedding (1), interactions (5), products (6), readouts (7)."""
    settings = argparse.Namespace(
        lr=1.0, weight_decay=0.0, amsgrad=False, beta=0.9, lr_params_factors="{}", freeze=level
    )
    scripts_utils.get_params_options(settings, model)


def single_head(model, head=None):
    """A trained model as mace's fine-tuning takes it: a ``ScaleShiftMACE`` with one head.

    Parameters
    ----------
    model : mace model in e3nn's layout
    head : name of the head to keep; the first that is not ``pt_head`` where None

    Raises
    ------
    InputError
        If there is no such head or mace cannot take it out.
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
        single = scripts_utils.remove_pt_head(readable_by_mace(model), heads[kept])
    except (ValueError, AttributeError, RuntimeError, KeyError) as error:
        raise InputError(f"mace cannot take the head {heads[kept]!r} out of the model: {error}") from error
    check_energies(model, single, [(kept, 0)])
    return single


def fine_tuned_host(options, loader, energies, atomic_numbers, heads, trained):
    """A mace model with the weights of a trained one, as mace_run_train's fine-tuning without replay makes it.

    Scale, shift, cut-off and avg_num_neighbors stay those of the trained model; each head gets a copy of its readouts.

    Parameters
    ----------
    options, loader, energies, atomic_numbers, heads : as for :func:`build_host`
    trained : ``ScaleShiftMACE`` with one head, which knows all elements

    Returns
    -------
    model, outputs, as :func:`build_host`

    Raises
    ------
    InputError
        Where mace cannot carry the weights over.
    """
    for _ in range(2):  # mace reads the training set for statistics that it then does not use
        loader.skip()
    names = [head.name for head in heads]
    own = np.array([[energies[name][number] for number in atomic_numbers] for name in names])
    description = MaceHost.describe(trained)
    description |= {
        "atomic_numbers": list(atomic_numbers),
        "num_elements": len(atomic_numbers),
        "atomic_energies": own,
        "heads": names,
        "atomic_inter_scale": [1.0] * len(names),
        "atomic_inter_shift": [0.0] * len(names),
    }
    fresh = MaceHost.build(description)
    readouts = options.foundation_model_readout
    try:
        model = finetuning_utils.load_foundations_elements(
            fresh,
            trained,
            mace_tools.AtomicNumberTable(list(atomic_numbers)),
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
    basis = model.radial_embedding.bessel_fn
    if isinstance(getattr(basis, "bessel_weights", None), torch.nn.Parameter):
        weights = basis.bessel_weights.detach().clone()
        del basis.bessel_weights
        basis.register_buffer("bessel_weights", weights)
    if readouts:
        check_energies(model, trained, [(i, 0) for i in range(len(names))])
    return model, derivatives(options)


def derivatives(options):
    """Which derivatives the loss needs, as mace decides: {forces, stress, virials: bool}."""
    stress = options.loss in ("stress", "huber", "universal")
    return {"forces": True, "stress": stress, "virials": options.loss == "virials"}


def option_names(parser: argparse.ArgumentParser):
    """{destination: long option strings} of a parser."""
    return {action.dest: action.option_strings for action in parser._actions if action.option_strings}
