"""What Φ costs on a GPU: tests, training and dynamics steps with and without Φ, 100,000 atoms, and both calculators.

    sh benchmarks/gpu.sh                                   # at most 8 minutes; runs/gpu/gpu.json and gpu.md
    sh benchmarks/gpu.sh --device cpu --quick              # the same code, in minutes, without a GPU
    python benchmarks/gpu.py --report --page docs/log.md

Every stage is a process with a time limit of its own and every row is kept when it is measured, so that a run which is
stopped loses nothing; a row that fails, out of memory say, has the message in place of figures. Times are medians of
wall times between synchronisations, after calls that load and compile; host and potential take turns on the same
positions. Memory is the peak above what was allocated before the call. Hosts are mace, 32x0e+32x1o with a cut-off of
4.5 Å; 42 atoms are the shipped peptide (ten in a training batch), all else is water at 997 kg/m³.
"""

import argparse
import copy
import json
import platform
import subprocess
import sys
import time
import warnings
from importlib.metadata import version
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import overhead
import runs
import scaling
import torch

from phi_equivariant import PhiCalculator, PhiConfig, attach_phi
from phi_equivariant.engines.inference import ModelInput
from training.data.named_files import load_dataset
from zoo.mace_host import accelerate

ROOT = Path(__file__).resolve().parents[1]
#: Seconds that each stage may take; 8 minutes with what is unpacked before.
LIMITS = {"tests": 100, "train": 110, "md": 90, "large": 100, "calculators": 40}
SIZES, QUICK_SIZES = (42, 192, 1536, 10000), (42, 24)
LARGE = {  # the host of a water box of 100,000 atoms must be small: the wide one would take 200 GiB
    "chain": (scaling.WIDE, f"{scaling.WIDE} + Φ graph", f"{scaling.WIDE} + Φ coulomb"),
    "water": ("16x0e", "16x0e + Φ graph", "16x0e + Φ coulomb"),
}
WARM, MOVE = 3, 0.003  # calls; Å
ROW_SECONDS = 3.0  # of timed calls at most, but for three calls


class Stage:
    """One process: measures rows and prints each as a line of JSON."""

    def __init__(self, arguments):
        self.device, self.quick = arguments.device, arguments.quick
        self.cuda = self.device.startswith("cuda")
        self.steps = 1 if self.quick else 12
        self.sizes = QUICK_SIZES if self.quick else SIZES
        self.dtypes = ("float32",) if self.quick else ("float32", "float64")
        self.kernels = ("e3nn",) if self.quick else ("e3nn", "cueq")

    def row(self, measured, **about):
        """Print what a function of no arguments finds, or why it does not."""
        try:
            found = measured()
        except Exception as error:  # recorded: one row must not end the others
            found = {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
        if self.cuda:
            torch.cuda.empty_cache()
        print("ROW " + json.dumps({**about, **found}, ensure_ascii=False), flush=True)

    def seconds(self, call):
        """Wall time of a call with all that it left to the GPU."""
        if self.cuda:
            torch.cuda.synchronize()
        begin = time.perf_counter()
        call()
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    def synchronisations(self, call):
        """How often a call made the CPU wait for the GPU."""
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
        torch.cuda.set_sync_debug_mode("default")
        return sum("synchronizing" in str(warning.message) for warning in caught)

    def compare(self, *calls):
        """Median seconds and peak bytes of calls that take turns, as a list of dictionaries."""
        found, longest = [], 0.0
        for call in calls:
            for _ in range(1 if self.quick else WARM):
                call()
            before = scaling.peak_memory(self.cuda, reset=True)
            longest = max(longest, self.seconds(call))
            about = {"bytes": scaling.peak_memory(self.cuda) - before}
            found.append(about | ({"synchronisations": self.synchronisations(call)} if self.cuda else {}))
        steps = min(self.steps, max(3, int(ROW_SECONDS / longest)))
        times = np.array([[self.seconds(call) for call in calls] for _ in range(steps)])
        medians = np.median(times, axis=0)
        return [about | {"seconds": float(median)} for about, median in zip(found, medians, strict=True)]

    def pairs(self):
        """Precision, kernels, host and potential: the same objects for all sizes, which compile once."""
        sizes = SimpleNamespace(r_max=scaling.R_MAX, hidden_irreps="16x0e" if self.quick else scaling.WIDE)
        for dtype, kernels in product(self.dtypes, self.kernels):
            torch.set_default_dtype(getattr(torch, dtype))
            try:
                hosts = [overhead.host(sizes) for _ in range(2)]
                if kernels != "e3nn":
                    hosts = [accelerate(host, kernels, self.device) for host in hosts]
            except Exception as error:
                message = str(error)
                self.row(lambda message=message: {"error": message}, dtype=dtype, kernels=kernels)
                continue
            models = [hosts[0], attach_phi(hosts[1], PhiConfig())]
            yield dtype, kernels, *(model.to(self.device).eval() for model in models)

    def both(self, of, about):
        """Rows of host and potential."""

        def measured():
            host, potential = of()
            return {"host": host, "phi": potential, "ratio": potential["seconds"] / host["seconds"]}

        self.row(measured, **about)

    def train(self):
        """A training step: forward pass with forces, a loss of both, backward pass."""
        for dtype, kernels, host, potential in self.pairs():
            for size in self.sizes:
                frames = [atoms_of(size) for _ in range(10 if size == 42 and not self.quick else 1)]

                def of(host=host, potential=potential, frames=frames):
                    return self.compare(*(training_step(model, frames) for model in (host, potential)))

                about = {"dtype": dtype, "kernels": kernels, "n_atoms": len(frames[0]), "batch": len(frames)}
                self.both(of, about)

    def md(self):
        """A step of molecular dynamics through PhiCalculator: neighbours, energy and forces after atoms moved."""
        for dtype, kernels, host, potential in self.pairs():
            for size in self.sizes:
                atoms = atoms_of(size)

                def of(host=host, potential=potential, atoms=atoms):
                    return self.compare(
                        *(dynamics_step(PhiCalculator(m, self.device), atoms) for m in (host, potential))
                    )

                self.both(of, {"dtype": dtype, "kernels": kernels, "n_atoms": len(atoms)})

    def large(self):
        """Energy and forces of 100,000 atoms in float32: memory with Φ against the host's."""
        torch.set_default_dtype(torch.float32)
        for system, names in LARGE.items():
            batch, host, hosts_row = None, None, names[0]
            for name in names:

                def measured(name=name, system=system, hosts_row=hosts_row):
                    nonlocal batch, host
                    run = scaling.evaluation(*scaling.ROWS[name], self.device)
                    for _ in range(2):
                        run(scaling.batch_of(scaling.structure(system, 300), self.device))
                    if batch is None:
                        size = 600 if self.quick else 100_000
                        batch = scaling.batch_of(scaling.structure(system, size), self.device)
                    before = scaling.peak_memory(self.cuda, reset=True)
                    times = [self.seconds(lambda: run(batch)) for _ in range(1 if self.quick else 3)]
                    found = {"seconds": min(times), "bytes": scaling.peak_memory(self.cuda) - before}
                    if name == hosts_row:
                        host = found
                    shares = {"memory_ratio": found["bytes"] / host["bytes"]} if host and host["bytes"] else {}
                    return found | shares | {"n_atoms": len(batch["positions"])}

                self.row(measured, system=system, row=name)

    def calculators(self):
        """PhiCalculator and MACECalculator on one host, and on one potential: times, and how far energies differ."""
        from mace.calculators import MACECalculator

        for dtype, _, host, potential in self.pairs():
            for name, model in {"host": host, "with Φ": potential}.items():
                for size in self.sizes[:-1]:
                    atoms = atoms_of(size)

                    def measured(model=model, atoms=atoms, dtype=dtype):
                        ours = PhiCalculator(copy.deepcopy(model), self.device)
                        theirs = MACECalculator(models=[copy.deepcopy(model)], device=self.device, default_dtype=dtype)
                        fast, slow = self.compare(*(dynamics_step(one, atoms) for one in (ours, theirs)))
                        energies = [one.get_potential_energy(atoms) for one in (ours, theirs)]
                        apart = abs(energies[0] - energies[1]) / len(atoms)
                        ratio = fast["seconds"] / slow["seconds"]
                        return {"phi": fast, "mace": slow, "ratio": ratio, "apart_eV_per_atom": apart}

                    self.row(measured, dtype=dtype, model=name, n_atoms=len(atoms))
            if self.kernels[0] == "e3nn":
                return  # float32, e3nn: what users have

    def tests(self):
        """The suite's tests that are marked ``gpu``."""
        files = sorted(str(p) for p in (ROOT / "tests").rglob("test_*.py") if "pytest.mark.gpu" in p.read_text())
        words = [sys.executable, "-m", "pytest", "-m", "gpu", "-rs", "-p", "no:cacheprovider"]

        def measured():
            done = subprocess.run(
                [*words, *files[: 1 if self.quick else None]], cwd=ROOT, capture_output=True, text=True
            )
            said = done.stdout.strip().splitlines()
            return {"status": done.returncode, "said": said[-1 if done.returncode == 0 else -30 :]}

        self.row(measured, files=len(files))


def atoms_of(size):
    """The shipped peptide, or water of about so many atoms."""
    return load_dataset("ala3_gfn2").train[0] if size == 42 else scaling.structure("water", size)


def training_step(model, frames):
    """A function that takes one step on a batch with random labels."""
    batch = ModelInput(model)(frames)
    draw = torch.Generator().manual_seed(0)
    labels = torch.randn(batch["positions"].shape, generator=draw).to(batch["positions"])

    def step():
        model.zero_grad(set_to_none=True)
        out = model(dict(batch), training=True, compute_force=True)
        (out["energy"].square().mean() + 100.0 * (out["forces"] - labels).square().mean()).backward()

    return step


def dynamics_step(calculator, atoms):
    """A function that moves the atoms of a copy a little and computes."""
    atoms, draw = atoms.copy(), np.random.default_rng(0)

    def step():
        atoms.positions += MOVE * draw.normal(size=atoms.positions.shape)
        calculator.calculate(atoms, ["energy", "forces"], ["positions"])

    return step


def machine(device):
    """What the figures were measured on."""
    cuda = torch.cuda.is_available() and device.startswith("cuda")
    packages = ("torch", "e3nn", "mace-torch", "phi-equivariant")
    return {
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "cuda": torch.version.cuda if cuda else None,
        "python": platform.python_version(),
        "versions": {package: version(package) for package in packages},
    }


def measure_all(arguments):
    """Every stage in a process of its own; the file of results is written after each."""
    path = arguments.out / "gpu.json"
    found = {"machine": machine(arguments.device), "quick": arguments.quick, "stages": {}}
    for stage in arguments.stages:
        begin, limit = time.monotonic(), LIMITS[stage] * (10 if arguments.quick else 1)
        words = [sys.executable, __file__, "--stage", stage, "--device", arguments.device]
        words += ["--quick"] if arguments.quick else []
        arguments.out.mkdir(parents=True, exist_ok=True)
        with (arguments.out / f"{stage}.log").open("w+", encoding="utf-8") as log:
            try:
                status = subprocess.run(words, stdout=log, stderr=subprocess.STDOUT, timeout=limit).returncode
            except subprocess.TimeoutExpired:
                status = f"stopped after {limit} s"
            log.seek(0)
            lines = log.read().splitlines()
        rows = [json.loads(line.removeprefix("ROW ")) for line in lines if line.startswith("ROW ")]
        taken = round(time.monotonic() - begin, 1)
        found["stages"][stage] = {"status": status, "wall_seconds": taken, "rows": rows}
        if status != 0:
            found["stages"][stage]["said"] = [line for line in lines if not line.startswith("ROW ")][-20:]
        runs.write_json(path, found)
        print(f"{stage}: {len(rows)} rows, status {status}, {taken} s", flush=True)
    text = table(found)
    (arguments.out / "gpu.md").write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0 if all(stage["status"] == 0 for stage in found["stages"].values()) else 1


def cells(row, *names):
    """Milliseconds and MiB of each part of a row, or its message."""
    if "error" in row:
        return [row["error"][:80], *[""] * (2 * len(names))]
    times = [f"{1e3 * row[name]['seconds']:.1f}" for name in names]
    return [*times, f"{row['ratio']:.3f}", *(f"{row[name]['bytes'] / 2**20:,.0f}" for name in names)]


def table(found):
    """The results as Markdown."""
    about, stages = found["machine"], {name: stage["rows"] for name, stage in found["stages"].items()}
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    lines = [f"{about['device']}, {versions}.", ""]

    def add(head, rows):
        lines.extend([f"| {' | '.join(head)} |", "|---" * len(head) + "|"])
        lines.extend(f"| {' | '.join(map(str, row))} |" for row in rows)
        lines.append("")

    for row in stages.get("tests", []):
        lines += [f"Tests marked `gpu`: {'; '.join(row.get('said', [row.get('error', '')]))}", ""]
    for stage, title in (("train", "training step"), ("md", "step of dynamics")):
        if stage in stages:
            head = [title, "precision, kernels", "host, ms", "with Φ, ms", "ratio", "host, MiB", "with Φ, MiB"]
            add(head, [
                [f"{row.get('n_atoms', '')} atoms" + (f" × {row['batch']}" if row.get("batch", 1) > 1 else ""),
                 f"{row['dtype']}, {row['kernels']}", *cells(row, "host", "phi")]
                for row in stages[stage]
            ])  # fmt: skip
    if "large" in stages:
        rows = []
        for row in stages["large"]:
            if "error" in row:
                rows.append([row["system"], row["row"], row["error"][:80], "", ""])
                continue
            share = f"{row['memory_ratio']:.3f}" if "memory_ratio" in row else ""
            rows.append(
                [f"{row['system']}, {row['n_atoms']:,} atoms", row["row"], f"{row['seconds']:.2f}",
                 f"{row['bytes'] / 2**30:.2f}", share]
            )  # fmt: skip
        add(["float32", "", "s", "GiB", "memory / host's"], rows)
    if "calculators" in stages:
        head = ["calculators", "model", "PhiCalculator, ms", "MACECalculator, ms", "ratio", "MiB", "MiB"]
        rows = [[f"{row['n_atoms']} atoms", row["model"], *cells(row, "phi", "mace")] for row in stages["calculators"]]
        add(head, rows)
    return "\n".join(lines).rstrip()


def main():
    """Measure, or report; the status is 0 if every stage went to its end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="small structures, one step: whether all runs")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--stages", nargs="+", default=list(LIMITS), choices=LIMITS)
    parser.add_argument("--report", action="store_true", help="table of what is measured, into --page if given")
    parser.add_argument("--page", type=Path)
    parser.add_argument("--stage", choices=LIMITS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage:
        getattr(Stage(arguments), arguments.stage)()
        return 0
    if arguments.report:
        text = table(json.loads((arguments.out / "gpu.json").read_text()))
        if arguments.page:
            runs.write_between(arguments.page, "gpu", text)
        print(text)
        return 0
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit(f"gpu.py: torch {torch.__version__} finds no GPU; try --device cpu --quick.")
    return measure_all(arguments)


if __name__ == "__main__":
    sys.exit(main())
