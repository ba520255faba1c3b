"""The options as a whole: which are acted upon, how files are read, what errors say."""

import ast
import json
from pathlib import Path

import pytest
import yaml

from phi_equivariant.errors import InputError
from training import mace_interface, run
from training.data import named_files
from training.options import command_line, docs
from training.options.parser import Parser
from training.options.refused import IDLE, REFUSED

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
    assert names == {*run.options(), *REFUSED, *IDLE}
    assert len(names) == len(run.options()) + len(REFUSED) + len(IDLE)


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


@pytest.mark.honours("heads")
def test_heads_stay_in_the_order_of_the_file(tmp_path):
    """The order of a model's heads, of its training set and of which head's validation counts."""
    heads = {"mp2": {"train_file": "b.xyz"}, "pt_head": {"train_file": "c.xyz"}, "dft": {"train_file": "a.xyz"}}
    for suffix, text in (
        ("yaml", yaml.safe_dump({"heads": heads}, sort_keys=False)),
        ("json", json.dumps({"heads": heads})),
    ):
        assert [head.name for head in read(tmp_path, text, suffix=suffix).heads] == ["pt_head", "mp2", "dft"]


@pytest.mark.honours("amsgrad")
def test_amsgrad_can_be_switched_off(tmp_path):
    """mace's parser ignores ``amsgrad: false``."""
    assert read(tmp_path, "train_file: a.xyz\n").optimiser.amsgrad
    assert not read(tmp_path, "train_file: a.xyz\namsgrad: false\n").optimiser.amsgrad
    assert read(tmp_path, "train_file: a.xyz\namsgrad: false\n", "--amsgrad").optimiser.amsgrad


def test_resolved_options_give_the_same_options_again(tmp_path):
    """Of a width that mace's num_channels and max_L cannot tell, too, and a dictionary as text or as YAML."""
    factors = {"readouts_lr_factor": 0.5}
    text = f"train_file: a.xyz\nhidden_irreps: 4x0e+4x2e\nlr_params_factors: {factors}\n"
    first = read(tmp_path, f"{text}disallow_random_padding_pt: true\n")
    again = read(tmp_path, json.dumps(first.resolved()), suffix="json")
    assert again.resolved() == first.resolved()
    assert (
        again.host.hidden_irreps == "4x0e+4x2e"
        and not again.replay.allow_random_padding_pt
        and again.optimiser.factors() == {"readouts": 0.5}
    )


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
        ("train_file: a.xyz\n1: 2\n", ["1 in line 2", "not a name of an option"]),
        ("train_file: a.xyz\nconfig: b.yaml\n", ["names another configuration"]),
        ("train_file: a.xyz\nno_phi: true\nphi:\n  channels: 2\n", ["--no_phi", "phi: section"]),
        ("train_file: a.xyz\ncompare: true\nphi:\n  channels: 2\n", ["--compare", "phi:"]),
        ("train_file: a.xyz\nlora: true\n", ["--lora", "LoRA", "freeze_host"]),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_its_line(tmp_path, text, parts):
    with pytest.raises(InputError) as caught:
        read(tmp_path, text)
    for part in parts:
        assert part in str(caught.value), str(caught.value)
    assert len(str(caught.value).replace(str(tmp_path), "")) < 400


def test_options_are_maces():
    """Names and defaults of every mace option are those of the installed mace, but for responses."""
    theirs = vars(mace_interface.argument_parser().parse_args(["--name", "x"]))
    parsed = Parser().parse(["--name", "x"], None)
    for name, value in theirs.items():
        if name.removeprefix("swa_") not in ("dipole_weight", "polarizability_weight"):
            assert parsed[name] == value, name
    assert set(parsed) == {*run.options(), *REFUSED, *IDLE}


def test_every_option_is_honoured_refused_or_named_in_the_log():
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
        if action.dest == "lora":
            with pytest.raises(InputError, match="--lora: LoRA is not done here"):
                command_line.parse(["--train_file", "a.xyz", *line])
            continue
        notes = command_line.parse(["--train_file", "a.xyz", "--no_phi", *line]).notes
        assert len(notes) == 1 and notes[0].startswith(f"--{action.dest} does not act: "), (action.dest, notes)


IDLE_IN_A_RUN = {
    "foundation_head": ({"foundation_head": "pbe"}, "it acts with --foundation_model only"),
    "trust_pickle": ({"trust_pickle": True}, "it acts with --foundation_model only"),
    "scaling": ({"scaling": "no_scaling", "foundation_model": "x"}, "keeps its own scale, shift"),
    "use_edge_irreps_first": ({"use_edge_irreps_first": "True"}, "it acts with --edge_irreps only"),
    "use_embedding_readout": ({"use_embedding_readout": "True"}, "it acts with --embedding_specs only"),
    "plot_frequency": ({"plot_frequency": 3, "plot": "False"}, "nothing is plotted with --plot False"),
    "wandb_project": ({"wandb_project": "x"}, "nothing is sent to Weights and Biases without --wandb"),
    "skip_evaluate_heads": ({"skip_evaluate_heads": "dtf"}, "no head is called dtf; they are Default"),
    "launcher": ({"launcher": "mpi"}, "there is a single process without --distributed"),
    "test_file": ({"heads": "{'a': {'train_file': 'a.xyz'}}", "test_file": "b.xyz"}, "each head has its own"),
    "head_key": ({"head_key": "level"}, "there is a single head"),
    "multi_processed_test": ({"multi_processed_test": "True"}, "it acts with --test_dir only"),
    "downloads_dir": ({"downloads_dir": "x"}, "nothing is downloaded without --dataset"),
    "valid_fraction": ({"valid_fraction": 0.2, "valid_file": "b.xyz"}, "have files of their own"),
    "avg_num_neighbors": ({"avg_num_neighbors": 8}, "it is taken from the training set unless"),
    "swa_lr": ({"swa_lr": 0.1}, "there is no stage two: without --swa"),
    "start_swa": ({"start_swa": 20, "max_num_epochs": 20}, "no stage two: it would begin after the last epoch, 20"),
    "swa": ({"swa": True, "start_swa": 30, "max_num_epochs": 20}, "it would begin after the last epoch, 20"),
    "ema_decay": ({"ema_decay": 0.9}, "there is no moving average without --ema"),
    "lr": ({"lr": 0.1, "lbfgs": True}, "L-BFGS takes a rate of 1 and no decay"),
    "scheduler_patience": ({"scheduler_patience": 2, "optimizer": "schedulefree"}, "schedulefree takes no schedule"),
    "lr_scheduler_gamma": ({"lr_scheduler_gamma": 0.9}, "the scheduler is ReduceLROnPlateau"),
    "beta1_schedulefree": ({"beta1_schedulefree": 0.8}, "it acts with --optimizer schedulefree only"),
    "beta": ({"beta": 0.8, "optimizer": "schedulefree"}, "--optimizer schedulefree has beta1_schedulefree"),
    "huber_delta": ({"huber_delta": 0.1}, "--loss weighted has no Huber loss"),
    "compare_pde_weight": ({"compare_pde_weight": 3}, "it acts with --compare only"),
    "lora_rank": ({"lora_rank": 8}, "it belongs to LoRA"),
}


@pytest.mark.honours("trust_pickle", "plot_frequency", "launcher", "multi_processed_test", "start_swa", "swa")
@pytest.mark.parametrize("option", IDLE_IN_A_RUN)
def test_an_option_that_cannot_act_gets_one_line(option):
    """mace ignores it as well; the run is that without it."""
    given, reason = IDLE_IN_A_RUN[option]
    line = [] if "heads" in given else ["--train_file", "a.xyz"]
    for name, value in given.items():
        line += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    asked = command_line.parse(line)
    (found,) = [note for note in asked.notes if note.startswith(f"--{option} does not act: ")]
    assert reason in found
    assert (asked.stages.swa, asked.stages.start_swa) == (False, None)


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


def test_a_run_without_phi_says_how_to_switch_it_on(tmp_path):
    """Unless somebody asked for the bare host: by --no_phi, by phi: null, or in a comparison."""
    bare = ["--train_file", "a.xyz"]
    (note,) = command_line.parse(bare).notes
    assert note.startswith("Φ is off") and "--phi operator=coulomb" in note and "--no_phi" in note
    (tmp_path / "null.yaml").write_text("train_file: a.xyz\nphi: null\n")
    for line in (
        [*bare, "--no_phi"],
        [*bare, "--phi", "operator=coulomb"],
        [*bare, "--compare"],
        ["--config", str(tmp_path / "null.yaml")],
    ):
        assert not [note for note in command_line.parse(line).notes if note.startswith("Φ is off")]
