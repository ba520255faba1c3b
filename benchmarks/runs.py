"""What the benchmarks that train have in common: frames with labels, one run that can go on, its results as JSON."""

import argparse
import json
import shlex
import time
from importlib.metadata import version
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from ase.geometry import find_mic

from phi_equivariant.files import write_atomically
from phi_equivariant.weights import load_model
from training import build
from training.fit.lightning_module import PotentialModule
from training.fit.predict import evaluate, predict
from training.options import command_line
from training.report.samples import LabelPairs
from training.train import main as train

FORCES_ONLY = {"forces": True, "virials": False, "stress": False}
WARM_STEPS, TIMED_STEPS = 4, 10  # TorchScript optimises the host during its first calls


def frame(atoms, energy, forces, charges=None, dipole=None, **info):
    """A copy that carries labels (eV, eV/Å, e, e·Å) under the trainer's names and nothing else."""
    made = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell if atoms.pbc.any() else None, pbc=atoms.pbc)
    made.info = {"REF_energy": float(energy), **info}
    made.arrays["REF_forces"] = np.asarray(forces)
    if charges is not None:
        made.arrays["REF_charges"] = np.ravel(charges)
    if dipole is not None:
        made.info["REF_dipole"] = np.ravel(dipole)
    return made


def shuffled(frames, *fractions, seed=0):
    """Disjoint random parts of these fractions, then the rest; frames of one geometry stay together."""
    geometries = {}
    for atoms in frames:
        geometries.setdefault(atoms.positions.tobytes(), []).append(atoms)
    groups = list(geometries.values())
    order, parts, start = np.random.default_rng(seed).permutation(len(groups)), [], 0
    for stop in (*np.cumsum([round(fraction * len(groups)) for fraction in fractions]), len(groups)):
        parts.append([atoms for i in order[start:stop] for atoms in groups[i]])
        start = stop
    return parts


def write_frames(folder, **splits):
    """``<split>.xyz`` for every split, and the words that name them to phi-mace-train."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, frames in splits.items():
        write_atomically(
            folder / f"{name}.xyz", lambda path, frames=frames: ase.io.write(path, frames, format="extxyz")
        )
    return [word for name in splits for word in (f"--{name}_file", str(folder / f"{name}.xyz"))]


def words_of(settings):
    """{option: value} as words of a command line; True gives a switch."""
    return [
        w for name, value in settings.items() for w in ([f"--{name}"] if value is True else [f"--{name}", str(value)])
    ]


def run(words, files, folder):
    """Train by phi-mace-train, or go on with a run that was stopped.

    Parameters
    ----------
    words: options of phi-mace-train that say what is trained; files: those that name files
    folder: of the run

    Returns
    -------
    model: with the best weights; run_data; the run; about: what a file of results says of any run
    """
    told = {"options": shlex.join(words)}
    words = [*words, *files, "--dipole_key", "REF_dipole", "--name", folder.name, "--work_dir", str(folder.parent)]
    words += ["--restart_latest", "--log_level", "ERROR", "--plot", "False"]
    if status := train(words):
        raise SystemExit(status)
    asked, run_data = build.load(command_line.parse(words))
    errors = json.loads((folder / "errors.json").read_text())
    about = told | {key: errors[key] for key in ("epochs", "best_epoch", "parameters", "training_seconds")}
    about["structures"] = {name: found["structures"] for name, found in errors["sets"].items()}
    about["errors"] = {name: found["errors"] for name, found in errors["sets"].items()}
    about["processor_seconds_per_step"] = _step_seconds(asked, run_data)
    packages = ("torch", "mace-torch", "e3nn", "phi-equivariant")
    about["versions"] = {package: version(package) for package in packages}
    return load_model(folder), run_data, asked, about


def _step_seconds(asked, run_data):
    """Processor time of a training step, the median of a few of a model that is thrown away."""
    built = build.build(asked, run_data)
    module = PotentialModule(
        built.model, built.objective, asked.optimiser, asked.stages, built.outputs, len(built.order)
    )
    optimizer, times = module.configure_optimizers(), []
    built.order.set_epoch(0)
    for batch, _ in zip(run_data.train_loader(built.order), range(WARM_STEPS + TIMED_STEPS), strict=False):
        begin = time.process_time()
        optimizer.zero_grad()
        module.backward(built.objective(predict(built.model, batch, built.outputs, training=True), batch)[0])
        optimizer.step()
        times.append(time.process_time() - begin)
    return float(np.median(times[WARM_STEPS:]))


def pairs_on_test(model, run_data, quantities):
    """{quantity: (labels, predictions)} on the test set, flat."""
    (loader,) = run_data.loader("test").values()
    pairs = LabelPairs(quantities, kept=10**9)  # all, in their order
    evaluate(model, loader, FORCES_ONLY, "cpu", [pairs])
    return {name: sample.values().numpy() for name, sample in pairs.samples.items()}


def agreement(labels, predictions):
    """Correlation, slope of prediction against label, RMSE and R² = 1 − Σ(p − l)²/Σ(l − l̄)²."""
    labels, predictions = np.ravel(labels), np.ravel(predictions)
    error, spread = predictions - labels, labels - labels.mean()
    return {
        "correlation": float(np.corrcoef(labels, predictions)[0, 1]),
        "slope": float(spread @ predictions / (spread @ spread)),
        "rmse": float(np.sqrt(np.mean(error**2))),
        "r2": float(1 - error @ error / (spread @ spread)),
    }


class Bonds:
    """Atoms that are bound in a structure: closer than 1.3 times the sum of their covalent radii."""

    reach = 1.3

    def __init__(self, atoms):
        radii = covalent_radii[atoms.numbers]
        contacts = atoms.get_all_distances(mic=True) / (radii[:, None] + radii)
        self.pairs = np.argwhere(np.triu(contacts < self.reach, 1))
        self.radii = radii[self.pairs].sum(1)

    def longest(self, atoms):
        """The longest of these bonds in another structure of the same atoms, over the sum of the covalent radii."""
        vectors = atoms.positions[self.pairs[:, 1]] - atoms.positions[self.pairs[:, 0]]
        vectors, _ = find_mic(vectors, atoms.cell, atoms.pbc)
        return float((np.linalg.norm(vectors, axis=1) / self.radii).max())


def parser(text, name, page="docs/log.md"):
    """Options of a benchmark that trains and reports: where its runs, results, page and figure are."""
    made = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--runs", type=Path, default=Path("runs") / name, help="folders of the runs")
    made.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / name)
    made.add_argument("--report", action="store_true", help="tables and figures of what is finished")
    made.add_argument("--page", type=Path, default=Path(page))
    return made


def write_json(path, content):
    """The file is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False)))


def write_between(page, name, text):
    """Replace what stands between ``<!-- name: begin -->`` and ``<!-- name: end -->``."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, rest = page.read_text().split(begin)
    page.write_text(f"{before}{begin}\n\n{text}\n\n{end}{rest.split(end)[1]}")
