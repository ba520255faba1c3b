"""Energies of two ions beyond the distances seen in training: the bare host, the graph operator, the Coulomb operator.

    OMP_NUM_THREADS=1 python benchmarks/dimers.py --data charge_charge.xyz --out runs/dimers

The file is charge_charge.xyz of lab-cosmo/atomistic-cookbook: two oppositely charged ions in vacuum, 3.7 to 8.7 Å
apart, with energies and forces. Training sees pairs closer than the split (90 % of them, the rest validate), the test
the others.
"""

import argparse
import json
from pathlib import Path

import ase.io
import numpy as np

from training.train import main as train

ROWS = {
    "no Φ": ["--no_phi"],
    "graph, learned, k = 8": ["--phi", "operator=graph", "poisson=learned", "num_modes=8", "pde_weight=0.01"],
    "graph, exact": ["--phi", "operator=graph"],
    "coulomb, exact": ["--phi", "operator=coulomb"],
}
HOST = [
    "--correlation",
    "2",
    "--model",
    "ScaleShiftMACE",
    "--hidden_irreps",
    "16x0e",
    "--r_max",
    "4.5",
    "--max_ell",
    "2",
]
BUDGET = ["--batch_size", "5", "--lr", "0.01", "--scheduler", "CosineAnnealingLR", "--ema", "--ema_decay", "0.99"]
LOSS = ["--energy_weight", "100", "--forces_weight", "100", "--E0s", "average", "--default_dtype", "float64"]


def write_split(data, folder, split, seed=0):
    """train.xyz, valid.xyz and test.xyz: open structures, split by the distance between the ions."""
    frames = ase.io.read(data, ":")
    for atoms in frames:
        atoms.pbc = False  # molecules in vacuum; the file's 30 Å box is not periodic
    far = [atoms for atoms in frames if atoms.info["distance"] > split]
    near = [atoms for atoms in frames if atoms.info["distance"] <= split]
    order = np.random.default_rng(seed).permutation(len(near))
    cut = len(near) // 10
    parts = {"train": [near[i] for i in order[cut:]], "valid": [near[i] for i in order[:cut]], "test": far}
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        ase.io.write(folder / f"{name}.xyz", part, format="extxyz")
    return {name: len(part) for name, part in parts.items()}


def main():
    """Train every row with every seed, and print mean and standard deviation of the test errors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--split", type=float, default=6.5, help="Å")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    folder = arguments.out / "data"
    print(write_split(arguments.data, folder, arguments.split))
    files = [w for name in ("train", "valid", "test") for w in (f"--{name}_file", str(folder / f"{name}.xyz"))]
    print("| | energy, meV/atom | forces, meV/Å |\n|---|---|---|")
    for title, phi in ROWS.items():
        errors = []
        for seed in arguments.seeds:
            name = f"{title.replace(' ', '_').replace(',', '').replace('=_', '')}_{seed}"
            words = [*files, "--energy_key", "energy", "--forces_key", "forces", *HOST, *BUDGET, *LOSS, *phi]
            words += ["--seed", str(seed), "--max_num_epochs", str(arguments.epochs), "--name", name]
            if train([*words, "--work_dir", str(arguments.out), "--restart_latest", "--log_level", "ERROR"]):
                raise SystemExit(1)
            found = json.loads((arguments.out / name / "errors.json").read_text())["sets"]["test"]["errors"]
            errors.append([found[quantity]["rmse"] for quantity in ("energy_per_atom", "forces")])
        mean, deviation = np.mean(errors, axis=0), np.std(errors, axis=0)
        cells = [f"{m:.1f} ± {d:.1f}" for m, d in zip(mean, deviation, strict=True)]
        print(f"| {title} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
