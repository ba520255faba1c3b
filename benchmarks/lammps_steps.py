"""A step of molecular dynamics of water in LAMMPS on several processes, against PhiCalculator on one thread.

    OMP_NUM_THREADS=1 python benchmarks/lammps_steps.py  # 3,000 and 12,000 atoms, two hosts, two processes
    OMP_NUM_THREADS=1 python benchmarks/lammps_steps.py --sizes 192 --hosts 16x0e --processes 1 2 --steps 3
    OMP_NUM_THREADS=1 python benchmarks/lammps_steps.py --sizes 12000 --turns 2 --steps 1 --loading 1  # of each
    OMP_NUM_THREADS=1 python benchmarks/lammps_steps.py --sizes 3000 --hosts 16x0e --steps 1 --only_counts

Wall time after two steps that load everything: the machine must do nothing else. With ``--turns`` both are started
several times, in turn, and of each the fastest counts. The parts of a step are those of the first process, waiting for
others included: ``solve`` is gathering and all of Φ. GB is the growth of the calculator's memory. The wide host needs
3.2 MB an atom: 40 GB for 12,000, and a third of it with ``--dtype float32``. A second table counts what does not depend
on the machine: numbers that the first process exchanges in a step, points of the mesh, pairs, memory.
"""

import argparse
import itertools
import json
import math
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from ase import units
from ase.md.verlet import VelocityVerlet
from scaling import R_MAX, WIDE, host, structure

from phi_equivariant import PhiCalculator, PhiConfig, attach_phi
from phi_equivariant.division import ShareOfProcesses
from phi_equivariant.engines.lammps.ghosts import Ghosts
from phi_equivariant.lammps import LammpsPotential, load_lammps
from phi_equivariant.operators.lattice import LatticeSum
from phi_equivariant.operators.particle_mesh import ParticleMesh

TIMESTEP = 0.5  # fs
PHI = {
    "coulomb": {}, "graph": {"operator": "graph"}, "qeq": {"charge_model": "qeq"}, "sqe": {"charge_model": "sqe"},
}  # fmt: skip


def model(irreps, phi):
    """The same on every process."""
    torch.manual_seed(0)
    return attach_phi(host(irreps), PhiConfig(**PHI[phi]))


def counted(counts):
    """Count, from here on, what one process does: numbers in messages, points of the mesh, pairs and products."""

    def watch(kind, name, note):
        plain = getattr(kind, name)

        def watched(*arguments, **options):
            found = plain(*arguments, **options)
            for key, number in note(arguments, found).items():
                counts[key] = counts.get(key, 0) + number
            return found

        setattr(kind, name, watched)

    def summed(arguments, found):
        return {"summed": sum(tensor.numel() for tensor in found), "sums": 1}

    def sent(arguments, found):
        share, tensor, way = arguments
        rest = tensor.numel() / max(1, tensor.shape[way.dims[0]])
        entries = sum(len(indices) for rank, indices in enumerate(way.sent) if rank != share.rank)
        return {"sent": int(entries * rest * (2 if tensor.is_complex() else 1)), "exchanges": 1}

    watch(ShareOfProcesses, "sum", summed)
    watch(ShareOfProcesses, "all_to_all", sent)
    watch(Ghosts, "gather", lambda arguments, found: {"gathered": found.size})
    watch(Ghosts, "to_copies", lambda arguments, found: {"exchanged": found.size})
    watch(Ghosts, "to_owners", lambda arguments, found: {"exchanged": arguments[1].size})
    watch(LatticeSum, "product", lambda arguments, found: {"products": 1})
    watch(
        LatticeSum,
        "__init__",
        lambda arguments, found: {"pairs": len(arguments[0].near.pairs.first), "operators": 1},
    )
    watch(ParticleMesh, "__init__", lambda arguments, found: {"mesh": math.prod(arguments[0].mesh.window), "meshes": 1})


def grown(empty):
    """By how many kB the peak of this process' memory has grown."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - empty


def of_calculator(irreps, phi, size, steps, loading):
    """Number of atoms, seconds a step of PhiCalculator, and memory."""
    atoms = structure("water", size)
    atoms.calc = PhiCalculator(model(irreps, phi))
    dynamics, empty = VelocityVerlet(atoms, TIMESTEP * units.fs), grown(0)
    dynamics.run(loading)
    begin = time.perf_counter()
    dynamics.run(steps)
    step = (time.perf_counter() - begin) / steps
    print("FOUND " + json.dumps({"atoms": len(atoms), "step": step, "kB": grown(empty)}))


def of_lammps(irreps, phi, size, steps, loading):
    """Under mpirun: seconds a step, seconds of its parts, and own atoms and copies of the first process."""
    counts = {}
    counted(counts)
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
    potential = LammpsPotential(model(irreps, phi), ["O", "H"])
    potential.attach(program)
    empty = grown(0)
    program.commands_list(["fix move all nve", f"run {loading}"])
    before = dict(getattr(potential.evaluator, "seconds", {}))
    counts.clear()
    begin = time.perf_counter()
    program.command(f"run {steps} pre no")
    found = {"step": (time.perf_counter() - begin) / steps}
    found |= {part: (potential.evaluator.seconds[part] - spent) / steps for part, spent in before.items()}
    found |= {"own": program.extract_setting("nlocal"), "copies": program.extract_setting("nghost")}
    found |= {"atoms": len(atoms), "kB": grown(empty)}
    found |= {"counts": {name: number / steps for name, number in counts.items()}}
    if program.extract_setting("world_rank") == 0:
        print("FOUND " + json.dumps(found))
    program.close()


def launched(processes, irreps, phi, arguments, size):
    """What ``of_lammps`` found on so many processes, or where that is 0 ``of_calculator``."""
    mpirun = [str(Path(sys.executable).with_name("mpirun")), "-np", str(processes)] if processes else []
    words = [
        "--child", "lammps" if processes else "calculator", "--hosts", irreps, "--phi", phi, "--sizes", size,
        "--steps", arguments.steps, "--loading", arguments.loading, "--dtype", arguments.dtype,
    ]  # fmt: skip
    command = [*mpirun, sys.executable, __file__, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    if done.returncode or not lines:
        raise SystemExit(done.stdout[-2000:] + done.stderr[-2000:])
    return json.loads(lines[0].removeprefix("FOUND "))


def row_of_counts(irreps, phi, processes, found):
    """What one process does in a step, a row of the second table."""
    counts, atoms = found["counts"], found["atoms"]
    per_atom = (counts.get(name, 0) / atoms for name in ("gathered", "summed", "sent"))
    of_structure = (
        counts.get(name, 0) / max(1, counts.get(number, 0)) / atoms
        for name, number in (("mesh", "meshes"), ("pairs", "operators"))
    )
    cells = [f"{number:.0f}" for number in (*per_atom, *of_structure)]
    exchanged, memory = counts.get("exchanged", 0) / max(1, found["own"]), found["kB"] / max(1, found["own"])
    messages = counts.get("sums", 0) + counts.get("exchanges", 0)
    cells += [f"{exchanged:.0f}", f"{messages:.0f}", f"{counts.get('products', 0):g}", f"{memory:.0f}"]
    return f"| {atoms} | {irreps} | {phi} | {processes} | {found['own']} + {found['copies']} | {' | '.join(cells)} |"


def main():
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[3000, 12000])
    parser.add_argument("--hosts", nargs="+", default=[WIDE, "16x0e"])
    parser.add_argument("--phi", nargs="+", default=["coulomb"], choices=PHI)
    parser.add_argument("--processes", type=int, nargs="+", default=[2])
    parser.add_argument("--steps", type=int, default=5, help="in one start")
    parser.add_argument("--loading", type=int, default=2, help="steps before these")
    parser.add_argument("--turns", type=int, default=1, help="starts of each")
    parser.add_argument("--dtype", default="float64", choices=["float32", "float64"])
    parser.add_argument("--only_counts", action="store_true", help="leave out the calculator and the times")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_default_dtype(getattr(torch, arguments.dtype))
    torch.set_num_threads(1)
    if arguments.child:
        measure = {"lammps": of_lammps, "calculator": of_calculator}[arguments.child]
        measure(arguments.hosts[0], arguments.phi[0], arguments.sizes[0], arguments.steps, arguments.loading)
        return
    if not arguments.only_counts:
        print("| atoms | host | Φ | processes | PhiCalculator, s | LAMMPS, s | times as fast | solve, % | GB |")
        print("|---" * 9 + "|")
    counts = []
    for size, irreps, phi in itertools.product(arguments.sizes, arguments.hosts, arguments.phi):
        found = {}
        for _ in range(arguments.turns):
            for processes in [*([] if arguments.only_counts else [0]), *arguments.processes]:
                turn = launched(processes, irreps, phi, arguments, size)
                found.setdefault(processes, []).append(turn)
        alone = min(found.pop(0, []), key=lambda turn: turn["step"], default=None)
        for processes, turns in found.items():
            best = min(turns, key=lambda turn: turn["step"])
            counts.append(row_of_counts(irreps, phi, processes, best))
            if alone is None:
                continue
            share = f"{100 * best['solve'] / best['step']:.1f}" if "solve" in best else "–"
            print(
                f"| {best['atoms']} | {irreps} | {phi} | {processes} | {alone['step']:.3f} | {best['step']:.3f} "
                f"| {alone['step'] / best['step']:.2f} | {share} | {alone['kB'] / 2**20:.1f} |",
                flush=True,
            )
    print("\nOf the first process, in a step; kB are those above what it has before the first step.\n")
    print(
        "| atoms | host | Φ | processes | own + copies | gathered, numbers/atom | summed, numbers/atom "
        "| of the mesh sent, numbers/atom | mesh, points/atom | pairs/atom | exchanged, numbers/own atom "
        "| messages to all | products | kB/own atom |"
    )
    print("|---" * 14 + "|")
    print("\n".join(counts))


if __name__ == "__main__":
    main()
