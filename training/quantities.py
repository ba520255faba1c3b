"""The labels of structures: of each its place in files, when it counts, its term of the loss and its errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import ase.units
import numpy as np

if TYPE_CHECKING:
    import torch
    from ase import Atoms


@dataclass(frozen=True)
class Measure:
    """One kind of error of a quantity: a column of tables and metrics.

    name : in metrics and errors.json
    unit : of the errors
    symbol : in tables in mace's forms and in the log
    style : format of numbers in the log
    factor : the unit, from eV, Å and e
    per_atom : whether a structure's value is divided by its number of atoms
    title : in tables of MAE / RMSE and in plots; None for an error that only mace's forms show
    plotted : unit of predictions plotted against labels; None where they are not plotted
    """

    name: str
    unit: str
    symbol: str
    style: str
    factor: float = 1.0
    per_atom: bool = False
    title: str | None = None
    plotted: str | None = None

    @property
    def error_unit(self) -> str:
        """Unit of the errors, which says whether they are per atom."""
        return f"{self.unit}/atom" if self.per_atom else self.unit

    @property
    def axis_unit(self) -> str:
        """The same of what is plotted."""
        return f"{self.plotted}/atom" if self.per_atom else f"{self.plotted}"

    @property
    def heading(self) -> str:
        """What it is called above a plot."""
        return self.title or self.name.replace("_", " ")


@dataclass(frozen=True)
class Label:
    """One kind of label. The model's output, the batch's entry and the options ``<name>_key`` have its name.

    name : name in mace's options, without ``_key``
    canonical : key under which the trainer finds it in ``atoms.info`` or ``atoms.arrays``
    default_key : mace's default for ``<name>_key``
    per_atom : whether it lives in ``atoms.arrays``
    shape : shape of one structure's label, or of one atom's if ``per_atom``
    plural : for reports
    loss : who has its term of the loss: ``mace``, or ``squares``, the mean over labelled components of w (x − x_ref)²;
        None for an input of the model, which is not a target
    measures : its errors
    periodic : numbers of periodic directions in which it is defined
    seldom : whether reports name it only where it is
    """

    name: str
    canonical: str
    default_key: str
    per_atom: bool
    shape: tuple[int, ...]
    plural: str
    loss: str | None = None
    measures: tuple[Measure, ...] = ()
    periodic: tuple[int, ...] = (0, 1, 2, 3)
    seldom: bool = False

    def within(self, atoms: Atoms) -> bool:
        """Whether a structure has the label, in its canonical place."""
        return self.canonical in (atoms.arrays if self.per_atom else atoms.info)

    def defined(self, atoms: Atoms) -> bool:
        """Whether a structure of these periodic directions can have it."""
        return int(np.sum(atoms.pbc)) in self.periodic

    def where_defined(self) -> str:
        """In which structures there is such a label, for messages."""
        return f"{self.name} needs {' or '.join(map(str, self.periodic))} periodic directions"

    def weight(self, atoms: Atoms, type_weights: Mapping[str, float]) -> float:
        """The structure's weight of this label, by mace's entries; ``type_weights`` are ``config_type_weights``."""
        of_structure = atoms.info.get("config_weight", 1.0)
        of_type = type_weights.get(atoms.info.get("config_type", "Default"), 1.0)
        return float(of_structure * of_type * np.max(atoms.info.get(f"config_{self.name}_weight", 1.0)))

    def acts(self, atoms: Atoms, type_weights: Mapping[str, float]) -> bool:
        """Whether the label of a structure takes part in losses, errors and statistics."""
        return self.within(atoms) and self.defined(atoms) and self.weight(atoms, type_weights) != 0

    def counted(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Where labels of a batch take part in losses, errors and statistics; as :meth:`acts` says of one structure.

        batch : dict with mace's keys, of them weight and ``<name>_weight``; without pbc weights alone decide

        Returns bool tensor whose shape broadcasts to that of the label, (n_structures or n_atoms, …).
        """
        structures = len(batch["weight"])
        own = batch[f"{self.name}_weight"] != 0  # one for each structure, or one for each component
        own = own.view(structures, *(self.shape if own.numel() > structures else [1] * len(self.shape)))
        whole = batch["weight"] != 0  # (n_structures,)
        if "pbc" in batch and len(self.periodic) < 4:
            directions = batch["pbc"].view(-1, 3).sum(1)
            whole = whole & (directions[:, None] == directions.new_tensor(self.periodic)).any(1)
        counted = own & whole.view(-1, *[1] * len(self.shape))
        return counted[batch["batch"]] if self.per_atom else counted


LABELS: dict[str, Label] = {
    label.name: label
    for label in (
        Label(
            "energy", "REF_energy", "REF_energy", False, (), "energies", "mace",
            (
                Measure("energy", "meV", "E", ".1f", 1e3, plotted="eV"),
                Measure("energy_per_atom", "meV", "E", ".2f", 1e3, True, "energy per atom", "eV"),
            ),
        ),
        Label(
            "forces", "REF_forces", "REF_forces", True, (3,), "forces", "mace",
            (Measure("forces", "meV/Å", "F", ".1f", 1e3, title="forces", plotted="eV/Å"),),
        ),
        # The volume of a structure with an open direction is none: mace makes up a cell there.
        Label(
            "stress", "REF_stress", "REF_stress", False, (3, 3), "stresses", "mace",
            (Measure("stress", "meV/Å³", "σ", ".2f", 1e3, title="stress", plotted="eV/Å³"),),
            periodic=(3,), seldom=True,
        ),
        Label(
            "virials", "REF_virials", "REF_virials", False, (3, 3), "virials", "mace",
            (Measure("virials", "meV", "virials", ".1f", 1e3, title="virials"),), seldom=True,
        ),
        Label(
            "charges", "REF_charges", "REF_charges", True, (), "charges", "squares",
            (Measure("charges", "e", "q", ".4f", title="charges", plotted="e"),),
        ),
        # The dipole of a periodic structure depends on where its cell is cut.
        Label(
            "dipole", "REF_dipole", "dipole", False, (3,), "dipoles", "squares",
            (
                Measure("dipole", "e·Å", "μ", ".4f", title="dipole", plotted="e·Å"),
                Measure("dipole_per_atom", "mD", "μ", ".2f", 1e3 / ase.units.Debye, True),
            ),
            periodic=(0,),
        ),
        Label(
            "polarizability", "REF_polarizability", "polarizability", False, (3, 3), "polarizabilities", "squares",
            (Measure("polarizability", "e·Å²/V", "α", ".4f", title="polarizability", plotted="e·Å²/V"),),
            periodic=(0,), seldom=True,
        ),
        Label("external_field", "external_field", "external_field", False, (3,), "external fields", seldom=True),
        Label("total_charge", "total_charge", "total_charge", False, (), "total charges"),
        Label("total_spin", "total_spin", "total_spin", False, (), "total spins", seldom=True),
        Label("elec_temp", "elec_temp", "elec_temp", False, (), "el. temperatures", seldom=True),
    )
}  # fmt: skip
#: Labels that a model is compared with, which a structure may weigh by ``info["config_<name>_weight"]``.
TARGETS: dict[str, Label] = {name: label for name, label in LABELS.items() if label.loss is not None}
#: Those of them that Φ predicts and a bare host does not; each is trained by an option ``<name>_weight``.
OF_PHI: dict[str, Label] = {name: label for name, label in TARGETS.items() if label.loss == "squares"}

_FORCES = ("forces", "relative forces")
_STRESS = ("energy_per_atom", *_FORCES, "stress", "virials")
_DIPOLE = ("dipole_per_atom", "relative dipole")
#: mace's forms of ``--error_table``, but for that of polarizabilities: which error, of which quantities.
FORMS = {
    "PerAtomRMSE": ("rmse", ("energy_per_atom", *_FORCES)),
    "TotalRMSE": ("rmse", ("energy", *_FORCES)),
    "PerAtomRMSEstressvirials": ("rmse", _STRESS),
    "PerAtomMAEstressvirials": ("mae", _STRESS),
    "PerAtomMAE": ("mae", ("energy_per_atom", *_FORCES)),
    "TotalMAE": ("mae", ("energy", *_FORCES)),
    "DipoleRMSE": ("rmse", _DIPOLE),
    "DipoleMAE": ("mae", _DIPOLE),
    "EnergyDipoleRMSE": ("rmse", ("energy_per_atom", *_FORCES, *_DIPOLE)),
}


def measures() -> Iterator[Measure]:
    """All errors, in the order of tables."""
    for label in TARGETS.values():
        yield from label.measures


def drawn(form: str) -> tuple[str, tuple[Measure, ...]]:
    """``mae`` or ``rmse``, and the measures that pictures show: the energy per atom or not, as in the form."""
    kind, columns = FORMS[form]
    left_out = "energy_per_atom" if "energy" in columns else "energy"
    shown = (measure for measure in measures() if measure.title or measure.plotted)
    return kind, tuple(measure for measure in shown if measure.name != left_out)
