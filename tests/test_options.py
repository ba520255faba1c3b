"""The options as a whole: which are acted upon, how files are read, what errors say."""

import ast
import json
from pathlib import Path

import pytest

from phi_equivariant.errors import InputError
from training import mace_interface, option_docs, options
from training.option_table import HONOURED, MEANINGLESS, REFUSED

ROOT = Path(__file__).parents[1]


def marked_options():
    """Options named by ``@pytest.mark.honours`` anywhere in the tests."""
    for path in sorted((ROOT / "tests").glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", None) == "honours":
                yield from (argument.value for argument in node.args)


def test_every_option_of_mace_is_in_one_of_three_tables():
    names = {*mace_interface.option_names(options.option_parser())} - {"help"}
    assert names == {*HONOURED, *REFUSED, *MEANINGLESS}
    assert len(names) == len(HONOURED) + len(REFUSED) + len(MEANINGLESS)


def test_every_honoured_option_has_a_test_of_its_effect():
    assert set(marked_options()) == set(HONOURED)


def test_the_page_of_options_is_that_of_the_code():
    assert (ROOT / "docs" / "options.md").read_text(encoding="utf-8") == option_docs.page()


def read(tmp_path, text, *words, suffix="yaml"):
    file = tmp_path / f"theirs.{suffix}"
    file.write_text(text)
    return options.parse(["--config", str(file), *words])


@pytest.mark.honours("config")
def test_forms_of_existing_files(tmp_path):
    """Aliases, abbreviations, nested dictionaries, null and switches that are off, from YAML and from JSON."""
    content = {
        "name": "run", "train_file": "a.xyz", "max_num_epoch": 7, "stage_two": True, "start_stage_two": 4,
        "stage_two_lr": 0.002, "E0s": {1: -13.6, 8: -2043.0}, "config_type_weights": {"Default": 1.0, "Hot": 0.5},
        "valid_file": None, "restart_latest": False, "ema": True, "phi": {"operator": "coulomb", "channels": 4},
    }  # fmt: skip
    lines = "\n".join(f"{key}: {json.dumps(value)}" for key, value in content.items() if key != "E0s")
    yaml_text = lines + "\nE0s:\n  1: -13.6\n  8: -2043.0\nlr: 1e-3\n"
    json_text = json.dumps(content | {"lr": 1e-3})
    for suffix, text in (("yaml", yaml_text), ("json", json_text)):
        parsed = read(tmp_path, text, "--max_num_epochs", "9", suffix=suffix)
        args = parsed.args
        assert (args.max_num_epochs, args.swa, args.start_swa, args.swa_lr) == (9, True, 4, 0.002), suffix
        assert ast.literal_eval(args.config_type_weights) == {"Default": 1.0, "Hot": 0.5}
        assert {int(k): v for k, v in ast.literal_eval(args.E0s).items()} == {1: -13.6, 8: -2043.0}
        assert args.valid_file is None and not args.restart_latest and args.ema and args.lr == 1e-3
        assert parsed.phi.config.operator == "coulomb" and parsed.phi.config.channels == 4


@pytest.mark.honours("amsgrad")
def test_amsgrad_can_be_switched_off(tmp_path):
    """mace's parser ignores ``amsgrad: false``."""
    assert read(tmp_path, "train_file: a.xyz\n").args.amsgrad
    assert not read(tmp_path, "train_file: a.xyz\namsgrad: false\n").args.amsgrad
    assert read(tmp_path, "train_file: a.xyz\namsgrad: false\n", "--amsgrad").args.amsgrad


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("train_file: a.xyz\nmax_num_epohcs: 5\n", ["--max_num_epohcs", "line 2", "--max_num_epochs"]),
        ("train_file: a.xyz\nlr: fast\n", ["--lr", "'fast'", "line 2"]),
        ("train-file: a.xyz\n", ["--train-file", "line 1", "--train_file"]),
        ("train_file: a.xyz\nbatch_size: [1, 2]\n", ["batch_size", "list", "line 2"]),
        ("train_file: a.xyz\nphi:\n  chanels: 3\n", ["'chanels'", "line 3", "channels"]),
        ("train_file: a.xyz\nphi:\n  operator: coulomb\n  channels: four\n", ["channels", "line 4", "a whole number"]),
        ("train_file: a.xyz\nphi:\n  operator: colomb\n", ["operator", "line 3", "'coulomb', 'graph'"]),
        ("train_file: a.xyz\nphi: coulomb\n", ["phi: expected a section", "'coulomb'"]),
        ("train_file: a.xyz\n  lr: 0.1\n", ["not valid YAML", "line 2, column 5"]),
        ("train_file: [a.xyz\n", ["not valid YAML", "line 2"]),
        ("- train_file\n", ["holds a list"]),
        ("train_file: a.xyz\nlora: true\n", ["--lora", "LoRA", "freeze_host"]),
        ("train_file: a.xyz\ncompute_stress: true\n", ["--compute_stress", "the loss decides"]),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_its_line(tmp_path, text, parts):
    with pytest.raises(InputError) as caught:
        read(tmp_path, text)
    for part in parts:
        assert part in str(caught.value), str(caught.value)
    assert len(str(caught.value)) < 400
