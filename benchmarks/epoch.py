"""Seconds per epoch and peak memory: phi-mace-train with Φ against mace_run_train without it.

    python benchmarks/epoch.py [--structures 300] [--epochs 4] [--rounds 5] [--host 16x0e]

Both commands run as users run them, in processes of their own, in turns, on the same files, sizes, precision and
threads. An epoch (training and validation) is the time between two of its lines in the output; the first of each run is
left out. Printed: medians, the median ratio with a 95 % bootstrap interval, and peak resident memory.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ase.io
import numpy as np

from training.data.named_files import load_dataset

PHI = ["--phi", "operator=coulomb", "poisson=exact"]
EPOCH_LINE = {"mace": re.compile(r"Epoch \d+: head"), "phi": re.compile(r"^epoch +\d+/")}


def write_files(folder, structures):
    """Training and validation files that both commands read."""
    data = load_dataset("ala3_gfn2")
    for name, frames in {"train": data.train[:structures], "valid": data.valid[: structures // 5]}.items():
        ase.io.write(folder / f"{name}.xyz", [frame for frame in frames], format="extxyz")
    return str({int(number): float(energy) for number, energy in data.e0s.items()})


def options(args, folder, e0s):
    """Options that mean the same to both."""
    given = {
        "train_file": folder / "train.xyz",
        "valid_file": folder / "valid.xyz",
        "E0s": e0s,
        "hidden_irreps": args.host,
        "r_max": 4.5,
        "max_ell": args.max_ell,
        "correlation": 2,
        "batch_size": 10,
        "valid_batch_size": 10,
        "max_num_epochs": args.epochs + 1,
        "default_dtype": args.dtype,
        "plot": False,
    }
    return [word for key, value in given.items() for word in (f"--{key}", str(value))] + ["--ema"]


def run(kind, command, folder):
    """Run a command: seconds of its epochs but the first, and its peak memory in MiB."""
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    moments, output = [], []
    for line in process.stdout:
        output.append(line)
        if EPOCH_LINE[kind].search(line):
            moments.append(time.perf_counter())
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise SystemExit(f"{kind} failed:\n{''.join(output[-30:])}")
    return np.diff(moments), usage.ru_maxrss / 1024


def interval(ratios, draws=10_000):
    """95 % bootstrap interval of a median."""
    samples = np.random.default_rng(0).choice(ratios, (draws, len(ratios)))
    return np.percentile(np.median(samples, axis=1), [2.5, 97.5])


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--structures", type=int, default=300)
    parser.add_argument("--epochs", type=int, default=4, help="measured epochs per run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--host", default="16x0e")
    parser.add_argument("--max_ell", type=int, default=2)
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    seconds, memory = {"mace": [], "phi": []}, {"mace": [], "phi": []}
    for turn in range(args.rounds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            common = options(args, folder, write_files(folder, args.structures))
            commands = {
                "mace": [sys.executable, "-m", "mace.cli.run_train", "--name", "mace", *common],
                "phi": [sys.executable, "-m", "training.train", "--name", "phi", *common, *PHI],
            }
            for kind in ("mace", "phi") if turn % 2 == 0 else ("phi", "mace"):
                epochs, peak = run(kind, commands[kind], folder)
                seconds[kind].append(np.median(epochs))
                memory[kind].append(peak)
                print(f"round {turn + 1} {kind:4s}: {np.round(epochs, 2)} s, {peak:.0f} MiB", flush=True)
    ratios = np.array(seconds["phi"]) / np.array(seconds["mace"])
    low, high = interval(ratios)
    print(f"mace_run_train: {np.median(seconds['mace']):.2f} s per epoch, {np.median(memory['mace']):.0f} MiB")
    print(f"phi-mace-train with Φ: {np.median(seconds['phi']):.2f} s per epoch, {np.median(memory['phi']):.0f} MiB")
    print(f"ratio of seconds {np.median(ratios):.3f} (95 % interval {low:.3f} to {high:.3f})")
    print(f"ratio of memory {np.median(np.array(memory['phi']) / np.array(memory['mace'])):.3f}")


if __name__ == "__main__":
    main()
