"""The data sets that have a name: what is known of each, and the options that make training on it a sensible run."""

from dataclasses import replace
from typing import Any

from phi_equivariant.errors import InputError, did_you_mean
from training.data.dataset_info import DatasetInfo, XyzFiles

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
    return DatasetInfo(
        name, description, formula, "PBE+MBD", options, frames, f"md22_{file}.npz", train_size,
        licence="not stated by the publisher; cite the paper",
        citation="S. Chmiela, V. Vassilev-Galindo, O. T. Unke, A. Kabylda, H. E. Sauceda, A. Tkatchenko, K.-R. Müller, "
        "Accurate global machine learning force fields for molecules with hundreds of atoms, Sci. Adv. 9, eadf0873 "
        "(2023)",
    )  # fmt: skip


# Of the sets that this project makes, for runs of minutes to hours.
_GFN2_OPTIONS = {
    **{"default_dtype": "float32", "forces_weight": 100.0, "valid_batch_size": 20, "lr": 0.01, "max_num_epochs": 20},
    **{"ema": True, "scheduler": "CosineAnnealingLR", "warmup_epochs": 1},
}
_ORGANIC_OPTIONS = _GFN2_OPTIONS | {
    "model": "phi-mace-small", "batch_size": 10, "ema_decay": 0.999, "charges_weight": 1000.0, "dipole_weight": 20.0,
    # Energies of ions err by a volt at first: with a large weight they alone would govern the forces too.
    "energy_weight": 20.0, "swa": True, "start_swa": 15, "swa_energy_weight": 500.0,
}  # fmt: skip
_RMD17 = {
    "azobenzene": "C12H10N2",
    "aspirin": "C9H8O4",
    "benzene": "C6H6",
    "ethanol": "C2H6O",
    "malonaldehyde": "C3H4O2",
    "naphthalene": "C10H8",
    "paracetamol": "C8H9NO2",
    "salicylic": "C7H6O3",
    "toluene": "C7H8",
    "uracil": "C4H4N2O2",
}


def _rmd17(molecule: str, formula: str) -> DatasetInfo:
    return DatasetInfo(
        name=f"rmd17_{molecule}",
        description=f"revised MD17: {molecule}, published split 1; rmd17_{molecule}_2 to _5 are the others",
        formula=formula,
        level="PBE/def2-SVP",
        file=f"rmd17_{molecule}.npz",
        options=_MD22_OPTIONS | {"batch_size": 5, "valid_batch_size": 10, "max_num_epochs": 1000},
        form="rmd17",
        source="the archive rmd17 (figshare, doi 10.6084/m9.figshare.12672038)",
        licence="CC0",
        citation="A. S. Christensen, O. A. von Lilienfeld, On the role of gradients for machine learning of molecular "
        "energies and forces, Mach. Learn.: Sci. Technol. 1, 045018 (2020)",
        part=1,
    )


# The isolated atoms of these come with them; energies of a few thousand eV.
_BOTNET_OPTIONS = {
    **{name: value for name, value in _MD22_OPTIONS.items() if name != "E0s"},
    **{"energy_weight": 10.0, "forces_weight": 1000.0, "lr": 0.01, "batch_size": 5, "valid_batch_size": 10},
    "max_num_epochs": 500,
}


def _botnet(
    name: str, description: str, formula: str, level: str, folder: str, train: str, tests: tuple[str, ...], atoms: str
) -> DatasetInfo:
    return DatasetInfo(
        name, description, formula, level, _BOTNET_OPTIONS,
        form="xyz",
        source=f"{folder} of github.com/davkovacs/BOTNet-datasets",
        licence="MIT",
        citation="D. P. Kovács, C. van der Oord, J. Kucera, A. E. A. Allen, D. J. Cole, C. Ortner, G. Csányi, Linear "
        "atomic cluster expansion force fields for organic molecules, J. Chem. Theory Comput. 17, 7696 (2021)"
        if folder == "dataset_3BPA" else
        "I. Batatia, S. Batzner, D. P. Kovács, A. Musaelian, G. N. C. Simm, R. Drautz, C. Ortner, B. Kozinsky, G. "
        "Csányi, The design space of E(3)-equivariant atom-centred interatomic potentials, Nat. Mach. Intell. 7, 56 "
        "(2025)",
        xyz=XyzFiles(train, tests, atoms, {"energy_key": "energy", "forces_key": "forces"}),
    )  # fmt: skip


_3BPA = ("C12H12N2O", "ωB97X/6-31G(d)", "dataset_3BPA")
_3BPA_TESTS = (
    *(f"test_{kelvin}K.xyz" for kelvin in (300, 600, 1200)),
    *(f"test_dih_beta{angle}.xyz" for angle in (120, 150, 180)),
)
_ACAC_TESTS = ("test_MD_300K.xyz", "test_MD_600K.xyz", "test_dihedral.xyz", "test_H_transfer.xyz")

DATASETS = {
    info.name: info
    for info in (
        DatasetInfo(
            name="ala3_gfn2",
            description="tetrapeptide Ac-Ala3-NHMe at 500 K with charges and dipoles, comes with the project",
            formula="C12H22N4O4",
            level="GFN2-xTB",
            form="shipped",
            licence="MIT",
            citation="C. Bannwarth, S. Ehlert, S. Grimme, GFN2-xTB, J. Chem. Theory Comput. 15, 1652 (2019), as "
            "implemented in tblite",
            # No E0s: the data set brings those of its own level of theory.
            options=_GFN2_OPTIONS
            | {
                "model": "ScaleShiftMACE",
                "hidden_irreps": "16x0e",
                "r_max": 4.5,
                "num_interactions": 2,
                "max_ell": 2,
                "correlation": 2,
                "energy_weight": 40.0,
                "charges_weight": 50.0,
                "dipole_weight": 10.0,
                "batch_size": 5,
                "ema_decay": 0.99,
            },
        ),
        _md22("md22_ac_ala3_nhme", "tetrapeptide Ac-Ala3-NHMe", "Ac-Ala3-NHMe", "C12H22N4O4", 85109, 6000, 5, 200),
        _md22("md22_dha", "docosahexaenoic acid", "DHA", "C22H32O2", 69753, 8000, 5, 150),
        _md22("md22_stachyose", "tetrasaccharide stachyose", "stachyose", "C24H42O21", 27272, 8000, 5, 150),
        _md22("md22_at_at", "DNA base pairs AT-AT", "AT-AT", "C20H22N14O4", 20001, 3000, 5, 350),
        _md22("md22_at_at_cg_cg", "DNA base pairs AT-AT-CG-CG", "AT-AT-CG-CG", "C38H42N30O8", 10153, 2000, 4, 400),
        _md22("md22_buckyball", "buckyball-catcher complex", "buckyball-catcher", "C120H28", 6102, 600, 2, 700),
        _md22("md22_nanotube", "double-walled nanotube", "double-walled_nanotube", "C326H44", 5032, 800, 2, 500),
        *(_rmd17(molecule, formula) for molecule, formula in _RMD17.items()),
        _botnet("3bpa", "3BPA, trained at 300 K", *_3BPA, "train_300K.xyz", _3BPA_TESTS, "iso_atoms.xyz"),
        _botnet(
            "3bpa_mixed",
            "3BPA, trained at 300, 600 and 1200 K",
            *_3BPA,
            "train_mixedT.xyz",
            _3BPA_TESTS,
            "iso_atoms.xyz",
        ),
        _botnet(
            "acac",
            "acetylacetone, trained at 300 K",
            "C5H8O2",
            "PBE-D3/def2-SVP",
            "dataset_acac",
            "train_300K.xyz",
            _ACAC_TESTS,
            "isolated_atoms.xyz",
        ),
        DatasetInfo(
            name="spice_dipeptides",
            description="dipeptides of SPICE with dipoles and MBIS charges; its validation file is the test set",
            formula="",
            level="ωB97M-D3(BJ)/def2-TZVPPD",
            options=_MD22_OPTIONS
            | {"energy_weight": 10.0, "forces_weight": 1000.0, "lr": 0.01}
            | {"batch_size": 4, "valid_batch_size": 4, "max_num_epochs": 300},
            form="xyz",
            source="github.com/BingqingCheng/cace-lr-fit",
            licence="CC BY-NC 4.0",
            citation="P. Eastman et al., SPICE, a dataset of drug-like molecules and peptides for training machine "
            "learning potentials, Sci. Data 10, 11 (2023); this part: B. Cheng, Latent Ewald summation for machine "
            "learning of long-range interactions, npj Comput. Mater. 11, 80 (2025)",
            xyz=XyzFiles(
                "train.xyz",
                ("val.xyz",),
                None,
                {"energy_key": "energy", "forces_key": "force", "charges_key": "mbi_charges", "dipole_key": "dipole"},
            ),
        ),
        DatasetInfo(
            name="organic_gfn2",
            description="organic molecules and ions, alone, in pairs and in clusters, with charges and dipoles",
            formula="",
            level="GFN2-xTB",
            options=_ORGANIC_OPTIONS,
            form="xyz",
            source="python -m training.shipped.organic_gfn2.generate, which makes it",
            licence="MIT",
            citation="C. Bannwarth, S. Ehlert, S. Grimme, GFN2-xTB, J. Chem. Theory Comput. 15, 1652 (2019), as "
            "implemented in tblite",
            xyz=XyzFiles(
                "train.xyz", ("test.xyz", "test_large.xyz", "test_distances.xyz"), None, {}, valid="valid.xyz"
            ),
        ),
        DatasetInfo(
            name="oe62",
            description="61,489 molecules of organic crystals, PBE0 energies only; the paper's other benchmark",
            formula="",
            level="PBE0 (tier2 basis, vacuum), geometries PBE+TS",
            frames=61489,
            file="df_62k.json",
            train_size=56000,
            # The paper's linear fit over the elements is E0s: average. No forces are published.
            options=_MD22_OPTIONS
            | {"r_max": 6.0, "energy_weight": 1.0, "forces_weight": 0.0, "error_table": "TotalMAE", "lr": 0.001}
            | {"batch_size": 64, "valid_batch_size": 64, "max_num_epochs": 250},
            form="oe62",
            source="mediaTUM (doi 10.14459/2019mp1507656)",
            licence="CC BY 4.0",
            citation="A. Stuke, C. Kunkel, D. Golze, M. Todorović, J. T. Margraf, K. Reuter, P. Rinke, H. Oberhofer, "
            "Atomic structures and orbital energies of 61,489 crystal-forming organic molecules, Sci. Data 7, 58 "
            "(2020)",
            part=6000,
        ),
    )
}
ALIASES = {"md22_buckyball_catcher": "md22_buckyball", "md22_double_walled_nanotube": "md22_nanotube"}


def find_dataset(name: str) -> DatasetInfo:
    """The registry's entry; raises InputError with the nearest names and all names if there is none."""
    key = name.strip().lower().replace("-", "_")
    key = ALIASES.get(key, key)
    if key in DATASETS:
        return DATASETS[key]
    molecule, _, split = key.rpartition("_")
    if molecule in DATASETS and DATASETS[molecule].form == "rmd17" and split in ("1", "2", "3", "4", "5"):
        return replace(DATASETS[molecule], name=key, part=int(split))
    hint = did_you_mean(key, DATASETS, n=3)
    raise InputError(f"There is no data set {name!r}. {hint and hint + ' '}The data sets are {', '.join(DATASETS)}.")


def preset(name: str) -> dict[str, Any]:
    """mace options (name -> value) that make training on this data set a sensible run."""
    return dict(find_dataset(name).options)
