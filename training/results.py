"""What a run leaves when training is over: the best weights, their errors on all sets, pictures and a page."""

import logging
import platform
import time
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from ase.data import chemical_symbols

from phi_equivariant.config import PhiConfig
from phi_equivariant.weights import save_model
from training import distribution, mace_hosts, run_folder
from training.build import Built, describe
from training.data.labelled_graphs import name_in
from training.data.run_data import RunData
from training.fit import checkpoints
from training.fit.predict import evaluate, evaluate_one, isolated_energies
from training.report.page import Table
from training.report.pictures import Shown, Watched, attempted, write_pictures, write_report
from training.report.tables import error_rows, print_table, write_errors
from training.run import PARTS, Phi, Run
from training.run_folder import Folders

logger = logging.getLogger("phi_mace_train")
#: On the page: settings of Φ that a reader asks for first; options that are said elsewhere; what trained the model.
SHOWN_ALWAYS = ("operator", "poisson", "charge_model")
NOT_OF_THE_MODEL = {"phi", "no_phi", "config", "restart_latest"}
PACKAGES = ("phi-equivariant", "mace-torch", "torch", "e3nn", "lightning")
PICTURE_SECONDS = 8.0  # at most, for the pictures and the page of a stage


def finish(
    run: Run, data: RunData, built: Built, best: dict[int, dict[str, Any]], folders: Folders, about: dict[str, Any]
) -> dict[str, Any]:
    """Test and write the best weights of each stage: those of the last stage are the run's, others go beside them.

    best : {stage: {"epoch"}} of the stages that have best weights
    folders : where they go
    about : ``epochs``, ``parameters``, ``training_seconds`` and ``rows``, the metrics of all epochs

    Returns the summary of the last stage.
    """
    rows = about.pop("rows")
    for stage in sorted(best):
        checkpoints.load_best(built.model, folders.checkpoints, stage)
        last = stage == max(best)
        summary = {"name": run.output.name, "folder": str(folders.run), "best_epoch": best[stage]["epoch"] + 1, **about}
        summary |= {"stage": stage} if len(best) > 1 else {}
        _finish_stage(run, data, built, folders if last else folders.stage_one(), summary, rows)
    logger.info(f"done: {folders.run}")
    return summary


def _finish_stage(
    run: Run, data: RunData, built: Built, folders: Folders, summary: dict[str, Any], rows: list[dict[str, Any]]
) -> None:
    """Test the weights that the model has, and write them with their errors."""
    if distribution.is_main():
        folders.results.mkdir(parents=True, exist_ok=True)
    tables, watched = _test(run, data, built)
    about = {key: value for key, value in summary.items() if key != "folder"}
    summary["sets"] = tables
    if not distribution.is_main():
        return
    save_model(built.model, folders.model, notes={**about, "errors": tables})
    if run.output.save_mace_model:
        mace_hosts.write_model(built.model, folders.model / f"{run.output.name}.model")
    stage = f"stage {summary['stage']}, " if "stage" in summary else ""
    title = f"{run.output.name}: errors of the weights of {stage}epoch {summary['best_epoch']}"
    header, lines = error_rows(tables, run.output.error_table)
    print_table(run_folder.console, title, header, lines, None)
    if watched:
        shown = _shown(run, data, built, tables, watched, rows, {summary.get("stage", 1): summary["best_epoch"]})
        write_pictures(folders.results, shown)
        with attempted(run_folder.REPORT):
            table = Table(
                title=f"Errors of the weights of {stage}epoch {summary['best_epoch']}", header=header, rows=lines
            )
            write_report(folders.results, shown, errors=table, **_about(run, data, summary, rows))
    # Last, because its presence says that the run is complete.
    write_errors(folders.results, tables, about, run.output.error_table)


def _test(run: Run, data: RunData, built: Built) -> tuple[dict[str, Any], dict[str, Watched]]:
    """Errors on all sets, and what is needed to draw them."""
    tables: dict[str, Any] = {}
    watched: dict[str, Watched] = {}
    device = distribution.device(run.machine)
    built.model.to(device)
    isolated = isolated_energies(built.model) if run.output.plot_interaction_e else None
    for row, (split, name) in data.evaluated().items():
        begin = time.monotonic()
        if run.output.plot:
            watched[row] = Watched(run.output.error_table, isolated)
        watchers = watched[row].all() if row in watched else []
        size, loader = len(data.sets(split)[name]), data.loader(split)[name]
        with run_folder.structure_bar(f"testing on {row}", size) as advance:
            errors = evaluate(built.model, loader, built.outputs, device, watchers, advance)
        tables[row] = {"structures": size, "errors": errors.table()}
        tables[row]["seconds"] = time.monotonic() - begin
    return tables, watched


def _shown(
    run: Run,
    data: RunData,
    built: Built,
    tables: Mapping[str, Any],
    watched: Mapping[str, Watched],
    rows: list[dict[str, Any]],
    best: Mapping[int, int],
) -> Shown:
    """What pictures are made of; structures are looked up, and evaluated again, when they are asked for."""
    device = distribution.device(run.machine)
    sets = {row: data.sets(split)[name] for row, (split, name) in data.evaluated().items()}
    return Shown(
        sets=watched,
        tables=tables,
        rows=rows,
        heads=data.heads,
        best=best,
        numbers=data.atomic_numbers,
        form=run.output.error_table,
        interaction=run.output.plot_interaction_e,
        graph=lambda row, index: sets[row][index],
        name=lambda row, index: name_in(sets[row], index),
        output=lambda row, index: evaluate_one(built.model, sets[row], index, built.outputs, device),
    )


def _about(run: Run, data: RunData, summary: Mapping[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What a page says of a run beside errors and pictures."""
    minutes, seconds = divmod(round(sum(row["seconds"] for row in rows)), 60)
    facts = {
        "epochs": f"{summary['epochs']}, best after {summary['best_epoch']}",
        "training": f"{minutes} min {seconds} s" if minutes else f"{seconds} s",
        "parameters": f"{summary['parameters']:,}",
        "structures": ", ".join(f"{row} {found['structures']:,}" for row, found in summary["sets"].items()),
        "elements": ", ".join(chemical_symbols[number] for number in data.atomic_numbers),
        "precision": run.machine.default_dtype,
        "device": run.machine.device,
        "seed": str(run.machine.seed),
    }
    return {
        "title": run.output.name,
        "subtitle": describe(run.host, run.phi),
        "command": run.command,
        "facts": facts,
        "versions": {
            "Python": platform.python_version(),
            **{name: version(name) for name in PACKAGES},
        },
        "data": data.lines,
        "settings": changed_settings(run),
        "configuration": run.as_yaml(),
    }


def changed_settings(run: Run) -> dict[str, dict[str, Any]]:
    """{title: {setting: value}}: Φ's first, then by part the options that were given another value than the default."""
    found: dict[str, dict[str, Any]] = {}
    if run.phi is not None:
        default = Phi(config=PhiConfig()).section()
        section = run.phi.section()
        found["Φ"] = {
            name: value for name, value in section.items() if name in SHOWN_ALWAYS or value != default.get(name)
        }
    resolved = run.resolved()
    for name, (_, title) in PARTS.items():
        values = getattr(run, name).values()
        own = {
            option: resolved.get(option, values[option]) for option in values if option in run.given - NOT_OF_THE_MODEL
        }
        if own:
            found[title] = own
    return found
