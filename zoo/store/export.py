"""From a finished training run to a folder that others can load."""

import datetime
import json
import os
import shlex
import shutil
import tempfile
import time
from pathlib import Path

import ase.io
import numpy as np
import torch
import yaml
from ase.data import chemical_symbols

from phi_equivariant import PhiCalculator
from phi_equivariant.errors import InputError
from phi_equivariant.weights import CONFIG_FILE, load_model, save_model
from zoo.store import card, reference
from zoo.store.pretrained import load_folder
from zoo.store.registry import CARD_FILE, REFERENCE_FILE, check_name

RUN_FILES = ("config.yaml", "data.json", "errors.json")


def export(run, folder, structure=None, bare=(), more=(), **stated):
    """Make a folder that can be shared from a finished run: parameters, configuration, card, reference.

    The folder is there whole or not at all, and only if the model that is built from it is the trained one.

    Parameters
    ----------
    run: folder of a run of phi-mace-train
    folder: folder to make, named as the model: ``phi-<host>-<size>.<data>``
    structure: file whose first structure becomes the reference; a cluster of all elements where None
    bare: folders of runs of the bare host on the same data, whose errors go into the card
    more: folders of further runs of this model (other seeds), likewise
    stated: sections of the card that the run does not know: description, licence, level_of_theory, not_for, and
        charge_states

    Returns
    -------
    Path of the folder

    Raises
    ------
    InputError
        If the run is not complete, the folder exists, the name is not allowed or the model cannot be built again.
    """
    run, folder = Path(run), Path(folder)
    check_name(folder.name)
    if folder.exists():
        raise InputError(f"{folder} exists already; nothing in it was touched. Choose another name or delete it.")
    runs = {Path(path): _read_run(Path(path)) for path in (run, *more, *bare)}
    for path in bare:
        if runs[Path(path)]["config"].get("phi"):
            raise InputError(f"bare: {path} was trained with Φ; give runs of the bare host (--no_phi).")
    model = load_model(run)
    notes = runs[run]["built"]["notes"]
    _check_together(folder.name, run, [Path(path) for path in more], runs)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        temporary.chmod(0o755)
        save_model(model, temporary, notes=notes, parameters_only=True)
        numbers = [int(z) for z in model.atomic_numbers]
        atoms = reference.cluster_of(numbers) if structure is None else _first_structure(structure)
        model = model.double()
        kept = reference.compute(model, atoms)
        (temporary / REFERENCE_FILE).write_text(json.dumps(kept, indent=1) + "\n")
        content = {
            "name": folder.name,
            "elements": [chemical_symbols[z] for z in numbers],
            "speed": {**_speed(model, atoms), **runs[run]["speed"]},
            "errors": _errors(runs.values()),
            **_from_run(runs[run], json.loads((temporary / CONFIG_FILE).read_text())["versions"]),
        }
        content |= {name: value for name, value in stated.items() if value is not None}
        (temporary / CARD_FILE).write_text(card.text_of({name: content.get(name) for name in card.SECTIONS}))
        load_folder(temporary)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _read_run(run):
    """What a run says of itself."""
    missing = [name for name in RUN_FILES if not (run / name).is_file()]
    if missing:
        raise InputError(f"{run} is no finished run of phi-mace-train: it has no {', '.join(missing)}.")
    try:
        config, data, errors = (yaml.safe_load((run / name).read_text()) for name in RUN_FILES)  # JSON is YAML
        metrics = json.loads((run / "metrics.json").read_text()) if (run / "metrics.json").is_file() else []
        seconds = sorted(row["seconds"] for row in metrics if "seconds" in row)
        built = json.loads((run / CONFIG_FILE).read_text()) if (run / CONFIG_FILE).is_file() else None
        if not all(isinstance(part, dict) for part in (config, data, errors)) or "sets" not in errors:
            raise ValueError(f"{', '.join(RUN_FILES)} do not hold what a run writes")
    except (yaml.YAMLError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{run} is no finished run of phi-mace-train: its files are damaged ({type(error).__name__})."
        ) from error
    log = (run / "log.txt").read_text().splitlines() if (run / "log.txt").is_file() else []
    return {
        "config": config,
        "data": data,
        "errors": errors,
        "built": built,
        "command": _without_folders(next((line.split("command: ", 1)[1] for line in log if "command: " in line), "")),
        "speed": {"training": f"{seconds[len(seconds) // 2]:.1f} s per epoch"} if seconds else {},
    }


def _from_run(run, versions):
    """Sections of the card that a run knows."""
    data, config = run["data"], run["config"]
    return {
        "description": data.get("description"),
        "data": {key: _short(data[key]) for key in ("dataset", "train_file", "valid_file", "test_file", "source",
                 "citation", "licence", "split", "files", "sha256") if key in data},
        "level_of_theory": data.get("level_of_theory"),
        "units": {"energy": "eV", "length": "Å", "charge": "e"},
        "training": {
            "command": run["command"],
            "configuration": {key: _file_name(value) for key, value in config.items() if not key.endswith("_dir")},
            "epochs": run["errors"].get("epochs"),
            "best_epoch": run["errors"].get("best_epoch"),
            "parameters": run["errors"].get("parameters"),
        },
        "versions": {**versions, "exported": datetime.date.today().isoformat()},
    }  # fmt: skip


def _check_together(name, run, more, runs):
    """InputError unless the name tells the host, and runs are of one data set, and ``more`` of one model with it."""
    kind = runs[run]["built"]["host"]["type"]
    if name.split("-")[1] != kind:
        raise InputError(f"{name} names the host {name.split('-')[1]!r}, but that of {run} is {kind!r}: phi-{kind}-….")
    for path, other in runs.items():
        for key in ("dataset", "train_file", "test_file"):
            if _file_name(other["data"].get(key)) != _file_name(runs[run]["data"].get(key)):
                raise InputError(
                    f"{path} has {key} {other['data'].get(key)!r}, {run} has {runs[run]['data'].get(key)!r}; errors on "
                    "different data cannot stand side by side."
                )
    for path in more:
        if runs[path]["built"] is None or _architecture(runs[path]["built"]) != _architecture(runs[run]["built"]):
            raise InputError(f"more: {path} is not another run of the model of {run}; its host or Φ is another.")


def _architecture(built):
    """A configuration without what follows from the data."""
    fitted = ("atomic_energies", "avg_num_neighbors", "atomic_inter_scale", "atomic_inter_shift")
    arguments = {key: value for key, value in built["host"]["arguments"].items() if key not in fitted}
    return built["host"]["type"], arguments, built["phi"]


def _file_name(value):
    """Without folders, which say something of the author's machine and nothing of the model: a path, or all paths in a
    list or dictionary."""
    if isinstance(value, dict):
        return {key: _file_name(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_file_name(item) for item in value]
    outside = isinstance(value, str) and (os.path.isabs(value) or value.startswith(("~", f"..{os.sep}")))
    return Path(value).name if outside else value


def _without_folders(command):
    """A command line whose paths have no folders, be they words of their own or behind ``--option=``."""
    words = (word.partition("=") if word.startswith("--") else ("", "", word) for word in shlex.split(command))
    return shlex.join(f"{option}{sign}{_file_name(value)}" for option, sign, value in words)


def _short(value):
    """Without folders, and without the long lists (of frames) that a run's provenance holds."""
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    return f"{len(value)} of them" if isinstance(value, list) and len(value) > 20 else _file_name(value)


def _errors(runs):
    """Test errors of every run, with its seed; of the validation set where there is no test set."""
    rows = []
    for run in runs:
        sets = run["errors"]["sets"]
        split = "test" if "test" in sets else "valid"
        found = {name: error for name, error in sets[split]["errors"].items() if error}
        rows.append(
            {
                "model": "phi" if run["config"].get("phi") else "bare host",
                "seed": run["config"].get("seed"),
                "set": f"{split}, {sets[split]['structures']} structures",
                **{k: f"MAE {e['mae']:.4g}, RMSE {e['rmse']:.4g} {e['unit']}" for k, e in found.items()},
            }
        )
    return rows


def _speed(model, atoms):
    """Processor time of an energy and its forces, once the first calls are over; other work on the machine counts
    little in it."""
    atoms = atoms.copy()
    atoms.calc = PhiCalculator(model)
    times = []
    for _ in range(6):
        atoms.rattle(1e-3, rng=np.random.default_rng(0))
        begin = time.process_time()
        atoms.get_forces()
        times.append(time.process_time() - begin)
    milliseconds = 1e3 * sorted(times[3:])[1]
    what = f"{len(atoms)} atoms, float64, {torch.get_num_threads()} thread(s)"
    return {"evaluation": f"{milliseconds:.0f} ms of processor time for {what}"}


def _first_structure(path):
    try:
        atoms = ase.io.read(path, 0)
    except Exception as error:  # ase reports unreadable files by many types
        raise InputError(f"structure: {path} cannot be read ({type(error).__name__}: {error}).") from error
    charge = {key: atoms.info[key] for key in ("total_charge", "charge") if key in atoms.info}
    atoms = ase.Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc, info=charge)
    if len(atoms) > reference.MOST_ATOMS:
        raise InputError(f"structure: {path} has {len(atoms)} atoms; at most {reference.MOST_ATOMS} are kept.")
    return atoms
