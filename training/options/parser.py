"""The parser of phi-mace-train: mace's own, read without importing mace, our options, and the help."""

import argparse
import importlib.metadata
import importlib.util
import re
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from phi_equivariant.errors import InputError, did_you_mean
from training import run
from training.quantities import LABELS, OF_PHI

PROGRAM = "phi-mace-train"
EXAMPLE = """example:
  phi-mace-train --train_file water.xyz --energy_key energy --forces_key forces --E0s average \\
      --model ScaleShiftMACE --hidden_irreps 32x0e+32x1o --phi operator=coulomb --name water

Every option may stand in a file too (--config run.yaml). All of them: docs/options.md.
"""


def mace_parser() -> argparse.ArgumentParser:
    """mace's parser from the file that defines it: importing mace's package takes seconds, for torch."""
    spec = importlib.util.find_spec("mace")
    if spec is None or not spec.submodule_search_locations:
        raise InputError("the package mace is not installed: pip install mace-torch.")
    folder = Path(spec.submodule_search_locations[0]) / "tools"
    # The module imports its neighbour default_keys: a package of another name stands for mace.tools.
    package = types.ModuleType("_mace_tools")
    package.__path__ = [str(folder)]
    sys.modules[package.__name__] = package
    inner = importlib.util.spec_from_file_location(f"{package.__name__}.arg_parser", folder / "arg_parser.py")
    assert inner is not None and inner.loader is not None
    module = importlib.util.module_from_spec(inner)
    inner.loader.exec_module(module)
    parser: argparse.ArgumentParser = module.build_default_arg_parser()
    return parser


def _add_ours(parser: argparse.ArgumentParser) -> None:
    """The options that mace does not have; what they mean stands with the fields of the run."""
    for name in ("dataset", "data_dir"):
        parser.add_argument(f"--{name}")
    for name in ("max_train", "max_test"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--phi", nargs="+", metavar="KEY=VALUE")
    for name in ("no_phi", "trust_pickle", "tensorboard", "compare", "save_mace_model"):
        parser.add_argument(f"--{name}", action="store_true")
    defaults = {"warmup_epochs": 0.0, "final_lr_factor": 0.01, "compare_pde_weight": 100.0}
    for name, default in {**defaults, "time_limit": None}.items():
        parser.add_argument(f"--{name}", type=float, default=default)
    known = {action.dest for action in options_of(parser)}
    for name, label in LABELS.items():
        if f"{name}_key" not in known:
            parser.add_argument(f"--{name}_key", default=label.default_key)
        if name in OF_PHI and f"{name}_weight" not in known:
            parser.add_argument(f"--{name}_weight", type=float)
    # In mace the weight of dipoles acts only with its dipole losses; here on any, so that it must be asked for.
    parser.set_defaults(**{f"{name}_weight": 0.0 for name in OF_PHI})
    parser.set_defaults(swa_dipole_weight=None, swa_polarizability_weight=None)  # as in stage one


class StrictParser(argparse.ArgumentParser):
    """Its complaints are InputErrors."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the words."""
        raise InputError(f"command line: {message}.")


class _Version(argparse.Action):
    """``--version``: the library's, and no run."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        print(version(PROGRAM))
        parser.exit()


class Parser:
    """mace's parser with our options; its complaints are InputErrors.

    ``defaults`` are the values of all options where the user gives none.
    """

    def __init__(self) -> None:
        parser = mace_parser()
        self.of_mace = [action.dest for action in options_of(parser)]
        for action in options_of(parser):
            if action.dest == "name":
                action.required = False
            if action.dest == "model":
                action.choices = None  # the names of the zoo are known later
        _add_ours(parser)
        parser.add_argument(
            "--version", action=_Version, nargs=0, default=argparse.SUPPRESS, help="say the version and end"
        )
        parser.prog = PROGRAM
        # The parser is mace's own object: its methods can be replaced, but not those of a class of ours inherited.
        parser.error = self._refuse  # type: ignore[method-assign]  # see above
        parser.format_help = lambda: help_text(parser)  # type: ignore[method-assign]  # see above
        self.parser = parser

    @staticmethod
    def _refuse(message: str) -> NoReturn:
        raise InputError(f"command line or configuration file: {message}.")

    @property
    def actions(self) -> dict[str, argparse.Action]:
        """{option: action}."""
        return {action.dest: action for action in options_of(self.parser)}

    def set_defaults(self, values: Mapping[str, Any]) -> None:
        """Take values in place of the defaults: the preset of a data set."""
        self.parser.set_defaults(**values)

    def _known(self, words: Sequence[str], file_text: str | None) -> tuple[argparse.Namespace, list[str]]:
        # Of configargparse: the text of a configuration file stands behind the words.
        parser: Any = self.parser
        found: tuple[argparse.Namespace, list[str]] = parser.parse_known_args(words, config_file_contents=file_text)
        return found

    def parse(
        self, words: Sequence[str], file_text: str | None, lines: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """{option: value}; unknown ones are refused with the nearest name, and the line if from a file.

        ``file_text`` : the configuration file as YAML; ``lines`` : where each key stands in the file, for messages.
        """
        lines = lines or {}
        try:
            args, unknown = self._known(words, file_text)
        except InputError as error:
            places = {key: place for key, place in lines.items() if re.search(rf"\b{re.escape(key)}\b", str(error))}
            if len(places) != 1 or any(word.startswith(f"--{key}") for word in words for key in places):
                raise
            (place,) = places.values()
            raise InputError(f"{str(error).removesuffix('.')}{place}.") from None
        if unknown:
            word = unknown[0].split("=")[0]
            place = "" if word in words else lines.get(word.removeprefix("--"), "")
            refuse_unknown(PROGRAM, word, self.parser, place)
        return vars(args)

    def given(self, words: Sequence[str], file_text: str | None) -> tuple[frozenset[str], frozenset[str]]:
        """Names of the options that the user gave another value than the default, and of all that the user gave.

        A resolved configuration gives every option: most of those at their defaults say nothing.
        """
        actions = list(self.actions.values())
        saved = {action.dest: action.default for action in actions}
        preset, self.parser._defaults = self.parser._defaults, {}
        try:
            for action in actions:
                action.default = argparse.SUPPRESS
            found = vars(self._known(words, file_text)[0])
        finally:
            for action in actions:
                action.default = saved[action.dest]
            self.parser._defaults = preset
        return frozenset(name for name, value in found.items() if value != saved.get(name)), frozenset(found)


def version(program: str) -> str:
    """What ``--version`` of a command says."""
    return f"{program} {importlib.metadata.version('phi-equivariant')}"


def options_of(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """The options of a parser, but for help and version."""
    for action in parser._actions:
        if action.option_strings and action.dest not in ("help", "version"):
            yield action


def refuse_unknown(program: str, word: str, parser: argparse.ArgumentParser, place: str = "") -> NoReturn:
    """InputError for an option that does not exist, with the nearest that do."""
    known = [name for action in options_of(parser) for name in action.option_strings]
    hint = did_you_mean(word, known, f"See {program} --help.", n=3)
    raise InputError(f"{word}{place}: {program} has no such option. {hint}")


def help_text(parser: argparse.ArgumentParser) -> str:
    """Ours first, then those of mace that act here, part by part; an example at the end."""
    actions = {action.dest: action for action in options_of(parser)}
    theirs = {action.dest for action in options_of(mace_parser())}
    fields = run.options()
    formatter = argparse.HelpFormatter(PROGRAM, max_help_position=32, width=120)
    formatter.add_text("usage: phi-mace-train [--config FILE] [--OPTION VALUE …]")
    formatter.add_text("Train a potential, with Φ or without. mace's options have mace's names, aliases and defaults.")
    formatter.start_section("options that mace does not have")
    formatter.add_arguments(
        [_explained(actions[name], fields[name].metadata["means"]) for name in fields if name not in theirs]
    )
    formatter.add_arguments([action for action in parser._actions if action.dest in ("help", "version")])
    formatter.end_section()
    for kind, title in run.PARTS.values():
        formatter.start_section(f"mace's options: {title.lower()}")
        names = [field.name for field in kind.options() if field.name in theirs]
        formatter.add_arguments([_explained(actions[name], fields[name].metadata["means"]) for name in names])
        formatter.end_section()
    return f"{formatter.format_help()}\n{EXAMPLE}"


def _explained(action: argparse.Action, means: str) -> argparse.Action:
    """The action with our words for what it does, and the default where it says something."""
    shown = action.default not in (None, "", False, argparse.SUPPRESS)
    text = f"{means} ({action.default})" if shown else means
    made = argparse.Action(action.option_strings, action.dest, nargs=action.nargs, metavar=action.metavar)
    made.help, made.choices = text.replace("%", "%%"), action.choices
    return made
