"""From a finished training run to a folder that others can load."""

import dataclasses
import datetime
import json
import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ase
import numpy as np
import torch
import yaml
from ase.data import chemical_symbols

from phi_equivariant import PhiCalculator
from phi_equivariant.errors import InputError
from phi_equivariant.files import CONFIG_FILE
from phi_equivariant.inputs.frames import first_structure
from phi_equivariant.weights import load_model, save_model
from zoo.store import card, reference
from zoo.store.pretrained import load_folder
from zoo.store.registry import CARD_FILE, REFERENCE_FILE, check_name

RUN_FILES, MORE = ("config.yaml", "data.json", "errors.json"), (CONFIG_FILE, "metrics.json")


def export(
    run: str | Path,
    folder: str | Path,
    structure: str | Path | None = None,
    bare: Sequence[str | Path] = (),
    more: Sequence[str | Path] = (),
    **stated: Any,
) -> Path:
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
    folder = Path(folder)
    check_name(folder.name)
    if folder.exists():
        raise InputError(f"{folder} exists already; nothing in it was touched. Choose another name or delete it.")
    told = TrainedRun.read(run)
    others, bares = [TrainedRun.read(path) for path in more], [TrainedRun.read(path) for path in bare]
    _check_together(folder.name, told, others, bares)
    model = load_model(run)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        temporary.chmod(0o755)
        save_model(model, temporary, notes=told.built["notes"], parameters_only=True)
        atomic_numbers: Any = model.atomic_numbers
        numbers: list[int] = atomic_numbers.tolist()
        atoms = reference.cluster_of(numbers) if structure is None else _first_structure(structure)
        kept = reference.compute(model.double(), atoms)
        (temporary / REFERENCE_FILE).write_text(json.dumps(kept, indent=1) + "\n")
        content = {
            "name": folder.name,
            "elements": [chemical_symbols[z] for z in numbers],
            "speed": {"evaluation": _speed(model, atoms), **told.speed},
            "errors": [row for one in (told, *others, *bares) for row in one.errors_rows()],
            **told.sections(),
            **{name: value for name, value in stated.items() if value is not None},
        }
        (temporary / CARD_FILE).write_text(card.text_of({name: content.get(name) for name in card.SECTIONS}))
        load_folder(temporary)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """What a finished run of phi-mace-train says of itself: the contents of its files, of the model's configuration
    (empty in runs that are only compared with), its command and seconds per epoch."""

    path: Path
    config: dict[str, Any]
    data: dict[str, Any]
    errors: dict[str, Any]
    built: dict[str, Any]
    command: str
    speed: dict[str, str]

    @classmethod
    def read(cls, path: str | Path) -> "TrainedRun":
        """From its folder; InputError if it has no such files, or damaged ones."""
        path = Path(path)
        if missing := [name for name in RUN_FILES if not (path / name).is_file()]:
            raise InputError(f"{path} is not a finished run of phi-mace-train: it has no {', '.join(missing)}.")
        try:
            read = {name: _read(path / name) if (path / name).is_file() else {} for name in RUN_FILES + MORE}
            config, data, errors, built, metrics = read.values()
            seconds = sorted(row["seconds"] for row in metrics if "seconds" in row)
            if not all(isinstance(part, dict) for part in (config, data, errors)) or "sets" not in errors:
                raise ValueError(f"{', '.join(RUN_FILES)} do not hold what a run writes")
        except (yaml.YAMLError, ValueError, TypeError, KeyError) as error:
            raise InputError(
                f"{path} is not a finished run of phi-mace-train: its files are damaged ({type(error).__name__})."
            ) from error
        log = (path / "log.txt").read_text().splitlines() if (path / "log.txt").is_file() else []
        command = next((line.split("command: ", 1)[1] for line in log if "command: " in line), "")
        speed = {"training": f"{seconds[len(seconds) // 2]:.1f} s per epoch"} if seconds else {}
        return cls(path, config, data, errors, built, _without_folders(command), speed)

    def sections(self) -> dict[str, Any]:
        """Sections of the card that the run knows."""
        known = ("dataset", "train_file", "valid_file", "test_file", "source", "citation", "licence", "split", "files")
        config = {key: _public(value) for key, value in self.config.items() if not key.endswith("_dir")}
        told = {key: self.errors.get(key) for key in ("epochs", "best_epoch", "parameters")}
        return {
            "charge_states": self.data.get("total_charges"),
            "description": self.data.get("description"),
            "data": {key: _public(self.data[key], longest=20) for key in (*known, "sha256") if key in self.data},
            "level_of_theory": self.data.get("level_of_theory"),
            "units": {"energy": "eV", "length": "Å", "charge": "e"},
            "training": {"command": self.command, "configuration": config, **told},
            "versions": {**self.built["versions"], "exported": datetime.date.today().isoformat()},
        }

    def errors_rows(self) -> list[dict[str, Any]]:
        """Errors on every test set with the seed, the main one first; of the validation set where there is none."""
        sets = self.errors["sets"]  # the main one is the last
        tested = [name for name in sets if name.startswith("test")] or [n for n in sets if n.startswith("valid")]
        return [
            {
                "model": "phi" if self.config.get("phi") else "bare host",
                "seed": self.config.get("seed"),
                "set": f"{name}, {sets[name]['structures']} structures",
                **{
                    quantity: f"MAE {of['mae']:.4g}, RMSE {of['rmse']:.4g} {of['unit']}"
                    for quantity, of in sets[name]["errors"].items()
                    if of
                },
            }
            for name in reversed(tested)
        ]

    def architecture(self) -> tuple[Any, ...]:
        """The host and Φ without what follows from the data."""
        fitted = ("atomic_energies", "avg_num_neighbors", "atomic_inter_scale", "atomic_inter_shift")
        host = self.built.get("host", {"type": None, "arguments": {}})
        phi = self.built.get("phi")
        settings = phi and {**phi, "config": {k: v for k, v in phi["config"].items() if k != "electronegativity"}}
        return host["type"], {k: v for k, v in host["arguments"].items() if k not in fitted}, settings


def _read(path: Path) -> Any:
    text = path.read_text(encoding="utf-8")
    return yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)


def _check_together(name: str, run: TrainedRun, more: Sequence[TrainedRun], bare: Sequence[TrainedRun]) -> None:
    """InputError unless the name tells the host, runs are of one data set, ``more`` are of the same model, and ``bare``
    are without Φ."""
    kind = run.architecture()[0]
    if name.split("-")[1] != kind:
        raise InputError(
            f"{name} names the host {name.split('-')[1]!r}, but that of {run.path} is {kind!r}: phi-{kind}-…."
        )
    for other in (*more, *bare):
        if other in bare and other.config.get("phi"):
            raise InputError(f"bare: {other.path} was trained with Φ; give runs of the bare host (--no_phi).")
        for key in ("dataset", "train_file", "test_file"):
            if _public(other.data.get(key)) != _public(run.data.get(key)):
                raise InputError(
                    f"{other.path} has {key} {other.data.get(key)!r}, {run.path} has {run.data.get(key)!r}; errors on "
                    "different data cannot be compared."
                )
        if other in more and other.architecture() != run.architecture():
            raise InputError(
                f"more: {other.path} is not another run of the model of {run.path}; its host or Φ is another."
            )


def _public(value: Any, longest: int | None = None) -> Any:
    """Without folders, which say something of the author's machine and nothing of the model: a path, or all paths in a
    list or dictionary; and without longer lists, of frames."""
    if isinstance(value, dict):
        return {key: _public(item, longest) for key, item in value.items()}
    if isinstance(value, list):
        return f"{len(value)} of them" if longest and len(value) > longest else [_public(item) for item in value]
    outside = isinstance(value, str) and (os.path.isabs(value) or value.startswith(("~", f"..{os.sep}")))
    return Path(value).name if outside else value


def _without_folders(command: str) -> str:
    """A command line whose paths have no folders, be they words of their own or behind ``--option=``."""
    words = (word.partition("=") if word.startswith("--") else ("", "", word) for word in shlex.split(command))
    return shlex.join(f"{option}{sign}{_public(value)}" for option, sign, value in words)


def _speed(model: torch.nn.Module, atoms: ase.Atoms) -> str:
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
    what = f"{len(atoms)} atoms, float64, {torch.get_num_threads()} thread(s)"
    return f"{1e3 * sorted(times[3:])[1]:.0f} ms of processor time for {what}"


def _first_structure(path: str | Path) -> ase.Atoms:
    try:
        atoms = first_structure(path)
    except InputError as error:
        raise InputError(f"structure: {path} cannot be read: {error}") from error
    charge = {key: atoms.info[key] for key in ("total_charge", "charge") if key in atoms.info}
    atoms = ase.Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc, info=charge)
    if len(atoms) > reference.MOST_ATOMS:
        raise InputError(f"structure: {path} has {len(atoms)} atoms; at most {reference.MOST_ATOMS} are kept.")
    return atoms
