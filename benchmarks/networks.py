"""Five networks with Φ and without, on one published data set with one budget.

    OMP_NUM_THREADS=1 python benchmarks/networks.py --data data --runs runs/networks
    python benchmarks/networks.py --report

SchNet, ViSNet, PaiNN, NequIP and mace in the zoo's small size and with one cut-off, on acetylacetone (published split)
unless ``--datasets`` says otherwise: the same frames, batches, optimiser, rate, moving average and number of epochs,
three seeds, energies and forces alone. Φ is the size's own, ``coulomb`` ``exact``. No row is tuned. mace takes about
half a minute an epoch on one core, so 25 minutes a pair of runs and seed; the others were not timed yet.

Every run leaves one JSON file in ``--results``, and is not trained again while that is there; one that was stopped goes
on from its last epoch. ``--report`` makes the table and the figure from the files that are there.
"""

from pathlib import Path

import matplotlib
import numpy as np
import runs
from ablation_data import DATASETS
from ablation_report import ERRORS, cell, difference, load, values_of

matplotlib.use("Agg")
import matplotlib.pyplot as plt

NETWORKS = {"SchNet": "schnet", "ViSNet": "visnet", "PaiNN": "painn", "NequIP": "nequip", "mace": "mace"}
BARE, PHI = "no Φ", "Φ"
BUDGET = {
    "batch_size": 5, "valid_batch_size": 10, "lr": 0.005, "scheduler": "CosineAnnealingLR", "ema": True,
    "ema_decay": 0.99, "energy_weight": 100, "forces_weight": 100, "default_dtype": "float32", "r_max": 5.0,
}  # fmt: skip
SEEDS = (1, 2, 3)


def words(network, kind, epochs, seed):
    """Options of phi-mace-train for one run."""
    settings = {"model": f"phi-{NETWORKS[network]}-small", **BUDGET, "max_num_epochs": epochs, "seed": seed}
    settings["warmup_epochs"] = min(1, epochs - 1)
    return [*runs.words_of(settings), *(["--no_phi"] if kind == BARE else [])]


def row_of(network, kind):
    """Name of a row in files of results."""
    return network if kind == BARE else f"{network} with Φ"


def train_all(arguments):
    """Every run that has no file yet: all networks with one seed, then with the next."""
    for name in arguments.datasets:
        train, valid, test, e0s = DATASETS[name].read(arguments.data)
        train, valid, test = (part[: arguments.frames] for part in (train, valid, test))
        files = [*runs.write_frames(arguments.runs / name, train=train, valid=valid, test=test), "--E0s", str(e0s)]
        for seed in SEEDS[: arguments.seeds]:
            for network in arguments.networks:
                for kind in (BARE, PHI):
                    stem = f"{NETWORKS[network]}_{'bare' if kind == BARE else 'phi'}_{seed}"
                    path = arguments.results / name / f"{stem}.json"
                    if path.is_file():
                        continue
                    asked = words(network, kind, arguments.epochs, seed)
                    *_, about = runs.run(asked, files, arguments.runs / name / stem)
                    runs.write_json(path, {"dataset": name, "row": row_of(network, kind), "seed": seed, **about})
                    forces = about["errors"]["test"]["forces"]["rmse"]
                    print(f"{name}, {row_of(network, kind)}, seed {seed}: forces {forces:.1f} meV/Å", flush=True)


def table(found):
    """Markdown of one data set: errors without Φ and with it, the difference with its standard error, cost."""
    lines = [
        "| | energy, meV/atom: no Φ | Φ | Φ − no Φ, % | forces, meV/Å: no Φ | Φ | Φ − no Φ, % | parameters "
        "| ms per step: no Φ | Φ | epochs | seeds |",
        "|---" * 12 + "|",
    ]
    for network in NETWORKS:
        bare, phi = (found.get(row_of(network, kind), []) for kind in (BARE, PHI))
        if not (bare or phi):
            continue
        cells = []
        for place, style in zip(ERRORS, (".2f", ".1f"), strict=True):
            cells += [cell(values_of(made, place), 1, style) for made in (bare, phi)]
            cells.append(difference(phi, bare, place) if bare and phi else "–")
        parameters = (bare or phi)[0]["parameters"]
        steps = [cell(values_of(made, ("processor_seconds_per_step",))[:1], 1e3, ".0f") for made in (bare, phi)]
        seeds = " / ".join(dict.fromkeys(str(len(made)) for made in (bare, phi)))
        cells += [str(parameters), *steps, str((bare or phi)[0]["epochs"]), seeds]
        lines.append(f"| {network} | {' | '.join(cells)} |")
    return "\n".join(lines)


def ratio(rows, network, place):
    """Errors with Φ as parts of those without, one for each seed that both have."""
    bare = {run["seed"]: run for run in rows.get(row_of(network, BARE), [])}
    phi = [run for run in rows.get(row_of(network, PHI), []) if run["seed"] in bare]
    return values_of(phi, place) / values_of([bare[run["seed"]] for run in phi], place)


def figure(path, found):
    """Errors with Φ as parts of those without, of the same seeds."""
    picture, axes = plt.subplots(1, 2, figsize=(7.5, 2.8), sharey=True, layout="constrained")
    for axis, place, title in zip(axes, ERRORS, ("energy", "forces"), strict=True):
        axis.axvline(1, color="0.6", lw=1)
        for number, (name, rows) in enumerate(found.items()):
            ratios = {height: ratio(rows, network, place) for height, network in enumerate(NETWORKS)}
            shown = {height + 0.15 * number: values for height, values in ratios.items() if len(values)}
            means, spreads = (
                [values.mean() for values in shown.values()],
                [values.std(ddof=1) if len(values) > 1 else 0.0 for values in shown.values()],
            )
            axis.errorbar(means, list(shown), xerr=spreads, fmt=f"oC{number}", label=name)
        axis.set_yticks(np.arange(len(NETWORKS)), NETWORKS)
        axis.set_xlabel(f"{title}: test RMSE with Φ / without")
    axes[0].invert_yaxis()
    if len(found) > 1:
        axes[0].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path, dpi=130)
    plt.close(picture)


def report(arguments):
    """Write the tables between the marks of the page and draw the figure."""
    found = load(arguments.results)
    text = "\n\n".join(f"**{name}**\n\n{table(rows)}" for name, rows in found.items())
    if found:
        figure(arguments.figure, found)
    where = f"figures/{arguments.figure.name}"
    about = (
        "## The paper's other networks\n\nMade by `benchmarks/networks.py`. Test RMSE, mean ± standard deviation "
        "over seeds; differences are those of runs with the same seed, with the standard error of their mean."
    )
    picture = f"![Errors with Φ relative to those without, by network]({where})"
    runs.write_between(arguments.page, "networks", f"{about}\n\n{text}\n\n{picture}")
    print(text)


def main():
    """Train, or report."""
    parser = runs.parser(__doc__, "networks")
    parser.add_argument("--data", type=Path, default=Path("data"), help="published data, see docs/log.md")
    parser.add_argument("--datasets", nargs="+", default=["acac"], choices=DATASETS)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--frames", type=int, help="as many of each set at most, for a trial")
    parser.add_argument("--figure", type=Path, default=Path("docs/figures/networks.png"))
    arguments = parser.parse_args()
    (report if arguments.report else train_all)(arguments)


if __name__ == "__main__":
    main()
