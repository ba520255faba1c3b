"""From the words of phi-mace-train to a run.

Nothing heavy is imported before the words and the file are known to be options: help and misspellings answer at once.
"""

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from phi_equivariant.errors import InputError
from training.data import named
from training.data.literals import literal
from training.options import configuration_file
from training.options.configuration_file import Configuration
from training.options.parser import PROGRAM, Parser, StrictParser
from training.options.refused import REFUSED, idle_options
from training.quantities import OF_PHI
from training.run import Phi, Run, replay


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """What the user gave, merged: the command line wins over the file, that over the preset, that over mace.

    values : {option: value}; given, said : as of :class:`training.run.Run`; file : the configuration; preset_section :
    ``phi:`` section of the data set's preset, or None; no_phi : whether the words themselves say so.
    """

    values: dict[str, Any]
    given: frozenset[str]
    said: frozenset[str]
    file: Configuration
    preset_section: dict[str, Any] | None
    no_phi: bool


def parse(words: Sequence[str] | None = None) -> Run:
    """The run that the command line asks for (``sys.argv`` by default).

    InputError for anything that cannot be understood or would be ignored.
    """
    words = list(sys.argv[1:] if words is None else words)
    asked = read(words)
    return _run(asked, shlex.join([PROGRAM, *(word for word in words if word != "--restart_latest")]))


def read(words: Sequence[str]) -> Asked:
    """Words, configuration file and preset, merged into options of the right types.

    InputError for an unknown option, a value of the wrong type, a file that cannot be read, or an option that is
    refused.
    """
    early, rest = _early(words)
    file = configuration_file.read_configuration(early.config) if early.config else Configuration()
    file_text = yaml.safe_dump(file.options, sort_keys=False) if file.options else None
    parser = Parser()
    name = early.dataset or file.options.get("dataset")
    preset = named.preset(name) if name else {}
    preset_section = preset.pop("phi", None)
    if unknown := set(preset) - set(parser.actions):
        raise RuntimeError(f"the preset of {name} has unknown options: {sorted(unknown)}")
    parser.set_defaults(preset)
    values = parser.parse(rest, file_text, file.lines)
    if values["config"] is not None or values["dataset"] != name:
        raise InputError("--config and --dataset cannot be abbreviated: write them in full.")
    values["config"] = early.config
    given, said = parser.given(rest, file_text)
    if file.options.get("amsgrad") is False and "--amsgrad" not in rest:
        values["amsgrad"] = False  # mace's parser leaves it on
    for option in sorted(given & set(REFUSED)):
        if option != "pseudolabel_replay" or replay.is_active(values):
            raise InputError(f"--{option}: {REFUSED[option]}. Leave it out (got {values[option]!r}).")
    return Asked(values, given, said, file, preset_section, "--no_phi" in rest)


def _early(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """What decides about all other options, and the words without --config, whose file we read ourselves."""
    parser = StrictParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", action="append", default=[])
    parser.add_argument("--dataset")
    found, rest = parser.parse_known_args(words)
    if len(found.config) > 1:
        raise InputError(f"--config: {len(found.config)} files were given, and only one is read. Join them.")
    found.config = found.config[0] if found.config else None
    return found, [*rest, *(["--dataset", found.dataset] if found.dataset is not None else [])]


def _run(asked: Asked, command: str) -> Run:
    """The run, with the options that depend on each other settled."""
    from training import mace_interface  # with torch and mace, which take seconds
    from training.data.heads import read_heads
    from training.options import named_models

    values = dict(asked.values)
    named_models.check_name(values["model"])
    phi = _phi(asked)
    if phi is None and not values["compare"]:  # of a preset
        for weight in (f"{name}_weight" for name in OF_PHI):
            if weight not in asked.given:
                values[weight] = 0.0
    for weight in ("dipole_weight", "polarizability_weight"):
        if values[f"swa_{weight}"] is None:
            values[f"swa_{weight}"] = values[weight]
    if values["name"] is None:
        values["name"] = "unnamed"
    is_named = named_models.is_named(values["model"])
    if is_named:
        values |= named_models.settings(values, asked.given, asked.said)
    values["embedding_specs"] = literal(values["embedding_specs"], "--embedding_specs", "a dictionary as mace's")
    settled, notes = replay.settled(values, asked.given)
    values |= settled
    values |= mace_interface.settled(values, with_width=not is_named)
    run = Run.of(values, phi=phi, given=asked.given, said=asked.said, command=command)
    heads = tuple(read_heads(run.data, run.host, run.replay))
    run = dataclasses.replace(run, heads=heads)
    if asked.values["name"] is None:
        stem = run.data.dataset or Path(heads[0].train_files[0]).stem
        kind = "compare" if run.task.compare else "mace" if phi is None else "phi"
        run = run.changed(name=f"{stem}_{kind}")
    return dataclasses.replace(run, notes=(*notes, *_without_phi(asked, run), *idle_options(run)))


def _without_phi(asked: Asked, run: Run) -> list[str]:
    """A line for the log where Φ is off and nobody said that it should be."""
    if run.phi is not None or run.task.compare or run.task.no_phi or asked.file.has_section:
        return []
    return [
        "Φ is off: the bare host is trained, as mace_run_train does. --phi operator=coulomb (or a phi: section in the "
        "configuration) switches Φ on, --no_phi takes this line away"
    ]


def _phi(asked: Asked) -> Phi | None:
    """The ``phi:`` section of a run, or None for the bare host."""
    from training.options import named_models, phi_section

    values, section = asked.values, asked.file.section
    if values["no_phi"] and (values["phi"] or (section is not None and not asked.no_phi)):
        raise InputError("--no_phi trains the bare host, --phi and a phi: section set Φ: give one of them.")
    if values["compare"] and values["no_phi"]:
        raise InputError(
            "--compare trains the bare host and two kinds of Φ: leave --no_phi out; or leave --compare out, and the "
            "bare host alone is trained."
        )
    if values["compare"] and (values["phi"] or section is not None):
        raise InputError("--compare chooses the settings of Φ for its rows itself: leave --phi and phi: out.")
    has_section = asked.file.has_section
    trained = {} if values["compare"] else phi_section.of_trained_model(values["foundation_model"])
    wanted = values["dataset"] or has_section or values["phi"] or named_models.is_named(values["model"]) or trained
    if values["no_phi"] or (has_section and section is None) or not wanted:
        return None
    merged = phi_section.check_mapping(section) if has_section else dict(asked.preset_section or {})
    merged.update(phi_section.from_command_line(values["phi"] or []))
    if merged.get("fresh"):  # nothing of the trained model's Φ goes on, neither weights nor settings
        trained = {}
    merged = {**named_models.settings_of_phi(values["model"]), **trained, **merged}
    return phi_section.validate(merged, asked.file.section_lines, values["foundation_model"] is not None)
