"""The options as a whole: which are acted upon, how files are read, what errors say."""

import ast
import json
from pathlib import Path

import pytest

from phi_equivariant.errors import InputError
from training import mace_interface, run
from training.data import named_files
from training.options import command_line, docs
from training.options.parser import Parser
from training.options.refused import MEANINGLESS, REFUSED

ROOT = Path(__file__).parents[3]


def marked_options():
    """Options named by ``@pytest.mark.honours`` anywhere in the tests."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", None) == "honours":
                inside = (part for argument in node.args for part in ast.walk(argument))
                yield from (part.value for part in inside if isinstance(part, ast.Constant))


def test_every_option_of_mace_is_a_field_or_refused():
    names = set(Parser().actions)
    assert names == {*run.options(), *REFUSED, *MEANINGLESS}
    assert len(names) == len(run.options()) + len(REFUSED) + len(MEANINGLESS)


def test_every_honoured_option_has_a_test_of_its_effect():
    assert set(marked_options()) == set(run.options())


def test_the_page_of_options_is_that_of_the_code():
    assert (ROOT / "docs" / "options.md").read_text(encoding="utf-8") == docs.page()


def read(tmp_path, text, *words, suffix="yaml"):
    file = tmp_path / f"theirs.{suffix}"
    file.write_text(text)
    return command_line.parse(["--config", str(file), *words])


@pytest.mark.honours("config")
def test_forms_of_existing_files(tmp_path):
    """Aliases, abbreviations, nested dictionaries, null and switches that are off, from YAML and from JSON."""
    content = {
        "name": "run", "train_file": "a.xyz", "max_num_epoch": 7, "stage_two": True, "start_stage_two": 4,
        "stage_two_lr": 0.002, "E0s": {1: -13.6, 8: -2043.0}, "config_type_weights": {"Default": 1.0, "Hot": 0.5},
        "valid_file": None, "clip_grad": None, "restart_latest": False, "ema": True,
        "phi": {"operator": "coulomb", "channels": 4},
    }  # fmt: skip
    lines = "\n".join(f"{key}: {json.dumps(value)}" for key, value in content.items() if key != "E0s")
    yaml_text = lines + "\nE0s:\n  1: -13.6\n  8: -2043.0\nlr: 1e-3\n"
    json_text = json.dumps(content | {"lr": 1e-3})
    for suffix, text in (("yaml", yaml_text), ("json", json_text)):
        parsed = read(tmp_path, text, "--max_num_epochs", "9", suffix=suffix)
        stages, data, optimiser = parsed.stages, parsed.data, parsed.optimiser
        assert (stages.max_num_epochs, stages.swa, stages.start_swa, stages.swa_lr) == (9, True, 4, 0.002), suffix
        assert ast.literal_eval(data.config_type_weights) == {"Default": 1.0, "Hot": 0.5}
        assert {int(k): v for k, v in ast.literal_eval(data.E0s).items()} == {1: -13.6, 8: -2043.0}
        assert optimiser.clip_grad == 10.0  # null is as if not given
        assert data.valid_file is None and not parsed.task.restart_latest and optimiser.ema and optimiser.lr == 1e-3
        assert parsed.phi.config.operator == "coulomb" and parsed.phi.config.channels == 4


@pytest.mark.honours("amsgrad")
def test_amsgrad_can_be_switched_off(tmp_path):
    """mace's parser ignores ``amsgrad: false``."""
    assert read(tmp_path, "train_file: a.xyz\n").optimiser.amsgrad
    assert not read(tmp_path, "train_file: a.xyz\namsgrad: false\n").optimiser.amsgrad
    assert read(tmp_path, "train_file: a.xyz\namsgrad: false\n", "--amsgrad").optimiser.amsgrad


def test_resolved_options_give_the_same_options_again(tmp_path):
    """Of a width that mace's num_channels and max_L cannot tell, too, and a dictionary as text or as YAML."""
    factors = {"readouts_lr_factor": 0.5}
    first = read(tmp_path, f"train_file: a.xyz\nhidden_irreps: 4x0e+4x2e\nlr_params_factors: {factors}\n")
    again = read(tmp_path, json.dumps(first.resolved()), suffix="json")
    assert again.resolved() == first.resolved()
    assert again.host.hidden_irreps == "4x0e+4x2e" and again.optimiser.factors() == {"readouts": 0.5}


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
        ("train_file: a.xyz\n1: 2\n", ["1 in line 2", "no name of an option"]),
        ("train_file: a.xyz\nconfig: b.yaml\n", ["names another configuration"]),
        ("train_file: a.xyz\nno_phi: true\nphi:\n  channels: 2\n", ["--no_phi", "phi: section"]),
        ("train_file: a.xyz\ncompare: true\nphi:\n  channels: 2\n", ["--compare", "phi:"]),
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


def test_options_are_maces():
    """Names and defaults of every mace option are those of the installed mace, but for dipoles and replay."""
    theirs = vars(mace_interface.argument_parser().parse_args(["--name", "x"]))
    parsed = Parser().parse(["--name", "x"], None)
    for name, value in theirs.items():
        if name not in ("dipole_weight", "swa_dipole_weight", "multiheads_finetuning"):
            assert parsed[name] == value, name
    assert set(parsed) == {*run.options(), *REFUSED, *MEANINGLESS}


def test_every_option_is_honoured_or_refused():
    """An option of mace that changes nothing here cannot be given in silence."""
    for action in Parser().actions.values():
        if action.dest in run.options():
            continue
        word = action.option_strings[-1]
        if action.nargs == 0:
            line = [word]
        elif action.choices:
            line = [word, next(str(choice) for choice in action.choices if choice != action.default)]
        elif action.dest == "les_arguments":
            continue  # needs a file
        else:
            line = [word, "17" if str(action.default) != "17" else "18"]
        if action.type is not None and getattr(action.type, "__name__", "") == "str2bool":
            line[1] = str(not action.default)
        with pytest.raises(InputError, match=f"--{action.dest}: "):
            command_line.parse(["--train_file", "a.xyz", *line])


@pytest.mark.honours("dataset", "phi")
def test_command_line_over_file_over_preset_over_mace(tmp_path):
    """The order of precedence, and the phi: section of a file."""
    file = tmp_path / "run.yaml"
    file.write_text("dataset: ala3_gfn2\nlr: 0.25\nbatch_size: 3\nphi:\n  channels: 4\n  operator: graph\n")
    parsed = command_line.parse(["--config", str(file), "--batch_size", "7", "--phi", "operator=coulomb"])
    preset = named_files.preset("ala3_gfn2")
    assert parsed.data.batch_size == 7 and parsed.optimiser.lr == 0.25
    assert parsed.host.r_max == preset["r_max"] != 5.0
    assert parsed.host.num_radial_basis == 8
    assert parsed.phi.config.channels == 4 and parsed.phi.config.operator == "coulomb"
    assert parsed.output.name == "ala3_gfn2_phi"


def test_what_is_trained_by_default(tmp_path):
    """A data set by name: Φ, coulomb and exact. A mace configuration without phi: section: the bare host."""
    parsed = command_line.parse(["--dataset", "ala3_gfn2"])
    assert (parsed.phi.config.operator, parsed.phi.config.poisson) == ("coulomb", "exact")
    assert command_line.parse(["--dataset", "ala3_gfn2", "--no_phi"]).phi is None
    assert command_line.parse(["--train_file", "a.xyz"]).phi is None
    (tmp_path / "null.yaml").write_text("dataset: ala3_gfn2\nphi: null\n")
    assert command_line.parse(["--config", str(tmp_path / "null.yaml")]).phi is None
    (tmp_path / "empty.yaml").write_text("train_file: a.xyz\nphi: {}\n")
    assert command_line.parse(["--config", str(tmp_path / "empty.yaml")]).phi.config.operator == "coulomb"
