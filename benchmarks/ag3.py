"""Ag₃⁺ and Ag₃⁻: one model for both charges, with Φ and without, and one bare model for each charge.

    OMP_NUM_THREADS=1 python benchmarks/ag3.py --data data --runs runs/ag3
    python benchmarks/ag3.py --report

The data are SchNetPack's 2,200 geometries of three silver atoms, half of them cations, half anions, whose energies are
17.7 eV apart; the charge enters the host by mace's embeddings. Models, budget and split are the same but for Φ; the
models of one charge see that charge's half of each set. Finished runs leave a JSON file and are not trained again.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import runs
from ablation import BUDGET, HOST
from ablation_data import CHARGE_INPUT, read_ag3

PHI = ["--phi", "operator=coulomb", "poisson=exact", "electronegativity=0"]
#: Row → (charge of its structures, or None for both; options).
ROWS = {
    "one model with Φ": (None, [*runs.words_of(CHARGE_INPUT), *PHI]),
    "one model without Φ": (None, [*runs.words_of(CHARGE_INPUT), "--no_phi"]),
    "cations alone, without Φ": (1, ["--no_phi"]),
    "anions alone, without Φ": (-1, ["--no_phi"]),
}


def name_of(row, seed):
    """Of a run's folder and file."""
    return f"{row.replace(',', '').replace(' ', '_').replace('Φ', 'phi')}_{seed}"


def measure(row, arguments):
    """Train one row and collect its errors by charge state, in meV per structure and meV/Å."""
    charge, options = ROWS[row]
    folder = arguments.runs / name_of(row, arguments.seed)
    parts = dict(zip(("train", "valid", "test"), read_ag3(arguments.data), strict=False))
    chosen = {split: [a for a in part if charge in (None, a.info["total_charge"])] for split, part in parts.items()}
    files = [*runs.write_frames(folder.with_name(f"{folder.name}_data"), **chosen), "--E0s", "average"]
    budget = {**HOST, **BUDGET, "batch_size": 20, "hidden_irreps": "16x0e", "seed": arguments.seed}
    words = [*runs.words_of({**budget, "max_num_epochs": arguments.epochs}), *options]
    model, run_data, _, about = runs.run(words, files, folder)
    pairs = runs.pairs_on_test(model, run_data, ("energy_per_atom", "forces"))
    labels, predicted = 3e3 * pairs["energy_per_atom"]
    states = np.array([atoms.info["total_charge"] for atoms in chosen["test"]])
    errors = {}
    for state in np.unique(states):
        own = states == state
        force_labels, force = 1e3 * pairs["forces"].reshape(2, -1, 9)[:, own]
        errors[f"{state:+.0f}"] = {
            "energy": float(np.sqrt(np.mean((labels - predicted)[own] ** 2))),
            "forces": float(np.sqrt(np.mean((force_labels - force) ** 2))),
            "energy_deviation": float(labels[own].std()),
        }
    return {"row": row, "seed": arguments.seed, "by_charge": errors, **about}


def table(results):
    """The finished runs, as Markdown; RMSE on the test set."""
    lines = [
        "| | charge | energy, meV | of its standard deviation | forces, meV/Å | seeds |",
        "|---|---|---|---|---|---|",
    ]
    for row in ROWS:
        found = [one for path in sorted(results.glob("*.json")) if (one := json.loads(path.read_text()))["row"] == row]
        for state in found[0]["by_charge"] if found else ():
            values = {key: np.array([one["by_charge"][state][key] for one in found]) for key in ("energy", "forces")}
            share = values["energy"].mean() / found[0]["by_charge"][state]["energy_deviation"]
            cells = [f"{v.mean():.1f} ± {v.std(ddof=1):.1f}" if len(v) > 1 else f"{v[0]:.1f}" for v in values.values()]
            lines.append(f"| {row} | {state} | {cells[0]} | {share:.3f} | {cells[1]} | {len(found)} |")
        if not found:
            lines.append(f"| {row} | | not finished | | | |")
    return "\n".join(lines)


def main():
    """Train what is not finished, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"), help="published data, see docs/log.md")
    parser.add_argument("--runs", type=Path, default=Path("runs/ag3"), help="folders of the runs")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "ag3")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--report", action="store_true", help="the table of what is finished")
    parser.add_argument("--page", type=Path, default=Path("docs/log.md"))
    arguments = parser.parse_args()
    if arguments.report:
        text = table(arguments.results)
        print(text)
        runs.write_between(arguments.page, "ag3", text)
        return
    for row in ROWS:
        path = arguments.results / f"{name_of(row, arguments.seed)}.json"
        if not path.is_file():
            runs.write_json(path, measure(row, arguments))


if __name__ == "__main__":
    main()
