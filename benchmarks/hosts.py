"""NequIP of the zoo against mace, bare, on one data set with one budget: errors, cost of a step, parameters.

    OMP_NUM_THREADS=1 python benchmarks/hosts.py --train_file 3bpa/train_300K.xyz --E0s e0s.json --out runs/hosts

The rows take turns, an epoch each, with the same frames, batches, optimiser, moving average, schedule and loss; a
step's cost is its processor time, so that other work on the machine counts little. Weights are the moving average at
the end; the held-out tenth of the training file has no part in training, nor in the choice of weights. Every finished
epoch is kept in ``--out``: the same command goes on where it was stopped.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from phi_equivariant.files import write_atomically
from training import mace_hosts, mace_interface, mace_statistics
from training.build import load
from training.data.labelled_graphs import GraphMaker
from training.data.placing import Accepted
from training.data.reading import read_structures
from training.data.spool import GraphStream
from training.fit import losses
from training.fit.lightning_module import PotentialModule
from training.fit.predict import evaluate, predict
from training.options import command_line
from zoo.nequip import NequIP

MACE = {
    "model": "ScaleShiftMACE",
    "hidden_irreps": "32x0e+32x1o",
    "max_ell": 3,
    "correlation": 3,
    "num_interactions": 2,
}
ROWS = {
    "mace": {},
    "nequip": {"hidden_irreps": "20x0e+20x1o+20x2e", "num_interactions": 4},  # as many parameters as mace's
    "nequip, 32 channels": {"hidden_irreps": "32x0e+32x1o+32x2e", "num_interactions": 4},
    "nequip, l = 1": {"hidden_irreps": "32x0e+32x1o", "num_interactions": 4},
}
BUDGET = {
    "energy_weight": 10.0, "forces_weight": 1000.0, "scheduler": "CosineAnnealingLR", "warmup_epochs": 1.0,
    "ema_decay": 0.99, "default_dtype": "float32", "valid_batch_size": 10, "valid_fraction": 0.1,
}  # fmt: skip


def parse(arguments):
    """The trainer's options: its names, its checks."""
    given = {
        **BUDGET, **MACE, "train_file": arguments.train_file, "E0s": arguments.E0s, "r_max": arguments.r_max,
        "energy_key": arguments.energy_key, "forces_key": arguments.forces_key, "lr": arguments.lr,
        "batch_size": arguments.batch_size, "max_num_epochs": arguments.epochs, "seed": arguments.seed,
    }  # fmt: skip
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    return command_line.parse([*words, "--ema", "--no_phi", "--name", "hosts"])


class Row:
    """One model in training, with everything that a later call needs to go on."""

    def __init__(self, name, settings, run, run_data, folder):
        self.name, self.run_data, self.run = name, run_data, run
        self.stem = folder / name.replace(", ", "_").replace(" = ", "")
        mace_interface.set_seeds(run.machine.seed)
        self.order = run_data.order()
        statistics = run_data.statistics_pass(self.order)
        training = mace_statistics.TrainingSet(statistics, run_data.atomic_numbers, run_data.settings, run_data.e0s)
        self.model, outputs = mace_hosts.build_host(run.host, run.data, run.loss, training)
        if name != "mace":
            self.model = nequip_like(self.model, settings, run_data, run)
        objective = losses.build_objective(run.loss, None)
        self.module = PotentialModule(self.model, objective, run.optimiser, run.stages, outputs, len(self.order))
        self.optimizer = self.module.configure_optimizers()
        self.epochs, self.step_seconds = [], []
        self.about = {
            "name": name, "settings": settings, "parameters": sum(p.numel() for p in self.model.parameters()),
            "options": {n: run.values()[n] for n in ("lr", "batch_size", "seed", "r_max", "max_num_epochs")},
        }  # fmt: skip
        self._resume()

    def epoch(self):
        """Train one epoch and keep the state."""
        module, left = self.module, self.run.stages.max_num_epochs - len(self.epochs)
        self.order.set_epoch(len(self.epochs))
        begin, total = time.process_time(), 0.0
        for batch in self.run_data.train_loader(self.order):
            start = time.process_time()
            module.schedule.before_step(left)
            self.optimizer.zero_grad()
            loss, _ = module.objective(predict(self.model, batch, module.outputs, training=True), batch)
            module.backward(loss)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.run.optimiser.clip_grad)
            self.optimizer.step()
            module.ema.update()
            self.step_seconds.append(time.process_time() - start)
            total += loss.item()
        module.schedule.after_epoch(None)
        self.epochs.append({"loss": total / len(self.order), "processor_seconds": time.process_time() - begin})
        if len(self.epochs) % 5 == 0 or left == 1:
            (held_out,) = self.run_data.loader("valid").values()
            self.epochs[-1]["errors"] = self.test(held_out)
        state = {
            "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
            "ema": module.ema.state_dict(), "schedule": module.schedule.state_dict(),
        }  # fmt: skip
        write_atomically(self.stem.with_suffix(".pt"), lambda path: torch.save(state, path))
        self.write({})

    def test(self, loader):
        """Errors of the averaged weights."""
        with self.module.ema.average_parameters():
            return evaluate(self.model, loader, self.module.outputs, self.run.machine.device).table()

    def write(self, errors):
        """The row as JSON."""
        content = {
            **self.about,
            "milliseconds_per_step": 1e3 * float(np.median(self.step_seconds)), "errors": errors,
            "epochs": self.epochs, "step_seconds": self.step_seconds,
        }  # fmt: skip
        write_atomically(self.stem.with_suffix(".json"), lambda path: path.write_text(json.dumps(content)))

    def _resume(self):
        if not self.stem.with_suffix(".pt").is_file():
            return
        state = torch.load(self.stem.with_suffix(".pt"), weights_only=True)
        kept = json.loads(self.stem.with_suffix(".json").read_text())
        different = [key for key, value in json.loads(json.dumps(self.about)).items() if kept.get(key) != value]
        if different:
            raise SystemExit(f"{self.stem}.json is of a run with other {', '.join(different)}; choose another --out.")
        self.epochs, self.step_seconds = kept["epochs"], kept["step_seconds"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.module.ema.load_state_dict(state["ema"])
        self.module.schedule.load_state_dict(state["schedule"])


def nequip_like(mace_model, settings, run_data, run):
    """NequIP with the cut-off, the isolated atoms and the training set's statistics of a mace model."""
    mace_interface.set_seeds(run.machine.seed)
    energies = run_data.e0s[run_data.heads[0]]
    return NequIP(
        run_data.atomic_numbers, [energies[number] for number in run_data.atomic_numbers], r_max=run.host.r_max,
        avg_num_neighbors=float(mace_model.interactions[0].avg_num_neighbors),
        atomic_inter_scale=float(mace_model.scale_shift.scale), atomic_inter_shift=float(mace_model.scale_shift.shift),
        **settings,
    )  # fmt: skip


def test_sets(arguments, run, run_data):
    """{title: loader}: the held-out frames, and the test files."""
    (held_out,), (head,) = run_data.loader("valid").values(), run_data.settings
    make = GraphMaker(run_data.atomic_numbers, run.host.r_max, run_data.heads, head.name)
    for path in arguments.test_files:
        found = read_structures(path, head.keys, "test", Accepted(run_data.atomic_numbers))
        run_data.test[path.stem] = GraphStream(found.frames, make)
    return {"held out": held_out, **run_data.loader("test")}


def main():
    """Train the rows in turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train_file", type=Path, required=True)
    parser.add_argument("--test_files", type=Path, nargs="*", default=[])
    parser.add_argument("--E0s", required=True, help="as in phi-mace-train: dictionary, JSON file or average")
    parser.add_argument("--energy_key", default="energy")
    parser.add_argument("--forces_key", default="forces")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", nargs="+", default=["mace", "nequip"], choices=ROWS)
    parser.add_argument("--set", default="{}", help="JSON: settings of NequIP in place of the rows' own")
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--batch_size", type=int, default=5)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--r_max", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    run = parse(arguments)
    run, run_data = load(run)
    arguments.out.mkdir(parents=True, exist_ok=True)
    changes = json.loads(arguments.set)
    rows = [
        Row(n, ROWS[n] if n == "mace" else {**ROWS[n], **changes}, run, run_data, arguments.out) for n in arguments.rows
    ]
    while unfinished := [row for row in rows if len(row.epochs) < arguments.epochs]:
        row = min(unfinished, key=lambda row: len(row.epochs))
        row.epoch()
        last, n = row.epochs[-1], len(row.epochs)
        errors = "".join(f"  {k} {e['rmse']:.2f} {e['unit']}" for k, e in last.get("errors", {}).items())
        seconds = last["processor_seconds"]
        print(f"{row.name:14} epoch {n:4}  loss {last['loss']:.4g}  {seconds:.1f} s{errors}", flush=True)
    print("| | parameters | ms per step | set | energy, meV/atom | forces, meV/Å |\n|---|---|---|---|---|---|")
    for row in rows:
        errors = {title: row.test(loader) for title, loader in test_sets(arguments, run, run_data).items()}
        row.write(errors)
        for title, table in errors.items():
            cells = " | ".join(f"{table[name]['rmse']:.2f}" for name in ("energy_per_atom", "forces"))
            cost = 1e3 * np.median(row.step_seconds)
            print(f"| {row.name} | {row.about['parameters']} | {cost:.0f} | {title} | {cells} |")


if __name__ == "__main__":
    main()
