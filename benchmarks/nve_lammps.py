"""Molecular dynamics at constant energy in LAMMPS, on one process and on several: the slope of the total energy.

    python benchmarks/nve_lammps.py --train runs/water_short                      # a host of 16x0e with Φ, in minutes
    python benchmarks/nve_lammps.py --model runs/water_short/phi --processes 1 2  # 10 ps each

Water in double precision, velocity Verlet with 1 fs from the same state at 300 K on each number of processes. The slope
and its standard error are those of ``nve.py``.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import ase.io
import numpy as np
import runs
from ablation import BUDGET, HOST
from nve import WATER, slope

from phi_equivariant.engines.lammps.fix_external import LINE

LARGEST = 48  # atoms of the structures that the model is trained on
EPOCHS, STEP, RECORD = 6, 0.001, 10  # STEP in ps
INPUT = f"""
units metal
boundary p p p
atom_modify map yes
read_data water.data
neighbor 1.0 bin
comm_modify cutoff {HOST["r_max"] + 1.0}
{LINE}
timestep {STEP}
thermo_style custom step temp etotal
thermo_modify format float %.15g flush yes
thermo {RECORD}
velocity all create 300 1 loop geom
fix move all nve
"""


def train(folder, data):
    """A model of water with Φ, of the smallest cells of the published data."""
    frames = [a for a in ase.io.read(data / "water" / "h2o_rpbe_d3.extxyz", ":") if len(a) <= LARGEST]
    molecule = np.mean([3 * atoms.get_potential_energy() / len(atoms) for atoms in frames])
    # Single precision keeps the digits of energies that are relative to a mean molecule.
    labelled = [
        runs.frame(atoms, atoms.get_potential_energy() - molecule * len(atoms) / 3, atoms.get_forces())
        for atoms in frames
    ]
    valid, rest = runs.shuffled(labelled, 0.1)
    files = runs.write_frames(folder / "data", train=rest, valid=valid)
    settings = {**HOST, **BUDGET, **WATER, "max_num_epochs": EPOCHS}
    words = [*runs.words_of(settings), "--phi", "operator=coulomb"]
    runs.run(words, [*files, "--E0s", "{1: 0.0, 8: 0.0}"], folder / "phi")


def launched(processes, folder, text, model):
    """Run an input; steps, temperatures and total energies of its thermo, (n, 3)."""
    name = f"nve_{processes}"
    (folder / f"in.{name}").write_text(text)
    binaries = Path(sys.executable).parent
    options = ["-in", f"in.{name}", "-log", f"log.{name}", "-screen", "none"]
    options += ["--model", str(model.resolve()), "--elements", "O", "H", "--dtype", "float64"]
    command = [str(binaries / "mpirun"), "-np", str(processes), str(binaries / "phi-lammps"), *options]
    # Processes that wait give way to those that compute, where there are more than cores.
    subprocess.run(command, cwd=folder, check=True, env={**os.environ, "MPIR_CVAR_POLLS_BEFORE_YIELD": "1"})
    rows = [line.split() for line in (folder / f"log.{name}").read_text().splitlines()]
    return np.array([row for row in rows if len(row) == 3 and row[0].isdigit()], dtype=float)


def main():
    """Train, or simulate and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, metavar="FOLDER")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--atoms", type=int, default=24, help="of the first such frame")
    parser.add_argument("--steps", type=int, default=10_000, help="of 1 fs")
    parser.add_argument("--data", type=Path, default=Path("data"), help="published data, see docs/log.md")
    parser.add_argument("--out", type=Path, default=Path("runs/nve_lammps"))
    arguments = parser.parse_args()
    if arguments.train:
        train(arguments.train, arguments.data)
    if not arguments.model:
        return
    folder = arguments.out
    folder.mkdir(parents=True, exist_ok=True)
    frames = ase.io.iread(arguments.data / "water" / "h2o_rpbe_d3.extxyz")
    atoms = next(one for one in frames if len(one) == arguments.atoms)
    ase.io.write(folder / "water.data", atoms, format="lammps-data", specorder=["O", "H"], masses=True)
    print("| processes | ps | K | slope, µeV/atom/ps | fluctuation, µeV/atom | ms per step |")
    print("|---" * 6 + "|")
    for processes in arguments.processes:
        begin = time.perf_counter()
        found = launched(processes, folder, f"{INPUT}run {arguments.steps}\n", arguments.model)
        spent = 1e3 * (time.perf_counter() - begin) / arguments.steps
        times, energies = STEP * found[:, 0], 1e6 * (found[:, 2] - found[0, 2]) / len(atoms)
        value, error = slope(times, energies)
        print(
            f"| {processes} | {times[-1]:g} | {found[:, 1].mean():.0f} | {value:.3f} ± {error:.3f} "
            f"| {energies.std():.0f} | {spent:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
