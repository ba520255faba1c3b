"""Training against mace's own trainer, and what a trained potential must be."""

import ast
import json
import subprocess
import sys

import ase.io
import numpy as np
import pytest
import torch
from mace import data as mace_data
from mace.tools import torch_geometric
from mace.tools.default_keys import DefaultKeys
from safetensors.torch import load_file
from training_runs import (  # noqa: F401  (a fixture)
    TINY,
    keep_default_dtype,
    mace_graphs,
    metrics,
    parsed,
    run,
    words,
    write_molecules,
)

from phi_equivariant import PhiCalculator
from phi_equivariant.inputs.graphs import collate
from phi_equivariant.weights import load_model
from training import build as building
from training.data.labelled_graphs import GraphMaker
from training.data.order import EpochOrder
from training.data.parts import random_split
from training.fit.lightning_module import PotentialModule
from training.fit.optimisers import Cosine
from training.fit.predict import predict
from training.quantities import LABELS, TARGETS


@pytest.fixture(scope="module")
def molecules(tmp_path_factory):
    return write_molecules(tmp_path_factory.mktemp("molecules") / "train.xyz", count=24, charges=True)


def build(work_dir, **given):
    """A run's parts without training."""
    chosen, run_data = building.load(parsed(work_dir, name="run", **given))
    return chosen, run_data, building.build(chosen, run_data)


def module_of(chosen, built):
    parts = (chosen.optimiser, chosen.stages)
    return PotentialModule(built.model, built.objective, *parts, built.outputs, len(built.order))


STAGE_TWO = {"swa": True, "start_swa": 2, "swa_lr": 0.003, "swa_energy_weight": 20, "swa_forces_weight": 30}


@pytest.mark.slow
@pytest.mark.parametrize(("scheduler", "stage_two"), [("ReduceLROnPlateau", STAGE_TWO), ("ExponentialLR", {})])
def test_bare_host_trains_as_mace_run_train_does(molecules, tmp_path, scheduler, stage_two):
    """Losses of every step's epoch and validation errors to 1e-9: moving average, clipping, weight decay, stage two."""
    given = {"max_num_epochs": 4, "scheduler": scheduler, "scheduler_patience": 0, "lr_scheduler_gamma": 0.5, "seed": 7}
    given |= stage_two
    given |= {"train_file": molecules, "ema": True, "weight_decay": 1e-2, "clip_grad": 5.0, "optimizer": "adamw"}
    folder = run(tmp_path, name="ours", **given)
    command = [sys.executable, "-m", "mace.cli.run_train", *words(tmp_path, name="theirs", plot="False", **given)]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    (log,) = (tmp_path / "results").glob("theirs*_train.txt")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    validation = [row for row in rows if row["mode"] == "eval" and row["epoch"] is not None]
    ours = metrics(folder)
    assert len(ours) == len(validation) == 4
    for mine, theirs in zip(ours, validation, strict=True):
        steps = [row["loss"] for row in rows if row["mode"] == "opt" and row["epoch"] == mine["epoch"]]
        assert mine["train_loss"] == pytest.approx(np.mean(steps), rel=1e-9)
        assert mine["valid_loss_mace"] == pytest.approx(theirs["loss"], rel=1e-9)
        for name, key in (("energy_per_atom", "e_per_atom"), ("forces", "f")):
            for kind in ("mae", "rmse"):
                assert mine[f"valid_{kind}_{name}"] == pytest.approx(1e3 * theirs[f"{kind}_{key}"], rel=1e-9)


@pytest.mark.parametrize("pbc", [False, (True, True, False), True])
def test_batches_equal_maces(molecules, pbc):
    """Field by field, with structures of different sizes, all of mace's labels on some, and weights of each kind."""
    of_mace = {key.name.lower() for key in DefaultKeys}
    not_of_mace = {part for name in TARGETS.keys() - of_mace for part in (name, f"{name}_weight")}
    frames, rng, weights = ase.io.read(molecules, ":5"), np.random.default_rng(0), {"Default": 1.5, "rare": 3.0}
    for index, atoms in enumerate(frames):
        atoms.set_cell([[5.0, 0.3, 0.0], [0.0, 60.0 if index == 3 else 6.0, 0.4], [0.2, 0.0, 7.0]])
        atoms.pbc = pbc
        for name, label in LABELS.items():
            if index != 1 and name not in not_of_mace:
                place = atoms.arrays if label.per_atom else atoms.info
                shape = (len(atoms), *label.shape) if label.per_atom else label.shape
                place[label.canonical] = rng.normal(size=shape) if shape else float(rng.normal())
    frames[0].info |= {"config_type": "rare", "config_weight": 0.5, "config_energy_weight": 2.0}
    frames[2].info |= {"config_dipole_weight": np.array([1.0, 0.0, 2.0]), "config_charges_weight": 0.0}
    frames[4].info |= {"config_polarizability_weight": rng.uniform(size=(3, 3)), "config_forces_weight": 0.25}
    theirs = torch_geometric.Batch.from_data_list(mace_graphs(frames, [1, 6, 8], 3.0, config_type_weights=weights))
    ours = collate(list(map(GraphMaker([1, 6, 8], 3.0, type_weights=weights), frames)))
    assert ours.num_graphs == theirs.num_graphs == 5
    fields = {
        "positions",
        "edge_index",
        "shifts",
        "total_charge",
        "total_spin",
        "ptr",
        "batch",
        "cell",
        "pbc",
        "weight",
    }
    assert {*fields, *TARGETS, *(f"{name}_weight" for name in TARGETS)} <= set(ours)
    for key in set(ours) - not_of_mace:
        value = ours[key]
        if key == "energy":  # in float64, whatever the precision
            value = value.to(theirs[key].dtype)
        assert value.dtype == theirs[key].dtype and torch.equal(value, theirs[key]), key


def test_shuffling_equals_maces():
    """The order of every epoch, also after the two passes that mace makes for its statistics, also from the middle."""
    loader = torch_geometric.dataloader.DataLoader(
        dataset=list(torch.arange(23)), batch_size=4, shuffle=True, drop_last=True,
        generator=torch.Generator().manual_seed(3),
    )  # fmt: skip
    passes = [[batch.tolist() for batch in loader] for _ in range(5)]
    order = EpochOrder(23, 4, seed=3)
    assert [order.next_order(), order.next_order()] == passes[:2]
    for epoch in range(3):
        order.set_epoch(epoch)
        assert list(order) == passes[2 + epoch]
    late = EpochOrder(23, 4, seed=3)
    late.next_order(), late.next_order()
    late.set_epoch(2)
    assert list(late) == passes[4] and len(late) == 5


def test_validation_split_equals_maces(tmp_path):
    train_part, valid_part = random_split(37, 0.2, seed=11)
    theirs = mace_data.random_train_valid_split(list(range(37)), 0.2, 11, str(tmp_path))
    assert (train_part, valid_part) == theirs


@pytest.mark.honours("weight_decay")
@pytest.mark.parametrize("phi", [None, ["operator=coulomb"], ["operator=graph", "poisson=learned"]])
def test_every_parameter_is_optimised_once_and_moves(molecules, tmp_path, phi):
    """Each trainable parameter is in one group and changes in a step; only mace's own decaying groups decay."""
    chosen, run_data, built = build(tmp_path, train_file=molecules, phi=phi, weight_decay=0.1)
    module = module_of(chosen, built)
    optimizer = module.configure_optimizers()
    ids = [id(p) for group in optimizer.param_groups for p in group["params"]]
    trainable = {name: p for name, p in built.model.named_parameters() if p.requires_grad}
    assert sorted(ids) == sorted(map(id, trainable.values()))
    decaying = {group["name"] for group in optimizer.param_groups if group["weight_decay"]}
    assert decaying == {"interactions_decay", "products"}
    before = {name: p.detach().clone() for name, p in trainable.items()}
    built.order.set_epoch(0)
    for batch in run_data.train_loader(built.order):
        loss, _ = built.objective(predict(built.model, batch, built.outputs, training=True), batch)
        optimizer.zero_grad()
        module.backward(loss)
        optimizer.step()
    still = [name for name, p in trainable.items() if torch.equal(p, before[name]) and p.numel()]
    assert still == []


@pytest.mark.honours("lr", "lr_params_factors", "beta", "optimizer")
def test_learning_rates_of_groups(molecules, tmp_path):
    """lr_params_factors act on mace's groups; beta and the kind of optimiser are taken over."""
    factors = '{"embedding_lr_factor": 0.5, "interactions_lr_factor": 2.0, "readouts_lr_factor": 0.0}'
    given = {"train_file": molecules, "lr": 0.2, "lr_params_factors": factors, "beta": 0.7, "optimizer": "adamw"}
    chosen, _, built = build(tmp_path, phi=["channels=1"], **given)
    optimizer = module_of(chosen, built).configure_optimizers()
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert rates == pytest.approx(
        {
            "embedding": 0.1,
            "interactions_decay": 0.4,
            "interactions_no_decay": 0.4,
            "products": 0.2,
            "readouts": 0.0,
            "phi": 0.2,
        }
    )
    assert type(optimizer) is torch.optim.AdamW and optimizer.defaults["amsgrad"]
    assert optimizer.param_groups[0]["betas"] == (0.7, 0.999)


def test_weights_of_configuration_types(molecules, tmp_path):
    """config_type_weights and config_weight multiply, as in mace."""
    frames = ase.io.read(molecules, ":")
    for index, atoms in enumerate(frames):
        atoms.info["config_type"] = "water" if index % 2 == 0 else "methanol"
        atoms.info["config_weight"] = 2.0 if index == 0 else 1.0
    ase.io.write(tmp_path / "typed.xyz", frames, format="extxyz")
    given = {"train_file": tmp_path / "typed.xyz", "valid_file": molecules}
    _, run_data, _ = build(tmp_path, config_type_weights='{"Default": 1.0, "water": 3.0}', **given)
    weights = [float(graph["weight"]) for graph in run_data.train.graphs]
    assert weights[:4] == [6.0, 1.0, 3.0, 1.0]


def test_workers_load_the_same_batches(molecules, tmp_path):
    """Batches made by another process train the same weights."""
    given = {"train_file": molecules, "max_num_epochs": 2, "plot": False}
    alone = metrics(run(tmp_path, name="alone", **given))
    helped = metrics(run(tmp_path, name="helped", num_workers=1, **given))
    assert alone == helped


def test_best_averaged_weights_are_saved_and_tested(molecules, tmp_path):
    """model.safetensors holds the best epoch's moving average; the error table repeats its validation errors."""
    given = {"train_file": molecules, "test_file": molecules, "max_num_epochs": 5, "ema": True, "lr": 0.05}
    folder = run(tmp_path, name="run", phi=["operator=coulomb"], **given)
    rows, errors = metrics(folder), json.loads((folder / "errors.json").read_text())
    best = min(rows, key=lambda row: row["valid_loss_mace"])
    assert errors["best_epoch"] == best["epoch"] + 1
    for name, found in errors["sets"]["valid"]["errors"].items():
        assert found["rmse"] == pytest.approx(best[f"valid_rmse_{name}"], rel=1e-9)
    saved, kept = load_file(folder / "model.safetensors"), load_file(folder / "checkpoints" / "best.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in kept.items())


@pytest.mark.honours("charges_weight", "dipole_weight")
def test_trained_charges_dipoles_and_calculator(molecules, tmp_path):
    """Charge and dipole losses act, and errors.json agrees with numpy on what PhiCalculator predicts."""
    given = {"charges_key": "q", "dipole_key": "mu", "charges_weight": 3e4, "dipole_weight": 1e3}
    given |= {"train_file": molecules, "test_file": molecules, "phi": ["operator=coulomb"], "lr": 0.02}
    folder = run(tmp_path, name="run", max_num_epochs=20, **given)
    rows = metrics(folder)
    assert rows[-1]["valid_rmse_charges"] < 0.5 * rows[0]["valid_rmse_charges"]
    assert {"train_term_charges", "train_term_dipole", "valid_term_energy", "valid_term_forces"} <= set(rows[0])
    errors = json.loads((folder / "errors.json").read_text())["sets"]["test"]["errors"]
    frames = ase.io.read(molecules, ":")
    calculator = PhiCalculator(folder)
    deltas = {"energy_per_atom": [], "forces": [], "charges": [], "dipole": []}
    for atoms in frames:
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        atoms.calc = calculator
        deltas["energy_per_atom"].append([(atoms.get_potential_energy() - energy) / len(atoms) * 1e3])
        deltas["forces"].append((atoms.get_forces() - forces).ravel() * 1e3)
        deltas["charges"].append(atoms.get_charges() - atoms.arrays["q"])
        deltas["dipole"].append(atoms.get_dipole_moment() - atoms.info["mu"])
    for name, parts in deltas.items():
        delta = np.concatenate(parts)
        assert errors[name]["mae"] == pytest.approx(np.abs(delta).mean(), rel=1e-6)
        assert errors[name]["rmse"] == pytest.approx(np.sqrt((delta**2).mean()), rel=1e-6)


def test_pde_weight_lowers_the_residual(molecules, tmp_path):
    """Training with λ_pde ends with a smaller R than training without it."""
    given = {"train_file": molecules, "max_num_epochs": 6, "plot": False}
    common = ["operator=coulomb", "poisson=learned"]
    free = metrics(run(tmp_path, name="free", phi=common, **given))
    tied = metrics(run(tmp_path, name="tied", phi=[*common, "pde_weight=1000"], **given))
    assert tied[-1]["valid_pde_residual"] < 0.3 * free[-1]["valid_pde_residual"]
    assert "train_term_pde" in tied[0] and "train_term_pde" not in free[0]


@pytest.mark.honours("save_cpu", "default_dtype", "no_phi")
def test_bare_model_folder_loads(molecules, tmp_path):
    """The host alone is saved in the same form, on whatever device it was trained."""
    given = {"train_file": molecules, "max_num_epochs": 1, "default_dtype": "float32", "save_cpu": True, "no_phi": True}
    folder = run(tmp_path, name="run", **given)
    model = load_model(folder)
    assert {(p.dtype, p.device.type) for p in model.parameters()} == {(torch.float32, "cpu")}
    assert sum(p.numel() for p in model.parameters()) == json.loads((folder / "errors.json").read_text())["parameters"]


def test_isolated_atoms_and_dictionary_give_the_same_e0s(molecules, tmp_path):
    """Frames with config_type=IsolatedAtom are read as E0s, as in mace."""
    e0s = {1: -1.5, 6: -4.0, 8: -3.0}
    frames = ase.io.read(molecules, ":")
    for number, energy in e0s.items():
        atom = ase.Atoms(numbers=[number])
        atom.info |= {"config_type": "IsolatedAtom", "energy": energy}
        frames.append(atom)
    ase.io.write(tmp_path / "with_atoms.xyz", frames, format="extxyz")
    for E0s, file in ((str(e0s), molecules), (None, tmp_path / "with_atoms.xyz")):
        _, run_data, built = build(tmp_path, train_file=file, E0s=E0s)
        assert run_data.e0s == {"Default": e0s}
        assert built.model.atomic_energies_fn.atomic_energies.flatten().tolist() == list(e0s.values())
        assert run_data.size("train") + run_data.size("valid") == 24


@pytest.mark.honours("scheduler", "warmup_epochs", "final_lr_factor")
def test_cosine_schedule_has_its_closed_form(double):
    """Linear warm-up, half a cosine, the final factor at the last step; a shortened run ends there too."""
    given = {"scheduler": "CosineAnnealingLR", "warmup_epochs": 2, "final_lr_factor": 0.1, "max_num_epochs": 10}
    chosen = parsed(".", train_file="x", **given)
    optimizer = torch.optim.Adam([{"params": [torch.zeros(1)], "lr": 0.5}])
    schedule, rates = Cosine(optimizer, chosen.optimiser, chosen.stages.of_stage_one, steps_per_epoch=4), []
    for epoch in range(10):
        for _ in range(4):
            schedule.before_step(10 - epoch)
            rates.append(optimizer.param_groups[0]["lr"])
        schedule.after_epoch(0.0)
    t = np.arange(1, 41)
    expected = np.where(t < 8, 0.5 * t / 8, 0.5 * (0.1 + 0.9 * (1 + np.cos(np.pi * (t - 8) / 32)) / 2))
    np.testing.assert_allclose(rates, expected, rtol=1e-9)
    other = torch.optim.Adam([{"params": [torch.zeros(1)], "lr": 0.5}])
    short = Cosine(other, chosen.optimiser, chosen.stages.of_stage_one, steps_per_epoch=4)
    for left in (10, 9, 2, 1):  # a time limit cuts epochs 3 to 8
        for _ in range(4):
            short.before_step(left)
        short.after_epoch(0.0)
    assert short.optimizer.param_groups[0]["lr"] == pytest.approx(0.05)


def test_statistics_of_the_host_are_maces(molecules, tmp_path):
    """Average number of neighbours and scale are the training set's; given values replace them."""
    _, run_data, built = build(tmp_path, train_file=molecules)
    graphs = run_data.train.graphs
    forces = torch.cat([graph["forces"] for graph in graphs])
    assert float(built.model.scale_shift.scale) == pytest.approx(float(forces.square().mean().sqrt()), rel=0.2)
    given = {"std": 1.25, "compute_avg_num_neighbors": False, "avg_num_neighbors": 3.5}
    _, _, fixed = build(tmp_path, train_file=molecules, **given)
    assert float(fixed.model.scale_shift.scale) == 1.25
    assert fixed.model.interactions[0].avg_num_neighbors == 3.5
    assert ast.literal_eval(TINY["radial_MLP"]) == [8]
