"""Fine-tuning with replay: mace's own is the reference."""

import json

import ase.io
import numpy as np
import pytest
import torch
import yaml
from mace.cli import fine_tuning_select
from training_runs import (  # noqa: F401
    build,
    keep_default_dtype,
    mace_epochs,
    metrics,
    parsed,
    refused,
    run,
    words,
    write_molecules,
)

from phi_equivariant.errors import InputError
from phi_equivariant.weights import load_model
from training import build as building
from training.data.replay import select
from training.mace_hosts import write_model

#: The trained model decides the architecture.
FREE = dict.fromkeys(
    ("hidden_irreps", "r_max", "max_ell", "correlation", "num_radial_basis", "radial_MLP", "MLP_irreps")
)
ENERGIES = "{1: -1.5, 6: -4.0, 8: -3.0}"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A model of methanol and water, its data, and new data of water alone, as a file for mace and one for us."""
    folder = tmp_path_factory.mktemp("replay")
    old = write_molecules(folder / "old.xyz", count=14, seed=5)
    frames = ase.io.read(write_molecules(folder / "both.xyz", count=12, seed=6), "::2")
    ase.io.write(folder / "new.xyz", frames, format="extxyz")
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    host, *_ = build(old, model="ScaleShiftMACE")
    write_model(host, folder / "trained.model")
    torch.set_default_dtype(before)
    return folder


def fine_tuning(files, **given):
    started = {"foundation_model": files / "trained.model", "pt_train_file": files / "old.xyz", "E0s": ENERGIES}
    return {**FREE, "train_file": files / "new.xyz", "valid_fraction": 0.25, "batch_size": 2, **started, **given}


@pytest.mark.slow
@pytest.mark.honours("pt_train_file", "multiheads_finetuning", "real_pt_data_ratio_threshold", "force_mh_ft_lr")
@pytest.mark.parametrize("kept", [False, True])
def test_replay_goes_as_mace_run_trains(files, tmp_path, kept):
    """Losses and validation errors of both heads; once with mace's learning rate, once with ours and repetition.

    Without clipping: mace counts the gradient of Bessel weights, which it does not train, in the norm that it clips.
    """
    given = fine_tuning(files, max_num_epochs=2, clip_grad="None", lr=0.003)
    if kept:
        given |= {"force_mh_ft_lr": "True", "real_pt_data_ratio_threshold": 1.0, "ema": True}
    ours = metrics(run(tmp_path, name="ours", trust_pickle=True, **given))
    theirs = mace_epochs(tmp_path, **given)
    assert len(ours) == len(theirs) == 2
    for mine, (loss, heads) in zip(ours, theirs, strict=True):
        assert mine["train_loss"] == pytest.approx(loss, rel=1e-9)
        assert set(heads) == {"pt_head", "Default"}
        for head, row in heads.items():
            assert mine[f"valid_{head}_rmse_forces"] == pytest.approx(1e3 * row["rmse_f"], rel=1e-9)
            energy = mine[f"valid_{head}_rmse_energy_per_atom"]
            assert energy == pytest.approx(1e3 * row["rmse_e_per_atom"], rel=1e-8)


@pytest.mark.honours("num_samples_pt", "filter_type_pt", "allow_random_padding_pt")
@pytest.mark.parametrize(
    ("kind", "elements", "number"),
    [("none", None, 5), ("combinations", [1, 8], 4), ("exclusive", [1, 8], 12), ("inclusive", [6], 3)],
)
def test_structures_are_selected_as_mace_selects_them(files, tmp_path, monkeypatch, kind, elements, number):
    """With fewer, more and as many of the elements as are asked for; mace's own function writes its choice."""
    monkeypatch.chdir(tmp_path)
    frames = ase.io.read(files / "old.xyz", ":")
    for count in (number, sum(set(atoms.numbers) == {1, 8} for atoms in frames)):
        settings = fine_tuning_select.SelectionSettings(
            configs_pt=str(files / "old.xyz"),
            output="chosen.xyz",
            filter_atomic_numbers_pt=elements,
            num_samples=count,
            subselect=fine_tuning_select.SubselectType.RANDOM,
            filtering_type=fine_tuning_select.FilteringType(kind),
            seed=7,
        )
        fine_tuning_select.select_samples(settings)
        theirs = ase.io.read("chosen.xyz", ":")
        replay = parsed(tmp_path, train_file="a.xyz", num_samples_pt=count, filter_type_pt=kind).replay
        ours = select(frames, elements, replay, seed=7)
        assert len(ours) == len(theirs) == count
        for index, atoms in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(frames[index].positions, atoms.positions, atol=1e-7)


def load(file, **given):
    """The data of a run."""
    return building.load(parsed(file.parent, **{"name": "run", "train_file": file, **given}))[1]


def cached(files, tmp_path, monkeypatch):
    """mace's cache with a file under the name of its Materials Project data."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "cache" / "mace").mkdir(parents=True)
    target = tmp_path / "cache" / "mace" / "mp_traj_combinedxyz"
    target.write_bytes((files / "old.xyz").read_bytes())


@pytest.mark.honours("pt_train_file", "num_samples_pt", "subselect_pt", "weight_pt_head")
def test_the_materials_project_of_maces_cache(files, tmp_path, monkeypatch):
    given = fine_tuning(files, pt_train_file="mp", num_samples_pt=8, filter_type_pt="combinations", weight_pt_head=0.5)
    given |= {"atomic_numbers": "[1, 8]", "energy_key": "energy", "trust_pickle": True, "subselect_pt": "random"}
    given["train_file"], path = files / "new.xyz", tmp_path / "in_work" / "new.xyz"
    path.parent.mkdir()
    with pytest.raises(InputError, match="mp is .*mp_traj_combinedxyz"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        load(path, **given)
    cached(files, tmp_path, monkeypatch)
    data = load(path, **given)
    assert data.heads == ["pt_head", "Default"]
    assert len(data.train_sets["pt_head"]) == 6 and len(data.valid["pt_head"]) == 2
    assert {float(data.train_sets["pt_head"][i]["weight"]) for i in range(6)} == {0.5}
    assert data.atomic_numbers == [1, 6, 8]  # the filter lets one of carbon in where there are too few others
    for choice, text in (
        ({"num_samples_pt": 99}, "99 structures are asked for, and of 14 7 pass"),
        ({"allow_random_padding_pt": None, "num_samples_pt": 9}, None),
        ({"subselect_pt": "fps"}, "--subselect_pt: fps compares structures by a model that mace downloads"),
        ({"pt_train_file": "omat"}, "--pt_train_file: for omat mace replays the same data as for mp"),
        ({"filter_type_pt": "exclusive", "atomic_numbers": None}, "--filter_type_pt: exclusive .*--atomic_numbers"),
    ):
        if text is None:
            assert len(load(path, **given | choice).train_sets["pt_head"]) == 7
            continue
        with pytest.raises(InputError, match=text):
            load(path, **given | choice)
    with pytest.raises(InputError, match="9 structures are asked for, and of 14 7 pass"):
        load(path, **given | {"num_samples_pt": 9, "disallow_random_padding_pt": True})


@pytest.mark.slow
@pytest.mark.honours("pt_valid_file", "multiheads_finetuning", "force_mh_ft_lr")
def test_replay_with_phi(files, tmp_path, capsys):
    """Two heads with one Φ; mace's learning rate, average and loss, and lines for what does not act."""
    heads = {"pt_head": {"energy_key": "old_energy"}, "dft": {"train_file": str(files / "new.xyz"), "E0s": ENERGIES}}
    old = ase.io.read(files / "old.xyz", ":")
    for atoms in old:
        atoms.info["old_energy"], atoms.arrays["forces_"] = atoms.get_potential_energy(), atoms.get_forces()
        atoms.calc = None
        atoms.set_array("forces", atoms.arrays.pop("forces_"))
    ase.io.write(tmp_path / "old.xyz", old, format="extxyz")
    given = fine_tuning(files, train_file=None, heads=repr(heads), pt_train_file=tmp_path / "old.xyz", max_num_epochs=1)
    given |= {"pt_valid_file": tmp_path / "old.xyz", "num_samples_pt": 5, "r_max": 4.0, "phi": ["operator=coulomb"]}
    folder = run(tmp_path, name="both", trust_pickle=True, **given)
    log, kept = capsys.readouterr().out, yaml.safe_load((folder / "config.yaml").read_text())
    assert kept["loss"] == "universal" and kept["lr"] == 1e-4 and kept["ema"] and kept["ema_decay"] == 0.99999
    assert kept["multiheads_finetuning"] is True
    model = load_model(folder)
    assert model.heads == ["pt_head", "dft"] and model.phi.config.operator == "coulomb"
    (row,) = metrics(folder)
    assert np.isfinite(row["valid_pt_head_rmse_forces"]) and np.isfinite(row["valid_dft_rmse_forces"])
    assert json.loads((folder / "data.json").read_text())["heads"]["pt_head"]["valid_file"] == str(tmp_path / "old.xyz")
    for line in (
        "replay: --loss universal in place of weighted, as in mace",
        "--num_samples_pt does not act: all structures of your own file are replayed",
        "--r_max 4.0 does not act: the model of --foundation_model has 3.0",
        "stress: not trained of head 'pt_head': no training structure has it",
    ):
        assert line in log, log
    assert "train_pt_head" not in log  # skip_evaluate_heads


def test_without_replay_its_options_are_named(files, tmp_path, capsys):
    """A file and no trained model, a trained model and no file, and the switch."""
    one = {"train_file": "a.xyz", "pt_train_file": "b.xyz", "num_samples_pt": 50}
    for given, reason in (
        (one, "nothing is replayed without --foundation_model"),
        ({**one, "foundation_model": "x", "multiheads_finetuning": "False"}, "--multiheads_finetuning False"),
        ({**one, "foundation_model": "x", "pt_train_file": None}, "nothing is replayed: without --pt_train_file"),
    ):
        asked = parsed(tmp_path, **given)
        assert not asked.replay.active and not asked.replay.multiheads_finetuning
        assert [line for line in asked.notes if line.startswith("--num_samples_pt does not act: ") and reason in line]
    line = words(tmp_path, name="x", trust_pickle=True, **fine_tuning(files, E0s="average"))
    assert "--E0s: average would shift the new heads" in refused(capsys, line)
    line = words(tmp_path, name="x", trust_pickle=True, pseudolabel_replay="True", **fine_tuning(files))
    assert "--pseudolabel_replay: labels of replayed structures" in refused(capsys, line)
