"""Everything that the trainer takes from mace; no other module of ``training`` imports it."""

import argparse
import copy
import random
import warnings
from types import SimpleNamespace

import numpy as np
import torch

import phi_equivariant  # noqa: F401  (lets torch read e3nn's constants, which mace imports)
from phi_equivariant.errors import InputError

# isort: split
import mace
from mace import data as mace_data
from mace import tools as mace_tools
from mace.tools import model_script_utils, scripts_utils

HEAD = "Default"

#: Where ``training.structures`` puts the labels, whatever their names were in the file.
CANONICAL_KEYS = {
    "energy_key": "REF_energy",
    "forces_key": "REF_forces",
    "stress_key": "REF_stress",
    "virials_key": "REF_virials",
    "dipole_key": "REF_dipole",
    "charges_key": "REF_charges",
    "total_charge_key": "total_charge",
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


def configurations(frames, config_type_weights="{}"):
    """mace configurations of ase.Atoms whose labels are under the canonical keys (lazily, one at a time)."""
    keys = mace_data.update_keyspec_from_kwargs(mace_data.KeySpecification(), CANONICAL_KEYS)
    weights = scripts_utils.get_config_type_weights(config_type_weights)
    for atoms in frames:
        yield mace_data.config_from_atoms(atoms, key_specification=keys, config_type_weights=weights, head_name=HEAD)


def graph(configuration, atomic_numbers, r_max):
    """A structure with its neighbour list and labels, as mace's models and losses read it."""
    table = mace_tools.AtomicNumberTable(list(atomic_numbers))
    data = mace_data.AtomicData.from_config(configuration, z_table=table, cutoff=r_max, heads=[HEAD])
    fields = {key: value for key, value in data.to_dict().items() if key not in UNUSED_FIELDS and value is not None}
    for key in ("shifts", "unit_shifts"):
        if not fields[key].any():
            # An open structure: one row of zeros stands for all edges, which would fill most of the memory.
            fields[key] = fields[key].new_zeros(1, 3).expand(len(fields[key]), 3)
    return fields


def atomic_energies(choice, train_configurations, atomic_numbers):
    """Isolated-atom energies {Z: eV} from mace's ``--E0s``: dictionary, JSON file or ``average`` (least squares).

    Raises
    ------
    InputError
        If the choice cannot be read or lacks an element.
    """
    if choice is None:
        raise InputError(
            "--E0s: energies of the isolated atoms are needed. Give a dictionary as in --E0s '{1: -13.6, 8: -2043.0}', "
            "a JSON file, 'average' (least squares over the training set), or frames with config_type=IsolatedAtom in "
            "the training file."
        )
    table = mace_tools.AtomicNumberTable(list(atomic_numbers))
    try:
        found = scripts_utils.get_atomic_energies(choice, list(train_configurations), table)
        return {int(number): float(energy) for number, energy in found.items()}
    except (RuntimeError, OSError, TypeError, ValueError) as error:
        raise InputError(f"--E0s: {choice!r} could not be used: {error}") from error


def loss_function(options):
    """mace's loss of that name and weights; called as ``loss(pred=output, ref=batch)``."""
    return scripts_utils.get_loss_fn(options, dipole_only=False, compute_dipole=False)


def build_host(options, loader, energies, atomic_numbers):
    """A mace model from mace's options, scaled by the training set's statistics.

    ``loader`` is read twice, as mace_run_train does, so that its shuffling continues as there.

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
    head = SimpleNamespace(
        head_name=HEAD,
        compute_avg_num_neighbors=options.compute_avg_num_neighbors,
        avg_num_neighbors=options.avg_num_neighbors,
        std=options.std,
    )
    table = mace_tools.AtomicNumberTable(list(atomic_numbers))
    energies = np.array([[energies[number] for number in atomic_numbers]])
    warnings.filterwarnings("ignore", message="The TorchScript type system doesn't support")
    try:
        options.avg_num_neighbors = scripts_utils.get_avg_num_neighbors([head], options, loader, torch.device("cpu"))
        model, outputs = model_script_utils.configure_model(options, loader, energies, None, [HEAD], table, [head])
    except (AssertionError, ValueError, KeyError, RuntimeError, SyntaxError) as error:
        raise InputError(f"mace cannot build this model: {type(error).__name__}: {error}") from error
    return model, {name: outputs[name] for name in ("forces", "stress", "virials")}


def option_names(parser: argparse.ArgumentParser):
    """{destination: long option strings} of a parser."""
    return {action.dest: action.option_strings for action in parser._actions if action.option_strings}
