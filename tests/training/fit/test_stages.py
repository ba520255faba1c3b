"""Training loops against mace's own loop: stage two, optimisers, intervals of validation; and patience."""

import json

import pytest
import torch
from mace.tools import CheckpointHandler, MetricsLogger, scripts_utils
from mace.tools.train import train as mace_train
from safetensors.torch import load_file
from torch_ema import ExponentialMovingAverage
from training_runs import as_namespace, keep_default_dtype, metrics, parsed, run, write_molecules  # noqa: F401

from phi_equivariant.inputs.graphs import GraphBatch, collate
from phi_equivariant.weights import load_model
from training import build
from training.fit.optimisers import build_groups

FAST = {"num_interactions": 1, "plot": False, "valid_fraction": 0.3, "seed": 7}


@pytest.fixture(scope="module")
def molecules(tmp_path_factory):
    return write_molecules(tmp_path_factory.mktemp("molecules") / "train.xyz", charges=True)


class MaceBatch(GraphBatch):
    """A batch as mace's loop calls it."""

    def to(self, device):
        return self

    def to_dict(self):
        return dict(self)


def loader(structures, batch_size, **how):
    return torch.utils.data.DataLoader(
        structures, batch_size, collate_fn=lambda graphs: MaceBatch(collate(graphs)), **how
    )


def train_by_mace(folder, **given):
    """mace's own loop from the same weights: its validation rows, the model and its moving average."""
    chosen, run_data = build.load(parsed(folder, name="theirs", **given))
    args, built = as_namespace(chosen), build.build(chosen, run_data)
    model, generator = built.model, torch.Generator().manual_seed(args.seed)
    batches = loader(run_data.train, args.batch_size, shuffle=True, drop_last=not args.lbfgs, generator=generator)
    list(batches), list(batches)  # mace's statistics
    optimizer = scripts_utils.get_optimizer(args, scripts_utils.get_params_options(args, model))
    scheduler = scripts_utils.LRScheduler(optimizer, args)
    stage_two = scripts_utils.get_swa(args, model, optimizer, [False])[0] if args.swa else None
    if args.lbfgs:
        optimizer = torch.optim.LBFGS(model.parameters(), history_size=200, max_iter=20, line_search_fn="strong_wolfe")
    average = ExponentialMovingAverage(model.parameters(), decay=args.ema_decay) if args.ema else None
    mace_train(
        model=model,
        loss_fn=scripts_utils.get_loss_fn(args, False, False),
        train_loader=batches,
        valid_loaders={name: loader(found, args.valid_batch_size) for name, found in run_data.valid.items()},
        optimizer=optimizer,
        lr_scheduler=scheduler,
        start_epoch=0,
        max_num_epochs=args.max_num_epochs,
        patience=args.patience,
        checkpoint_handler=CheckpointHandler(directory=str(folder / "theirs"), tag="theirs"),
        logger=MetricsLogger(directory=str(folder), tag="theirs"),
        eval_interval=args.eval_interval,
        output_args=built.outputs,
        device=torch.device("cpu"),
        log_errors="PerAtomRMSE",
        swa=stage_two,
        ema=average,
        max_grad_norm=args.clip_grad,
    )
    rows = [json.loads(line) for line in (folder / "theirs.txt").read_text().splitlines()]
    return [row for row in rows if row["mode"] == "eval" and row["epoch"] is not None], model, average


FACTORS = '{"embedding_lr_factor": 0.5, "interactions_lr_factor": 2.0, "readouts_lr_factor": 0.1}'
LOOPS = {
    "stage two": {
        "loss": "universal", "swa": True, "start_swa": 2, "swa_lr": 3e-3, "swa_energy_weight": 50,
        "swa_forces_weight": 7, "swa_stress_weight": 0, "stress_weight": 0, "huber_delta": 0.05, "ema": True,
        "ema_decay": 0.9, "beta": 0.8, "scheduler_patience": 0, "lr_factor": 0.3,
    },
    "schedule-free": {
        "optimizer": "schedulefree", "beta1_schedulefree": 0.8, "beta2_schedulefree": 0.95, "swa": True,
        "start_swa": 3, "eval_interval": 3, "lr_params_factors": '{"readouts_lr_factor": 1.0}', "ema": True,
    },
    "AdamW": {
        "optimizer": "adamw", "weight_decay": 0.1, "lr_params_factors": FACTORS, "clip_grad": "None",
        "eval_interval": 3, "scheduler": "ExponentialLR", "lr_scheduler_gamma": 0.5, "lr": 0.02,
        "energy_weight": 3, "forces_weight": 20,
    },
    "L-BFGS": {"lbfgs": True, "batch_size": 14, "ema": True, "clip_grad": 50.0, "max_num_epochs": 2, "loss": "ef"},
}  # fmt: skip


@pytest.mark.honours(
    "swa", "start_swa", "swa_lr", "swa_energy_weight", "swa_forces_weight", "ema", "ema_decay", "beta", "optimizer",
    "beta1_schedulefree", "beta2_schedulefree", "eval_interval", "weight_decay", "lr_params_factors", "clip_grad",
    "scheduler", "lr_scheduler_gamma", "lr_factor", "scheduler_patience", "lr", "lbfgs", "energy_weight",
    "forces_weight", "huber_delta", "max_num_epochs", "batch_size",
)  # fmt: skip
@pytest.mark.parametrize("case", LOOPS)
def test_training_equals_maces_loop(molecules, tmp_path, case):
    """Validation losses and errors of every validated epoch, the weights and their moving average at the end."""
    given = {"train_file": molecules, "max_num_epochs": 5, **FAST, **LOOPS[case]}
    if given.get("optimizer") == "schedulefree":
        pytest.importorskip("schedulefree")
    rows, model, average = train_by_mace(tmp_path, **given)
    folder = run(tmp_path, name="ours", **given)
    ours = [row for row in metrics(folder) if "valid_loss_mace" in row]
    last = metrics(folder)[-1]
    assert ours[-1] == last and len(metrics(folder)) == given["max_num_epochs"]  # the last epoch always is validated
    if rows[-1]["epoch"] != last["epoch"]:
        ours.pop()
    precision = 1e-6 if "lbfgs" in given else 1e-9  # the order within the batch differs, and line searches amplify
    assert [row["epoch"] for row in ours] == [row["epoch"] for row in rows]
    for mine, theirs in zip(ours, rows, strict=True):
        assert mine["valid_loss_mace"] == pytest.approx(theirs["loss"], rel=precision)
        assert mine["valid_rmse_forces"] == pytest.approx(1e3 * theirs["rmse_f"], rel=precision)
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    if given.get("optimizer") != "schedulefree" or last["epoch"] == rows[-1]["epoch"]:
        for name, value in model.state_dict().items():
            torch.testing.assert_close(state["model"][name], value, rtol=precision, atol=precision)
    if average is not None:
        assert state["ema"]["num_updates"] == average.num_updates
        for mine, theirs in zip(state["ema"]["shadow_params"], average.shadow_params, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=precision, atol=precision)


@pytest.mark.honours("batch_size", "valid_batch_size")
@pytest.mark.parametrize(("lbfgs", "sizes"), [(False, [[5] * 2, [4, 2]]), (True, [[5, 5, 4], [4, 2]])])
def test_sizes_of_batches(molecules, tmp_path, lbfgs, sizes):
    """Training leaves a last batch that is not full out, but for L-BFGS; validation does not."""
    given = {**FAST, "batch_size": 5, "valid_batch_size": 4, "lbfgs": lbfgs or None}
    _, run_data = build.load(parsed(tmp_path, train_file=molecules, **given))
    order = run_data.order()
    order.set_epoch(0)
    train = list(run_data.train_loader(order))
    train = [batch for _, batch in train[0].batches()] if lbfgs else train
    (valid,) = run_data.loader("valid").values()
    assert [[batch.num_graphs for batch in found] for found in (train, valid)] == sizes


@pytest.mark.honours("patience", "swa_dipole_weight", "dipole_weight", "charges_weight")
def test_patience_brings_stage_two_forward(molecules, tmp_path):
    """Patience over in stage one: stage two begins with its own weights and best epoch, and ends the run by its own."""
    # With learning rates of almost zero no epoch after a stage's first is better, and a term's ratio is its weights'.
    given = {
        "train_file": molecules,
        "phi": ["poisson=learned", "pde_weight=2"],
        "dipole_key": "mu",
        "charges_key": "q",
    }
    given |= {"lr": 1e-300, "swa_lr": 1e-299, "patience": 2, "max_num_epochs": 20, "start_swa": 12, **FAST}
    given |= {"dipole_weight": 2, "swa_dipole_weight": 6, "charges_weight": 5, "forces_weight": 50}
    folder = run(tmp_path, name="run", swa_energy_weight=40, swa_forces_weight=10, **given)
    rows = metrics(folder)
    assert [row["lr"] for row in rows] == [1e-300] * 3 + [1e-299] * 3
    ratios = {
        name.removeprefix("valid_term_"): rows[3][name] / rows[2][name] for name in rows[0] if "valid_term" in name
    }
    assert ratios == pytest.approx({"energy": 40.0, "forces": 0.2, "dipole": 3.0, "charges": 1.0, "pde": 1.0})
    log = (folder / "log.txt").read_text()
    assert "stage two begins" in log and "stage two from epoch 4 on" in log and "stopped: 2 validations" in log
    for name, place, epoch in (("best", folder / "stage_one", 1), ("best_stage_two", folder, 4)):
        kept, saved = load_file(folder / "checkpoints" / f"{name}.safetensors"), load_file(place / "model.safetensors")
        assert all(torch.equal(saved[key], value) for key, value in kept.items())
        assert json.loads((place / "errors.json").read_text())["best_epoch"] == epoch
        assert load_model(place).phi is not None


@pytest.mark.honours("keep_checkpoints")
def test_stage_two_keeps_its_length(molecules, tmp_path):
    """Brought forward from epoch 6 of 8, it has its two epochs; without patience running out it begins when told."""
    given = {"train_file": molecules, "swa": True, "swa_lr": 1e-3, "max_num_epochs": 8, **FAST}  # start_swa: 3/4
    early = metrics(run(tmp_path, name="early", lr=1e-300, patience=3, **given))
    assert [row["lr"] for row in early] == [1e-300] * 4 + [1e-3] * 2
    folder = run(tmp_path, name="late", lr=1e-300, patience=100, keep_checkpoints=True, **given)
    late = metrics(folder)
    assert [row["lr"] for row in late] == [1e-300] * 6 + [1e-3] * 2
    losses = [row["valid_loss_mace"] for row in late]
    kept = [1, 7, 8] if losses[7] < losses[6] else [1, 7]  # the best so far of each stage
    assert sorted(path.name for path in (folder / "checkpoints").glob("epoch-*")) == [f"epoch-{n:04d}" for n in kept]


@pytest.mark.honours("lr_params_factors")
def test_rates_of_all_layers_are_maces(molecules, tmp_path):
    """Those of an embedded charge and its readout too, which have no factors."""
    specs = {"total_charge": {"type": "categorical", "per": "graph", "num_classes": 3, "emb_dim": 2, "offset": 1}}
    given = {"embedding_specs": repr(specs), "use_embedding_readout": "True", "lr_params_factors": FACTORS}
    chosen, run_data = build.load(parsed(tmp_path, train_file=molecules, **FAST, **given))
    model = build.build(chosen, run_data).model
    theirs = scripts_utils.get_params_options(as_namespace(chosen), model)["params"]
    rates = {group["name"]: group.get("lr", chosen.optimiser.lr) for group in theirs if list(group["params"])}
    ours = {group["name"]: group["lr"] for group in build_groups(model, chosen.optimiser)}
    assert "embedding_readout" in ours and ours.items() <= rates.items()


@pytest.mark.honours("seed")
def test_seed_of_weights_split_and_shuffling(molecules, tmp_path):
    """The same seed gives the same of all three, another seed others."""
    found = []
    for seed in (1, 1, 2):
        chosen, run_data = build.load(parsed(tmp_path, train_file=molecules, **{**FAST, "seed": seed}))
        built = build.build(chosen, run_data)
        built.order.set_epoch(0)
        weights = torch.cat([parameter.detach().flatten() for parameter in built.model.parameters()])
        found.append((weights.tolist(), run_data.digest, [list(batch) for batch in built.order]))
    assert found[0] == found[1] and all(a != b for a, b in zip(found[0], found[2], strict=True))


def test_groups_keep_their_factors_in_stage_two(molecules, tmp_path):
    """A group whose factor is zero stays where it is in both stages."""
    given = {"train_file": molecules, "swa": True, "max_num_epochs": 2, "start_swa": 1, **FAST}
    factors = '{"products_lr_factor": 0.0}'
    folder = run(tmp_path, name="run", weight_decay=0.0, lr_params_factors=factors, **given)
    start = build.build(*build.load(parsed(tmp_path, name="run", train_file=molecules, **FAST))).model.state_dict()
    end = load_file(folder / "checkpoints" / "best_stage_two.safetensors")
    moved = {name.split(".")[0] for name, value in end.items() if not torch.equal(value, start[name])}
    assert moved == {"node_embedding", "interactions", "readouts"}


@pytest.mark.honours("save_all_checkpoints")
def test_models_of_earlier_epochs_are_kept(molecules, tmp_path):
    """Every validated epoch leaves its averaged weights as a folder of its own, which loads as a model."""
    given = {"train_file": molecules, "max_num_epochs": 4, "eval_interval": 2, "ema": True, "lr": 0.3, **FAST}
    folder = run(tmp_path, name="run", save_all_checkpoints=True, **given)
    rows = {row["epoch"] + 1: row["valid_loss_mace"] for row in metrics(folder) if "valid_loss_mace" in row}
    places = {int(path.name.removeprefix("epoch-")): path for path in (folder / "checkpoints").glob("epoch-*")}
    assert sorted(places) == sorted(rows) == [1, 3, 4]
    final, best = load_file(folder / "model.safetensors"), min(rows, key=rows.get)
    for epoch, place in places.items():
        saved = load_model(place).state_dict()
        assert all(torch.equal(saved[name], value) for name, value in final.items()) == (epoch == best)
