"""The options of phi-mace-train: mace's own, a few more, and the ``phi:`` section."""

import argparse
import dataclasses
import difflib
import re
import shlex
import sys
from pathlib import Path

import yaml

from phi_equivariant.errors import InputError
from training import mace_interface
from training.data import embeddings, heads, named_files
from training.options import checks, configuration_file, named_models, phi_section
from training.options.table import HONOURED
from zoo.architectures import ARCHITECTURES

#: Options that name other places than the run's folder for some of its files.
FOLDERS = ("log_dir", "model_dir", "checkpoints_dir", "results_dir", "downloads_dir")


@dataclasses.dataclass
class RunOptions:
    """Everything that defines a run.

    args : options of mace and ours by mace's names; phi : PhiSettings, or None for the bare host;
    given : names that the user gave another value than the default, on the command line or in the file; said : names
    that the user gave any value; command : how to call it again.
    """

    args: argparse.Namespace
    phi: phi_section.PhiSettings | None
    given: set
    said: set
    command: str

    def resolved(self):
        """Every option with its final value, as it could stand in a YAML file."""
        plain = {key: value for key, value in vars(self.args).items() if value is not None and key in HONOURED}
        plain.pop("config", None)
        # In mace this is a switch that turns something off: true in a file means that the switch was given.
        if not plain.pop("foundation_model_readout", True):
            plain["foundation_model_readout"] = True
        for name in ("num_channels", "max_L"):  # which hidden_irreps tell, and more exactly
            plain.pop(name, None)
        for key, value in plain.items():
            if not isinstance(value, bool | int | float | str | list | dict):
                plain[key] = str(value)
        return {**plain, "phi": None if self.phi is None else self.phi.to_dict()}


class _Parser:
    """mace's parser with our options; its complaints are InputErrors."""

    def __init__(self):
        parser = mace_interface.argument_parser()
        names = mace_interface.option_names(parser)
        self.mace_names = set(names)
        self.mace_default = {action.dest: action.default for action in parser._actions}.get
        for action in parser._actions:
            if action.dest == "name":
                action.required = False
            if action.dest == "model":
                action.choices = [*action.choices, *named_models.NAMES]
        add = parser.add_argument
        add("--dataset", help="a data set from the registry; its preset are the defaults of all other options")
        add("--data_dir", help="folder that holds the data set's files: nothing is downloaded")
        add("--phi", nargs="+", default=None, metavar="KEY=VALUE", help="settings of Φ, e.g. --phi operator=coulomb")
        add(
            "--trust_pickle",
            action="store_true",
            default=False,
            help="allow --foundation_model to read a .model file: a pickle, which can run any code",
        )
        add("--no_phi", action="store_true", default=False, help="train the bare host")
        add(
            "--tensorboard",
            action="store_true",
            default=False,
            help="write the metrics for TensorBoard, to tensorboard/ in the run's folder",
        )
        add("--charges_weight", type=float, default=0.0, help="weight of the charge loss, mean over atoms, 1/e²")
        add("--warmup_epochs", type=float, default=0.0, help="epochs of linear warm-up (--scheduler CosineAnnealingLR)")
        add("--final_lr_factor", type=float, default=0.01, help="last learning rate over the first (CosineAnnealingLR)")
        add(
            "--compare", action="store_true", default=False, help="train plain MACE, Φ learned and Φ exact, and compare"
        )
        add("--compare_pde_weight", type=float, default=100.0, help="λ_pde of the row Φ learned of --compare")
        add(
            "--time_limit",
            type=float,
            default=None,
            help="minutes: no epoch starts that would not end and be tested in time",
        )
        # In mace the weight of dipoles acts only with its dipole losses; here on any, so that it must be asked for.
        parser.set_defaults(dipole_weight=0.0, swa_dipole_weight=None)  # None: as in stage one
        # Replay is not done here: a resolved configuration must not ask for it.
        parser.set_defaults(multiheads_finetuning=False)
        parser.error = self._refuse
        self.parser = parser

    @staticmethod
    def _refuse(message):
        raise InputError(f"command line or configuration file: {message}.")

    def parse(self, words, file_text, lines=None):
        """Namespace of all options; unknown ones are refused with the nearest name, and the line if from a file."""
        lines = lines or {}
        try:
            args, unknown = self.parser.parse_known_args(words, config_file_contents=file_text)
        except InputError as error:
            places = {key: place for key, place in lines.items() if re.search(rf"\b{re.escape(key)}\b", str(error))}
            if len(places) != 1 or any(word.startswith(f"--{key}") for word in words for key in places):
                raise
            (place,) = places.values()
            raise InputError(f"{str(error).removesuffix('.')}{place}.") from None
        if unknown:
            word = unknown[0].split("=")[0]
            known = [name for names in mace_interface.option_names(self.parser).values() for name in names]
            near = difflib.get_close_matches(word, known, n=3)
            hint = f" Did you mean {', '.join(near)}?" if near else " See phi-mace-train --help."
            place = "" if word in words else lines.get(word.removeprefix("--"), "")
            raise InputError(f"{word}{place}: phi-mace-train has no such option.{hint}")
        return args

    def given(self, words, file_text):
        """Names of the options that the user gave another value than the default, and of all that the user gave.

        A resolved configuration gives every option: most of those at their defaults say nothing.
        """
        saved = {action.dest: action.default for action in self.parser._actions}
        preset, self.parser._defaults = self.parser._defaults, {}
        try:
            for action in self.parser._actions:
                action.default = argparse.SUPPRESS
            found = self.parser.parse_known_args(words, config_file_contents=file_text)[0]
        finally:
            for action in self.parser._actions:
                action.default = saved[action.dest]
            self.parser._defaults = preset
        return {name for name, value in vars(found).items() if value != saved.get(name)}, set(vars(found))


def option_parser():
    """mace's parser with our options added."""
    return _Parser().parser


def parse(words=None):
    """Options from the command line (``sys.argv`` by default).

    The command line wins over the file, the file over the preset of the data set, the preset over mace's defaults.

    Raises
    ------
    InputError
        For anything that cannot be understood or would be ignored.
    """
    words = list(sys.argv[1:] if words is None else words)
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", action="append", default=[])
    first.add_argument("--dataset")
    first.add_argument("--compare", action="store_true")
    first.add_argument("--no_phi", action="store_true")
    early, _ = first.parse_known_args(words)
    if len(early.config) > 1:
        raise InputError(f"--config: {len(early.config)} files were given, and only one is read. Join them.")
    early.config = early.config[0] if early.config else None
    content, section, has_section, lines, section_lines = (
        configuration_file.read_configuration(early.config) if early.config else ({}, None, False, {}, {})
    )
    rest = _without_config(words)
    file_text = yaml.safe_dump(content) if content else None

    parser = _Parser()
    name = early.dataset or content.get("dataset")
    preset = dict(named_files.preset(name)) if name else {}
    preset_section = preset.pop("phi", None)
    unknown = set(preset) - set(vars(parser.parser.parse_known_args([], config_file_contents="{}")[0]))
    if unknown:
        raise RuntimeError(f"the preset of {name} has unknown options: {sorted(unknown)}")
    parser.parser.set_defaults(**preset)
    args = parser.parse(rest, file_text, lines)
    if args.config is not None or args.dataset != name:
        raise InputError("--config and --dataset cannot be abbreviated: write them in full.")
    args.config = early.config
    given, said = parser.given(rest, file_text)
    if content.get("amsgrad") is False and "--amsgrad" not in rest:
        args.amsgrad = False  # mace's parser leaves it on

    phi = _settings_of_phi(args, early.no_phi, (section, has_section, section_lines), preset_section)
    if phi is None and not args.compare:
        for weight in ("charges_weight", "dipole_weight"):
            if weight not in given:
                setattr(args, weight, 0.0)
    if args.swa_dipole_weight is None:
        args.swa_dipole_weight = args.dipole_weight
    checks.refuse_unhonoured(args, parser.parser, given)
    if named_models.is_named(args):
        settings = named_models.take_settings(args, given, said, parser.mace_default)
    checks.check(args, phi)
    if args.embedding_specs is not None:
        embeddings.check_specs(args.embedding_specs)
    checks.settle_width(args)
    if named_models.is_named(args):
        named_models.put_settings(args, settings)
    heads.read_heads(args)
    for folder in FOLDERS:  # mace fills in its own
        if folder not in given:
            setattr(args, folder, None)
    if args.name is None:
        args.name = _derived_name(args, phi)
    command = shlex.join(["phi-mace-train", *(word for word in words if word != "--restart_latest")])
    return RunOptions(args, phi, given, said, command)


def _settings_of_phi(args, no_phi_in_words, from_file, preset_section):
    """PhiSettings of a run, or None for the bare host; ``from_file``: section, whether there is one, its lines."""
    section, has_section, lines = from_file
    named = named_models.is_named(args)
    if args.no_phi and (args.phi or (section is not None and not no_phi_in_words)):
        raise InputError("--no_phi trains the bare host, --phi and a phi: section set Φ: give one of them.")
    if args.compare and (args.phi or section is not None):
        raise InputError("--compare chooses the settings of Φ for its rows itself: leave --phi and phi: out.")
    if args.no_phi or (has_section and section is None) or not (args.dataset or has_section or args.phi or named):
        return None
    merged = phi_section.check_mapping(section) if has_section else dict(preset_section or {})
    if named:
        merged = {**ARCHITECTURES[args.model].phi, **merged}
    merged.update(phi_section.from_command_line(args.phi or []))
    return phi_section.validate(merged, lines, args.foundation_model is not None)


def _without_config(words):
    """The words but for --config, whose file we read ourselves."""
    rest, skip = [], False
    for word in words:
        if skip:
            skip = False
        elif word == "--config":
            skip = True
        elif not word.startswith("--config="):
            rest.append(word)
    return rest


def _derived_name(args, phi):
    stem = args.dataset or Path(heads.read_heads(args)[0].train_files[0]).stem
    return f"{stem}_{'compare' if args.compare else 'mace' if phi is None else 'phi'}"
