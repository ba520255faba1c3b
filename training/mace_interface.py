"""What the trainer takes from mace beside its hosts (``mace_hosts``): options, structures, losses."""

import argparse
import dataclasses
import functools
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np
import torch
from ase import Atoms

from phi_equivariant.errors import InputError
from phi_equivariant.inputs.empty_space import Compact, compact, mostly_empty

# isort: split
from e3nn import o3
from mace import data as mace_data
from mace import tools as mace_tools
from mace.tools import scripts_utils

from training.quantities import LABELS, TARGETS
from training.run import HEAD, Loss
from training.run.option import Part

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
)  # but those that are labels of ours


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


def namespace(*parts: Part, **others: Any) -> argparse.Namespace:
    """Options in the form that mace's functions want: those of the parts and others, the rest at mace's defaults."""
    told = {name: value for part in parts for name, value in part.values().items()}
    return argparse.Namespace(**{**_defaults(), **told, **others})


#: The options that mace's check fills in from each other.
_WIDTH = ("hidden_irreps", "num_channels", "max_L")
_SETTLED = (*_WIDTH, "swa", "start_swa")


def settled(values: Mapping[str, Any], with_width: bool = True) -> dict[str, Any]:
    """Those of the options that mace fills in from each other: the width of the host, and stage two.

    ``with_width``: whether the host has mace's options for its width.

    Raises
    ------
    InputError
        Where mace refuses the options, or would drop one of the three of the width for another.
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


def configurations(
    frames: Iterable[Atoms],
    config_type_weights: Mapping[str, float] | None = None,
    head: str = HEAD,
    embeddings: Mapping[str, Any] | None = None,
) -> Iterator[Any]:
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
    keys = mace_data.KeySpecification({"head": "head"})
    for label in LABELS.values():
        (keys.arrays_keys if label.per_atom else keys.info_keys)[label.name] = label.canonical
    for name, spec in (embeddings or {}).items():
        (keys.arrays_keys if spec["per"] == "atom" else keys.info_keys).setdefault(name, name)
    weights = dict(config_type_weights or {})
    for atoms in frames:
        yield mace_data.config_from_atoms(atoms, key_specification=keys, config_type_weights=weights, head_name=head)


def graph(
    configuration: Any,
    atomic_numbers: Iterable[int],
    r_max: float,
    heads: Iterable[str] = (HEAD,),
    kept: Sequence[str] = (),
) -> dict[str, torch.Tensor]:
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
    wanted = {*kept, *TARGETS, *(f"{name}_weight" for name in TARGETS)}
    fields = {
        key: value
        for key, value in data.to_dict().items()
        if value is not None and (key not in UNUSED_FIELDS or key in wanted)
    }
    dtype = torch.get_default_dtype()
    for name, label in TARGETS.items():
        if f"{name}_weight" not in fields:  # mace does not know it
            shape = ((len(configuration.positions),) if label.per_atom else (1,) if label.shape else ()) + label.shape
            value = configuration.properties.get(name)
            fields[name] = torch.zeros(shape) if value is None else torch.tensor(value, dtype=dtype).view(shape)
            fields[f"{name}_weight"] = torch.tensor(configuration.property_weights.get(name, 0.0), dtype=dtype)
    field = configuration.properties.get("external_field")  # V/Å
    fields["external_field"] = torch.tensor(np.zeros((1, 3)) if field is None else field, dtype=dtype).view(1, 3)
    # A total energy of -10^7 eV has no digits for the interaction in float32.
    energy = configuration.properties.get("energy")
    fields["energy"] = torch.tensor(0.0 if energy is None else float(energy), dtype=torch.float64)
    if tight is not None:
        _unpack(fields, tight, positions, cell, pbc, r_max)
    for key in ("shifts", "unit_shifts"):
        if not fields[key].any():
            # An open structure: one row of zeros stands for all edges, which would fill most of the memory.
            fields[key] = fields[key].new_zeros(1, 3).expand(len(fields[key]), 3)
    return fields


def _unpack(
    fields: dict[str, torch.Tensor],
    tight: Compact,
    positions: np.ndarray,
    cell: np.ndarray,
    pbc: np.ndarray,
    r_max: float,
) -> None:
    """Give a graph that was made without empty space its own positions, cell and images."""
    dtype = torch.get_default_dtype()
    sender, receiver = fields["edge_index"].numpy()
    images = fields["unit_shifts"].double().numpy() + tight.wraps[receiver] - tight.wraps[sender]
    made_up = np.eye(3) * (np.abs(positions).max() + 1) * 5 * r_max  # mace's vectors of open directions
    cell = np.where(pbc[:, None], cell, made_up)
    fields["positions"], fields["cell"] = torch.tensor(positions, dtype=dtype), torch.tensor(cell, dtype=dtype)
    fields["unit_shifts"] = torch.tensor(images, dtype=dtype)
    fields["shifts"] = torch.tensor(images @ cell, dtype=dtype)
    fields["pbc"] = torch.tensor(pbc)[None]


class LmdbDatabase:
    """An LMDB file in ase's form, read by mace's reader."""

    def __init__(self, path: object) -> None:
        from mace.tools.fairchem_dataset import AseDBDataset

        self._database = AseDBDataset(config={"src": [str(path)]})

    def __len__(self) -> int:
        return len(self._database)

    def atoms(self, index: int) -> Atoms:
        """One structure with everything that the file says of it."""
        return self._database.get_atoms(self._database.ids[index])


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

    Raises
    ------
    InputError
    """
    try:
        return o3.Irreps(str(text))
    except ValueError as error:
        raise InputError(f"{text!r} are no irreps ({error}); write them as '32x0e+32x1o'.") from error


def names_of_downloads() -> set[str]:
    """Names by which mace downloads trained models."""
    from mace.calculators import foundations_models

    found = {*foundations_models.mace_mp_names, *foundations_models.polar_model_names}
    return {name for name in found if name is not None} | {"small_off", "medium_off", "large_off", "mace_omol"}
