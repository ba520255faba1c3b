"""Time and memory per atom of Φ without matrices, on a carbon chain and a periodic water box, from 2,000 atoms on.

    OMP_NUM_THREADS=1 python benchmarks/scaling.py
    python benchmarks/scaling.py --report
    python benchmarks/scaling.py --results runs/scaling_gpu --device cuda --sizes 2000 5000 20000 50000 100000

One process per system and row: energy and forces, after a small structure that loads everything. Time is
processor time on a CPU, wall time on a GPU, the least of three calls, with small moves between them; memory is the peak
above what the process had before the call. The rows "Φ" are given node features and differentiate by them and by the
positions; the others, for the chain, run a mace host with r_max 4.5 Å: 20,000 atoms of water would take 80 GiB with the
wide one. Neighbour lists of the host are timed apart. Every result is kept in ``--results``: the same command goes on
where it was stopped.
"""

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import time
from pathlib import Path

import matplotlib
import numpy as np
import runs
import torch
from ase import Atoms
from ase.build import molecule

from phi_equivariant import PhiConfig, PhiModule, attach_phi
from phi_equivariant.pairs import both_ways
from phi_equivariant.structures import Structures

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from e3nn import o3  # isort: skip  (after phi_equivariant, which makes e3nn 0.4.4 importable)
from mace import modules  # isort: skip

ELEMENTS = [1, 6, 8]
R_MAX = 4.5
WIDE = "32x0e+32x1o"
TITLES = {"chain": "carbon chain (open)", "water": "water (periodic)"}
CONFIGS = {
    "graph": dict(operator="graph"),
    "graph, low-pass": dict(operator="graph", low_pass=0.2),
    "coulomb": dict(operator="coulomb"),
    "qeq": dict(charge_model="qeq"),
    "sqe": dict(charge_model="sqe"),
    "polarizable": dict(polarizable=True),
}
MOVE = 0.003  # Å, standard deviation of every coordinate between calls, so that iterations do not start at their end
ROWS = {
    **{f"Φ {name}": ("features", name) for name in CONFIGS},
    "16x0e": ("16x0e", None),
    "16x0e + Φ graph": ("16x0e", "graph"),
    "16x0e + Φ coulomb": ("16x0e", "coulomb"),
    WIDE: (WIDE, None),
    f"{WIDE} + Φ graph": (WIDE, "graph"),
    f"{WIDE} + Φ coulomb": (WIDE, "coulomb"),
}


def structure(system, size):
    """A carbon chain of ``size`` atoms with alternating bonds, or a box of about as many of water (997 kg/m³)."""
    rng = np.random.default_rng(0)
    if system == "chain":
        bonds = np.where(np.arange(size) % 2, 1.23, 1.36)
        positions = np.c_[np.cumsum(bonds), np.zeros((size, 2))]
        return Atoms(f"C{size}", positions + 0.03 * rng.normal(size=positions.shape))
    edge, spacing = round((size / 3) ** (1 / 3)), 3.107
    places = spacing * np.stack(np.meshgrid(*[np.arange(edge)] * 3, indexing="ij"), -1).reshape(-1, 3)
    one = molecule("H2O").positions - molecule("H2O").get_center_of_mass()
    turns = np.linalg.qr(rng.normal(size=(len(places), 3, 3)))[0]
    positions = places[:, None] + one @ turns + 0.1 * rng.normal(size=(len(places), 1, 3))
    return Atoms("OHH" * len(places), positions.reshape(-1, 3), cell=[edge * spacing] * 3, pbc=True)


def batch_of(atoms, device):
    """A batch with mace's keys. Other lists take gigabytes, or minutes, for a long chain."""
    cell = torch.tensor(atoms.cell.array)
    receivers, senders, images = both_ways(R_MAX, torch.tensor(atoms.positions), cell, torch.tensor(atoms.pbc))
    images = -images  # from sender to receiver
    number = {"dtype": torch.get_default_dtype(), "device": device}
    species = torch.tensor([ELEMENTS.index(z) for z in atoms.numbers], device=device)
    return {
        "positions": torch.tensor(atoms.positions, **number),
        "node_attrs": torch.nn.functional.one_hot(species, len(ELEMENTS)).to(number["dtype"]),
        "edge_index": torch.stack([senders, receivers]).to(device),
        "shifts": (images @ cell).to(**number),
        "unit_shifts": images.to(**number),
        "cell": torch.tensor(atoms.cell.array, **number),
        "pbc": torch.tensor(atoms.pbc, device=device)[None],
        "batch": torch.zeros(len(atoms), dtype=torch.long, device=device),
        "ptr": torch.tensor([0, len(atoms)], device=device),
        "head": torch.zeros(1, dtype=torch.long, device=device),
    }


def host(hidden_irreps):
    """mace of the given width; correlation and max_ell go with it."""
    small = hidden_irreps == "16x0e"
    torch.manual_seed(0)
    return modules.ScaleShiftMACE(
        r_max=R_MAX, num_bessel=8, num_polynomial_cutoff=5, max_ell=2 if small else 3,
        interaction_cls=modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
        interaction_cls_first=modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
        num_interactions=2, num_elements=len(ELEMENTS), hidden_irreps=o3.Irreps(hidden_irreps),
        MLP_irreps=o3.Irreps("16x0e"), atomic_energies=np.zeros(len(ELEMENTS)), avg_num_neighbors=15.0,
        atomic_numbers=ELEMENTS, correlation=2 if small else 3, gate=torch.nn.functional.silu,
        atomic_inter_scale=1.0, atomic_inter_shift=0.0,
    )  # fmt: skip


def evaluation(kind, config, device):
    """A function of a batch that computes energy and forces."""
    config = None if config is None else PhiConfig(**CONFIGS[config], dense_limit=200)
    if kind != "features":
        model = host(kind) if config is None else attach_phi(host(kind), config)
        model = model.to(device).eval()
        return lambda batch: model(dict(batch), compute_force=True)["forces"]
    torch.manual_seed(0)
    phi = PhiModule([o3.Irreps("16x0e")], ELEMENTS, R_MAX, config).to(device).eval()

    def forces(batch):
        positions = batch["positions"].detach().requires_grad_(True)
        features = [torch.ones(len(positions), 16, device=device).requires_grad_(True)]
        structures = Structures.of_batch(
            {**batch, "positions": positions}, total_charge=positions.new_zeros(1),
            cell=batch["cell"].reshape(1, 3, 3), pbc=batch["pbc"].reshape(1, 3),
        )  # fmt: skip
        out = phi(features, structures, order=0)
        return torch.autograd.grad(out["phi_energy"].sum(), [positions, *features])[0]

    return forces


def measure(arguments):
    """Print one result per size as JSON."""
    torch.set_default_dtype(getattr(torch, arguments.dtype))
    system, row, *sizes = arguments.one
    cuda = arguments.device == "cuda"
    clock = time.perf_counter if cuda else time.process_time
    run = evaluation(*ROWS[row], arguments.device)
    for _ in range(2):
        run(batch_of(structure(system, 300), arguments.device))
    for size in sizes:
        atoms, start = structure(system, int(size)), clock()
        batch = batch_of(atoms, arguments.device)
        listing, seconds = clock() - start, []
        before = peak_memory(cuda, reset=True)
        for _ in range(3):
            batch["positions"] += MOVE * torch.randn_like(batch["positions"])
            start = clock()
            run(batch).sum().item()
            seconds.append(clock() - start)
        result = dict(
            system=system, row=row, size=int(size), n_atoms=len(atoms), seconds=min(seconds),
            bytes=peak_memory(cuda) - before, neighbour_list_seconds=listing,
        )  # fmt: skip
        print(json.dumps(result), flush=True)


def peak_memory(cuda, reset=False):
    """Bytes of memory that were in use at most since the last reset, or are now if this is one."""
    if cuda:
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated()
    if reset:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what is free already would otherwise be used unseen
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def rows_of(system):
    """Rows that a system can have."""
    rows = [row for row, (features, _) in ROWS.items() if system == "chain" or features == "features"]
    # In open structures each step of an iteration takes N² time.
    responding = {name for name, settings in CONFIGS.items() if settings.keys() & {"charge_model", "polarizable"}}
    return [row for row in rows if system != "chain" or ROWS[row][1] not in responding]


def path_of(results, system, row, size):
    """Of a result's JSON file."""
    return results / f"{system}_{row.replace(',', '').replace(' ', '_').replace('Φ', 'phi')}_{size}.json"


def measure_all(arguments):
    """Every result that has no file yet."""
    for system in arguments.systems:
        for row in rows_of(system):
            paths = {size: path_of(arguments.results, system, row, size) for size in arguments.sizes}
            missing = [str(size) for size, path in paths.items() if not path.is_file()]
            if not missing:
                continue
            command = [sys.executable, __file__, "--device", arguments.device, "--dtype", arguments.dtype]
            command += ["--one", system, row, *missing]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
                for line in process.stdout:
                    if line.startswith("{"):
                        found = json.loads(line)
                        runs.write_json(paths[found["size"]], found)
            if process.returncode:
                sys.exit(f"{system}, {row}: exit status {process.returncode}")


def report(results, page, figure):
    """The table as Markdown, largest against smallest in its last columns, and the figure."""
    found = [json.loads(path.read_text()) for path in results.glob("*.json")]
    lines = ["| system | | µs per atom | KiB per atom | time, growth | memory, growth | memory / host's |"]
    lines.append("|---" * 7 + "|")
    picture, axes = plt.subplots(2, 2, figsize=(9, 7), sharex=True, layout="constrained")
    for column, (system, title) in enumerate(TITLES.items()):
        memory = {}
        for row in rows_of(system):
            own = sorted((r for r in found if (r["system"], r["row"]) == (system, row)), key=lambda r: r["n_atoms"])
            if not own:
                lines.append(f"| {title} | {row} | not measured | | | | |")
                continue
            values = [1e6 * r["seconds"] / r["n_atoms"] for r in own], [r["bytes"] / 1024 / r["n_atoms"] for r in own]
            cells = [", ".join(f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in one) for one in values]
            growth = [f"{one[-1] / one[0]:.2f}" for one in values]
            memory[row] = {r["n_atoms"]: r["bytes"] for r in own}
            bare = memory.get(row.split(" + ")[0], {}) if " + " in row else {}
            share = ", ".join(f"{size / bare[n]:.2f}" for n, size in memory[row].items() if n in bare)
            lines.append(f"| {title} | {row} | {cells[0]} | {cells[1]} | {growth[0]} | {growth[1]} | {share} |")
            for axis, one in zip(axes[:, column], values, strict=True):
                axis.loglog([r["n_atoms"] for r in own], one, "o-" if row.startswith("Φ") else "s--", label=row)
        axes[0, column].set_title(title)
        axes[1, column].set_xlabel("atoms")
    axes[0, 0].set_ylabel("time, µs per atom")
    axes[1, 0].set_ylabel("memory, KiB per atom")
    picture.legend(*axes[0, 0].get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=3)
    figure.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(figure, dpi=130)
    plt.close(picture)
    runs.write_between(page, "scaling", "\n".join(lines))
    print("\n".join(lines))


def main():
    """Measure what is missing, or report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "scaling")
    parser.add_argument("--sizes", type=int, nargs="+", default=[2000, 5000, 10000, 20000])
    parser.add_argument("--systems", nargs="+", default=list(TITLES), choices=TITLES)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float64", choices=["float32", "float64"])
    parser.add_argument("--report", action="store_true", help="table and figure of what is measured")
    parser.add_argument("--page", type=Path, default=Path("docs/log.md"))
    parser.add_argument("--figure", type=Path, default=Path("docs/figures/scaling.png"))
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        measure(arguments)
    elif arguments.report:
        report(arguments.results, arguments.page, arguments.figure)
    else:
        measure_all(arguments)


if __name__ == "__main__":
    main()
