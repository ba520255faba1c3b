"""Φ's share of a step of molecular dynamics through ase, against the same host without it.

    OMP_NUM_THREADS=1 python benchmarks/step.py                       # 64 water molecules, every row
    OMP_NUM_THREADS=1 python benchmarks/step.py --only 16x0e --steps 200

A step is one call of PhiCalculator: lists of neighbours, energy, forces and stress after atoms moved by 0.003 Å, in
double precision on one thread. The bare host runs through PhiCalculator too. The two take turns on the same
positions; the figure is the median ratio of neighbouring steps' processor times with its 95 % interval (bootstrap).
"""

import argparse
import time

import numpy as np
import torch
from scaling import WIDE, host, structure

from phi_equivariant import PhiCalculator, PhiConfig, attach_phi

ROWS = {
    "16x0e, coulomb": ("16x0e", PhiConfig()),
    f"{WIDE}, coulomb": (WIDE, PhiConfig()),
    f"{WIDE}, coulomb, multipoles 1": (WIDE, PhiConfig(multipoles=1)),
    "16x0e, graph": ("16x0e", PhiConfig(operator="graph")),
    **{
        f"{irreps}, {name}": (irreps, PhiConfig(**settings))
        for irreps in ("16x0e", WIDE)
        for name, settings in {
            "qeq": {"charge_model": "qeq"},
            "sqe": {"charge_model": "sqe"},
            "polarizable": {"polarizable": True},
            "sqe, polarizable": {"charge_model": "sqe", "polarizable": True},
        }.items()
    },
}
MOVE = 0.003  # Å, standard deviation of every coordinate's step


def seconds(calculator, atoms):
    """Processor time of one step."""
    start = time.process_time()
    calculator.calculate(atoms)
    return time.process_time() - start


def compare(hidden_irreps, config, n_atoms, steps, slab):
    """Seconds of steps without and with Φ, (steps, 2)."""
    atoms, rng = structure("water", n_atoms), np.random.default_rng(0)
    atoms.pbc = (True, True, not slab)
    bare, with_phi = PhiCalculator(host(hidden_irreps)), PhiCalculator(attach_phi(host(hidden_irreps), config))
    found = []
    for step in range(-6, steps):  # TorchScript optimises the host during its first calls
        atoms.positions += MOVE * rng.normal(size=atoms.positions.shape)
        order = (bare, with_phi) if step % 2 else (with_phi, bare)
        pair = [seconds(calculator, atoms) for calculator in order]
        found.append(pair if step % 2 else pair[::-1])
    return len(atoms), np.array(found[6:])


def main():
    """Print a table of median ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n_atoms", type=int, nargs="+", default=[192])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--slab", action="store_true", help="not periodic along the third cell vector")
    arguments = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    print("| atoms | host, Φ | host, ms | with Φ, ms | ratio (95 % interval) |\n|---|---|---|---|---|")
    for n_atoms in arguments.n_atoms:
        for name, (hidden_irreps, config) in ROWS.items():
            if arguments.only not in name:
                continue
            n, both = compare(hidden_irreps, config, n_atoms, arguments.steps, arguments.slab)
            ratio = both[:, 1] / both[:, 0]
            draws = np.random.default_rng(0).choice(ratio, (2000, len(ratio)))
            low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
            times = " | ".join(f"{1e3 * value:.0f}" for value in np.median(both, axis=0))
            print(f"| {n} | {name} | {times} | {np.median(ratio):.3f} ({low:.3f}–{high:.3f}) |", flush=True)


if __name__ == "__main__":
    main()
