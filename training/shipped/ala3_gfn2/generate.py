"""Make the shipped data set: Ac-Ala3-NHMe sampled at 500 K and labelled with GFN2-xTB.

    python -m training.shipped.ala3_gfn2.generate --work DIR --processes 2

Needs the extra ``data`` (tblite, rdkit). Every trajectory starts from its own rdkit conformer and goes to one split
only, so that no test frame shares a trajectory with a training frame. Finished trajectories are kept in DIR: an
interrupted run goes on where it was. About 50 core-minutes.
"""

import argparse
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution

SMILES = "CC(=O)N[C@@H](C)C(=O)N[C@@H](C)C(=O)N[C@@H](C)C(=O)NC"
TEMPERATURE = 500.0  # K
# Configurational averages do not depend on the masses, so hydrogen gets tritium's: the same ensemble at a longer step.
HYDROGEN_MASS = 3.016  # u
TIME_STEP = 1.5  # fs
STEPS_BETWEEN_FRAMES = 67  # 100.5 fs
EQUILIBRATION_STEPS = 700  # 1.05 ps
FRAMES_PER_TRAJECTORY = 50
TRAJECTORIES = {"train": range(0, 20), "valid": range(20, 24), "test": range(24, 34)}
# Spin multiplicities of the free atoms' ground states.
ISOLATED_ATOMS = {1: 2, 6: 3, 7: 4, 8: 3}
LONGEST_BOND = 2.0  # Å, between atoms bonded in the SMILES string: beyond it the molecule has broken


def conformer(seed: int) -> tuple[Atoms, np.ndarray]:
    """A force-field minimum of the molecule and the pairs of atoms that are bonded in it."""
    from rdkit import Chem
    from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

    molecule = Chem.AddHs(Chem.MolFromSmiles(SMILES))
    if rdDistGeom.EmbedMolecule(molecule, randomSeed=seed + 1) != 0:
        raise RuntimeError(f"rdkit found no conformer with seed {seed + 1}")
    rdForceFieldHelpers.MMFFOptimizeMolecule(molecule, maxIters=2000)
    bonds = np.array([(b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in molecule.GetBonds()])
    atoms = Atoms([a.GetAtomicNum() for a in molecule.GetAtoms()], molecule.GetConformer().GetPositions())
    return atoms, bonds


def label(atoms: Atoms) -> dict[str, Any]:
    """Energy (eV), forces (eV/Å), Mulliken charges (e) and dipole (e·Å) at positions rounded to float32."""
    from tblite.ase import TBLite

    frame = Atoms(atoms.numbers, (atoms.positions - atoms.get_center_of_mass()).astype(np.float32).astype(np.float64))
    frame.calc = TBLite(method="GFN2-xTB", accuracy=0.1, verbosity=0)
    return {
        "E": frame.get_potential_energy(),
        "F": frame.get_forces().astype(np.float32),
        "R": frame.positions.astype(np.float32),
        "charges": frame.get_charges().astype(np.float32),
        "dipole": frame.get_dipole_moment().astype(np.float32),
    }


def run_trajectory(task: tuple[int, Path]) -> Path:
    """Sample one trajectory, label its frames and save them; returns the file."""
    from tblite.ase import TBLite

    seed, path = task
    if path.exists():
        return path
    atoms, bonds = conformer(seed)
    atoms.set_masses(np.where(atoms.numbers == 1, HYDROGEN_MASS, atoms.get_masses()))
    atoms.calc = TBLite(method="GFN2-xTB", verbosity=0)
    rng = np.random.default_rng(seed)
    MaxwellBoltzmannDistribution(atoms, temperature_K=TEMPERATURE, rng=rng)
    dynamics = Langevin(
        atoms, TIME_STEP * units.fs, temperature_K=TEMPERATURE, friction=0.01 / units.fs, fixcm=False, rng=rng
    )
    dynamics.run(EQUILIBRATION_STEPS)
    frames = []
    for _ in range(FRAMES_PER_TRAJECTORY):
        dynamics.run(STEPS_BETWEEN_FRAMES)
        lengths = np.linalg.norm(atoms.positions[bonds[:, 0]] - atoms.positions[bonds[:, 1]], axis=1)
        if lengths.max() > LONGEST_BOND:
            raise RuntimeError(f"trajectory {seed}: a bond of {lengths.max():.2f} Å, the molecule has broken")
        frames.append(label(atoms))
    arrays: dict[str, Any] = {key: np.stack([frame[key] for frame in frames]) for key in frames[0]}
    temporary = path.with_suffix(".part.npz")
    np.savez(temporary, z=atoms.numbers, trajectory=np.full(len(frames), seed), **arrays)
    temporary.replace(path)
    return path


def isolated_atom_energies() -> dict[int, float]:
    """GFN2 energies (eV) of the free atoms in their ground states."""
    from tblite.ase import TBLite

    energies = {}
    for number, multiplicity in ISOLATED_ATOMS.items():
        atom = Atoms(numbers=[number], positions=[[0.0, 0.0, 0.0]])
        atom.calc = TBLite(method="GFN2-xTB", multiplicity=multiplicity, verbosity=0)
        energies[number] = atom.get_potential_energy()
    return energies


def main() -> None:
    """Sample what is missing in the working folder and write train.npz, valid.npz and test.npz beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for finished trajectories")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder for the data set")
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    for folder in (args.work, args.out):
        folder.mkdir(parents=True, exist_ok=True)
    atom_energies = isolated_atom_energies()
    print("isolated atoms, eV:", atom_energies)
    tasks = [(seed, args.work / f"{seed:03d}.npz") for seeds in TRAJECTORIES.values() for seed in seeds]
    with multiprocessing.Pool(args.processes) as pool:
        for done, path in enumerate(pool.imap(run_trajectory, tasks), 1):
            print(f"{done}/{len(tasks)} {path}", flush=True)
    for split, seeds in TRAJECTORIES.items():
        parts = [dict(np.load(args.work / f"{seed:03d}.npz")) for seed in seeds]
        arrays: dict[str, Any] = {key: np.concatenate([part[key] for part in parts]) for key in parts[0] if key != "z"}
        np.savez_compressed(
            args.out / f"{split}.npz",
            z=parts[0]["z"],
            atom_numbers=np.array(list(atom_energies)),
            atom_energies=np.array(list(atom_energies.values())),
            **arrays,
        )


if __name__ == "__main__":
    main()
