"""The data sets of the ablation: how each is read, split and labelled."""

import dataclasses
from collections.abc import Callable

import ase.io
import numpy as np
from ase.neighborlist import natural_cutoffs, neighbor_list
from runs import frame, shuffled, write_frames
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from training.data.named_files import load_dataset

SPLIT_DISTANCE = 6.5  # Å between ions: closer pairs train, the others test
CHARGE_INPUT = {
    "embedding_specs": {
        "total_charge": {"type": "categorical", "per": "graph", "num_classes": 3, "offset": 1, "emb_dim": 8}
    },
    "use_embedding_readout": "True",
}
#: The last quarter of the epochs is mace's stage two, with a larger weight of the energy.
STAGE_TWO = {"max_num_epochs": 150, "swa": True, "swa_energy_weight": 5000}
#: The rate falls whenever the validation loss stands still, and the run ends when it does so in spite of that.
PLATEAU = {
    "max_num_epochs": 2000, "scheduler": "ReduceLROnPlateau", "warmup_epochs": 0, "lr_factor": 0.5,
    "scheduler_patience": 25, "patience": 100,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class AblationData:
    """One data set.

    read: from the folder of the published data to training, validation and test structures and E0s ({Z: eV} or
    ``average``); epochs: of every row; neutral: no structure has a net charge; wide_epochs: of rows with a wide host,
    0 for none; options: more of phi-mace-train's; converged: those of rows that train until they stand still, none if
    there are no such rows
    """

    read: Callable
    epochs: int
    neutral: bool = True
    wide_epochs: int = 0
    options: dict = dataclasses.field(default_factory=dict)
    converged: dict = dataclasses.field(default_factory=dict)

    def write(self, data, folder):
        """Files of the three sets; the words that name them and E0s to phi-mace-train."""
        train, valid, test, e0s = self.read(data)
        return [*write_frames(folder, train=train, valid=valid, test=test), "--E0s", str(e0s)]

    def read_test(self, folder):
        """The test set that ``write`` left."""
        return ase.io.read(folder / "test.xyz", ":")


def read_dimers(data):
    """Pairs of rigid ions in vacuum: interaction energies, E − E_A − E_B, and the forces.

    With the published E_A and E_B these do not go to zero at large distances, but to about −0.7 (CH6N⁺ and acetate),
    −0.5 (C2H8N3⁺) and +0.6 eV (C3H10N3⁺): E0s by least squares take that out, for all rows alike.
    """
    near, far = [], []
    for atoms in ase.io.read(data / "dimers" / "charge_charge.xyz", ":"):
        forces, about = atoms.get_forces(), atoms.info
        energy = atoms.get_potential_energy() - about["energyA"] - about["energyB"]
        atoms.pbc = False  # molecules in vacuum; the file's 30 Å box is not periodic
        made = frame(atoms, energy, forces)
        made.arrays["ion"] = _ions(made, about["chargeA"], about["chargeB"])
        (near if about["distance"] <= SPLIT_DISTANCE else far).append(made)
    valid, train = shuffled(near, 0.1)
    return train, valid, far, "average"


def _ions(atoms, *charges):
    """Charge of the ion that each atom is part of, in e; the ions are the connected parts, in the file's order."""
    first, second = neighbor_list("ij", atoms, natural_cutoffs(atoms, mult=1.2))
    bonds = coo_array((np.ones(len(first)), (first, second)), shape=(len(atoms), len(atoms)))
    count, part = connected_components(bonds)
    if count != len(charges):
        raise SystemExit(f"dimers: a structure falls into {count} parts; expected {len(charges)} ions.")
    return np.array(charges)[part]  # parts are numbered by their first atom


def read_dipeptides(data):
    """SPICE dipeptides: the published split, a tenth of its training part for validation."""

    def read(name):
        for atoms in ase.io.read(data / "spice_dipeptides" / f"{name}.xyz", ":"):
            labels = atoms.arrays["mbi_charges"], atoms.get_dipole_moment()
            made = frame(atoms, atoms.get_potential_energy(), atoms.arrays["force"], *labels)
            if "bec" in atoms.arrays:
                made.arrays["bec"] = atoms.arrays["bec"]
            yield made

    valid, train = shuffled(list(read("train")), 0.1)
    return train, valid, list(read("val")), "average"


def read_acac(data):
    """Acetylacetone at 300 K: the published split, a tenth of its training part for validation."""
    valid, train = shuffled(plain(data / "acac" / "train_300K.xyz"), 0.1)
    return train, valid, plain(data / "acac" / "test_MD_300K.xyz"), isolated_atoms(data / "acac" / "isolated_atoms.xyz")


def plain(path):
    """Frames of a file with their energies and forces, and nothing else."""
    return [frame(a, a.get_potential_energy(), a.get_forces()) for a in ase.io.read(path, ":")]


def isolated_atoms(path):
    """E0s {Z: eV} of a file with isolated atoms."""
    return {int(atom.numbers[0]): float(atom.get_potential_energy()) for atom in ase.io.read(path, ":")}


def read_ag3(data):
    """Ag₃⁺ and Ag₃⁻; most geometries are there with either charge, and stay in one set."""
    frames = [
        frame(
            a,
            a.get_potential_energy(),
            a.get_forces(),
            dipole=a.info["dipole_ref"],
            total_charge=a.info["total_charge"],
        )
        for a in ase.io.read(data / "ag3" / "ag3_2200.extxyz", ":")
    ]
    test, valid, train = shuffled(frames, 0.1, 0.1)
    return train, valid, test, "average"


def read_carbon_chain(data):
    """Carbon chains, neutral and with one more hydrogen and charge +1."""
    frames = [
        frame(a, a.get_potential_energy(), a.get_forces(), a.arrays["ref_charges"], total_charge=a.info["total_charge"])
        for a in ase.io.read(data / "carbon_chain" / "carbon_chain_4g_128.extxyz", ":")
    ]
    test, valid, train = shuffled(frames, 0.2, 0.1)
    return train, valid, test, "average"


def read_ala3(data):
    """Ac-Ala3-NHMe, the data set that comes with the project."""
    found = load_dataset("ala3_gfn2")
    parts = [[_relabelled(atoms) for atoms in part] for part in (found.train, found.valid, found.test)]
    return *parts, found.e0s


def _relabelled(atoms):
    labels = atoms.arrays["REF_forces"], atoms.arrays["REF_charges"], atoms.info["REF_dipole"]
    return frame(atoms, atoms.info["REF_energy"], *labels)


DATASETS = {
    "dimers": AblationData(read_dimers, 60),
    "spice_dipeptides": AblationData(read_dipeptides, 25, wide_epochs=60, converged={**STAGE_TWO, "r_max": 5.0}),
    "acac": AblationData(read_acac, 15),
    "ag3": AblationData(read_ag3, 16, neutral=False, options={**CHARGE_INPUT, "batch_size": 20}, converged=PLATEAU),
    "carbon_chain": AblationData(read_carbon_chain, 60, neutral=False, converged=PLATEAU),
    "ala3": AblationData(read_ala3, 6),
}
