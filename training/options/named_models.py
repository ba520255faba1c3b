"""Training a model of the zoo by its name: ``--model phi-<host>-<size>``."""

import ast

from phi_equivariant.errors import InputError
from training import mace_interface
from training.options.table import HONOURED
from zoo.architectures import ARCHITECTURES, architecture, check_installed, create_model

#: Settings of hosts that are options of mace too, and their names there: given with a named model they change its size.
SETTINGS = {
    "r_max": "r_max",
    "hidden_irreps": "hidden_irreps",
    "hidden_channels": "num_channels",
    "num_interactions": "num_interactions",
    "max_ell": "max_ell",
    "correlation": "correlation",
    "num_bessel": "num_radial_basis",
    "num_gaussians": "num_radial_basis",
    "num_rbf": "num_radial_basis",
    "num_polynomial_cutoff": "num_cutoff_basis",
    "radial_MLP": "radial_MLP",
    "MLP_irreps": "MLP_irreps",
    "gate": "gate",
}
ARCHITECTURE_OPTIONS = [name for name, effect in HONOURED.items() if effect == HONOURED["r_max"]]
#: Options that act on models made from mace's options only.
MACE_ONLY = ("foundation_model", "heads", "freeze", "enable_cueq", "only_cueq", "enable_oeq", "compare")
NAMES = list(ARCHITECTURES)


def is_named(args):
    """Whether ``--model`` is a name of the zoo."""
    return args.model in ARCHITECTURES


def take_settings(args, given, said, default_of):
    """Take a named model's settings out of the options, which are left as if they had not been given.

    Parameters
    ----------
    args : argparse.Namespace
    given, said : set of str
        Options that the user gave another value than the default, and all that the user gave; what a data set's preset
        says of mace's architecture does not count.
    default_of : callable
        mace's default of an option.

    Returns
    -------
    dict
        {option: value}: what the user gave, the size's own values for the rest.

    Raises
    ------
    InputError
        For an option that the model does not have.
    """
    size = architecture(args.model)
    check_installed(args.model)
    for option in MACE_ONLY:
        if option in given and getattr(args, option):
            raise InputError(
                f"--{option} acts on models that mace's options describe; leave it out with --model {args.model}, or "
                "choose --model ScaleShiftMACE."
            )
    own = {SETTINGS[name]: value for name, value in size.arguments.items() if name in SETTINGS}
    sizes = dict(own)
    for option in ARCHITECTURE_OPTIONS:
        if option in given and option not in own:
            raise InputError(
                f"--{option}: {args.model} has no such setting. Leave it out, or choose --model ScaleShiftMACE; "
                f"{args.model} has {', '.join(own)}."
            )
        if option in said and option in own:
            own[option] = _read(option, getattr(args, option), sizes[option])
        setattr(args, option, default_of(option))
    return own


def _read(option, value, like):
    """A list from text, where the setting is a list."""
    if not (isinstance(like, list) and isinstance(value, str)):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError) as error:
        raise InputError(f"--{option}: expected a list as in {like}, got {value!r}.") from error


def put_settings(args, settings):
    """The settings of :func:`take_settings` where data and the run's configuration look for them; no others."""
    for option in ARCHITECTURE_OPTIONS:
        setattr(args, option, settings.get(option))


def build_host(args, loader, energies, atomic_numbers, heads):
    """A fresh host of a named size, with the statistics of the training set; it has one head.

    Parameters
    ----------
    args, loader, energies, atomic_numbers, heads
        As for :func:`training.mace_interface.build_host`.

    Returns
    -------
    model, outputs
        As :func:`training.mace_interface.build_host`.
    """
    neighbours, (scale,), (shift,) = mace_interface.statistics(args, loader, energies, atomic_numbers, heads)
    size = architecture(args.model).arguments
    given = {name: getattr(args, option) for name, option in SETTINGS.items() if name in size}
    settings = {name: value for name, value in given.items() if value is not None}
    if "avg_num_neighbors" in size:
        settings["avg_num_neighbors"] = neighbours
    model = create_model(
        args.model,
        atomic_numbers,
        with_phi=False,
        E0s=energies[heads[0].name],
        scale=scale,
        shift=shift,
        **settings,
    )
    return model, mace_interface.derivatives(args)
