"""Φ's share of a training step, against the same host without it.

    OMP_NUM_THREADS=1 python benchmarks/overhead.py

A step is the forward pass with forces, mace's weighted energy and force loss, and the backward pass, on a batch of
random distortions of one molecule. Host and potential take turns within one run; the figure is the median ratio of
neighbouring pairs' processor times with its 95 % interval (bootstrap).
"""

import argparse
import time

import numpy as np
import torch
from ase import Atoms
from ase.build import molecule

from phi_equivariant import PhiConfig, attach_phi
from training.data.named_files import load_dataset

from e3nn import o3  # isort: skip  (after phi_equivariant, which makes e3nn 0.4.4 importable)
from mace import data, modules, tools  # isort: skip
from mace.tools import torch_geometric  # isort: skip

ELEMENTS = [1, 6, 7, 8]
CONFIGS = {
    "coulomb exact": PhiConfig(operator="coulomb", poisson="exact"),
    "coulomb exact, 4 channels": PhiConfig(operator="coulomb", poisson="exact", channels=4),
    "qeq": PhiConfig(charge_model="qeq"),
    "sqe": PhiConfig(charge_model="sqe"),
    "polarizable": PhiConfig(polarizable=True),
    "sqe, polarizable": PhiConfig(charge_model="sqe", polarizable=True),
    "coulomb learned": PhiConfig(operator="coulomb", poisson="learned"),
    "graph exact": PhiConfig(operator="graph", poisson="exact"),
    "graph learned": PhiConfig(operator="graph", poisson="learned"),
    "coulomb exact, num_modes 8": PhiConfig(operator="coulomb", poisson="exact", num_modes=8),
    "graph learned, num_modes 8": PhiConfig(operator="graph", poisson="learned", num_modes=8),
}


def host(arguments):
    """mace with the given sizes, in torch's default precision."""
    torch.manual_seed(0)
    return modules.ScaleShiftMACE(
        r_max=arguments.r_max, num_bessel=8, num_polynomial_cutoff=5, max_ell=3,
        interaction_cls=modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
        interaction_cls_first=modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
        num_interactions=2, num_elements=len(ELEMENTS), hidden_irreps=o3.Irreps(arguments.hidden_irreps),
        MLP_irreps=o3.Irreps("16x0e"), atomic_energies=np.zeros(len(ELEMENTS)), avg_num_neighbors=15.0,
        atomic_numbers=ELEMENTS, correlation=3, gate=torch.nn.functional.silu, atomic_inter_scale=1.0,
        atomic_inter_shift=0.0,
    )  # fmt: skip


def structure(n_atoms):
    """The shipped tetrapeptide (42 atoms), or else C60s and benzenes side by side, no two atoms closer than 1 Å."""
    if n_atoms == 42:
        return load_dataset("ala3_gfn2").train[0]
    parts, place = Atoms(), 0.0
    while len(parts) < n_atoms:
        part = molecule("C60" if n_atoms - len(parts) > 60 else "C6H6")
        part.translate([place - part.positions[:, 0].min(), 0, 0])
        parts, place = parts + part, part.positions[:, 0].max() + 3.0
    atoms = parts[:n_atoms]
    assert atoms.get_all_distances()[np.triu_indices(n_atoms, 1)].min() > 1.0
    return atoms


def batch(n_atoms, arguments):
    """A batch of distorted copies with mace's keys, with random labels."""
    rng = np.random.default_rng(0)
    table = tools.AtomicNumberTable(ELEMENTS)
    atoms, items = structure(n_atoms), []
    for _ in range(arguments.batch_size):
        copy = atoms.copy()
        copy.positions += 0.05 * rng.normal(size=copy.positions.shape)
        copy.info["REF_energy"], copy.arrays["REF_forces"] = 0.0, rng.normal(size=copy.positions.shape)
        keys = data.KeySpecification(info_keys={"energy": "REF_energy"}, arrays_keys={"forces": "REF_forces"})
        configuration = data.config_from_atoms(copy, key_specification=keys)
        items.append(data.AtomicData.from_config(configuration, z_table=table, cutoff=arguments.r_max))
    return next(iter(torch_geometric.dataloader.DataLoader(items, batch_size=len(items), shuffle=False)))


def step(model, reference, loss):
    """Processor time of one training step."""
    start = time.process_time()
    model.zero_grad(set_to_none=True)
    out = model(reference.to_dict(), training=True, compute_force=True)
    total = loss(pred=out, ref=reference)
    if "pde_residual" in out:
        total = total + 0.1 * out["pde_residual"].mean()
    total.backward()
    return time.process_time() - start


def main():
    """Print a table of median ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n_atoms", type=int, nargs="+", default=[42, 148])
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--batch_size", type=int, default=10)
    parser.add_argument("--r_max", type=float, default=5.0)
    parser.add_argument("--hidden_irreps", default="32x0e+32x1o")
    parser.add_argument("--only", default="", help="configurations whose name contains this")
    arguments = parser.parse_args()
    torch.set_default_dtype(torch.float32)
    torch.set_num_threads(1)
    loss = modules.WeightedEnergyForcesLoss(energy_weight=1.0, forces_weight=100.0)
    print(
        f"host {arguments.hidden_irreps}, r_max {arguments.r_max} Å, batch {arguments.batch_size}, float32, one thread"
    )
    print(f"{'atoms':>5} {'edges':>7} {'host step':>10}  {'Φ':28} ratio (95 % interval)")
    for n_atoms in arguments.n_atoms:
        reference = batch(n_atoms, arguments)
        for name, config in CONFIGS.items():
            if arguments.only not in name:
                continue
            plain, potential = host(arguments), attach_phi(host(arguments), config)
            for _ in range(3):
                step(plain, reference, loss), step(potential, reference, loss)
            pairs = []
            for i in range(arguments.pairs):
                first, second = (plain, potential) if i % 2 else (potential, plain)
                a, b = step(first, reference, loss), step(second, reference, loss)
                pairs.append((a, b) if i % 2 else (b, a))
            bare, with_phi = np.array(pairs).T
            ratio = with_phi / bare
            draws = np.random.default_rng(0).choice(ratio, (2000, len(ratio)))
            low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
            print(
                f"{n_atoms:5} {reference.edge_index.shape[1]:7} {np.median(bare):8.3f} s  {name:28} "
                f"{np.median(ratio):.3f} ({low:.3f}–{high:.3f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
