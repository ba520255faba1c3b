"""Make the data set organic_gfn2: organic molecules and ions, alone, in pairs and in clusters, labelled with GFN2-xTB.

    python -m training.shipped.organic_gfn2.generate --work DIR --processes 2

Needs the extra ``data`` (tblite, rdkit), in the versions of constraints.txt for the same geometries. Each work unit is
written as one file once it is complete: an interrupted run goes on where it was and ends with the same files, whatever
the number of processes; what was damaged is made again. DIR then holds train.xyz, valid.xyz, test.xyz,
test_large.xyz and test_distances.xyz, which ``phi-mace-train --train_file`` and its like take without further keys, and
summary.json.
"""

import argparse
import gzip
import json
import multiprocessing
import os
import sys
import threading
import time
from functools import partial
from hashlib import sha256
from importlib import metadata
from io import StringIO
from pathlib import Path
from typing import Any

import ase.io
from ase import Atoms

from phi_equivariant.errors import InputError
from phi_equivariant.files import CONFIG_LIMIT, read_json, write_atomically
from training.shipped.organic_gfn2 import contents, making
from training.shipped.organic_gfn2.bonding import Seen
from training.shipped.organic_gfn2.chance import fraction
from training.shipped.organic_gfn2.label import isolated_atoms
from training.shipped.organic_gfn2.plan import FILES, Unit, composition, sample, units

PLAN = "2"  # a change of what is made needs another number
SAMPLE = "sample.xyz.gz"  # comes with the project, for its tests


def as_text(structures: list[Atoms]) -> str:
    """Extended XYZ."""
    text = StringIO()
    if structures:
        ase.io.write(text, structures, format="extxyz")
    return text.getvalue()


def write(path: Path, text: str) -> None:
    """Write a file as a whole or not at all."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def run_unit(unit: Unit, work: Path) -> str:
    """Make a unit unless it is there; returns its name."""
    path = work / "units" / f"{unit.name}.xyz"
    if not is_whole(path):
        started = time.perf_counter()
        made = making.make(unit, work / "minima")
        text = as_text(made.frames)
        about = {"left_out": dict(made.left_out), "seconds": round(time.perf_counter() - started, 3)}
        write(path, text)
        write(path.with_suffix(".json"), json.dumps(about | {"sha256": sha256(text.encode()).hexdigest()}))
    return unit.name


def is_whole(path: Path) -> bool:
    """Whether a unit's file is what was written: one that was cut short or changed is made again."""
    try:
        about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        return bool(about["sha256"] == sha256(path.read_bytes()).hexdigest())
    except (OSError, ValueError, LookupError, TypeError):
        return False


def recipe() -> dict[str, str]:
    """What the geometries depend on beside the code: versions, and the number of the plan."""
    return {"plan": PLAN} | {name: metadata.version(name) for name in ("tblite", "rdkit", "numpy", "ase")}


def prepare(work: Path) -> None:
    """Make the folders, or refuse units that were made by another recipe: a data set is made by one."""
    path, ours = work / "recipe.json", recipe()
    try:
        for folder in ("units", "minima"):
            (work / folder).mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write(path, json.dumps(ours) + "\n")
    except OSError as error:
        raise InputError(f"--work: {work} cannot be a folder to work in ({error}). Give another.") from error
    if (theirs := read_json(path, CONFIG_LIMIT)) != ours:
        raise InputError(f"--work: {work} was begun with {theirs}; here are {ours}. Give an empty folder.")


def leave_with_parent() -> None:
    """End this process when the one that started it ends, killed or not."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def run(todo: list[Unit], work: Path, processes: int) -> None:
    """Make all units in ``work``."""
    prepare(work)
    # One thread each, set before tblite is loaded: threads would add up in another order each time.
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    started = time.perf_counter()
    mixed = sorted(todo, key=lambda unit: fraction(f"order of {unit.name}"))  # so that progress tells how long it takes
    with multiprocessing.get_context("spawn").Pool(processes, initializer=leave_with_parent) as pool:
        for done, name in enumerate(pool.imap_unordered(partial(run_unit, work=work), mixed), 1):
            if done % 50 == 0 or done == len(todo):
                print(f"{done}/{len(todo)} units, {time.perf_counter() - started:.0f} s, {name}", flush=True)


def collect(todo: list[Unit], work: Path) -> dict[str, list[str]]:
    """The frames of each file of the data set as texts, in the order of the units, no frame twice."""
    found: dict[str, list[str]] = {name: [] for name in FILES}
    seen = Seen()
    for unit in todo:
        text = (work / "units" / f"{unit.name}.xyz").read_text(encoding="utf-8")
        read = ase.io.iread(StringIO(text), index=":", format="extxyz") if text else []
        for block, atoms in zip(blocks(text), read, strict=True):
            if seen.add(atoms.numbers, atoms.positions):
                found[unit.file].append(block)
    return found


def blocks(text: str) -> list[str]:
    """The texts of the frames of an extended XYZ file."""
    lines = text.splitlines(keepends=True)
    found, start = [], 0
    while start < len(lines):
        end = start + int(lines[start]) + 2
        found.append("".join(lines[start:end]))
        start = end
    return found


def main(arguments: list[str] | None = None) -> None:
    """Make what is missing in the working folder, then the files of the data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", required=True, help="folder for the units and the data set")
    parser.add_argument("--processes", type=int, default=2, help="number of units that are made at once, default 2")
    parser.add_argument("--sample", action="store_true", help=f"make only the units of {SAMPLE}, and that file")
    args = parser.parse_args(arguments)
    if args.processes < 1:
        raise InputError(f"--processes is {args.processes}; expected at least 1.")
    if not args.work.strip():
        raise InputError(f"--work is {args.work!r}; name a folder, or . for this one.")
    args.work = Path(args.work)
    todo = sample() if args.sample else units()
    print(*(f"{key}: {count} units" for key, count in composition(todo).items()), sep="\n", flush=True)
    run(todo, args.work, args.processes)
    texts = collect(todo, args.work)
    if args.sample:
        # The time in the header would make each file another one.
        with gzip.GzipFile(args.work / SAMPLE, "wb", mtime=0) as file:
            file.write("".join(text for name in FILES for text in texts[name]).encode())
    else:
        for name in FILES:
            first = [as_text(isolated_atoms())] if name == "train" else []
            write(args.work / f"{name}.xyz", "".join([*first, *texts[name]]))
    about: dict[str, Any] = contents.of(texts, todo, args.work)
    write(args.work / "summary.json", json.dumps(about, indent=1) + "\n")
    print(contents.table(about))


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
