"""The paper's experiments on Ac-Ala3-NHMe, the data set that comes with the project, with one small host.

    OMP_NUM_THREADS=1 python benchmarks/paper.py --runs runs/paper
    python benchmarks/paper.py --report

- ``hyperparameters``: 24 trials of each row by random search over the learning rate, which all rows share, and over
  what each kind of Φ has of λ_pde, λ_q, k and warm-up. Shown is the expected lowest validation loss of n trials (Dodge
  et al., arXiv 1909.03004, with its standard deviation): what somebody gets who can afford n trials.
- ``data_efficiency``: 50 to 800 training frames with one number of steps, three seeds.
- ``modes``: the paper's ablation. The modes of the graph against those of a Laplacian with fixed random weights between
  all pairs of atoms, which know nothing of the geometry; with the Poisson term in the loss and without; three seeds.

1,000 steps of five molecules take about a minute and a half, so all 132 runs about four hours on one core. Trials of
``hyperparameters`` are chosen by validation loss; the test set has no part in them. A trial that diverges is kept as
such and counts as the worst of all trials that did not. Every run leaves one JSON file in ``--results``, and is not
trained again while that is there. ``--report`` makes tables and figures of what is finished.
"""

import contextlib
import shlex
from pathlib import Path

import matplotlib
import numpy as np
import runs
import torch
from ablation import BUDGET, HOST
from ablation_data import read_ala3
from ablation_report import ERRORS, cell, load, values_of
from fine_tuning import few

from phi_equivariant.operators import kinds
from phi_equivariant.operators.base import Bound
from phi_equivariant.operators.graph import GraphLaplacian, _Graph

matplotlib.use("Agg")
import matplotlib.pyplot as plt

BARE = "no Φ"
GRAPH, COULOMB = "graph, learned, k modes", "coulomb, learned, k modes"
LEARNED = {GRAPH: ["operator=graph", "poisson=learned"], COULOMB: ["operator=coulomb", "poisson=learned"]}
FIXED = {
    BARE: None,
    "graph, learned, k = 8": [*LEARNED[GRAPH], "num_modes=8", "pde_weight=100"],
    "coulomb, exact": ["operator=coulomb"],
}
TRIALS, SEEDS, STEPS = 24, (1, 2, 3), 1000
UNUSABLE = 2  # exit status of phi-mace-train, for a loss that is not finite too
SIZES = (50, 100, 200, 400, 800)
#: Row of ``modes`` → (settings of Φ, whether the modes are random).
MODES = {
    BARE: (None, False),
    "Φ": (FIXED["graph, learned, k = 8"], False),
    "random modes": (FIXED["graph, learned, k = 8"], True),
    "no Poisson term": ([*LEARNED[GRAPH], "num_modes=8"], False),
    "random modes, no Poisson term": ([*LEARNED[GRAPH], "num_modes=8"], True),
}


class RandomLaplacian(GraphLaplacian):
    """A Laplacian whose weights between all pairs of atoms are fixed random numbers, of about six in a row's sum."""

    def at(self, structures, matrix=False, up_to=None, edges=False):
        """L at the structures of a batch, whatever their geometry."""
        scale, parts = self.log_weight.exp(), []
        for group in structures.groups([False] * len(structures), [False] * len(structures)):
            atoms, chosen = structures.select(group, edges=True)
            part = _Graph(chosen, chosen.positions.new_zeros(0), scale, dense=True)
            part.edge_index, part.weights = random_pairs(chosen)
            parts.append((atoms, part))
        return Bound(structures, parts, scale)


def random_pairs(structures):
    """All pairs of atoms of each structure, in both directions, and their weights by the atoms' places."""
    layout = structures.layout
    same = structures.batch[:, None] == structures.batch[None, :]
    sender, receiver = (same & ~torch.eye(len(same), dtype=torch.bool, device=same.device)).nonzero().T
    low = torch.minimum(layout.slot[sender], layout.slot[receiver]).double()
    high = torch.maximum(layout.slot[sender], layout.slot[receiver]).double()
    drawn = torch.frac((torch.sin(12.9898 * (low + 1) + 78.233 * (high + 1)) * 43758.5453).abs())  # in [0, 1)
    atoms = same.sum(1)[receiver]
    return torch.stack([sender, receiver]), (12 * drawn / atoms).to(structures.positions.dtype)


@contextlib.contextmanager
def random_modes(wanted):
    """While it lasts, ``operator=graph`` makes the random Laplacian."""
    before = dict(kinds.OPERATORS)
    if wanted:
        kinds.OPERATORS["graph"] = RandomLaplacian
    try:
        yield
    finally:
        kinds.OPERATORS.update(before)


def draw(row, trial):
    """Hyper-parameters of a trial: settings of phi-mace-train, and of Φ; the same of every call."""
    rng = np.random.default_rng([trial, 2505])
    settings = {"lr": f"{10 ** rng.uniform(-3, -1.5):.3g}"}
    pde, charge = (f"{10 ** rng.uniform(*powers):.3g}" for powers in ((-2, 3), (-4, 0)))
    modes, warmup = rng.choice([3, 5, 7, 9, 10, 15]), rng.choice([0, 1, 3])
    if row == BARE:
        return settings, None
    phi = [*LEARNED[row], f"num_modes={modes}", f"pde_weight={pde}", f"pde_warmup_epochs={warmup}"]
    return settings, [*phi, *([f"net_charge_weight={charge}"] if row == COULOMB else [])]


def jobs(name, trials, seeds):
    """(file, row, settings, of Φ, training frames, seed, random modes) of every run of an experiment."""
    if name == "hyperparameters":
        for trial in range(trials):
            for number, row in enumerate((BARE, GRAPH, COULOMB)):
                yield (f"{number}_{trial:02}", row, *draw(row, trial), 200, 1, False)
    elif name == "data_efficiency":
        for seed in seeds:
            for size in SIZES:
                for number, (row, phi) in enumerate(FIXED.items()):
                    yield f"{number}_{size}_{seed}", row, {}, phi, size, seed, False
    else:
        for seed in seeds:
            for number, (row, (phi, is_random)) in enumerate(MODES.items()):
                yield f"{number}_{seed}", row, {}, phi, 200, seed, is_random


def train_all(arguments):
    """Every run that has no file yet."""
    train, valid, test, e0s = read_ala3(None)
    valid, test = few(valid, arguments.valid_frames), few(test, arguments.test_frames)
    for name in arguments.experiments:
        for stem, row, settings, phi, size, seed, is_random in jobs(name, arguments.trials, SEEDS[: arguments.seeds]):
            path = arguments.results / name / f"{stem}.json"
            if path.is_file() or (arguments.sizes and size not in arguments.sizes):
                continue
            folder = arguments.runs / name
            files = runs.write_frames(folder / f"frames_{size}", train=few(train, size), valid=valid, test=test)
            epochs = max(1, round(arguments.steps / (size // BUDGET["batch_size"])))
            asked = {
                **HOST, **BUDGET, "hidden_irreps": "16x0e", "max_num_epochs": epochs,
                "warmup_epochs": min(1, epochs - 1), "eval_interval": max(1, epochs // 10), "seed": seed, **settings,
            }  # fmt: skip
            words = [*runs.words_of(asked), *(["--no_phi"] if phi is None else ["--phi", *phi])]
            told, fresh = {"dataset": name, "row": row, "seed": seed, "frames": size}, not (folder / stem).exists()
            try:
                with random_modes(is_random):
                    *_, about = runs.run(words, [*files, "--E0s", str(e0s)], folder / stem)
            except SystemExit as stop:
                # A run that had begun before may be refused for other reasons.
                began = fresh and (folder / stem / "log.txt").is_file()
                if name != "hyperparameters" or stop.code != UNUSABLE or not began:
                    raise
                runs.write_json(path, {**told, "options": shlex.join(words), "diverged": True})
                print(f"{name}, {row}, {stem}: diverged", flush=True)
                continue
            runs.write_json(path, {**told, **about})
            forces = about["errors"]["test"]["forces"]["rmse"]
            print(f"{name}, {row}, {stem}: forces {forces:.1f} meV/Å", flush=True)


def validation_loss(run):
    """The weighted loss of the validation set, up to a common factor; infinite where training diverged."""
    if run.get("diverged"):
        return np.inf
    errors = run["errors"]["valid"]
    weighted = ("energy_per_atom", BUDGET["energy_weight"]), ("forces", BUDGET["forces_weight"])
    return sum(weight * (1e-3 * errors[quantity]["rmse"]) ** 2 for quantity, weight in weighted)


def expected_best(losses):
    """Mean and standard deviation of the lowest of n draws, n = 1 … N, from N trials (with replacement): two (N,).

    P(lowest ≤ the i-th smallest) = 1 − ((N − i)/N)ⁿ.
    """
    losses, count = np.sort(losses), len(losses)
    above = (np.arange(count, -1, -1) / count)[None] ** np.arange(1, count + 1)[:, None]  # (n, i): none of the lowest i
    chance = above[:, :-1] - above[:, 1:]
    mean = chance @ losses
    return mean, np.sqrt(np.maximum(chance @ losses**2 - mean**2, 0))


def report_hyperparameters(found, axis):
    """Expected validation loss against the number of trials."""
    lines = ["| | trials | diverged | median | expected best of 4 | of 16 | best | its forces on the test set, meV/Å |"]
    lines.append("|---" * 8 + "|")
    every = {row: np.array([validation_loss(run) for run in made]) for row, made in found.items()}
    worst = max(loss for losses in every.values() for loss in losses if np.isfinite(loss))
    for number, (row, made) in enumerate(found.items()):
        diverged, losses = np.isinf(every[row]).sum(), np.minimum(every[row], worst)
        mean, spread = expected_best(losses)
        tried = np.arange(1, len(losses) + 1)
        axis.plot(tried, mean, f"C{number}", label=row)
        axis.fill_between(tried, mean - spread, mean + spread, color=f"C{number}", alpha=0.15)
        forces = cell(values_of([made[int(every[row].argmin())]], ERRORS[1]), 1, ".1f")
        some = [f"{mean[n - 1]:.3f}" if n <= len(mean) else "–" for n in (4, 16)]
        cells = [str(len(losses)), str(diverged), f"{np.median(losses):.3f}", *some, f"{losses.min():.3f}", forces]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    axis.set(xlabel="trials", ylabel="expected lowest validation loss", yscale="log")
    return lines


def report_data_efficiency(found, axis):
    """Force errors against the number of training frames."""
    lines = ["| | " + " | ".join(f"{size} frames" for size in SIZES) + " |", "|---" * (len(SIZES) + 1) + "|"]
    for number, (row, made) in enumerate(found.items()):
        errors = {size: values_of([run for run in made if run["frames"] == size], ERRORS[1]) for size in SIZES}
        lines.append(f"| {row} | {' | '.join(cell(values, 1, '.1f') for values in errors.values())} |")
        there = {size: values for size, values in errors.items() if len(values)}
        spread = [values.std(ddof=1) if len(values) > 1 else 0.0 for values in there.values()]
        means = [values.mean() for values in there.values()]
        axis.errorbar(list(there), means, spread, fmt=f"o-C{number}", label=row, capsize=2)
    axis.set(xlabel="training frames", ylabel="test RMSE of forces, meV/Å", xscale="log", yscale="log")
    return lines


def report_modes(found, axis):
    """Errors of the rows of the ablation."""
    lines = ["| | energy, meV/atom | forces, meV/Å | seeds |", "|---" * 4 + "|"]
    for height, (row, made) in enumerate(found.items()):
        energy, forces = (values_of(made, place) for place in ERRORS)
        lines.append(f"| {row} | {cell(energy, 1, '.2f')} | {cell(forces, 1, '.1f')} | {len(made)} |")
        axis.errorbar(forces.mean(), height, xerr=forces.std(ddof=1) if len(forces) > 1 else 0.0, fmt="oC0", label=row)
    axis.set_yticks(range(len(found)), list(found))
    axis.invert_yaxis()
    axis.set(xlabel="test RMSE of forces, meV/Å")
    return lines


#: Experiment → title and what was done; what came out is for a reader of the figures to say.
ABOUT = {
    "hyperparameters": (
        "Stability against hyper-parameters",
        "Random search on 200 frames of Ac-Ala3-NHMe. The learning rate is drawn for all rows, λ_pde, λ_q, k and the "
        "warm-up for those that have them. Expected lowest validation loss of n trials, with its standard deviation.",
    ),
    "data_efficiency": (
        "Data efficiency",
        "Test RMSE of forces in meV/Å on Ac-Ala3-NHMe, with the same number of steps for any number of frames; mean ± "
        "standard deviation over seeds.",
    ),
    "modes": (
        "Modes of the graph, random modes, and the Poisson term",
        "Graph operator, k = 8, 200 frames of Ac-Ala3-NHMe. Random modes are those of a Laplacian with fixed random "
        "weights between all pairs of atoms. Mean ± standard deviation over seeds.",
    ),
}
REPORTS = {
    "hyperparameters": report_hyperparameters,
    "data_efficiency": report_data_efficiency,
    "modes": report_modes,
}


def report(arguments):
    """Write the tables between the marks of the page and draw the figures."""
    for name, found in load(arguments.results).items():
        picture, axis = plt.subplots(figsize=(5.5, 3.4), layout="constrained")
        text = "\n".join(REPORTS[name](found, axis))
        if name != "modes":
            axis.legend(fontsize=8)
        arguments.figures.mkdir(parents=True, exist_ok=True)
        picture.savefig(arguments.figures / f"paper_{name}.png", dpi=130)
        plt.close(picture)
        title, about = ABOUT[name]
        picture = f"![{title}](figures/paper_{name}.png)"
        made = f"## {title}\n\n    OMP_NUM_THREADS=1 python benchmarks/paper.py --experiments {name}\n\n{about}"
        runs.write_between(arguments.page, f"paper_{name}", f"{made}\n\n{text}\n\n{picture}")
        print(f"{name}\n{text}")


def main():
    """Train, or report."""
    parser = runs.parser(__doc__, "paper")
    parser.add_argument("--experiments", nargs="+", default=list(REPORTS), choices=REPORTS)
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    parser.add_argument("--sizes", type=int, nargs="+", help="runs with these numbers of training frames only")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--valid_frames", type=int, default=100)
    parser.add_argument("--test_frames", type=int, default=200)
    parser.add_argument("--figures", type=Path, default=Path("docs/figures"))
    arguments = parser.parse_args()
    (report if arguments.report else train_all)(arguments)


if __name__ == "__main__":
    main()
