"""``--compare``: plain MACE, Φ learned and Φ exact, trained with the same budget on the same data, and one table."""

import dataclasses
import json
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from phi_equivariant import PhiConfig
from phi_equivariant.errors import InputError
from phi_equivariant.files import write_atomically
from training import build, results, run_folder
from training.build import Built
from training.data.run_data import RunData
from training.fit import checkpoints
from training.fit.lightning_module import PotentialModule
from training.fit.losses import weight_options
from training.fit.optimisers import set_training_mode
from training.fit.predict import predict
from training.fit.terms import TERMS
from training.one_run import train
from training.report import curves, tables
from training.report.pictures import attempted
from training.run import Phi, Run

logger = logging.getLogger("phi_mace_train")
TITLES = {"mace": "plain MACE", "phi_learned": "Φ learned (graph)", "phi_exact": "Φ exact (coulomb)"}
FIRST_ROW = 0.95  # of its share of the time
WARM_STEPS, TIMED_STEPS = 4, 5  # TorchScript optimises the host during its first calls


def rows(run: Run) -> dict[str, Run]:
    """{sub-folder: run}: the same but for Φ, and for label weights and tables that a bare host cannot use."""
    init = "default" if run.host.foundation_model is None else "small"
    learned = PhiConfig(operator="graph", poisson="learned", init=init)
    exact = PhiConfig(operator="coulomb", poisson="exact", init=init)
    of_rows = {
        "mace": None,
        "phi_learned": Phi(config=learned, pde_weight=run.task.compare_pde_weight),
        "phi_exact": Phi(config=exact),
    }
    places = ("work_dir", "log_dir", "model_dir", "checkpoints_dir", "results_dir")
    below = {place: value for place in places if (value := getattr(run.output, place))}
    made = {}
    for name, phi in of_rows.items():
        changes: dict[str, Any] = {place: str(Path(value) / run.output.name) for place, value in below.items()}
        changes |= {"name": name, "compare": False}  # so that the row's own configuration repeats it
        if phi is None:
            labelled = [term.name for term in TERMS.values() if term.label]
            changes |= {option: 0.0 for name in labelled for option in weight_options(run.loss, name)}
            if "Dipole" in run.output.error_table:
                changes["error_table"] = "PerAtomRMSE"
        made[name] = dataclasses.replace(run, phi=phi).changed(**changes)
    return made


def budget(row: Run, epochs: int) -> Run:
    """A row with fewer epochs, of which stage two keeps its share; of a single one it has none."""
    stages = row.stages
    if stages.start_swa is None or epochs == stages.max_num_epochs:
        return row.changed(max_num_epochs=epochs)
    start = max(1, stages.start_swa * epochs // stages.max_num_epochs)
    two = start < epochs
    return row.changed(max_num_epochs=epochs, swa=two, start_swa=start if two else None)


def seconds_per_epoch(run: Run, data: RunData) -> tuple[float, float]:
    """Measure a few training steps of a model that is thrown away, and validation steps."""
    built = build.build(run, data)
    built.order.set_epoch(0)
    module = PotentialModule(built.model, built.objective, run.optimiser, run.stages, built.outputs, len(built.order))
    optimizer = module.configure_optimizers()
    set_training_mode(optimizer, True)
    times = []
    for batch, _ in zip(_endless(data, built), range(WARM_STEPS + TIMED_STEPS), strict=False):
        begin = time.perf_counter()
        optimizer.zero_grad()
        output = predict(built.model, batch, built.outputs, training=True)
        built.objective(output, batch)[0].backward()
        optimizer.step()
        times.append(time.perf_counter() - begin)
    step = sorted(times[WARM_STEPS:])[TIMED_STEPS // 2]
    # Without parameters' gradients a structure costs about 0.4 of a training step's share.
    structure = 0.4 * step / run.data.batch_size
    return step * len(built.order) + structure * data.size("valid"), structure


def _endless(data: RunData, built: Built) -> Iterator[Any]:
    while True:
        yield from data.train_loader(built.order)


def plan_epochs(runs: Mapping[str, Run], data: RunData, deadline: float) -> tuple[int, dict[str, float]]:
    """Epochs to try for in every row before the deadline, tests included, and the rows' shares of the time."""
    measured = {name: seconds_per_epoch(run, data) for name, run in runs.items()}
    to_test = sum(map(data.size, ("train", "valid", "test")))
    first = next(iter(runs.values()))
    after = 4.0 + (results.PICTURE_SECONDS if first.output.plot else 0.0)
    tests = sum(1.3 * structure * to_test + after for _, structure in measured.values())
    per_epoch = sum(seconds for seconds, _ in measured.values())
    wanted = first.stages.max_num_epochs
    fit = int((deadline - time.monotonic() - tests) / (1.08 * per_epoch))
    if fit < 1:
        raise InputError(
            f"--time_limit: one epoch of the three rows takes about {per_epoch:.0f} s and their tests {tests:.0f} s, "
            "more than is left. Raise the limit or choose a smaller host."
        )
    if fit < wanted:
        logger.info(f"time limit: about {fit} of {wanted} epochs per row are expected to fit")
    # Other work on the machine can double what a few steps take: the first row finds out by its share of the time.
    return min(2 * fit, wanted), {name: seconds for name, (seconds, _) in measured.items()}


def compare(run: Run, data: RunData, deadline: float | None) -> dict[str, Any] | None:
    """Train the rows, print the table, and write comparison.json, comparison.md and comparison.png.

    With ``--restart_latest`` finished rows are taken from their folders, an interrupted one goes on.
    """
    folder = run_folder.folder_of(run.output)
    runs = rows(run)
    plan_file = folder / "plan.json"
    if run.task.restart_latest and plan_file.is_file():
        plan = json.loads(plan_file.read_text())
        epochs, shares = plan["epochs"], plan["seconds"]
        if plan["max_num_epochs"] != run.stages.max_num_epochs:
            raise InputError(
                f"--max_num_epochs: the rows in {folder} were begun with {plan['max_num_epochs']}. Give that, not "
                f"{run.stages.max_num_epochs}, or choose another --name."
            )
    elif deadline is not None:
        epochs, shares = plan_epochs(runs, data, deadline)
    else:
        epochs, shares = run.stages.max_num_epochs, None
    if run.task.dry_run:
        logger.info(f"dry run: {epochs} epochs for each of {', '.join(runs)}; nothing was written")
        return None
    logger.info(f"command: {run.command}")
    for line in data.lines:
        logger.info(line)
    folder.mkdir(parents=True, exist_ok=True)
    plan = json.dumps({"epochs": epochs, "seconds": shares, "max_num_epochs": run.stages.max_num_epochs})
    write_atomically(plan_file, lambda path: path.write_text(plan))
    summaries: dict[str, Any] = {}
    for name, row in runs.items():
        row = budget(row, epochs)
        finished = run_folder.folders_of(row.output).results / run_folder.ERRORS
        if run.task.restart_latest and _is_finished(row, data):
            logger.info(f"{TITLES[name]}: finished before, taken from {finished.parent}")
        else:
            logger.info(f"— {TITLES[name]}: {epochs} epochs")
            train(row, data, _deadline(name, shares, deadline), announce=False)
        summaries[name] = json.loads(finished.read_text())
        epochs = min(epochs, summaries[name]["epochs"])
    places = {name: run_folder.folders_of(row.output).results for name, row in runs.items()}
    write(
        folder,
        summaries,
        {name: json.loads((place / run_folder.METRICS).read_text()) for name, place in places.items()},
        {name: row.output.error_table for name, row in runs.items()} if run.output.plot else None,
    )
    return summaries


def _is_finished(row: Run, data: RunData) -> bool:
    """Whether a row has its errors, on the test set of now; InputError if it was trained with other options or data."""
    folders = run_folder.check_folders(row.output, restart=True)
    if not (folders.results / run_folder.ERRORS).is_file():
        return False
    checkpoints.read_last(folders.checkpoints, checkpoints.identity_of(row.resolved(), data.digest))
    before, now = yaml.safe_load((folders.run / run_folder.CONFIG).read_text()), row.resolved()
    return all(before.get(name) == now.get(name) for name in ("test_file", "test_dir"))


def _deadline(name: str, shares: Mapping[str, float] | None, deadline: float | None) -> float | None:
    """A row's share of the time that is left, so that a slow one does not eat the others'."""
    if deadline is None:
        return None
    now = time.monotonic()
    if shares is None:
        return deadline
    names = list(shares)
    left = sum(shares[other] for other in names[names.index(name) :])
    # The first row settles the number of epochs: what it leaves over lets slower rows reach that number too.
    part = FIRST_ROW if name == names[0] else 1.0
    return now + part * (deadline - now) * shares[name] / left


def table(summaries: Mapping[str, Any], metrics: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the comparison."""
    last = {name: list(summary["sets"].values())[-1] for name, summary in summaries.items()}
    quantities, titles = tables.error_header([found["errors"] for found in last.values()])
    lines = []
    for name, summary in summaries.items():
        seconds = sorted(row["seconds"] for row in metrics[name])
        cells = [tables.error_cell(last[name]["errors"].get(quantity)) for quantity in quantities]
        rest = [str(summary["epochs"]), f"{seconds[len(seconds) // 2]:.1f}", str(summary["parameters"])]
        lines.append([TITLES[name], *cells, *rest])
    return ["model", *titles, "epochs", "s per epoch", "parameters"], lines


def write(
    folder: Path, summaries: Mapping[str, Any], metrics: Mapping[str, Any], forms: Mapping[str, str] | None
) -> None:
    """Print the table and write it, with a plot of the rows' learning curves in their forms, if any are given."""
    header, lines = table(summaries, metrics)
    structures = next(iter(summaries.values()))["sets"]
    split = list(structures)[-1]
    title = f"errors on {structures[split]['structures']} {split} structures"
    tables.print_table(run_folder.console, title, header, lines)
    text = f"# Comparison: {title}\n\nMAE / RMSE.\n\n" + tables.markdown(header, lines)
    write_atomically(folder / "comparison.md", lambda path: path.write_text(text))
    content = json.dumps({"rows": summaries, "titles": TITLES}, indent=1)
    write_atomically(folder / "comparison.json", lambda path: path.write_text(content))
    if forms is not None:
        with attempted("comparison.png"):
            titled = {TITLES[name]: found for name, found in metrics.items()}
            curves.comparison_plot(folder / "comparison.png", titled, {TITLES[name]: forms[name] for name in metrics})
    logger.info(f"comparison in {folder}")
