"""``phi-mace-train --model phi-…``: sizes of the zoo in the same loop as mace."""

import json

import ase.io
import numpy as np
import pytest
import torch
from training_runs import keep_default_dtype, metrics, refused, words, write_molecules  # noqa: F401  (a fixture)

from phi_equivariant import PhiCalculator
from training import evaluate
from training.build import build, load
from training.options import command_line
from training.train import main
from zoo import load_pretrained
from zoo.nequip import NequIP

SIZE = {
    "r_max": 3.0,
    "hidden_irreps": "4x0e",
    "max_ell": 1,
    "correlation": 1,
    "radial_MLP": "[8]",
    "MLP_irreps": "4x0e",
    "num_radial_basis": 3,
}


def line(tmp_path, **given):
    file = tmp_path / "molecules.xyz"
    if not file.exists():
        write_molecules(file, count=12)
    return words(tmp_path, **{"train_file": file, "name": "run", "valid_fraction": 0.25, **SIZE, **given})


def built(line):
    run, run_data = load(command_line.parse(line))
    return run, build(run, run_data).model


def test_it_is_the_model_that_mace_options_make(tmp_path):
    """The same settings, statistics and seed give the same weights."""
    mine, named = built(line(tmp_path, model="phi-mace-small"))
    theirs, mace = built(line(tmp_path, model="ScaleShiftMACE", phi=["operator=coulomb"]))
    assert mine.phi.config == theirs.phi.config
    state = mace.state_dict()
    assert named.state_dict().keys() == state.keys()
    for name, value in named.state_dict().items():
        assert value.numel() == state[name].numel(), name
        np.testing.assert_allclose(value.numpy(), state[name].numpy(), rtol=1e-6, atol=1e-7, err_msg=name)
    assert mace.host.scale_shift.scale.item() != 1.0 and mace.host.interactions[0].avg_num_neighbors != 1.0


def test_settings_are_the_sizes_own_unless_given(tmp_path):
    own = dict.fromkeys(SIZE)
    run = command_line.parse(line(tmp_path, model="phi-mace-small", **own))
    resolved = run.resolved()
    assert resolved["hidden_irreps"] == "32x0e+32x1o" and resolved["r_max"] == 5.0 and resolved["num_radial_basis"] == 8
    assert run.phi.config.operator == "coulomb" and "num_channels" not in resolved and "radial_type" not in resolved
    preset = command_line.parse(["--dataset", "ala3_gfn2", "--model", "phi-mace-medium", "--max_ell", "2", "--no_phi"])
    assert preset.host.hidden_irreps == "64x0e+64x1o" and preset.host.r_max == 5.0 and preset.host.max_ell == 2
    assert preset.optimiser.lr == 0.01 and preset.phi is None


def test_what_a_named_model_does_not_have_is_refused(tmp_path, capsys):
    for given, message in (
        ({"model": "phi-mace-smal"}, "phi-mace-small"),
        ({"model": "phi-mace-small", "radial_type": "gaussian"}, "--radial_type: phi-mace-small has no such setting"),
        ({"model": "phi-mace-small", "compare": True}, "--compare acts on models that mace's options describe"),
        ({"model": "phi-mace-small", "radial_MLP": "[8"}, "--radial_MLP: '[8' cannot be read; expected a list"),
        ({"model": "phi-mace-small", "correlation": 9}, "correlation is 9"),
    ):
        assert message in refused(capsys, line(tmp_path, **given))
    assert not (tmp_path / "run").exists()


def test_nequip_trains_loads_and_predicts(tmp_path):
    """The other host by the same command; what mace has and NequIP has not is refused."""
    given = dict.fromkeys(SIZE) | {"hidden_irreps": "4x0e+4x1o", "radial_MLP": "[8]", "num_interactions": 2}
    given |= {"model": "phi-nequip-small", "r_max": 3.0, "num_cutoff_basis": 5, "max_num_epochs": 3, "lr": 0.02}
    assert main(line(tmp_path, **given)) == 0
    rows = metrics(tmp_path / "run")
    assert 0 < rows[-1]["train_loss"] < rows[0]["train_loss"]
    model = load_pretrained(tmp_path / "run")
    assert isinstance(model.host, NequIP) and str(model.host.phi_taps["interactions.0"]) == "4x0e+4x1o"
    assert model.host.radial_basis.p == 5, "what mace has as a default too, but NequIP has not"
    assert model.host.arguments["max_ell"] is None and len(model.host.arguments["radial_MLP"]) == 1
    assert model.host.scale.tolist() != [1.0] * 4 and model.host.arguments["avg_num_neighbors"] > 1.5
    atoms = ase.io.read(tmp_path / "molecules.xyz", 0)
    words = ["--configs", tmp_path / "molecules.xyz", "--model", tmp_path / "run", "--output", tmp_path / "out.xyz"]
    assert evaluate.main([str(word) for word in words] + ["--return_descriptors"]) == 0
    found = ase.io.read(tmp_path / "out.xyz", 0)
    atoms.calc = PhiCalculator(model)
    assert found.info["MACE_energy"] == pytest.approx(atoms.get_potential_energy(), rel=1e-9)
    assert found.arrays["MACE_descriptors"].shape == (len(atoms), 8)  # scalars of two layers


@pytest.mark.parametrize("name", ["phi-schnet-small", "phi-visnet-small"])
def test_networks_of_pytorch_geometric_train_restart_and_load(tmp_path, name, capsys):
    """Ended after two epochs and gone on for a third, as if in one go; then loaded, used and evaluated."""
    given = dict.fromkeys(SIZE) | {"model": name, "r_max": 3.0, "num_channels": 8, "num_radial_basis": 8, "lr": 0.005}
    given |= {"num_interactions": 2, "seed": 3}
    assert main(line(tmp_path, name="whole", max_num_epochs=3, **given)) == 0
    assert main(line(tmp_path, max_num_epochs=2, **given)) == 0
    assert main(line(tmp_path, max_num_epochs=3, restart_latest=True, **given)) == 0
    rows = metrics(tmp_path / "run")
    assert [row["train_loss"] for row in rows] == [row["train_loss"] for row in metrics(tmp_path / "whole")]
    assert 0 < rows[-1]["train_loss"] < rows[0]["train_loss"]
    model = load_pretrained(tmp_path / "run")
    described = json.loads((tmp_path / "run" / "config.json").read_text())
    assert model.host.arguments["hidden_channels"] == 8 and described["host"]["type"] in name
    assert model.host.scale.tolist() != [1.0] * 3 and len(model.taps) == 2
    atoms = ase.io.read(tmp_path / "molecules.xyz", 0)
    words = ["--configs", tmp_path / "molecules.xyz", "--model", tmp_path / "run", "--output", tmp_path / "out.xyz"]
    assert evaluate.main([str(word) for word in words] + ["--return_descriptors"]) == 0
    found = ase.io.read(tmp_path / "out.xyz", 0)
    atoms.calc = PhiCalculator(model)
    assert found.info["MACE_energy"] == pytest.approx(atoms.get_potential_energy(), rel=1e-9)
    assert found.arrays["MACE_descriptors"].shape == (len(atoms), 16)  # scalars of two layers
    capsys.readouterr()
    message = refused(capsys, line(tmp_path, **{**given, "hidden_irreps": "8x0e"}))
    assert f"--hidden_irreps: {name} has no such setting" in message


def test_what_nequip_does_not_have_is_refused(tmp_path, capsys):
    given = dict.fromkeys(SIZE) | {"model": "phi-nequip-small", "correlation": 2}
    assert "--correlation: phi-nequip-small has no such setting" in refused(capsys, line(tmp_path, **given))


def test_it_trains_and_loads(tmp_path):
    assert main(line(tmp_path, model="phi-mace-small", max_num_epochs=1)) == 0
    errors = json.loads((tmp_path / "run" / "errors.json").read_text())
    assert errors["sets"]["train"]["errors"]["forces"]["rmse"] > 0
    model = load_pretrained(tmp_path / "run")
    assert str(model.products[0].linear.irreps_out) == "4x0e" and next(model.parameters()).dtype == torch.float64
