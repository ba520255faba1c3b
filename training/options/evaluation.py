"""The options of phi-mace-eval: those of mace_eval_configs by their names and defaults, and a few more."""

import argparse
import bz2
import dataclasses
import gzip
import lzma
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from phi_equivariant.errors import InputError
from phi_equivariant.files import check_writable
from training.data.labels import KEY_OPTIONS
from training.options.parser import StrictParser, refuse_unknown, version
from training.quantities import LABELS
from training.run.evaluation import EvaluationOptions

PROGRAM = "phi-mace-eval"
EXAMPLE = """example:
  phi-mace-eval --configs in.xyz --model runs/water --output out.xyz --errors errors.json
"""
OPENERS = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}  # by what may stand behind .xyz


class _Format(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults are shown, and the example keeps its lines."""


def _true_or_false(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected True or False, got {text!r}")
    return text.lower() == "true"


def parser() -> argparse.ArgumentParser:
    """mace_eval_configs' options by its names and defaults, and ours."""
    made = StrictParser(
        PROGRAM,
        description="Energies, forces and charges of a trained model for the structures of a file.",
        epilog=EXAMPLE,
        formatter_class=_Format,
    )
    made.add_argument("--version", action="version", version=version(PROGRAM))
    for field in EvaluationOptions.options():
        add, default = partial(made.add_argument, f"--{field.name}", help=field.metadata["means"]), field.default
        if default is dataclasses.MISSING:
            add(required=True)
        elif default is False:
            add(action="store_true")
        else:
            kind = _true_or_false if default is True else int if isinstance(default, int) else str
            add(default=default, type=kind, choices=field.metadata["choices"])
    for option in KEY_OPTIONS:
        name = option.removesuffix("_key")
        text = f"name of the {name} in the file; where not given, that of the run, or {LABELS[name].default_key}"
        made.add_argument(f"--{option}", help=text)
    return made


def parse(words: Sequence[str] | None = None) -> EvaluationOptions:
    """Options from the command line (``sys.argv`` by default).

    InputError for an unknown option, a value that makes no sense, or files that would overwrite each other.
    """
    made = parser()
    args, unknown = made.parse_known_args(words)
    if unknown:
        refuse_unknown(PROGRAM, unknown[0].split("=")[0], made)
    for name in ("batch_size", "batch_atoms"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name}: expected 1 or more, got {getattr(args, name)}.")
    if args.enable_cueq and args.return_descriptors and not args.descriptor_invariants_only:
        raise InputError(
            "--descriptor_invariants_only False: cuequivariance orders the components of vectors differently; leave "
            "--enable_cueq out."
        )
    values = {name: value for name, value in vars(args).items() if name not in KEY_OPTIONS}
    asked = EvaluationOptions(**values, keys={option: key for option in KEY_OPTIONS if (key := getattr(args, option))})
    check_prefix(asked.info_prefix, {option.removesuffix("_key"): key for option, key in asked.keys.items()})
    _check_files(asked)
    return asked


def check_prefix(prefix: str, keys: Mapping[str, str]) -> None:
    """InputError where predictions would take the place of labels, or of what ase calls energy and forces.

    keys : {label: key in the file}, where it is not mace's
    """
    if not prefix or any(character.isspace() for character in prefix):
        raise InputError(
            f"--info_prefix is {prefix!r}; expected a word such as MACE_: without one, predictions would "
            "take the place of the energies and forces that ase reads from the file."
        )
    for name, label in LABELS.items():
        key = keys.get(name, label.default_key)
        if key == prefix + name:
            raise InputError(f"--info_prefix: {prefix} would write predictions over the labels {key}. Choose another.")


def _check_files(asked: EvaluationOptions) -> None:
    output = Path(asked.output)
    plain = output.with_suffix("") if output.suffix in OPENERS else output
    if plain.suffix not in (".xyz", ".extxyz"):
        raise InputError(
            f"--output is {asked.output}; expected a name that ends in .xyz or .extxyz (or .xyz.gz …): of the formats "
            "that ase writes only extended XYZ keeps predictions of structures and of atoms."
        )
    if not Path(asked.configs).is_file():
        raise InputError(f"--configs: there is no file {asked.configs}. Give one with structures that ase reads.")
    files = {"--configs": Path(asked.configs), "--output": output}
    if asked.errors:
        files["--errors"] = Path(asked.errors)
    resolved = [path.resolve() for path in files.values()]
    if len(set(resolved)) < len(resolved):
        raise InputError(f"{', '.join(files)} must be different files; got {', '.join(map(str, files.values()))}.")
    for option in list(files)[1:]:
        check_writable(files[option], option)
