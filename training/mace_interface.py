"""What the trainer takes from mace beside its hosts (``mace_hosts``): options, neighbours, losses."""

import argparse
import functools
import random
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import numpy as np
import torch

from phi_equivariant.errors import InputError
from phi_equivariant.inputs.empty_space import compact, mostly_empty
from phi_equivariant.inputs.graphs import Edges
from phi_equivariant.quiet import importing
from training.run import Loss
from training.run.option import RunPart

with importing():
    from e3nn import o3
    from mace import data as mace_data
    from mace import tools as mace_tools
    from mace.tools import scripts_utils


def version() -> str:
    """The installed mace's version."""
    return metadata.version("mace-torch")


def argument_parser() -> argparse.ArgumentParser:
    """mace's own option parser: names, aliases, types and defaults of the installed version."""
    parser: argparse.ArgumentParser = mace_tools.build_default_arg_parser()
    return parser


@functools.cache
def _defaults() -> dict[str, Any]:
    return vars(argument_parser().parse_args(["--name", "x"]))


def namespace(*parts: RunPart, **others: Any) -> argparse.Namespace:
    """Options in the form that mace's functions want: those of the parts and others, the rest at mace's defaults."""
    told = {name: value for part in parts for name, value in part.values().items()}
    return argparse.Namespace(**{**_defaults(), **told, **others})


#: The options that mace's check fills in from each other.
_WIDTH = ("hidden_irreps", "num_channels", "max_L")
_SETTLED = (*_WIDTH, "swa", "start_swa")


def settled(values: Mapping[str, Any], with_width: bool = True) -> dict[str, Any]:
    """Those of the options that mace fills in from each other: the width of the host, and stage two.

    ``with_width``: whether the host has mace's options for its width.

    InputError where mace refuses the options, or would drop one of the three of the width for another.
    """
    given = {name: values[name] for name in _WIDTH if with_width and values[name] is not None}
    others = {name: values[name] for name in (*_SETTLED, "max_num_epochs") if name not in _WIDTH}
    options = namespace(**others, **given)
    try:
        mace_tools.check_args(options)
    except (AssertionError, ValueError, SyntaxError) as error:
        raise InputError(f"mace refuses these options: {error}") from error
    for name, value in given.items():
        read = irreps if name == "hidden_irreps" else int
        if read(value) != read(getattr(options, name)):
            told = ", ".join(f"{name} {value}" for name, value in given.items())
            raise InputError(
                f"--{name}: {told} contradict each other. Give hidden_irreps alone, or num_channels and max_L."
            )
    options.hidden_irreps = str(options.hidden_irreps)
    if not options.swa or options.start_swa >= options.max_num_epochs:  # mace warns, and trains one stage
        options.swa, options.start_swa = False, None
    return {name: getattr(options, name) for name in _SETTLED if with_width or name not in _WIDTH}


def set_seeds(seed: int) -> None:
    """Seed numpy and torch as mace does, and Python's own generator."""
    random.seed(seed)
    mace_tools.set_seeds(seed)


def neighbours(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, r_max: float) -> Edges:
    """All pairs within a cut-off, as mace finds and orders them, and the cell with the vectors that mace makes up.

    positions (n_atoms, 3) and cell (3, 3) in Å, pbc (3,), r_max in Å. Empty space costs nothing.
    """
    if not mostly_empty(positions, cell, pbc, r_max):
        ends, _, images, whole = mace_data.get_neighborhood(positions, r_max, tuple(pbc.tolist()), np.array(cell))
        return Edges(ends, images, whole)
    tight = compact(positions, cell, pbc, r_max)
    (sender, receiver), _, images, _ = mace_data.get_neighborhood(tight.positions, r_max, (True,) * 3, tight.cell)
    made_up = np.eye(3) * (np.abs(positions).max() + 1) * 5 * r_max  # mace's vectors of open directions
    images = images + tight.wraps[receiver] - tight.wraps[sender]
    return Edges(np.stack([sender, receiver]), images, np.where(pbc[:, None], cell, made_up))


def open_lmdb(path: object) -> Any:
    """mace's reader of an LMDB file in ase's form: structure ``i`` is ``reader.get_atoms(reader.ids[i])``."""
    from mace.tools.fairchem_dataset import AseDBDataset

    return AseDBDataset(config={"src": [str(path)]})


def loss_function(loss: Loss, stage: int = 1) -> torch.nn.Module:
    """mace's loss of that name, with the weights of stage one or two; called as ``loss(pred=output, ref=batch)``."""
    options = namespace(loss)
    if stage == 1:
        made: torch.nn.Module = scripts_utils.get_loss_fn(options, dipole_only=False, compute_dipole=False)
        return made
    # mace makes it together with a schedule and an average of a model's weights (which it never evaluates).
    model = torch.nn.Linear(1, 1)
    stage_two, _ = scripts_utils.get_swa(options, model, torch.optim.SGD(model.parameters()), [])
    made = stage_two.loss_fn
    return made


def irreps(text: object) -> o3.Irreps:
    """e3nn's irreps from text.

    Raises InputError.
    """
    try:
        return o3.Irreps(str(text))
    except ValueError as error:
        raise InputError(f"{text!r} are not irreps ({error}); write them as '32x0e+32x1o'.") from error


def names_of_downloads() -> set[str]:
    """Names by which mace downloads trained models."""
    from mace.calculators import foundations_models

    found = {*foundations_models.mace_mp_names, *foundations_models.polar_model_names}
    return {name for name in found if name is not None} | {"small_off", "medium_off", "large_off", "mace_omol"}
