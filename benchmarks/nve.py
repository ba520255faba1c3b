"""How well molecular dynamics at constant energy conserves it: the slope of the total energy, with Φ and without.

    python benchmarks/nve.py --system ala3 --models runs/phi runs/bare --out runs/nve            # 100 ps
    python benchmarks/nve.py --train_water runs/water                                              # models of water
    python benchmarks/nve.py --system water --models runs/water/phi runs/water/bare --out runs/nve # 10 ps
    python benchmarks/nve.py --system film --models runs/water/sqe --out runs/nve                  # 10 ps
    python benchmarks/nve.py --report

Ac-Ala3-NHMe starts from the first frame of the data set that comes with the project, water from the first cell of 64
molecules in the published data, the film from the same molecules with the third direction open. After 1 ps with a
Langevin thermostat at 300 K, velocity Verlet with 0.5 fs, in double precision. The state is kept every ``--keep``
steps, and the same command goes on from there.

The slope is that of least squares, its standard error counts how long the fluctuations of the total energy last. The
longest bond is the greatest of the distances of atoms bound at the start, over the sum of their covalent radii: below
1.5 all molecules are whole.
"""

import argparse
import json
import time
from pathlib import Path

import ase.io
import ase.units
import matplotlib
import numpy as np
import runs
from ablation import BUDGET, HOST
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary, ZeroRotation
from ase.md.verlet import VelocityVerlet

from phi_equivariant import PhiCalculator
from phi_equivariant.files import write_atomically
from training.data.named_files import load_dataset

matplotlib.use("Agg")
import matplotlib.pyplot as plt

TEMPERATURE, STEP = 300.0, 0.5  # K, fs
EQUILIBRATION, FRICTION = 2000, 0.02  # steps, 1/fs
RECORD = 10  # steps between recorded energies
STEPS = {"ala3": 200_000, "water": 20_000, "film": 20_000}
WATER = {"batch_size": 2, "max_num_epochs": 30, "hidden_irreps": "16x0e", "seed": 1}
WATERS = {
    "phi": ["--phi", "operator=coulomb"], "bare": ["--no_phi"],
    "sqe": ["--phi", "operator=coulomb", "charge_model=sqe"],
}  # fmt: skip
SHOWN_POINTS = 2000


def start(system, data):
    """The first structure."""
    if system == "ala3":
        atoms = load_dataset("ala3_gfn2").train[0]
    else:
        atoms = next(a for a in ase.io.iread(data / "water" / "h2o_rpbe_d3.extxyz") if len(a) == 192)
    made = ase.Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    if system == "film":
        for oxygen in np.flatnonzero(made.numbers == 8):  # molecules whole, with their oxygens in the cell
            made.positions[oxygen] = made[[oxygen]].get_positions(wrap=True)[0]
            bonds = made.get_distances(oxygen, range(len(made)), mic=True, vector=True)
            near = (made.numbers == 1) & (np.linalg.norm(bonds, axis=1) < 1.3)
            made.positions[near] = made.positions[oxygen] + bonds[near]
        made.pbc = True, True, False
    return made


class Trajectory:
    """One simulation, with everything that a later call needs to go on."""

    def __init__(self, atoms, calculator, path, seed=0):
        self.atoms, self.path, self.bonds = atoms, path, runs.Bonds(atoms)
        atoms.calc = calculator
        if path.is_file():
            with np.load(path) as kept:
                if not np.array_equal(kept["numbers"], atoms.numbers):
                    raise SystemExit(f"{path} is of another system; choose another --out.")
                atoms.positions[:], self.energies = kept["positions"], kept["energies"].tolist()
                atoms.set_velocities(kept["velocities"])
                self.temperatures, self.seconds = kept["temperatures"].tolist(), float(kept["seconds"])
                self.longest = float(kept["longest"])
        else:
            self.energies, self.temperatures, self.seconds, self.longest = [], [], 0.0, 0.0
            self._equilibrate(np.random.default_rng(seed))

    def _equilibrate(self, rng):
        MaxwellBoltzmannDistribution(self.atoms, temperature_K=TEMPERATURE, rng=rng)
        step, friction = STEP * ase.units.fs, FRICTION / ase.units.fs
        settings = {"temperature_K": TEMPERATURE, "friction": friction, "rng": rng, "fixcm": False}
        Langevin(self.atoms, step, **settings).run(EQUILIBRATION)
        Stationary(self.atoms)
        if not self.atoms.pbc.any():
            ZeroRotation(self.atoms)

    @property
    def steps(self):
        """Steps done."""
        return RECORD * len(self.energies)

    def run(self, steps):
        """Go on for a number of steps, and keep the state."""
        dynamics, begin = VelocityVerlet(self.atoms, STEP * ase.units.fs), time.process_time()
        for _ in range(steps // RECORD):
            dynamics.run(RECORD)
            self.energies.append(self.atoms.get_total_energy())
            self.temperatures.append(self.atoms.get_temperature())
            self.longest = max(self.longest, self.bonds.longest(self.atoms))
        self.seconds += time.process_time() - begin
        state = {
            "numbers": self.atoms.numbers, "positions": self.atoms.positions,
            "velocities": self.atoms.get_velocities(), "energies": self.energies,
            "temperatures": self.temperatures, "seconds": self.seconds, "longest": self.longest,
        }  # fmt: skip
        write_atomically(self.path, lambda path: _save(path, state))

    def summary(self):
        """The figures of this simulation, for JSON."""
        energies = 1e6 * (np.array(self.energies) - self.energies[0]) / len(self.atoms)  # µeV/atom
        times = 1e-3 * STEP * RECORD * (1 + np.arange(len(energies)))  # ps
        value, error = slope(times, energies)
        thin = max(1, len(energies) // SHOWN_POINTS)
        return {
            "atoms": len(self.atoms), "picoseconds": float(times[-1]), "temperature": float(np.mean(self.temperatures)),
            "slope": value, "slope_error": error, "fluctuation": float(energies.std()),
            "longest_bond": self.longest,
            "milliseconds_per_step": 1e3 * self.seconds / self.steps,
            "times": np.round(times[::thin], 4).tolist(), "energies": np.round(energies[::thin], 3).tolist(),
        }  # fmt: skip


def _save(path, state):
    with open(path, "wb") as file:
        np.savez(file, **state)


def slope(times, values):
    """Slope of least squares and its standard error for values whose fluctuations are correlated in time.

    var = g σ² / Σ (t − t̄)², where σ² is the variance of the residuals and g = 1 + 2 Σ_k (1 − k/n) ρ_k their statistical
    inefficiency, summed up to the first ρ_k below zero.

    Source: W. Janke, in Quantum Simulations of Complex Many-Body Systems, NIC 10, 423 (2002).
    """
    n, spread = len(values), times - times.mean()
    value = spread @ values / (spread @ spread)
    residual = values - values.mean() - value * spread
    # Padded, so that the transform's ends do not meet.
    spectrum = np.abs(np.fft.rfft(residual, 2 * n)) ** 2
    covariance = np.fft.irfft(spectrum)[:n] / n
    correlation = covariance / covariance[0]
    negative = np.flatnonzero(correlation < 0)
    last = negative[0] if len(negative) else n
    lags = np.arange(1, last)
    inefficiency = 1 + 2 * np.sum((1 - lags / n) * correlation[1:last])
    return float(value), float(np.sqrt(inefficiency * covariance[0] * n / (n - 2) / (spread @ spread)))


def simulate(model, arguments):
    """Run one model to the end of its simulation; its results as JSON after every part."""
    steps = arguments.steps or STEPS[arguments.system]
    name = f"{arguments.system}_{model.resolve().name}"
    arguments.out.mkdir(parents=True, exist_ok=True)
    calculator = PhiCalculator(model, dtype="float64")
    run = Trajectory(start(arguments.system, arguments.data), calculator, arguments.out / f"{name}.npz")
    while run.steps < steps:
        run.run(min(arguments.keep, steps - run.steps))
        phi = getattr(calculator.model, "phi", None)
        found = {"system": arguments.system, "model": model.resolve().name, "phi": phi is not None}
        found |= {"charge_model": phi.config.charge_model} if phi is not None else {}
        found |= run.summary()
        runs.write_json(arguments.results / f"{name}.json", found)
        print(
            f"{name}: {found['picoseconds']:.1f} ps, {found['temperature']:.0f} K, "
            f"{found['slope']:.3f} ± {found['slope_error']:.3f} µeV/atom/ps",
            flush=True,
        )


def train_water(folder, data):
    """Models of water without Φ, with charges of the heads and with charges that flow.

    On energies and forces of cells of 24 to 384 atoms.
    """
    frames = ase.io.read(data / "water" / "h2o_rpbe_d3.extxyz", ":")
    molecule = np.mean([3 * atoms.get_potential_energy() / len(atoms) for atoms in frames])
    # Single precision keeps the digits of energies that are relative to a mean molecule.
    labelled = [
        runs.frame(atoms, atoms.get_potential_energy() - molecule * len(atoms) / 3, atoms.get_forces())
        for atoms in frames
    ]
    test, valid, train = runs.shuffled(labelled, 0.1, 0.1)
    files = runs.write_frames(folder / "data", train=train, valid=valid, test=test)
    for name, phi in WATERS.items():
        words = [*runs.words_of({**HOST, **BUDGET, **WATER}), *phi]
        _, _, _, about = runs.run(words, [*files, "--E0s", "{1: 0.0, 8: 0.0}"], folder / name)
        errors = about["errors"]["test"]
        print(f"water, {name}: " + ", ".join(f"{errors[q]['rmse']:.2f} {errors[q]['unit']}" for q in errors))


def report(results, page, figure):
    """The table as Markdown, and the figure."""
    found = [json.loads(path.read_text()) for path in sorted(results.glob("*.json"))]
    columns = (
        "system", "model", "atoms", "ps", "K", "slope, µeV/atom/ps", "fluctuation, µeV/atom", "longest bond",
        "ms per step",
    )  # fmt: skip
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    systems = [system for system in STEPS if any(one["system"] == system for one in found)]
    picture, axes = plt.subplots(
        1, len(systems), figsize=(5.5 * len(systems), 3.8), layout="constrained", squeeze=False
    )
    for axis, system in zip(axes[0], systems, strict=True):
        for one in (one for one in found if one["system"] == system):
            kind = f"Φ, {one['charge_model']}" if one["phi"] else "bare host"
            longest = f"{one['longest_bond']:.2f}" if "longest_bond" in one else "–"
            drift = f"{one['slope']:.3f} ± {one['slope_error']:.3f}"
            lines.append(
                f"| {system} | {kind} ({one['model']}) | {one['atoms']} | {one['picoseconds']:g} | "
                f"{one['temperature']:.0f} | {drift} | "
                f"{one['fluctuation']:.0f} | {longest} | {one['milliseconds_per_step']:.0f} |"
            )
            axis.plot(one["times"], one["energies"], lw=0.6, label=f"{kind} ({one['model']}): {drift}")
            axis.legend(fontsize=8, title="slope, µeV/atom/ps")
        axis.set(title=system, xlabel="time / ps", ylabel="total energy, change / µeV per atom")
    figure.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(figure, dpi=130)
    plt.close(picture)
    runs.write_between(page, "nve", "\n".join(lines))
    print("\n".join(lines))


def main():
    """Simulate, train the models of water, or report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--system", choices=STEPS, default="ala3")
    parser.add_argument("--models", type=Path, nargs="*", default=[], help="folders of trained models")
    parser.add_argument("--steps", type=int, help="of 0.5 fs; 100 ps of ala3, 10 ps of water by default")
    parser.add_argument("--keep", type=int, default=1000, help="steps between states on disk")
    parser.add_argument("--out", type=Path, default=Path("runs/nve"), help="states of the simulations")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "nve")
    parser.add_argument("--data", type=Path, default=Path("data"), help="published data, see docs/log.md")
    parser.add_argument("--train_water", type=Path, metavar="FOLDER")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--page", type=Path, default=Path("docs/log.md"))
    parser.add_argument("--figure", type=Path, default=Path("docs/figures/nve.png"))
    arguments = parser.parse_args()
    if arguments.train_water:
        train_water(arguments.train_water, arguments.data)
    for model in arguments.models:
        simulate(model, arguments)
    if arguments.report:
        report(arguments.results, arguments.page, arguments.figure)


if __name__ == "__main__":
    main()
