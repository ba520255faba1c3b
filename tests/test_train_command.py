"""phi-mace-train as a command: options, presets, the phi: section, and everything that it refuses."""

import ase.io
import numpy as np
import pytest
import yaml
from training_runs import TINY, keep_default_dtype, metrics, refused, run, words, write_molecules  # noqa: F401

from phi_equivariant.errors import InputError
from training import datasets, mace_interface, options
from training.option_table import HONOURED, MEANINGLESS, REFUSED


@pytest.fixture(scope="module")
def molecules(tmp_path_factory):
    return write_molecules(tmp_path_factory.mktemp("molecules") / "train.xyz")


def altered(molecules, tmp_path, change):
    """The molecules with one frame changed."""
    frames = ase.io.read(molecules, ":")
    change(frames[3])
    ase.io.write(tmp_path / "altered.xyz", frames, format="extxyz")
    return tmp_path / "altered.xyz"


def put(name, value):
    """A change of one entry of ``info``."""
    return lambda atoms: atoms.info.__setitem__(name, value)


def make_nan(atoms):
    atoms.positions[0, 0] = np.nan


def drop_forces(atoms):
    atoms.calc.results.pop("forces")


def make_periodic(atoms):
    atoms.set_cell(8.0 * np.eye(3))
    atoms.pbc = True


BAD = {
    "neither data nor file": ({"train_file": None}, ("--dataset", "--train_file", "neither")),
    "unknown data set": ({"train_file": None, "dataset": "ala3_gfn1"}, ("ala3_gfn1", "ala3_gfn2")),
    "both": ({"dataset": "ala3_gfn2"}, ("both",)),
    "missing file": ({"train_file": "nowhere.xyz"}, ("nowhere.xyz",)),
    "missing validation": ({"valid_file": "nowhere.xyz"}, ("nowhere.xyz",)),
    "missing test": ({"test_file": "nowhere.xyz"}, ("nowhere.xyz",)),
    "zero batch": ({"batch_size": 0}, ("--batch_size", "above zero", "0")),
    "large batch": ({"batch_size": 500}, ("--batch_size", "500", "18 training structures")),
    "negative cut-off": ({"r_max": -1.0}, ("--r_max", "above zero", "-1.0")),
    "no number": ({"lr": "fast"}, ("--lr", "fast")),
    "wrong fraction": ({"valid_fraction": 1.5}, ("--valid_fraction", "1.5")),
    "unknown option": ({"max_ephocs": 3}, ("--max_ephocs", "--max_num_epochs")),
    "unknown key": ({"energy_key": "Energie"}, ("Energie", "energy")),
    "charges without label": ({"phi": ["operator=coulomb"], "charges_weight": 1}, ("REF_charges",)),
    "charges without Φ": ({"charges_weight": 1}, ("--charges_weight", "bare host")),
    "dipole without Φ": ({"dipole_weight": 1}, ("--dipole_weight", "bare host")),
    "pde of exact": ({"phi": ["pde_weight=0.1"]}, ("pde_weight", "exact")),
    "Φ and no Φ": ({"phi": ["channels=2"], "no_phi": True}, ("--no_phi",)),
    "misspelt setting": ({"phi": ["chanels=2"]}, ("chanels", "channels")),
    "scheduler": ({"scheduler": "StepLR"}, ("StepLR", "ReduceLROnPlateau")),
    "warm-up": ({"warmup_epochs": 2}, ("--warmup_epochs", "CosineAnnealingLR")),
    "other model": ({"model": "PolarMACE"}, ("--model", "PolarMACE")),
    "other loss": ({"loss": "dipole"}, ("--loss", "dipole")),
    "stress with Φ": ({"loss": "stress", "phi": ["channels=1"]}, ("--loss", "open structures")),
    "irreps": ({"hidden_irreps": "8x0e + 4x1o"}, ("same dimension",)),
    "E0s": ({"E0s": "{1: -1.0}"}, ("--E0s", "6, 8")),
    "no E0s": ({"E0s": None}, ("--E0s",)),
    "elements": ({"atomic_numbers": "[1, 8]"}, ("--atomic_numbers", "6")),
    "level": ({"log_level": "LOUD"}, ("--log_level", "LOUD")),
    "missing configuration": ({"config": "nowhere.yaml"}, ("--config", "nowhere.yaml")),
    "foundation": ({"foundation_model": "small"}, ("--foundation_model",)),
    "polar": ({"num_recursion_steps": 3}, ("--num_recursion_steps", "PolarMACE")),
    "too little time": ({"time_limit": -1}, ("--time_limit",)),
    "compare": ({"compare": True, "phi": ["channels=2"]}, ("--compare", "--phi")),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_options_are_refused(molecules, tmp_path, capsys, case):
    """One paragraph that names the argument, status 2, and nothing is written."""
    given, expected = BAD[case]
    message = refused(capsys, words(tmp_path, **{"train_file": molecules, **given}))
    for word in expected:
        assert word in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "phi", "expected"),
    [
        (make_nan, None, ("frame 3", "finite")),
        (drop_forces, None, ("forces", "index 3")),
        (make_periodic, ["operator=coulomb"], ("frame 3", "periodic")),
        (put("total_charge", "plus one"), ["operator=coulomb"], ("frame 3", "total charge", "plus one")),
    ],
)
def test_bad_frames_are_refused(molecules, tmp_path, capsys, change, phi, expected):
    """The message names the frame; no run folder is made."""
    path = altered(molecules, tmp_path, change)
    message = refused(capsys, words(tmp_path, train_file=path, phi=phi))
    for word in expected:
        assert word in message
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["altered.xyz"]


def test_empty_file_is_refused(tmp_path, capsys):
    (tmp_path / "empty.xyz").touch()
    assert "empty" in refused(capsys, words(tmp_path, train_file=tmp_path / "empty.xyz"))


def test_charged_structures_and_the_graph_operator_are_refused(molecules, tmp_path, capsys):
    """The graph operator cannot carry a net charge."""
    path = altered(molecules, tmp_path, put("total_charge", 1.0))
    message = refused(capsys, words(tmp_path, train_file=path, phi=["operator=graph"]))
    assert "total_charge" in message and "graph" in message
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["altered.xyz"]


def test_unknown_element_in_the_test_set_is_refused(molecules, tmp_path, capsys):
    def change(atoms):
        atoms.numbers[0] = 16

    path = altered(molecules, tmp_path, change)
    assert "S" in refused(capsys, words(tmp_path, train_file=molecules, test_file=path))


def test_more_modes_than_atoms_are_all_modes(molecules, tmp_path):
    """Not an error."""
    given = {"train_file": molecules, "max_num_epochs": 1, "plot": False}
    few = run(tmp_path, name="few", phi=["num_modes=50"], **given)
    assert np.isfinite(metrics(few)[0]["train_loss"])


def test_options_are_maces(molecules):
    """Names and defaults of every mace option are those of the installed mace, but for the dipole weight."""
    theirs = vars(mace_interface.argument_parser().parse_args(["--name", "x"]))
    parsed = options._Parser().parse(["--name", "x"], None)
    for name, value in theirs.items():
        if name != "dipole_weight":
            assert getattr(parsed, name) == value, name
    unknown = [name for name in (*HONOURED, *REFUSED, *MEANINGLESS) if not hasattr(parsed, name)]
    assert unknown == []
    assert not set(HONOURED) & set(REFUSED)


def test_every_option_is_honoured_or_refused(molecules):
    """An option of mace that changes nothing here cannot be given in silence."""
    parser = options._Parser().parser
    for action in parser._actions:
        if action.dest in HONOURED or not action.option_strings or action.dest == "help":
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
            options.parse(["--train_file", str(molecules), *line])


def test_command_line_over_file_over_preset_over_mace(tmp_path):
    """The order of precedence, and the phi: section of a file."""
    file = tmp_path / "run.yaml"
    file.write_text("dataset: ala3_gfn2\nlr: 0.25\nbatch_size: 3\nphi:\n  channels: 4\n  operator: graph\n")
    parsed = options.parse(["--config", str(file), "--batch_size", "7", "--phi", "operator=coulomb"])
    preset = datasets.preset("ala3_gfn2")
    assert parsed.args.batch_size == 7 and parsed.args.lr == 0.25
    assert parsed.args.r_max == preset["r_max"] != 5.0
    assert parsed.args.num_radial_basis == 8
    assert parsed.phi.config.channels == 4 and parsed.phi.config.operator == "coulomb"
    assert parsed.args.name == "ala3_gfn2_phi"


def test_what_is_trained_by_default(molecules, tmp_path):
    """A data set by name: Φ, coulomb and exact. A mace configuration without phi: section: the bare host."""
    parsed = options.parse(["--dataset", "ala3_gfn2"])
    assert (parsed.phi.config.operator, parsed.phi.config.poisson) == ("coulomb", "exact")
    assert options.parse(["--dataset", "ala3_gfn2", "--no_phi"]).phi is None
    assert options.parse(["--train_file", str(molecules)]).phi is None
    (tmp_path / "null.yaml").write_text("dataset: ala3_gfn2\nphi: null\n")
    assert options.parse(["--config", str(tmp_path / "null.yaml")]).phi is None
    (tmp_path / "empty.yaml").write_text(f"train_file: {molecules}\nphi: {{}}\n")
    assert options.parse(["--config", str(tmp_path / "empty.yaml")]).phi.config.operator == "coulomb"


def test_forms_of_mace_configurations(molecules, tmp_path):
    """Aliases, abbreviations, nested dictionaries, null and booleans mean what they mean to mace."""
    file = tmp_path / "mace.yaml"
    text = "name: forms\nmax_num_epoch: 12\nE0s: {1: -1.0, 6: -2.0, 8: -3.0}\nclip_grad: null\nema: true\nswa: false\n"
    file.write_text(f"{text}train_file: {molecules}\nscaling: no_scaling\n")
    args = options.parse(["--config", str(file)]).args
    assert args.max_num_epochs == 12 and args.E0s == "{1: -1.0, 6: -2.0, 8: -3.0}"
    assert args.clip_grad == 10.0 and args.ema is True and args.name == "forms"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lr: [0.1\nbatch: 2", ("not valid YAML", "line 2")),
        ("- a\n- b\n", ("list", "option: value")),
        ("train_fil: x\nbatchsize: 3\n", ("--batchsize", "--batch_size")),
        ("train_file: x\nphi:\n  operator: coulomb\n  chanels: 2\n", ("chanels", "line 4", "channels")),
        ("train_file: x\nphi:\n  channels: many\n", ("channels", "line 3", "a whole number")),
    ],
)
def test_bad_configurations_are_refused(tmp_path, text, expected):
    """The message says where."""
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(InputError) as error:
        options.parse(["--config", str(tmp_path / "bad.yaml")])
    for word in expected:
        assert word in str(error.value)


def test_resolved_configuration_repeats_the_run(molecules, tmp_path):
    """config.yaml of a run, given as --config, is the same run."""
    given = {"train_file": molecules, "max_num_epochs": 2, "ema": True, "plot": False}
    first = run(tmp_path, name="first", phi=["operator=graph", "poisson=learned", "pde_weight=0.5"], **given)
    resolved = yaml.safe_load((first / "config.yaml").read_text())
    assert resolved["phi"]["pde_weight"] == 0.5 and resolved["hidden_irreps"] == TINY["hidden_irreps"]
    from training.train import main

    assert main(["--config", str(first / "config.yaml"), "--name", "second"]) == 0
    assert metrics(tmp_path / "second") == metrics(first)


def test_a_diverging_run_says_so(molecules, tmp_path, capsys):
    """A loss that is never finite is an error that names the learning rate, not an empty model."""
    line = words(tmp_path, train_file=molecules, name="run", lr=1e300, max_num_epochs=3, clip_grad="None")
    assert "--lr: " in refused(capsys, line)
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_dry_run_writes_nothing(molecules, tmp_path, capsys):
    from training.train import main

    assert main(words(tmp_path, train_file=molecules, name="run", dry_run=True)) == 0
    assert "dry run" in capsys.readouterr().out and list(tmp_path.iterdir()) == []


def test_time_limit_stops_at_an_epoch_end_and_tests(molecules, tmp_path, capsys):
    """A run that would take hours ends in time, with its error table."""
    given = {"train_file": molecules, "max_num_epochs": 100_000, "time_limit": 0.2, "plot": False}
    folder = run(tmp_path, name="run", scheduler="CosineAnnealingLR", **given)
    rows = metrics(folder)
    assert 1 <= len(rows) < 1000 and (folder / "errors.json").is_file()
    assert "time limit: stopping after epoch" in (folder / "log.txt").read_text()
