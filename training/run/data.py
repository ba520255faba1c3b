"""The data: where they are, under which names, and how they are dealt out."""

import dataclasses
from typing import Any

from phi_equivariant.errors import InputError
from training.run.option import ABOVE_ZERO, RunPart, option


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Data(RunPart):
    """What is trained on. With ``heads`` the options named in :data:`OF_A_HEAD` are what each head may change."""

    dataset: str | None = option("data set of the registry; its preset gives the defaults of all other options")
    data_dir: str | None = option("folder with the data set's files: nothing is downloaded", restart=True)
    downloads_dir: str | None = option("folder for downloaded data sets, in place of the cache", restart=True)
    max_train: int | None = option("of a data set: train on so many structures, and validate on no more; for a trial")
    max_test: int | None = option("of a data set: test on so many structures of each test set", restart=True)
    train_file: Any = option("training structures: what ase reads, HDF5 or LMDB of mace_prepare_data; one or a list")
    valid_file: Any = option("validation structures, likewise")
    valid_fraction: float = option("share of the training file used for validation without a valid_file")
    test_file: Any = option("test structures, likewise", restart=True)
    test_dir: str | None = option("folder with *_test.h5 of mace_prepare_data")
    multi_processed_test: bool = option("test_dir holds one folder of sharded HDF5 per test set")
    energy_key: str = option("name of the energies in the files, eV")
    forces_key: str = option("name of the forces, eV/Å")
    stress_key: str = option("name of the stresses, eV/Å³")
    virials_key: str = option("name of the virials, eV")
    dipole_key: str = option("name of the dipoles, e·Å")
    charges_key: str = option("name of the atoms' charges, e")
    polarizability_key: str = option("name of the polarisabilities ∂μ/∂F, e·Å²/V")
    external_field_key: str = option("name of the structures' external fields, V/Å")
    total_charge_key: str = option("name of the structures' total charges, e")
    total_spin_key: str = option("name of the structures' spins")
    elec_temp_key: str = option("name of the electronic temperatures")
    head_key: str = option("name of the head in the files")
    heads: Any = option("heads with their own data, keys and E0s, in mace's form")
    atomic_numbers: Any = option("elements of the model, in place of those in the data")
    E0s: Any = option("energies of the isolated atoms: dictionary, JSON file, average, estimated, foundation")
    statistics_file: str | None = option("JSON of mace_prepare_data: elements, E0s, mean, std, avg_num_neighbors")
    scaling: str = option("how the host's output is scaled by the training set's statistics")
    mean: float | None = option("mean energy per atom, in place of the training set's")
    std: float | None = option("scale of the output, in place of the training set's")
    avg_num_neighbors: float | None = option("normalisation of messages, with compute_avg_num_neighbors false")
    compute_avg_num_neighbors: bool = option("take avg_num_neighbors from the training set")
    config_type_weights: Any = option("weights of structures by config_type")
    keep_isolated_atoms: bool = option("isolated atoms stay in the training set")
    batch_size: int = option("structures per step")
    valid_batch_size: int = option("structures per validation batch")

    def __post_init__(self) -> None:
        self.expect(ABOVE_ZERO, "batch_size", "valid_batch_size")
        if (self.dataset is None) == (self.train_file is None and self.heads is None):
            what = "both were given" if self.dataset else "neither was given"
            raise InputError(f"--dataset and --train_file: exactly one of them says what to train on; {what}.")
        self.expect(ABOVE_ZERO, "max_train", "max_test")
        for name in ("max_train", "max_test"):
            if getattr(self, name) is not None and self.dataset is None:
                raise InputError(f"--{name} takes a part of a data set by name; of a file, give a shorter one.")
        if self.heads is None:
            return
        if self.dataset is not None:
            raise InputError("--heads: a data set of the registry has one head. Give files, or leave heads out.")


#: What a head may say for itself; what it leaves out is the run's option of the same name.
OF_A_HEAD = (
    *("train_file", "valid_file", "test_file", "test_dir", "statistics_file", "E0s", "valid_fraction", "mean", "std"),
    *("config_type_weights", "keep_isolated_atoms", "atomic_numbers", "avg_num_neighbors", "compute_avg_num_neighbors"),
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The settings of one head, checked.

    name : as in the model; train_files, valid_files, test_files : paths; test_dir : folder of test sets or None;
    E0s : {Z: eV}, one of the words of ``--E0s``, or None; keys : label -> key in the files; head_key : where a
    structure may name its head; config_type_weights : {config_type: weight}; atomic_numbers : list or None; mean, std,
    avg_num_neighbors : given statistics of the training set, or None; notes : lines for the log.
    """

    name: str
    train_files: list[str]
    valid_files: list[str]
    test_files: list[str]
    test_dir: str | None
    E0s: dict[int, float] | str | None
    valid_fraction: float
    config_type_weights: dict[str, float]
    keep_isolated_atoms: bool
    keys: dict[str, str]
    head_key: str
    atomic_numbers: list[int] | None
    mean: float | None
    std: float | None
    avg_num_neighbors: float | None
    compute_avg_num_neighbors: bool
    notes: list[str] = dataclasses.field(default_factory=list)
