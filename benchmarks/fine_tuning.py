"""A few frames of a new molecule: from scratch against fine-tuned, with the same number of steps.

    OMP_NUM_THREADS=1 python benchmarks/fine_tuning.py --data data --runs runs/fine_tuning
    python benchmarks/fine_tuning.py --report

SPICE dipeptides with 50, 200 and all training frames and three seeds, 3BPA and acetylacetone with all frames and one.
Either row has the same host and the same kind of Φ, which the foundation's name and its settings say; trained are
energies and forces. Fine-tuned rows keep all elements of the foundation, its Φ, and E0s that are estimated. How much is
forgotten is measured on the foundation's own test set, before and after: forces, and energies per atom after the shift
of each element, and of each unit of charge, that fits them best, for the levels of theory are different.

1,200 steps of five dipeptides take about 15 minutes on one core, all runs about 5 hours. Every run leaves one JSON file
in ``--results``, and is not trained again while that is there; one that was stopped goes on from its last epoch.
"""

import json
from pathlib import Path

import ase.io
import matplotlib
import numpy as np
import runs
from ablation_data import isolated_atoms, plain, read_acac, read_dipeptides
from ablation_report import cell, load, values_of

from phi_equivariant import PhiCalculator
from training.data.named_files import load_dataset
from training.options.phi_section import of_trained_model
from zoo import load_pretrained

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FOUNDATION = "phi-mace-small.organic_gfn2"
SCRATCH, TUNED = "scratch", "fine-tuned"
BUDGET = {
    "batch_size": 5, "valid_batch_size": 10, "scheduler": "CosineAnnealingLR", "ema": True, "ema_decay": 0.99,
    "energy_weight": 100, "forces_weight": 100, "default_dtype": "float32",
}  # fmt: skip
RATES = {SCRATCH: 0.01, TUNED: 0.003}


def read_3bpa(data):
    """3BPA at 300 K: a tenth of the published training file for validation, a fifth as test set."""
    valid, test, train = runs.shuffled(plain(data / "3bpa" / "train_300K.xyz"), 0.1, 0.2)
    return train, valid, test, isolated_atoms(data / "3bpa" / "iso_atoms.xyz")


#: Data set → (how it is read, numbers of training frames (None: all), seeds).
CASES = {
    "spice_dipeptides": (read_dipeptides, (50, 200, None), (1, 2, 3)),
    "3bpa": (read_3bpa, (None,), (1,)),
    "acac": (read_acac, (None,), (1,)),
}


def few(frames, count, seed=0):
    """As many of the frames, the same for every row and seed; smaller numbers are parts of larger ones."""
    if count is None:
        return frames
    return [frames[i] for i in np.random.default_rng(seed).permutation(len(frames))[:count]]


def title_of(name, count):
    """Of a data set with a number of training frames, as rows of the table and files are called."""
    return f"{name}_{'all' if count is None else count}"


def words(row, foundation, steps, train_frames, seed):
    """Options of phi-mace-train for one run; as many whole epochs as come nearest to the number of steps."""
    epochs = max(1, round(steps / (train_frames // BUDGET["batch_size"])))
    settings = {**BUDGET, "lr": RATES[row], "max_num_epochs": epochs, "warmup_epochs": min(1, epochs - 1), "seed": seed}
    settings["eval_interval"] = max(1, epochs // 20)
    if row == TUNED:
        return runs.words_of({**settings, "foundation_model": foundation, "foundation_model_elements": "True"})
    own = {name: value for name, value in of_trained_model(foundation).items() if name != "electronegativity"}
    phi = [f"{name}={json.dumps(value)}" for name, value in own.items() if value is not None]
    return [*runs.words_of({**settings, "model": foundation.split(".")[0]}), "--phi", *phi]


def old_test(foundation, data, file, count):
    """The test set of the foundation's own data, None where it is not known."""
    name = foundation.partition(".")[2]
    if file is not None:
        frames = ase.io.read(file, ":")
    elif name == "acac":
        frames = read_acac(data)[2]
    elif name == "ala3_gfn2":
        frames = list(load_dataset(name).test)
    else:
        return None
    return few(frames, min(count, len(frames)))


def errors_on(model, frames):
    """RMSE of forces in meV/Å, and of energies in meV/atom after the best shift of each element and of total charge."""
    calculator, forces, energies, counts, charges = PhiCalculator(model, dtype="float32"), [], [], [], []
    elements = sorted({number for atoms in frames for number in atoms.numbers.tolist()})
    for atoms in frames:
        labelled, bare = atoms.copy(), atoms.copy()
        forces.append(calculator.get_property("forces", bare) - labelled.arrays["REF_forces"])
        energies.append(calculator.get_property("energy", bare) - labelled.info["REF_energy"])
        counts.append([np.count_nonzero(atoms.numbers == number) for number in elements])
        charges.append(atoms.info.get("total_charge", 0.0))
    counts, energies = np.array(counts, float), np.array(energies)
    table = np.column_stack([counts, charges])
    left = (energies - table @ np.linalg.lstsq(table, energies, rcond=None)[0]) / counts.sum(1)
    return {
        "forces": 1e3 * float(np.sqrt(np.mean(np.concatenate(forces) ** 2))),
        "energy_per_atom": 1e3 * float(np.sqrt(np.mean(left**2))),
        "structures": len(frames),
    }


def train_all(arguments):
    """Every run that has no file yet."""
    old = old_test(arguments.foundation, arguments.data, arguments.old_test, arguments.old_frames)
    before = arguments.results / "before.json"
    if old is not None and not before.is_file():
        runs.write_json(before, errors_on(load_pretrained(arguments.foundation), old))
    for name in arguments.datasets:
        read, counts, seeds = CASES[name]
        train, valid, test, e0s = read(arguments.data)
        for count in counts:
            if arguments.frames and (count or "all") not in arguments.frames:
                continue
            title = title_of(name, count)
            frames, test = few(train, count), few(test, min(len(test), arguments.test_frames))
            # A tenth of the few frames validates: who has 50 does not have 50 more to choose weights by.
            held = few(valid, max(1, round(len(frames) / 9)))
            files = runs.write_frames(arguments.runs / title, train=frames, valid=held, test=test)
            for seed in seeds[: arguments.seeds]:
                for row in (SCRATCH, TUNED):
                    path = arguments.results / title / f"{row}_{seed}.json"
                    if path.is_file():
                        continue
                    asked = words(row, arguments.foundation, arguments.steps, len(frames), seed)
                    asked += ["--E0s", str(e0s)] if row == SCRATCH else []
                    model, _, _, about = runs.run(asked, files, arguments.runs / title / f"{row}_{seed}")
                    found = {"dataset": title, "row": row, "seed": seed, "frames": len(frames), **about}
                    if row == TUNED and old is not None:
                        found["old_test"] = errors_on(model, old)
                    runs.write_json(path, found)
                    errors = found["errors"]["test"]
                    print(f"{title}, {row}, seed {seed}: forces {errors['forces']['rmse']:.1f} meV/Å", flush=True)


COLUMNS = {
    "energy, meV/atom": (("errors", "test", "energy_per_atom", "rmse"), ".2f"),
    "forces, meV/Å": (("errors", "test", "forces", "rmse"), ".1f"),
    "old test set: energy": (("old_test", "energy_per_atom"), ".2f"),
    "old test set: forces": (("old_test", "forces"), ".1f"),
}


def table(found, before):
    """Markdown: RMSE, mean ± standard deviation over seeds."""
    lines = ["| | training frames | " + " | ".join([*COLUMNS, "epochs", "seeds"]) + " |", "|---" * 8 + "|"]
    for name, (_, counts, _) in CASES.items():
        for count in counts:
            for row in (SCRATCH, TUNED):
                if made := found.get(title_of(name, count), {}).get(row):
                    cells = [cell(values_of(made, place), 1, style) for place, style in COLUMNS.values()]
                    cells += [str(made[0]["epochs"]), str(len(made))]
                    lines.append(f"| {name}, {row} | {made[0]['frames']} | {' | '.join(cells)} |")
    if before:
        lines.append(f"| before | | | | {before['energy_per_atom']:.2f} | {before['forces']:.1f} | | |")
    return "\n".join(lines)


def figure(path, found):
    """Force errors against the number of training frames, log–log; one colour a data set."""
    picture, axis = plt.subplots(figsize=(5.5, 3.8), layout="constrained")
    for number, (name, (_, counts, _)) in enumerate(CASES.items()):
        for row, style in ((SCRATCH, "--"), (TUNED, "-")):
            made = [found.get(title_of(name, count), {}).get(row, []) for count in counts]
            shown = [(part[0]["frames"], values_of(part, COLUMNS["forces, meV/Å"][0])) for part in made if part]
            if shown:
                frames, errors = zip(*shown, strict=True)
                spread = [values.std(ddof=1) if len(values) > 1 else 0.0 for values in errors]
                means = [values.mean() for values in errors]
                axis.errorbar(frames, means, spread, fmt=f"o{style}C{number}", label=f"{name}, {row}", capsize=2)
    axis.set(xscale="log", yscale="log", xlabel="training frames", ylabel="test RMSE of forces, meV/Å")
    axis.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path, dpi=130)
    plt.close(picture)


def report(arguments):
    """Write the table between the marks of the page and draw the figure."""
    found, before = load(arguments.results), arguments.results / "before.json"
    kept = json.loads(before.read_text()) if before.is_file() else None
    text = table(found, kept)
    if found:
        figure(arguments.figure, found)
    where = "../" * (len(arguments.page.parent.parts) - 1) + "/".join(arguments.figure.parts[1:])
    heading = "## How much it helps"
    about = "Test RMSE of the same host and Φ, with the same number of steps. Made by `benchmarks/fine_tuning.py`."
    picture = f"![Test errors of forces against the number of training frames]({where})"
    runs.write_between(arguments.page, "fine_tuning", f"{heading}\n\n{about}\n\n{text}\n\n{picture}")
    print(text)


def main():
    """Train, or report."""
    parser = runs.parser(__doc__, "fine_tuning", page="docs/howto/fine_tuning.md")
    parser.add_argument("--data", type=Path, default=Path("data"), help="published data, see docs/log.md")
    parser.add_argument("--foundation", default=FOUNDATION, help="name of a trained model of the zoo")
    parser.add_argument("--old_test", type=Path, help="its test set, with REF_energy and REF_forces")
    parser.add_argument("--old_frames", type=int, default=100, help="of that test set, drawn at random")
    parser.add_argument("--datasets", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--frames", nargs="+", type=lambda word: word if word == "all" else int(word))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--test_frames", type=int, default=10**9, help="fewer than all, for a trial")
    parser.add_argument("--figure", type=Path, default=Path("docs/figures/fine_tuning.png"))
    arguments = parser.parse_args()
    (report if arguments.report else train_all)(arguments)


if __name__ == "__main__":
    main()
