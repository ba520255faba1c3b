"""From structures to a batch, and from models that are named, saved or at hand to ones that compute."""

import glob
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from ase import Atoms

from phi_equivariant.derivatives import Batch, Output
from phi_equivariant.engines.neighbours import NeighbourList
from phi_equivariant.errors import InputError, did_you_mean
from phi_equivariant.files import CONFIG_FILE, WEIGHTS_FILE
from phi_equivariant.host_protocol import MaceLike, chosen_head
from phi_equivariant.inputs.cells import check_cells
from phi_equivariant.inputs.distances import check_edges
from phi_equivariant.inputs.embedded import check_classes, embedding_specs, read_embedded
from phi_equivariant.inputs.external_field import NAME as FIELD
from phi_equivariant.inputs.external_field import field_of, read_field
from phi_equivariant.inputs.graphs import Edges, collate, graph
from phi_equivariant.inputs.state import QUANTITIES, StateReader, reader_of
from phi_equivariant.kept import Memory
from phi_equivariant.potential import PhiPotential, run_model
from phi_equivariant.precision import read_dtype
from phi_equivariant.weights import host_type, host_types, load_model

Model = torch.nn.Module | str | Path
#: Arguments of MACECalculator that mean nothing here, with the value at which they ask for nothing.
NEUTRAL = {
    "model_type": "MACE",
    "energy_units_to_eV": 1.0,
    "length_units_to_A": 1.0,
    "charges_key": "Qs",
    "arrays_keys": None,
    "compile_mode": None,
    "fullgraph": True,
    "enable_cueq": False,
    "enable_oeq": False,
    "pad_num_atoms": 0,
    "pad_num_edges": 0,
    "warmup": False,
    "compute_atomic_stresses": False,
}


def ready_models(
    model: Model | Sequence[Model] | None, device: str | torch.device = "cpu", dtype: str | torch.dtype | None = None
) -> list[torch.nn.Module]:
    """Models on their device, in the wanted precision and in evaluation mode; those at hand are not copied.

    Parameters
    ----------
    model: a model, the folder of a saved one, a registered name, a pattern of folders (``run_*``), or a list of these
    device: where to compute
    dtype: ``float32`` or ``float64``, by name or torch's own; the models' own where None

    Raises
    ------
    InputError
        For an unknown precision, a device that is not there, or something that is not a model.
    """
    precision, device = read_dtype(dtype), check_device(device)
    given: list[Any] = list(model) if isinstance(model, list | tuple) else [model]
    found: list[torch.nn.Module] = []
    for one in given:
        names = sorted(glob.glob(one)) if isinstance(one, str) and glob.has_magic(one) else [one]
        found += [_ready(name, device, precision) for name in names]
    if not found:
        raise InputError(
            f"the model is {model!r}, which does not name one; give a model, or the folder of a saved one."
        )
    return found


def _ready(model: Any, device: torch.device, dtype: torch.dtype | None) -> torch.nn.Module:
    if isinstance(model, str | Path):
        model = _load(model, device, dtype)
    elif not isinstance(model, torch.nn.Module):
        raise InputError(f"the model is {model!r}; give a model, the folder of a saved one, or a registered name.")
    return model.to(device=device, dtype=dtype).eval()


def _load(name: str | Path, device: torch.device, dtype: torch.dtype | None) -> torch.nn.Module:
    """The model of a folder, of a file in it, or of a name that an installed package knows."""
    path = Path(name).expanduser()
    if path.name in (WEIGHTS_FILE, CONFIG_FILE):
        path = path.parent
    if path.is_dir():
        return load_model(path, device=device, dtype=dtype)
    if path.is_file():
        raise InputError(
            f"{name} is a file; give the folder of a saved model. A .model file of mace is a pickle, which runs code: "
            "read it by zoo.mace_host.read_model(path, trust_pickle=True) if you trust its origin."
        )
    for kind in map(host_type, host_types()):
        load_named = getattr(kind, "load_named", None)
        if load_named is not None:
            try:
                found: torch.nn.Module = load_named(str(name), dtype)
            except InputError as error:
                raise InputError(f"{name} is not a folder. {error}") from error
            return found
    raise InputError(f"{name} is not the folder of a saved model, and no installed package knows models by name.")


def check_device(device: str | torch.device) -> torch.device:
    """The device; InputError if it is none, or not there."""
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"device is {device!r}; give 'cpu', 'cuda' or 'cuda:1', say.") from error
    count = {"cuda": torch.cuda.device_count, "mps": lambda: int(torch.backends.mps.is_available())}.get(found.type)
    if count is not None and (found.index or 0) >= count():
        raise InputError(
            f"device is {str(device)!r}, but torch finds {count() or 'no'} such device here; give device='cpu', or "
            "install a torch that is built for the device."
        )
    return found


def read_names_of_mace(
    model: Any, dtype: str | torch.dtype | None, others: dict[str, Any], accepted: Iterable[str] = ()
) -> tuple[Any, str | torch.dtype | None, dict[str, str]]:
    """What MACECalculator's arguments mean here; takes out of ``others`` all but those ``accepted`` elsewhere.

    Returns
    -------
    model, dtype, {quantity: entry of ``atoms.info``}

    Raises
    ------
    InputError
        For an argument that nobody knows, one that is given under two names, or that asks for what is not computed.
    """
    for alias in ("model_paths", "model_path", "models"):
        if (given := others.pop(alias, None)) is not None:
            if model is not None:
                raise InputError(f"the model is given twice, the second time as {alias}; leave one out.")
            model = given
    if model is None:
        raise InputError("no model is given; give a model, or the folder of a saved one.")
    if given := others.pop("default_dtype", None):
        if dtype is not None and read_dtype(dtype) is not read_dtype(given):
            raise InputError(f"dtype is {dtype!r} and default_dtype {given!r}; leave one out.")
        dtype = given
    keys = dict(others.pop("info_keys", None) or {})
    if unknown := [name for name in keys if name not in QUANTITIES]:
        raise InputError(f"info_keys names {unknown[0]!r}; what is read from structures are {', '.join(QUANTITIES)}.")
    for name in [name for name in others if name in NEUTRAL]:
        if (given := others.pop(name)) != NEUTRAL[name]:
            raise InputError(f"{name} is {given!r}, which is MACECalculator's and does nothing here; leave it out.")
    known = ("model", "device", "dtype", "head", "skin", "model_paths", "models", "default_dtype", "info_keys")
    for name in others:
        if name not in accepted:
            names = [*known, *accepted]
            hint = did_you_mean(name, names, f"Known are {', '.join(names)}.")
            raise InputError(f"{name!r} is not an argument of this calculator. {hint}")
    return model, dtype, keys


class ModelInput:
    """Batches with mace's keys for one model, made from ase's structures; neighbour lists are kept between calls.

    Parameters
    ----------
    model: ``PhiPotential`` or a host
    head: name of the host's head, for hosts with several
    skin: Å by which the neighbour lists reach beyond the cut-off
    keys: {quantity: entry of the structures}, beside the model's own and the usual names
    field: external, of all structures, (3,) in V/Å

    Raises
    ------
    InputError
        For a head that the model does not have, a skin that is negative, or a field that is not three numbers.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        head: str | None = None,
        skin: float = 0.5,
        keys: Mapping[str, str] | None = None,
        field: Sequence[float] | None = None,
    ) -> None:
        self.field = None if field is None else field_of(field)
        if not skin >= 0:
            raise InputError(f"skin is {skin!r}; give a length in Å, 0 or more.")
        heads, head = chosen_head(model, head)
        self.model, self.head, self.skin = model, heads.index(head), skin
        self.has_phi = isinstance(model, PhiPotential)
        self.specs = embedding_specs(model)
        reader = reader_of(model)
        self.reader = StateReader({**reader.keys, **(keys or {})}, reader.seen, reader.ions)
        embedded = (name for name, spec in self.specs.items() if name in QUANTITIES and spec["per"] == "graph")
        #: What is read of every structure, by mace's names.
        self.quantities = tuple(dict.fromkeys(("total_charge", *embedded)))
        self.lists: list[NeighbourList] = []  # one for each place in the batch
        self._elements = {int(z): i for i, z in enumerate(cast(MaceLike, model).atomic_numbers)}

    def read(self, atoms: Atoms, where: str = "the structure") -> dict[str, Any]:
        """What the model is told of a structure beside its atoms: {name: number, or array with a row for each atom}."""
        told = {**self.reader.read(atoms, self.quantities), **read_embedded(atoms, self.specs, where)}
        field = read_field(atoms, self.field)
        # A bare host that was not told of a field would be silent about it.
        return {**told, FIELD: field[None]} if self.has_phi or field.any() else told

    def __call__(self, structures: Sequence[Atoms]) -> Batch:
        """One batch of ``structures``, a list of ase's ``Atoms``.

        Raises
        ------
        InputError
            For a structure without atoms, with elements that the model does not know, positions or a cell that are not
            finite, a singular cell, a total charge that is not a number or that its atoms cannot have, or a value that
            is not a class of the host's embedding.
        """
        self._check(structures)
        several = len(structures) > 1
        names = [f"structure {index}" if several else "the structure" for index in range(len(structures))]
        told = [self.read(atoms, name) for atoms, name in zip(structures, names, strict=True)]
        batch = self.batch(structures, self._edges(structures), told)
        check_classes(getattr(self.model, "host", self.model), batch)
        check_edges(batch)
        return batch

    def batch(self, structures: Iterable[Atoms], edges: Iterable[Edges], told: Iterable[Mapping[str, Any]]) -> Batch:
        """One batch of structures whose neighbours are known, told what :meth:`read` reads, on the model's device."""
        reference = next(self.model.parameters())
        graphs = [
            graph(atoms, self._elements, neighbours, given, self.head, reference.dtype)
            for atoms, neighbours, given in zip(structures, edges, told, strict=True)
        ]
        return collate(graphs).to(reference.device)

    def _edges(self, structures: Sequence[Atoms]) -> Iterator[Edges]:
        """Of every structure, from the list that is kept for its place in the batch."""
        while len(self.lists) < len(structures):
            self.lists.append(NeighbourList(float(cast(MaceLike, self.model).r_max), self.skin))
        for atoms, neighbours in zip(structures, self.lists, strict=False):
            cell = np.asarray(atoms.cell)
            senders, receivers, images = neighbours(atoms.positions, cell, atoms.pbc)
            yield Edges(np.stack([senders, receivers]), images, cell)

    def check_elements(self, numbers: Iterable[int], where: str = "") -> None:
        """InputError if the model does not know one of the atomic numbers."""
        if unknown := sorted(set(numbers) - set(self._elements)):
            raise InputError(
                f"the model does not know atomic numbers {unknown}{where}; it was made for {list(self._elements)}."
            )

    def _check(self, structures: Sequence[Atoms]) -> None:
        for index, atoms in enumerate(structures):
            where = f" of structure {index}" if len(structures) > 1 else ""
            if len(atoms) == 0:
                raise InputError(f"a structure has no atoms{where and f' (structure {index})'}.")
            if not np.isfinite(atoms.positions).all():
                raise InputError(
                    f"positions{where} are not finite (NaN or infinity); the simulation has probably blown up."
                )
            self.check_elements(atoms.numbers.tolist(), where)
        cells = torch.tensor(np.stack([np.asarray(atoms.cell) for atoms in structures]))
        check_cells(cells, torch.tensor(np.stack([atoms.pbc for atoms in structures])))


class Committee:
    """Models, one or several, as one: means, and with several what each says, and how far they are apart.

    Parameters
    ----------
    models: ready ones
    head, skin, keys, field: see ``ModelInput``
    """

    #: Quantities of which the single values are kept, as in MACECalculator.
    compared = ("energy", "forces", "stress", "dipole")

    def __init__(
        self,
        models: Sequence[torch.nn.Module],
        head: str | None = None,
        skin: float = 0.5,
        keys: Mapping[str, str] | None = None,
        field: Sequence[float] | None = None,
    ) -> None:
        self.models = list(models)
        self.inputs = [ModelInput(model, head, skin, keys, field) for model in self.models]
        self._memories = [Memory() for _ in self.models]

    @property
    def has_phi(self) -> bool:
        """Whether all models carry Φ."""
        return all(isinstance(model, PhiPotential) for model in self.models)

    def has_stress(self, pbc: Sequence[bool]) -> bool:
        """Whether a structure has a stress: crystals, and with Φ slabs. Bare hosts of mace divide by the volume of a
        cell that slabs need not have."""
        return sum(map(bool, pbc)) >= (2 if self.has_phi else 3)

    def read(self, atoms: Atoms) -> list[dict[str, Any]]:
        """What the models are told of a structure beside its atoms."""
        return [one.read(atoms) for one in self.inputs]

    def __call__(self, structures: Sequence[Atoms], **options: Any) -> Output:
        """The mean of every output that all models give, detached.

        With several models also, for energy, forces, stress and dipole, ``<name>_comm``, those of each along the first
        dimension, ``<name>_var``, their variance, and ``<name>_std``, its root.
        """
        outputs = []
        for model, make, memory in zip(self.models, self.inputs, self._memories, strict=True):
            with memory.used():
                out = run_model(model, make(structures), **options)
            outputs.append({name: value.detach() for name, value in out.items() if torch.is_tensor(value)})
        if len(outputs) == 1:
            return dict(outputs[0])
        found: Output = {}
        for name, first in outputs[0].items():
            if any(name not in out or out[name].shape != first.shape for out in outputs):
                continue  # node features, or what only some compute
            of_each = torch.stack([out[name] for out in outputs])
            found[name] = of_each.mean(0)
            if name in self.compared:
                variance = of_each.var(0, unbiased=False)
                found |= {f"{name}_comm": of_each, f"{name}_var": variance, f"{name}_std": variance.sqrt()}
        return found
