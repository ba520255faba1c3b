"""The data sets that have a name: what is known of each, and the options that make training on it a sensible run."""

from dataclasses import dataclass
from typing import Any

from phi_equivariant.errors import InputError, did_you_mean


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set before it is read.

    Parameters
    ----------
    name : name in the registry
    description : one line
    formula : chemical formula of its one molecule
    level : level of theory of the labels
    frames : number of frames in the published file; None if the data set comes in split files
    file : published file name; None for the data set that is shipped
    train_size : published number of training and validation frames together; None if the split is fixed
    options : preset, mace option -> value
    """

    name: str
    description: str
    formula: str
    level: str
    frames: int | None
    file: str | None
    train_size: int | None
    options: dict[str, Any]


# Hosts and schedules: about 200,000 updates for MD22. float64 because its energies reach -340,000 eV, where float32
# resolves 0.03 eV. mace's own defaults hold for everything not named.
_MD22_OPTIONS = {
    "hidden_irreps": "64x0e + 64x1o",
    "r_max": 5.0,
    "num_interactions": 2,
    "max_ell": 3,
    "correlation": 3,
    "E0s": "average",
    "default_dtype": "float64",
    "energy_weight": 1.0,
    "forces_weight": 100.0,
    "lr": 0.005,
    "ema": True,
    "ema_decay": 0.99,
    "scheduler": "ReduceLROnPlateau",
    "scheduler_patience": 15,
}


def _md22(
    name: str, description: str, file: str, formula: str, frames: int, train_size: int, batch_size: int, epochs: int
) -> DatasetInfo:
    options = _MD22_OPTIONS | {"batch_size": batch_size, "valid_batch_size": batch_size, "max_num_epochs": epochs}
    return DatasetInfo(name, description, formula, "PBE+MBD", frames, f"md22_{file}.npz", train_size, options)


DATASETS = {
    info.name: info
    for info in (
        DatasetInfo(
            name="ala3_gfn2",
            description="tetrapeptide Ac-Ala3-NHMe at 500 K with charges and dipoles, comes with the project",
            formula="C12H22N4O4",
            level="GFN2-xTB",
            frames=None,
            file=None,
            train_size=None,
            # No E0s: the data set brings those of its own level of theory.
            options={
                "model": "ScaleShiftMACE",
                "hidden_irreps": "16x0e",
                "r_max": 4.5,
                "num_interactions": 2,
                "max_ell": 2,
                "correlation": 2,
                "default_dtype": "float32",
                "energy_weight": 40.0,
                "forces_weight": 100.0,
                "charges_weight": 50.0,
                "dipole_weight": 10.0,
                "batch_size": 5,
                "valid_batch_size": 20,
                "lr": 0.01,
                "max_num_epochs": 20,
                "ema": True,
                "ema_decay": 0.99,
                "scheduler": "CosineAnnealingLR",
                "warmup_epochs": 1,
            },
        ),
        _md22("md22_ac_ala3_nhme", "tetrapeptide Ac-Ala3-NHMe", "Ac-Ala3-NHMe", "C12H22N4O4", 85109, 6000, 5, 200),
        _md22("md22_dha", "docosahexaenoic acid", "DHA", "C22H32O2", 69753, 8000, 5, 150),
        _md22("md22_stachyose", "tetrasaccharide stachyose", "stachyose", "C24H42O21", 27272, 8000, 5, 150),
        _md22("md22_at_at", "DNA base pairs AT-AT", "AT-AT", "C20H22N14O4", 20001, 3000, 5, 350),
        _md22("md22_at_at_cg_cg", "DNA base pairs AT-AT-CG-CG", "AT-AT-CG-CG", "C38H42N30O8", 10153, 2000, 4, 400),
        _md22("md22_buckyball", "buckyball-catcher complex", "buckyball-catcher", "C120H28", 6102, 600, 2, 700),
        _md22("md22_nanotube", "double-walled nanotube", "double-walled_nanotube", "C326H44", 5032, 800, 2, 500),
    )
}
ALIASES = {"md22_buckyball_catcher": "md22_buckyball", "md22_double_walled_nanotube": "md22_nanotube"}


def find_dataset(name: str) -> DatasetInfo:
    """The registry's entry; raises InputError with the nearest names and all names if there is none."""
    key = name.strip().lower().replace("-", "_")
    key = ALIASES.get(key, key)
    if key in DATASETS:
        return DATASETS[key]
    hint = did_you_mean(key, DATASETS, n=3)
    raise InputError(f"There is no data set {name!r}. {hint and hint + ' '}The data sets are {', '.join(DATASETS)}.")


def preset(name: str) -> dict[str, Any]:
    """mace options (name -> value) that make training on this data set a sensible run."""
    return dict(find_dataset(name).options)
