"""What each kind of Φ does for one small host, on six sets of published data, trained on energies and forces only.

    OMP_NUM_THREADS=1 python benchmarks/ablation.py --data data --runs runs/ablation
    python benchmarks/ablation.py --report

Every run leaves one JSON file in ``--results``, and is not trained again while that is there; one that was stopped goes
on from its last epoch. First all rows with one seed. Then three seeds of the graph row with the lowest validation loss
of every data set and of the rows in COULOMB, and five of the finalists: the bare host, ``coulomb exact``, and the two
rows of RESPONDING with the lowest validation losses over all data sets. ``--report`` makes the tables and the figure
from the files that are there, and says what is missing.

The sign of charges is arbitrary where nothing in training fixes it: on neutral data, charges (and dipoles and
Born effective charges) are turned over if they correlate negatively with the reference.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import runs
from ablation_data import DATASETS, STAGE_TWO
from ablation_report import report

from phi_equivariant import PhiCalculator, PhiPotential

GRAPH = {
    f"graph {kind}, {f'k = {k}' if k else 'all modes'}": [
        "operator=graph", f"poisson={kind}", *([f"num_modes={k}"] if k else []),
        *(["pde_weight=100"] if kind == "learned" else []),
    ]
    for kind in ("learned", "exact") for k in (4, 8, None)
}  # fmt: skip
#: Charges that respond, each beside ``coulomb exact``, which is their ``direct``.
RESPONDING = {
    "qeq": ["operator=coulomb", "charge_model=qeq"],
    "sqe": ["operator=coulomb", "charge_model=sqe"],
    "polarizable": ["operator=coulomb", "polarizable=True"],
    "sqe, polarizable": ["operator=coulomb", "charge_model=sqe", "polarizable=True"],
}
#: Where widths started before 0.7 Å was the default; rows that were trained then ask for it.
COVALENT = "width=covalent"
#: Row → settings of Φ, None for the bare host. The residual of ``coulomb`` is an energy, about 10 V/e times the squared
#: difference of two charges: its weight is smaller.
ROWS = {
    "no Φ": None,
    **GRAPH,
    "coulomb learned": ["operator=coulomb", "poisson=learned", "pde_weight=1", COVALENT],
    "coulomb exact": ["operator=coulomb", "poisson=exact"],
    "coulomb exact, covalent widths": ["operator=coulomb", "poisson=exact", COVALENT],
    **RESPONDING,
    "channels = 4": ["operator=coulomb", "channels=4"],
    "no Φ, l = 1": None,
    "coulomb exact, multipoles": ["operator=coulomb", "poisson=exact", "multipoles=1", COVALENT],
    "coulomb exact, width 0.9": ["operator=coulomb", "poisson=exact", "width=0.9"],
    "no Φ, wide": None,
    "coulomb exact, wide": ["operator=coulomb", "poisson=exact", COVALENT],
    "multipoles, width 0.9, wide, long": ["operator=coulomb", "poisson=exact", "multipoles=1", "width=0.9"],
    "no Φ, converged": None,
    "coulomb exact, converged": ["operator=coulomb", "poisson=exact"],
    "sqe, converged": RESPONDING["sqe"],
}
#: Row → hidden irreps of its host where these are not 16x0e.
HIDDEN = {"no Φ, l = 1": "16x0e+16x1o", "coulomb exact, multipoles": "16x0e+16x1o"}
COULOMB = "coulomb learned", "coulomb exact, covalent widths", "coulomb exact, width 0.9"
WIDE = dict.fromkeys(("no Φ, wide", "coulomb exact, wide", "multipoles, width 0.9, wide, long"), "32x0e+32x1o")
#: Rows of a host as wide that is trained until its validation loss stands still: its options are those of the data set.
CONVERGED = dict.fromkeys(("no Φ, converged", "coulomb exact, converged", "sqe, converged"), "32x0e+32x1o")
HOST = {"model": "ScaleShiftMACE", "r_max": 4.5, "max_ell": 2, "correlation": 2, "num_interactions": 2}
BUDGET = {
    "batch_size": 5, "valid_batch_size": 10, "lr": 0.01, "scheduler": "CosineAnnealingLR", "warmup_epochs": 1,
    "ema": True, "ema_decay": 0.99, "energy_weight": 100, "forces_weight": 100, "default_dtype": "float32",
}  # fmt: skip
LONG = {"multipoles, width 0.9, wide, long": STAGE_TWO}
SEEDS = (1, 2, 3, 4, 5)
SEEDS_OF_OTHERS = 3  # of rows that have more than one and are not finalists
BORN_FRAMES, CHARGE_FRAMES = 10, 50


def words(dataset, row, seed):
    """Options of phi-mace-train for one run."""
    settings = {
        **HOST, **BUDGET, "hidden_irreps": (HIDDEN | WIDE | CONVERGED).get(row, "16x0e"),
        "max_num_epochs": dataset.wide_epochs if row in WIDE else dataset.epochs, **dataset.options,
        **LONG.get(row, dataset.converged if row in CONVERGED else {}), "seed": seed,
    }  # fmt: skip
    # Energies of charge states are for every row to learn: with a fitted number they would not compare with the bare's.
    phi = ["--no_phi"] if ROWS[row] is None else ["--phi", *ROWS[row], "electronegativity=0"]
    return [*runs.words_of(settings), *phi]


def name_of(row, seed):
    """Of a run's folder and file."""
    plain = row.replace("no Φ", "bare").replace("l = 1", "vectors").replace(" = ", "")
    return f"{plain.replace(',', '').replace(' ', '_')}_{seed}"


def measure(name, row, seed, folder, files):
    """Train one run and collect everything that the table shows."""
    dataset = DATASETS[name]
    model, run_data, run, about = runs.run(words(dataset, row, seed), files, folder)
    found = {"dataset": name, "row": row, "seed": seed, "host": run.host.hidden_irreps, **about}
    if isinstance(model, PhiPotential):
        found |= _charges(model, dataset, run_data, folder)
    return found


def _charges(model, dataset, run_data, folder):
    """How charges, dipoles, charges of ions and Born effective charges compare with their references."""
    pairs = runs.pairs_on_test(model, run_data, ("charges", "dipole"))
    sign, found = 1.0, {}
    if dataset.neutral and pairs:
        labels, predictions = pairs["charges" if "charges" in pairs else "dipole"]
        sign = float(np.sign(np.corrcoef(labels, predictions)[0, 1]))
    for quantity, (labels, predictions) in pairs.items():
        found[quantity] = runs.agreement(labels, sign * predictions)
    frames = dataset.read_test(folder.parent)
    calculator = PhiCalculator(model)
    charges = [calculator.get_property("charges", atoms) for atoms in frames[:CHARGE_FRAMES]]
    found["rms_charge"] = float(np.sqrt(np.mean(np.concatenate(charges) ** 2)))
    if "ion" in frames[0].arrays:
        ions = np.array([_charge_of_first_ion(calculator, atoms) for atoms in frames])
        sign = float(np.sign(ions.mean()))
        deviation = float(np.sqrt(np.mean((sign * ions - 1) ** 2)))
        found["ion_charge"] = {"mean": float(sign * ions.mean()), "rmse": deviation}
    if "bec" in frames[0].arrays:
        tensors = [
            # The file has the atom's component first; this order rotates as ∂μ/∂r must, the other does not.
            (atoms.arrays["bec"].reshape(-1, 3, 3).swapaxes(1, 2), calculator.get_born_effective_charges(atoms))
            for atoms in frames[:BORN_FRAMES]
        ]
        labels, predictions = (np.concatenate(part) for part in zip(*tensors, strict=True))
        found["born_effective_charges"] = runs.agreement(labels, sign * predictions)
    return {**found, "sign": sign}


def _charge_of_first_ion(calculator, atoms):
    """Sum of the charges of the ion whose reference is +1, in e."""
    return calculator.get_property("charges", atoms)[atoms.arrays["ion"] == 1].sum()


def rows_of(name):
    """Rows that a data set can have: the graph operator carries no net charge; few have wide and converged ones."""
    dataset = DATASETS[name]
    left_out = [*(() if dataset.neutral else GRAPH), *(() if dataset.wide_epochs else WIDE)]
    left_out += [] if dataset.converged else CONVERGED
    return [row for row in ROWS if row not in left_out]


def validation_loss(results, name, row):
    """Of the first seed: the test set has no part in any choice."""
    errors = json.loads(path_of(results, name, row, SEEDS[0]).read_text())["errors"]["valid"]
    weighted = ("energy_per_atom", BUDGET["energy_weight"]), ("forces", BUDGET["forces_weight"])
    return sum(weight * errors[quantity]["rmse"] ** 2 for quantity, weight in weighted)


def finalists(results):
    """Rows that get all seeds, the same for every data set."""

    def compared(row):
        return np.mean(
            [np.log(validation_loss(results, name, row) / validation_loss(results, name, "no Φ")) for name in DATASETS]
        )

    return ["no Φ", "coulomb exact", *sorted(RESPONDING, key=compared)[:2]]


def rows_of_seed(name, results, seed):
    """Rows of a data set that are trained with this seed; the first seed's results say which, for the others."""
    if seed == SEEDS[0]:
        return rows_of(name)
    if seed > SEEDS_OF_OTHERS:
        return finalists(results)
    graph = [row for row in rows_of(name) if row in GRAPH]
    best = [min(graph, key=lambda row: validation_loss(results, name, row))] if graph else []
    return [*finalists(results), *best, *COULOMB]


def path_of(results, name, row, seed):
    """Of a run's JSON file."""
    return results / name / f"{name_of(row, seed)}.json"


def train_all(arguments):
    """Every run that has no file yet."""
    for seed in SEEDS[: arguments.seeds]:
        for name in arguments.datasets:
            files = DATASETS[name].write(arguments.data, arguments.runs / name)
            for row in rows_of_seed(name, arguments.results, seed):
                path = path_of(arguments.results, name, row, seed)
                if path.is_file() or row not in arguments.rows:
                    continue
                found = measure(name, row, seed, arguments.runs / name / name_of(row, seed), files)
                runs.write_json(path, found)
                errors = ", ".join(
                    f"{q} {found['errors']['test'][q]['rmse']:.2f}" for q in ("energy_per_atom", "forces")
                )
                print(f"{name}, {row}, seed {seed}: {errors}", flush=True)


def main():
    """Train, or report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"), help="published data, see docs/log.md")
    parser.add_argument("--runs", type=Path, default=Path("runs/ablation"), help="folders of the runs")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "ablation")
    parser.add_argument("--datasets", nargs="+", default=list(DATASETS), choices=DATASETS)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS)
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="1: all rows once")
    parser.add_argument("--report", action="store_true", help="tables and figure of what is finished")
    parser.add_argument("--page", type=Path, default=Path("docs/log.md"))
    parser.add_argument("--figure", type=Path, default=Path("docs/figures/ablation.png"))
    arguments = parser.parse_args()
    if not arguments.report:
        train_all(arguments)
        return
    rows = {name: rows_of(name) for name in DATASETS}
    report(arguments.results, rows, list(ROWS), arguments.page, arguments.figure)


if __name__ == "__main__":
    main()
