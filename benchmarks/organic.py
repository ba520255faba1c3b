"""What a general organic potential is worth: errors class by class, molecular dynamics, and speed beside GFN2-xTB.

    python benchmarks/organic.py --errors --models runs/phi runs/bare --data organic_gfn2
    python benchmarks/organic.py --dynamics --models runs/phi --data organic_gfn2
    python benchmarks/organic.py --speed --models runs/phi runs/bare --data organic_gfn2
    python benchmarks/organic.py --report

``--data`` is the folder that ``python -m training.shipped.organic_gfn2.generate`` makes. A model has the name of its
folder. Each part leaves a JSON file in ``--results``; a simulation is not done again while its file is there. Errors
are RMSE; relative energies are those to the mean over the frames of one molecule, pair or cluster.

Dynamics: 50 ps of ten molecules of the test set, and of 32 water molecules with one ion, in open space, with a Langevin
thermostat at 300 K, steps of 1 fs and single precision; a molecule is whole if no bond is ever longer than 1.5 times
the sum of the covalent radii. Speed: processor time of energy and forces, PhiCalculator and GFN2-xTB in turn, atoms
moved by 0.01 Å between the calls.
"""

import argparse
import json
import time
from pathlib import Path

import ase.build
import ase.io
import ase.units
import numpy as np
import runs
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.optimize import LBFGS

from phi_equivariant import PhiCalculator
from training.evaluate import main as phi_mace_eval
from training.shipped.organic_gfn2.label import SelfConsistentField

FILES = ("test", "test_large", "test_distances")
THERMAL = ("modes", "md")
BONDED = ("neutral", "cation", "anion", "zwitterion")
PICOSECONDS, STEP, TEMPERATURE, FRICTION = 50, 1.0, 300.0, 0.01  # ps, fs, K, 1/fs
RECORD = 50  # steps between looks at the bonds
MOLECULES, WATERS, IONS = 10, 32, {"chloride": "[Cl-]", "ammonium": "[NH4+]"}
#: Column of the tables → (quantity, factor, format).
COLUMNS = {
    "energy, meV/atom": ("energy_per_atom", 1e3, ".3g"),
    "relative energy, meV": ("relative_energy", 1e3, ".3g"),
    "forces, meV/Å": ("forces", 1e3, ".3g"),
    "charges, e": ("charges", 1, ".3f"),
    "dipole, e·Å": ("dipole", 1, ".2f"),
}
SIZES, CALLS = (5, 10, 15, 20, 30, 40, 60), 20


def classes(atoms):
    """Rows of the table that a frame counts in."""
    kind, _, group = atoms.info["config_type"].partition("_")
    found = [f"{kind} {group.replace('_', ' ')}".strip()]
    if kind in THERMAL:
        found += ["thermal", f"thermal, {group}"]
    if kind == "stretched":
        stretch = atoms.info["stretch"]
        found.append(
            "bonds at 0.8–1.1" if stretch < 1.1 else "bonds at 1.1–1.4" if stretch < 1.4 else "bonds at 1.4–1.8"
        )
    if kind == "dimer":
        distance = atoms.info["distance"]
        name = next(
            name for below, name in ((3, "–3"), (6, "3–6"), (7, "6–7"), (12, "7–12"), (99, "12–")) if distance < below
        )
        found += [f"dimers at {name} Å", f"dimers at {name} Å, {group.replace('_', ' ')}"]
    return found


def errors(model, arguments):
    """RMSE of every class of frames; phi-mace-eval computes, its file is read."""
    rows = {}
    for name in FILES:
        predicted = arguments.work / f"{model.name}_{name}.xyz"
        if not predicted.is_file():
            arguments.work.mkdir(parents=True, exist_ok=True)
            words = ["--configs", arguments.data / f"{name}.xyz", "--model", model, "--output", predicted]
            if phi_mace_eval([str(word) for word in words]):
                raise SystemExit(f"{model}: {name} could not be evaluated.")
        frames = [atoms for atoms in ase.io.read(predicted, ":") if "unit" in atoms.info]
        units = {}
        for atoms in frames:
            units.setdefault(atoms.info["unit"], []).append(_energy_error(atoms))
        for atoms in frames:
            of_unit = units[atoms.info["unit"]]
            relative = None
            if len(of_unit) > 1:  # a mean of n follows each of them by 1/n
                relative = (_energy_error(atoms) - np.mean(of_unit)) * np.sqrt(len(of_unit) / (len(of_unit) - 1))
            for row in classes(atoms):
                _add(rows.setdefault(name, {}).setdefault(row, {}), atoms, relative)
    found = {name: {row: _means(sums) for row, sums in table.items()} for name, table in rows.items()}
    runs.write_json(arguments.results / f"errors_{model.name}.json", {"model": model.name, "errors": found})


def _energy_error(atoms):
    return atoms.info["MACE_energy"] - atoms.info["REF_energy"]


def _add(sums, atoms, relative):
    """Squared errors of a frame; ``relative``: of the energy to the mean of the frames of one molecule or pair, None
    where it is the only one."""
    energy = _energy_error(atoms)
    parts = {
        "energy_per_atom": energy / len(atoms), "energy": energy,
        "forces": atoms.arrays["MACE_forces"] - atoms.arrays["REF_forces"],
    }  # fmt: skip
    if relative is not None:
        parts["relative_energy"] = relative
    if "MACE_charges" in atoms.arrays:
        parts["charges"] = atoms.arrays["MACE_charges"] - atoms.arrays["REF_charges"]
        parts["dipole"] = np.array(atoms.info["MACE_dipole"]) - atoms.get_dipole_moment()
    for quantity, error in parts.items():
        sums.setdefault(quantity, []).append(np.square(error).ravel())


def _means(sums):
    rmse = {quantity: float(np.sqrt(np.mean(np.concatenate(squares)))) for quantity, squares in sums.items()}
    return {"frames": len(sums["energy"]), **rmse}


def systems(data):
    """{name: structure}: ten minima of the test set, spread over the sizes, and water clusters with an ion."""
    minima = [
        atoms
        for atoms in ase.io.read(data / "test.xyz", ":")
        if atoms.info.get("config_type", "").startswith("minimum")
    ]
    minima.sort(key=len)
    chosen = [minima[i] for i in np.linspace(0, len(minima) - 1, MOLECULES).round().astype(int)]
    found = {atoms.info["unit"]: _plain(atoms) for atoms in chosen}
    return found | {f"{name} in {WATERS} waters": _solvated(smiles) for name, smiles in IONS.items()}


def _plain(atoms):
    return ase.Atoms(atoms.numbers, atoms.positions, info={"total_charge": int(atoms.info["total_charge"])})


def _solvated(smiles):
    """An ion in the middle of water molecules on a grid of 3.1 Å, each turned at random."""
    from rdkit import Chem
    from rdkit.Chem import AllChem

    molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
    AllChem.EmbedMolecule(molecule, randomSeed=1)
    ion = ase.Atoms([atom.GetSymbol() for atom in molecule.GetAtoms()], molecule.GetConformer().GetPositions())
    ion.positions -= ion.positions.mean(0)
    grid = 3.1 * np.stack(np.meshgrid(*[np.arange(-2, 3)] * 3, indexing="ij"), -1).reshape(-1, 3)
    grid = grid[np.argsort(np.linalg.norm(grid, axis=1), kind="stable")][1 : WATERS + 1]
    rng = np.random.default_rng(1)
    for place in grid:
        water = ase.build.molecule("H2O")
        water.rotate(360 * rng.random(), rng.normal(size=3))
        water.positions += place - water.positions[0]
        ion += water
    ion.info["total_charge"] = Chem.GetFormalCharge(molecule)
    return ion


def dynamics(model, arguments):
    """50 ps of every system."""
    calculator = PhiCalculator(model, dtype="float32")
    for name, atoms in systems(arguments.data).items():
        path = arguments.results / "dynamics" / f"{model.name}_{name.replace(' ', '_')}.json"
        if path.is_file():
            continue
        atoms.calc = calculator
        LBFGS(atoms, logfile=None).run(fmax=0.1, steps=200)
        bonds, rng = runs.Bonds(atoms), np.random.default_rng(1)
        MaxwellBoltzmannDistribution(atoms, temperature_K=TEMPERATURE, rng=rng)
        friction = FRICTION / ase.units.fs
        motion = Langevin(atoms, STEP * ase.units.fs, temperature_K=TEMPERATURE, friction=friction, rng=rng)
        longest, temperatures, steps = bonds.longest(atoms), [], round(1e3 * PICOSECONDS / STEP)
        for _ in range(steps // RECORD):
            motion.run(RECORD)
            longest = max(longest, bonds.longest(atoms))
            temperatures.append(atoms.get_temperature())
            if not np.isfinite(longest) or longest > 10:
                break  # it has come apart
        about = {"model": model.name, "system": name, "atoms": len(atoms), "charge": atoms.info["total_charge"]}
        about |= {"picoseconds": 1e-3 * STEP * RECORD * len(temperatures), "longest_bond": longest}
        runs.write_json(path, about | {"temperature": float(np.mean(temperatures))})
        print(f"{model.name}, {name}: {about['picoseconds']:g} ps, longest bond {longest:.2f}", flush=True)


def speed(models, arguments):
    """Milliseconds of energy and forces by size, of the models and of GFN2-xTB."""
    frames = ase.io.read(arguments.data / "test.xyz", ":") + ase.io.read(arguments.data / "test_large.xyz", ":")
    minima = [atoms for atoms in frames if atoms.info.get("config_type", "").startswith("minimum")]
    calculators = {model.name: PhiCalculator(model, dtype="float64") for model in models}
    table = []
    for size in SIZES:
        atoms = _plain(min(minima, key=lambda atoms: abs(len(atoms) - size)))
        field = SelfConsistentField(atoms.numbers, atoms.info["total_charge"], accuracy=1.0)
        times, rng = {name: [] for name in (*calculators, "GFN2-xTB")}, np.random.default_rng(0)
        for _ in range(CALLS):
            atoms.positions += rng.normal(scale=0.01, size=atoms.positions.shape)
            for name in times:
                begin = time.process_time()
                if name in calculators:
                    atoms.calc = calculators[name]
                    atoms.get_forces()
                else:
                    field.at(atoms.positions)
                times[name].append(1e3 * (time.process_time() - begin))
        table.append({"atoms": len(atoms)} | {name: float(np.median(of[CALLS // 4 :])) for name, of in times.items()})
        print(table[-1], flush=True)
    runs.write_json(arguments.results / "speed.json", table)


def report(arguments):
    """The tables as Markdown."""
    lines = []
    found = [json.loads(path.read_text()) for path in sorted(arguments.results.glob("errors_*.json"))]
    if found:
        lines += [f"RMSE of {' / '.join(one['model'] for one in found)}:"]
    for name in FILES if found else ():
        lines += ["", f"| {name} | frames | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 2) + "|"]
        for row in sorted(found[0]["errors"][name]):
            rows = [one["errors"][name][row] for one in found]
            cells = [
                " / ".join(f"{factor * of[quantity]:{style}}" if quantity in of else "–" for of in rows)
                for quantity, factor, style in COLUMNS.values()
            ]
            lines.append(f"| {row} | {rows[0]['frames']} | {' | '.join(cells)} |")
    moved = [json.loads(path.read_text()) for path in sorted((arguments.results / "dynamics").glob("*.json"))]
    if moved:
        lines += ["", "| model | system | atoms | charge | ps | K | longest bond |", "|---" * 7 + "|"]
    for one in moved:
        lines.append(
            f"| {one['model']} | {one['system']} | {one['atoms']} | {one['charge']:+d} | {one['picoseconds']:g} | "
            f"{one['temperature']:.0f} | {one['longest_bond']:.2f} |"
        )
    if (arguments.results / "speed.json").is_file():
        table = json.loads((arguments.results / "speed.json").read_text())
        lines += ["", f"| {' | '.join(table[0])} |", "|---" * len(table[0]) + "|"]
        lines += [f"| {' | '.join(f'{value:.3g}' for value in row.values())} |" for row in table]
    runs.write_between(arguments.page, "organic", "\n".join(lines).strip())


def main():
    """Errors, dynamics, speed, or the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for part in ("errors", "dynamics", "speed", "report"):
        parser.add_argument(f"--{part}", action="store_true")
    parser.add_argument("--models", type=Path, nargs="*", default=[], help="folders of trained models")
    parser.add_argument("--data", type=Path, default=Path("organic_gfn2"), help="folder of the data set")
    parser.add_argument("--work", type=Path, default=Path("runs/organic"), help="predictions of the test sets")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "organic")
    parser.add_argument("--page", type=Path, default=Path("docs/log.md"))
    arguments = parser.parse_args()
    for model in arguments.models:
        if arguments.errors:
            errors(model, arguments)
        if arguments.dynamics:
            dynamics(model, arguments)
    if arguments.speed:
        speed(arguments.models, arguments)
    if arguments.report:
        report(arguments)


if __name__ == "__main__":
    main()
