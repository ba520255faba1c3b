"""A step of molecular dynamics of water in LAMMPS on several processes, against PhiCalculator on one thread.

    OMP_NUM_THREADS=1 python benchmarks/lammps_steps.py  # 3,000 and 12,000 atoms, two hosts, two processes
    OMP_NUM_THREADS=1 python benchmarks/lammps_steps.py --sizes 192 --hosts 16x0e --processes 1 2 --steps 3

Wall time in double precision after two steps that load everything: the machine must do nothing else. The parts of a
step are those of the first process, waiting for others included: ``solve`` is gathering and all of Φ.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from ase import units
from ase.md.verlet import VelocityVerlet
from scaling import R_MAX, WIDE, host, structure

from phi_equivariant import PhiCalculator, PhiConfig, attach_phi
from phi_equivariant.lammps import LammpsPotential, load_lammps

LOADING, TIMESTEP = 2, 0.5  # steps; fs


def model(irreps):
    """The same on every process."""
    torch.manual_seed(0)
    return attach_phi(host(irreps), PhiConfig())


def of_calculator(irreps, size, steps):
    """Number of atoms, and seconds a step of PhiCalculator."""
    atoms = structure("water", size)
    atoms.calc = PhiCalculator(model(irreps))
    dynamics = VelocityVerlet(atoms, TIMESTEP * units.fs)
    dynamics.run(LOADING)
    begin = time.perf_counter()
    dynamics.run(steps)
    return len(atoms), (time.perf_counter() - begin) / steps


def of_lammps(irreps, size, steps):
    """Under mpirun: seconds a step, seconds of its parts, and own atoms and copies of the first process."""
    atoms = structure("water", size)
    program = load_lammps()(cmdargs=["-log", "none", "-screen", "none"])
    a, b, c = atoms.cell.lengths()
    program.commands_list(
        [
            "units metal", "boundary p p p", "atom_modify map yes", f"region box block 0 {a} 0 {b} 0 {c}",
            "create_box 2 box", f"comm_modify cutoff {R_MAX + 1.0}", "neighbor 1.0 bin",
            "mass 1 15.999", "mass 2 1.008", f"timestep {TIMESTEP * 1e-3}",
        ]
    )  # fmt: skip
    atoms.wrap()
    types = [1 if symbol == "O" else 2 for symbol in atoms.symbols]
    program.create_atoms(len(atoms), list(range(1, len(atoms) + 1)), types, atoms.positions.ravel().tolist())
    program.command("fix phi all external pf/callback 1 1")
    potential = LammpsPotential(model(irreps), ["O", "H"])
    potential.attach(program)
    program.commands_list(["fix move all nve", f"run {LOADING}"])
    before = dict(getattr(potential.evaluator, "seconds", {}))
    begin = time.perf_counter()
    program.command(f"run {steps} pre no")
    found = {"step": (time.perf_counter() - begin) / steps}
    found |= {part: (potential.evaluator.seconds[part] - spent) / steps for part, spent in before.items()}
    found |= {"own": program.extract_setting("nlocal"), "copies": program.extract_setting("nghost")}
    if program.extract_setting("world_rank") == 0:
        print("FOUND " + json.dumps(found))
    program.close()


def launched(processes, irreps, size, steps):
    """What ``of_lammps`` found on so many processes."""
    mpirun = Path(sys.executable).with_name("mpirun")
    words = ["--child", "--hosts", irreps, "--sizes", str(size), "--steps", str(steps)]
    command = [str(mpirun), "-np", str(processes), sys.executable, __file__, *words]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    if done.returncode or not lines:
        raise SystemExit(done.stdout[-2000:] + done.stderr[-2000:])
    return json.loads(lines[0].removeprefix("FOUND "))


def main():
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[3000, 12000])
    parser.add_argument("--hosts", nargs="+", default=[WIDE, "16x0e"])
    parser.add_argument("--processes", type=int, nargs="+", default=[2])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    if arguments.child:
        of_lammps(arguments.hosts[0], arguments.sizes[0], arguments.steps)
        return
    print("| atoms | host | processes | PhiCalculator, s | LAMMPS, s | times as fast | solve, % | own + copies |")
    print("|---|---|---|---|---|---|---|---|")
    for size in arguments.sizes:
        for irreps in arguments.hosts:
            n_atoms, alone = of_calculator(irreps, size, arguments.steps)
            for processes in arguments.processes:
                found = launched(processes, irreps, size, arguments.steps)
                share = f"{100 * found['solve'] / found['step']:.1f}" if "solve" in found else "–"
                print(
                    f"| {n_atoms} | {irreps} | {processes} | {alone:.3f} | {found['step']:.3f} "
                    f"| {alone / found['step']:.2f} | {share} | {found['own']} + {found['copies']} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
