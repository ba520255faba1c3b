"""Starting from a trained model: mace's own fine-tuning is the reference."""

import copy
import dataclasses
import json
import subprocess
import sys

import ase.io
import numpy as np
import pytest
import torch
from training_runs import batch_of, build, keep_default_dtype, metrics, refused, run, words, write_molecules  # noqa: F401

from phi_equivariant import PhiCalculator, PhiConfig, attach_phi
from phi_equivariant.errors import InputError
from phi_equivariant.weights import load_model, save_model
from training import mace_hosts, run_folder
from training.fit import losses
from training.fit.lightning_module import PotentialModule
from training.options.phi_section import validate
from zoo import load_pretrained, parameter_groups
from zoo.mace_host import MaceHost, check_energies, read_model

from mace.tools import finetuning_utils  # isort: skip
from mace.tools.utils import AtomicNumberTable  # isort: skip

#: The trained model decides the architecture.
FREE = dict.fromkeys(
    ("hidden_irreps", "r_max", "max_ell", "correlation", "num_radial_basis", "radial_MLP", "MLP_irreps")
)


@pytest.fixture(scope="module")
def molecules(tmp_path_factory):
    return write_molecules(tmp_path_factory.mktemp("foundation") / "train.xyz", count=16, seed=5)


@pytest.fixture(scope="module")
def water(molecules):
    """A part of the elements only."""
    path = molecules.with_name("water.xyz")
    ase.io.write(path, [a for a in ase.io.read(molecules, ":") if 6 not in a.numbers], format="extxyz")
    return path


@pytest.fixture(scope="module")
def trained(molecules):
    """A small model that fits its few molecules, and where mace would have saved it."""
    host, data, _ = build(molecules, model="ScaleShiftMACE")
    optimiser = torch.optim.Adam(host.parameters(), lr=0.02)
    batch = next(iter(data.loader("train")["Default"]))
    losses = []
    for _ in range(25):
        out = host(batch, training=True)
        loss = (out["forces"] - batch["forces"]).square().mean() + (out["energy"] - batch["energy"]).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0]
    path = molecules.with_name("trained.model")
    torch.save(host, path)
    return path


@pytest.fixture(scope="module")
def read_once(trained):
    return read_model(trained, trust_pickle=True)


@pytest.fixture
def host(read_once):
    return copy.deepcopy(read_once)


def start_from(path, file, **given):
    return build(file, **{**FREE, "foundation_model": path, "trust_pickle": True, "E0s": "foundation", **given})


def outputs(model, batch):
    out = model(batch)
    return torch.cat([out["energy"].detach(), out["forces"].detach().flatten()])


def in_order_of(host, batch, atomic_numbers):
    """A batch of a model with these elements, as the host with all three reads it."""
    species = torch.zeros(len(batch["positions"]), 3)
    species[:, [[1, 6, 8].index(z) for z in atomic_numbers]] = batch["node_attrs"]
    return {**batch, "node_attrs": species}


@pytest.mark.honours("foundation_model", "trust_pickle", "foundation_filter_elements", "E0s")
def test_a_part_of_the_elements_keeps_energies_and_forces(trained, host, water):
    model, data, run = start_from(trained, water)
    assert data.atomic_numbers == model.atomic_numbers.tolist() == [1, 8]
    batch = batch_of(data)
    wanted = outputs(host, in_order_of(host, batch, [1, 8]))
    torch.testing.assert_close(outputs(model, batch), wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.honours("heads", "foundation_model_elements", "foundation_model_readout")
def test_heads_elements_and_readouts_as_mace_carries_them_over(trained, host, water):
    """Tensor by tensor what mace's load_foundations_elements makes of the same fresh model."""
    heads = repr({"one": {"train_file": str(water)}, "two": {"train_file": str(water)}})
    both, data, _ = start_from(trained, water, train_file=None, heads=heads)
    assert both.heads == ["one", "two"]
    fresh = MaceHost.build(MaceHost.describe(both))
    theirs = finetuning_utils.load_foundations_elements(
        fresh, host, AtomicNumberTable([1, 8]), load_readout=True, max_L=0, default_dtype=torch.float64
    ).state_dict()
    for name, value in both.state_dict().items():
        assert torch.equal(value, theirs[name]), name
    everything, data, _ = start_from(trained, water, foundation_model_elements="True", foundation_model_readout=True)
    assert data.atomic_numbers == [1, 6, 8] == everything.atomic_numbers.tolist()
    energies = host.atomic_energies_fn.atomic_energies
    assert torch.equal(
        everything.atomic_energies_fn.atomic_energies, energies
    )  # those of carbon, which is not in the data
    assert torch.equal(everything.products[1].linear.weight, host.products[1].linear.weight)
    assert not torch.equal(everything.readouts[1].linear_1.weight, host.readouts[1].linear_1.weight)


@pytest.mark.honours("foundation_model_elements", "E0s")
def test_elements_that_the_data_lack_are_named_where_others_are_shifted(trained, water):
    for choice, told in (("estimated", True), ("{1: -1.0, 8: -3.0}", True), ("foundation", False)):
        _, data, _ = start_from(trained, water, foundation_model_elements="True", E0s=choice)
        notes = " ".join(data.settings[0].notes)
        assert ("E0s: those of C, of which the data tell nothing, are still the trained model's" in notes) == told


@pytest.mark.honours("E0s")
def test_given_e0s_win_over_the_trained_models(trained, host, molecules):
    """mace drops them where the elements are the same."""
    model, data, run = start_from(trained, molecules, E0s="{1: -1.0, 6: -2.0, 8: -3.0}")
    assert model.atomic_energies_fn.atomic_energies.flatten().tolist() == [-1.0, -2.0, -3.0]
    batch = batch_of(data)
    torch.testing.assert_close(model(batch)["forces"], host(batch)["forces"], rtol=1e-10, atol=1e-10)


@pytest.mark.honours("E0s")
def test_e0s_of_another_level_of_theory_are_estimated(trained, host, molecules, tmp_path):
    """Labels are the trained model's energies and 1,000 eV for each atom of oxygen, which a new E0 takes up: with
    ``estimated``, and where nothing is said. mace asks then."""
    level = attach_phi(host, {"operator": "coulomb"})  # its Φ is part of what the labels are compared with
    save_model(level, tmp_path / "level")
    frames = ase.io.read(molecules, ":")
    for atoms in frames:
        atoms.calc = PhiCalculator(level, dtype="float64")
        atoms.info["new_energy"] = atoms.get_potential_energy() + 1000.0 * np.count_nonzero(atoms.numbers == 8)
        atoms.arrays["new_forces"], atoms.calc = atoms.get_forces(), None
    ase.io.write(tmp_path / "level.xyz", frames, format="extxyz")
    given = {"energy_key": "new_energy", "forces_key": "new_forces", "trust_pickle": None}
    for choice in (None, "estimated"):
        model, data, _ = start_from(tmp_path / "level", tmp_path / "level.xyz", E0s=choice, **given)
        batch = batch_of(data)
        torch.testing.assert_close(model(batch)["energy"], batch["energy"], rtol=1e-9, atol=1e-9)
        assert [line for line in data.lines if "E0s: estimated: those of the trained model" in line], data.lines
    model, data, _ = start_from(tmp_path / "level", tmp_path / "level.xyz", E0s="foundation", **given)
    assert float((model(batch)["energy"] - batch["energy"]).abs().min()) > 999


@pytest.mark.honours("foundation_head")
def test_one_head_of_several(tmp_path, molecules):
    torch.set_default_dtype(torch.float64)
    heads = repr({"one": {"train_file": str(molecules)}, "pt_head": {"train_file": str(molecules)}})
    host, data, _ = build(molecules, train_file=None, heads=heads, E0s="{1: -1.0, 6: -2.0, 8: -3.0}")
    torch.save(host, tmp_path / "two.model")
    batch = next(iter(data.loader("valid")["one"]))
    wanted = {}
    for name in host.heads:
        batch["head"] = torch.full_like(batch["head"], host.heads.index(name))
        wanted[name] = outputs(host, batch)
    batch["head"] = torch.zeros_like(batch["head"])
    model, *_ = start_from(tmp_path / "two.model", molecules)
    torch.testing.assert_close(outputs(model, batch), wanted["one"], rtol=1e-10, atol=1e-10)
    second = mace_hosts.single_head(host, "pt_head")
    torch.testing.assert_close(outputs(second, batch), wanted["pt_head"], rtol=1e-10, atol=1e-10)
    with pytest.raises(InputError, match="the heads .*not 'three': choose one by --foundation_head"):
        mace_hosts.single_head(host, "three")


def test_models_of_early_mace_and_of_other_precision(trained, host, tmp_path, molecules):
    """Attributes that mace 0.3.0 did not have are gone; a float32 model; gaussian radial functions; class MACE."""
    old = copy.deepcopy(host)
    for name in ("heads", "apply_cutoff", "edge_irreps", "use_reduced_cg", "use_agnostic_product", "use_so3"):
        delattr(old, name)
    for name in ("use_last_readout_only", "use_edge_irreps_first"):
        delattr(old, name)
    for block in (*old.interactions, *old.products):
        block.cueq_config = None
        del block.cueq_config
    old.atomic_energies_fn.atomic_energies = old.atomic_energies_fn.atomic_energies.flatten()
    torch.save(old.float(), tmp_path / "old.model")
    model, data, run = start_from(tmp_path / "old.model", molecules)
    batch = batch_of(data)
    assert model.readouts[0].linear.weight.dtype == torch.float64
    torch.testing.assert_close(outputs(model, batch), outputs(host, batch), rtol=1e-4, atol=1e-4)


def test_energies_are_compared_without_those_of_isolated_atoms(host):
    """All-electron E0s leave a float32 energy no digits, in which two models would look the same, or not."""
    model = host.float()
    model.atomic_energies_fn.atomic_energies.mul_(1e6)
    kept = model.atomic_energies_fn.atomic_energies.clone()
    other = copy.deepcopy(model)
    check_energies(model, other)
    with torch.no_grad():
        other.readouts[0].linear.weight.mul_(1.01)
    with pytest.raises(InputError, match="other energies"):
        check_energies(model, other)
    assert torch.equal(model.atomic_energies_fn.atomic_energies, kept)


def test_attaching_to_a_trained_model_moves_nothing(trained, host, molecules):
    """init: small is the default then; energies move by less than 1e-5 eV/atom, and the gradient of Φ is not zero."""
    model, data, run = start_from(trained, molecules, phi=["operator=coulomb", "channels=4"])
    assert model.phi.config.init == "small"
    batch = batch_of(data)
    wanted, atoms = host(batch)["energy"], batch["ptr"].diff()
    assert 0 < float(((model(batch)["energy"] - wanted).abs() / atoms).max()) < 1e-5
    model = attach_phi(model.detach(), {"operator": "graph", "channels": 4, "init": "small"})
    assert 0 < float(((model(batch)["energy"] - wanted).abs() / atoms).max()) < 1e-5
    explicit = validate({"operator": "coulomb", "init": "default"}, trained_host=True)
    assert explicit.config.init == "default" and validate({}, trained_host=False).config.init == "default"


def stepped(model, data, run):
    """One optimiser step of the trainer, with the moving average: tensors before and after."""
    objective = losses.build_objective(run.loss, None)
    outputs = {"forces": True, "stress": False, "virials": False}
    module = PotentialModule(model, objective, run.optimiser, run.stages, outputs, 1)
    optimiser = module.configure_optimizers()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    loss = module.training_step(batch_of(data), 0)
    module.backward(loss)
    optimiser.step()
    module.on_train_batch_end(None, None, 0)
    return before, dict(model.named_parameters()), module, optimiser


def test_freeze_host_trains_phi_alone(trained, molecules):
    model, data, run = start_from(trained, molecules, phi=["operator=coulomb", "freeze_host=true"], ema=True)
    before, after, module, optimiser = stepped(model, data, run)
    for name, value in after.items():
        assert torch.equal(value, before[name]) == name.startswith("host."), name
    assert [group["name"] for group in optimiser.param_groups] == ["phi"]
    averaged = module.averaged_weights()
    assert all(torch.equal(averaged[name], before[name]) for name in before if name.startswith("host."))


@pytest.mark.honours("freeze")
def test_freeze_stops_the_layers_that_mace_stops(host):
    potential = attach_phi(host, {"operator": "coulomb"})
    blocks = (host.node_embedding, host.interactions, host.products, host.readouts)
    for level, frozen in ((1, 1), (5, 2), (6, 3), (7, 4)):
        mace_hosts.freeze_layers(host, level)
        assert [all(not p.requires_grad for p in block.parameters()) for block in blocks] == [
            i < frozen for i in range(4)
        ]
        names = {group["name"] for group in parameter_groups(potential)}
        assert "phi" in names and "embedding" not in names and ("readouts" in names) == (frozen < 4)


@pytest.mark.honours("freeze")
def test_frozen_layers_do_not_move_and_the_rest_does(molecules):
    """Beside Φ, and with a host that learns more slowly: ``host_lr_factor``."""
    phi = ["operator=coulomb", "host_lr_factor=0.1"]
    model, data, run = build(molecules, freeze=5, phi=phi, weight_decay=0.1, lr=0.02)
    before, after, _, optimiser = stepped(model, data, run)
    for name, value in after.items():
        still = name.startswith(("host.node_embedding", "host.interactions"))
        assert torch.equal(value, before[name]) == still, name
    rates = {group["name"]: group["lr"] for group in optimiser.param_groups}
    assert rates == {"products": pytest.approx(0.002), "readouts": pytest.approx(0.002), "phi": 0.02}
    with pytest.raises(InputError, match="--freeze: 7 leaves nothing to train"):
        build(molecules, freeze=7)


@pytest.mark.parametrize("settings", [{"channels": 2}, {"charge_model": "sqe", "polarizable": True}])
def test_a_run_with_phi_goes_on_with_its_phi(host, molecules, water, tmp_path, settings):
    potential = attach_phi(copy.deepcopy(host), settings)
    save_model(potential, tmp_path / "before")
    part, data, started = start_from(tmp_path / "before", water, trust_pickle=None)
    assert started.phi.config == dataclasses.replace(PhiConfig(**settings), init="small")
    batch = batch_of(data)
    wanted = outputs(potential, in_order_of(host, batch, [1, 8]))
    torch.testing.assert_close(outputs(part, batch), wanted, rtol=1e-10, atol=1e-10)
    (tmp_path / "before" / run_folder.CONFIG).write_text("phi: {net_charge_weight: 0.5, freeze_host: true}\n")
    said = [f"{name}={value}" for name, value in settings.items()]
    for phi, weight in (("host_lr_factor=0.5", 0.5), ([*said, "net_charge_weight=0.25"], 0.25)):
        again = start_from(tmp_path / "before", water, phi=phi, trust_pickle=None)[2].phi
        assert again.config == started.phi.config and again.net_charge_weight == weight and not again.freeze_host
    file = start_from(tmp_path / "before" / "model.safetensors", water, trust_pickle=None)[2].phi
    assert file.config == started.phi.config and file.net_charge_weight == 0.5
    for given, what in (({"phi": "hidden=5"}, "hidden: .*, not 5"), ({"no_phi": True}, "operator: coulomb")):
        with pytest.raises(InputError, match=f"was trained with Φ .*{what}.* leave --phi and the phi: section out"):
            start_from(tmp_path / "before", molecules, **given, trust_pickle=None)


def test_phi_starts_anew_on_the_host_of_a_model_with_phi(host, molecules, tmp_path):
    """With its own settings, so small that energies are those of the host."""
    save_model(attach_phi(copy.deepcopy(host), {"charge_model": "sqe", "channels": 1}), tmp_path / "before")
    model, data, started = start_from(
        tmp_path / "before", molecules, phi=["fresh=true", "operator=coulomb", "channels=3"], trust_pickle=None
    )
    assert started.phi.config == PhiConfig(channels=3, init="small") and started.phi.section()["fresh"]
    batch = batch_of(data)
    moved = (model(batch)["energy"] - host(batch)["energy"]).abs() / batch["ptr"].diff()
    assert 0 < float(moved.max()) < 1e-5
    with pytest.raises(InputError, match="has no Φ that could start anew"):
        start_from(molecules.with_name("trained.model"), molecules, phi="fresh=true")
    with pytest.raises(InputError, match="init: default is where a new Φ starts.*fresh=true"):
        start_from(tmp_path / "before", molecules, phi="init=default", trust_pickle=None)
    with pytest.raises(InputError, match="fresh starts the Φ of a trained model anew. Give --foundation_model"):
        build(molecules, phi="fresh=true")


@pytest.mark.slow
@pytest.mark.honours("foundation_model", "freeze")
def test_a_model_of_the_zoo_is_fine_tuned_by_name_and_its_frozen_layers_stay(water, tmp_path):
    """With a moving average, weight decay, a restart and stage two: bit for bit, in what is saved and in the last."""
    given = {**FREE, "foundation_model": "phi-mace-small.3bpa", "train_file": water, "valid_fraction": 0.25}
    given |= {"E0s": None, "batch_size": 2, "freeze": 5, "ema": True, "weight_decay": 0.1, "lr": 0.01, "swa": True}
    given |= {"start_swa": 2, "default_dtype": "float32", "restart_latest": True, "name": "tuned", "optimizer": "adamw"}
    run(tmp_path, **given, max_num_epochs=3)
    folder = run(tmp_path, **given, max_num_epochs=4)
    before = load_pretrained("phi-mace-small.3bpa").float().state_dict()
    for weights in (load_model(folder), load_model(folder / "stage_one")):
        after = dict(weights.named_parameters())
        assert weights.atomic_numbers.tolist() == [1, 8] and len(after) > 20
        for name, value in after.items():
            still = name.startswith(("host.node_embedding", "host.interactions"))
            known = before[name]
            if known.shape != value.shape:  # a part of the elements
                continue
            assert torch.equal(value, known) == still, name
    kept = load_model(folder).host.node_embedding.linear.weight.reshape(2, -1)
    whole = before["host.node_embedding.linear.weight"].reshape(4, -1)[[0, 3]]
    ratio = kept / whole  # mace scales them by the root of the number of elements
    assert torch.allclose(ratio, ratio[0, 0].expand_as(ratio), rtol=1e-6)


def write_scripted(model, path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)


class Polar(torch.nn.Linear):
    """A model of another kind."""


def test_an_architecture_that_is_not_the_trained_models_does_not_act(trained, molecules):
    """mace takes the trained model's too, in silence."""
    for given, line in (
        ({"r_max": 4.0}, "--r_max 4.0 does not act: the model of --foundation_model has 3.0"),
        ({"r_max": 5.0}, "--r_max 5.0 does not act"),  # mace's default, but said
        ({"edge_irreps": "2x0e"}, "--edge_irreps 2x0e does not act"),
        ({"scaling": "no_scaling"}, "--scaling does not act: the model of --foundation_model keeps its own"),
    ):
        model, data, run = start_from(trained, molecules, **given)
        assert [one for one in data.lines if one.startswith(line)], (line, data.lines)
        assert float(model.r_max) == run.host.r_max == 3.0 and run.host.edge_irreps is None


@pytest.mark.honours("trust_pickle", "foundation_model")
def test_what_cannot_be_started_from(trained, host, molecules, water, tmp_path, capsys):
    def message(**given):
        line = words(tmp_path, name="x", train_file=molecules, **{**FREE, "foundation_model": trained, **given})
        return refused(capsys, line)

    assert "runs whatever code its maker put into it" in message()
    assert "small is a model that mace downloads" in message(foundation_model="small")
    assert "there is no file" in message(foundation_model=tmp_path / "nowhere.model")
    assert "Did you mean phi-mace-small.3bpa" in message(foundation_model="phi-mace-small.3bap")
    assert "is a size, not a trained model" in message(foundation_model="phi-mace-small")
    assert "holds a NequIP, which is not a mace model" in message(foundation_model="phi-nequip-small.ala3_gfn2")
    for name, thing, expected in (
        ("polar.model", Polar(2, 2), "holds a Polar; Φ starts from MACE and ScaleShiftMACE"),
        ("checkpoint.pt", {"model": host.state_dict()}, "holds a dict, not a model"),
    ):
        torch.save(thing, tmp_path / name)
        assert expected in message(foundation_model=tmp_path / name, trust_pickle=True)
    write_scripted(host, tmp_path / "lammps.pt")
    assert "is compiled (TorchScript)" in message(foundation_model=tmp_path / "lammps.pt", trust_pickle=True)
    (tmp_path / "text.model").write_text("no model")
    assert "cannot be read as a model" in message(foundation_model=tmp_path / "text.model", trust_pickle=True)
    (tmp_path / "best.safetensors").write_bytes(b"")
    assert "holds weights alone; give the folder" in message(foundation_model=tmp_path / "best.safetensors")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.yaml").write_text("seed: 1")
    assert "is of a run that has no model yet" in message(foundation_model=tmp_path / "begun")
    small = build(water)[0]
    torch.save(small, tmp_path / "water.model")
    assert "atomic number 6" in message(foundation_model=tmp_path / "water.model", trust_pickle=True)
    trust = {"trust_pickle": True}
    assert "freeze_host needs a trained host" in message(foundation_model=None, phi="freeze_host=true")
    both = ["freeze_host=true", "host_lr_factor=0.5"]
    assert "freeze_host and host_lr_factor are both given" in message(phi=both, **trust)
    assert "--freeze: phi: freeze_host freezes all" in message(phi="freeze_host=true", freeze=1, **trust)
    assert not list(tmp_path.glob("x*"))


@pytest.mark.slow
@pytest.mark.honours("foundation_model", "multiheads_finetuning")
def test_fine_tuning_goes_as_mace_run_trains(trained, water, tmp_path):
    """Losses and validation errors of two epochs, from a model with more elements than the data.

    Without clipping: mace counts the gradient of Bessel weights, which it does not train, in the norm that it clips.
    """
    given = {**FREE, "train_file": water, "valid_fraction": 0.25, "batch_size": 2, "E0s": "average", "ema": True}
    given |= {"max_num_epochs": 2, "foundation_model": trained, "multiheads_finetuning": "False", "clip_grad": "None"}
    ours = metrics(run(tmp_path, name="ours", trust_pickle=True, **given))
    command = [sys.executable, "-m", "mace.cli.run_train", *words(tmp_path, name="theirs", plot="False", **given)]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    (log,) = (tmp_path / "results").glob("theirs*_train.txt")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    theirs = [row for row in rows if row["mode"] == "eval" and row["epoch"] is not None]
    assert len(ours) == len(theirs) == 2
    for mine, row in zip(ours, theirs, strict=True):
        steps = [r["loss"] for r in rows if r["mode"] == "opt" and r["epoch"] == mine["epoch"]]
        assert mine["train_loss"] == pytest.approx(sum(steps) / len(steps), rel=1e-9)
        assert mine["valid_rmse_forces"] == pytest.approx(1e3 * row["rmse_f"], rel=1e-9)
        assert mine["valid_rmse_energy_per_atom"] == pytest.approx(1e3 * row["rmse_e_per_atom"], rel=1e-9)
