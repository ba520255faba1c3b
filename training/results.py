"""What a run leaves when training is over: the best weights, their errors on all sets, and plots."""

import logging
import time
from pathlib import Path
from typing import Any

from phi_equivariant.weights import save_model
from training import distribution, mace_model, run_folder
from training.build import Built
from training.data.run_data import RunData
from training.fit import checkpoints
from training.fit.predict import evaluate, isolated_energies
from training.report import plots
from training.report.error_sums import PLOTTED
from training.report.tables import error_rows, print_table, write_errors
from training.run import Run
from training.run_folder import Folders

logger = logging.getLogger("phi_mace_train")


def finish(
    run: Run, data: RunData, built: Built, best: dict[int, dict[str, Any]], folders: Folders, about: dict[str, Any]
) -> dict[str, Any]:
    """Test and write the best weights of each stage: those of the last stage are the run's, others go beside them.

    Parameters
    ----------
    best : dict
        {stage: {"epoch"}} of the stages that have best weights.
    folders : where they go
    about : dict
        ``epochs``, ``parameters``, ``training_seconds`` and ``rows``, the metrics of all epochs.

    Returns
    -------
    summary of the last stage
    """
    rows = about.pop("rows")
    if run.output.plot and distribution.is_main():
        plots.learning_curve(folders.results / run_folder.LEARNING_CURVE, rows)
    for stage in sorted(best):
        checkpoints.load_best(built.model, folders.checkpoints, stage)
        last = stage == max(best)
        summary = {"name": run.output.name, "folder": str(folders.run), "best_epoch": best[stage]["epoch"] + 1, **about}
        summary |= {"stage": stage} if len(best) > 1 else {}
        _finish_stage(run, data, built, folders if last else folders.stage_one(), summary)
    logger.info(f"done: {folders.run}")
    return summary


def _finish_stage(run: Run, data: RunData, built: Built, folders: Folders, summary: dict[str, Any]) -> None:
    """Test the weights that the model has, and write them with their errors."""
    if distribution.is_main():
        folders.results.mkdir(parents=True, exist_ok=True)
    tables = _test(run, data, built, folders.results)
    about = {key: value for key, value in summary.items() if key != "folder"}
    summary["sets"] = tables
    if not distribution.is_main():
        return
    save_model(built.model, folders.model, notes={**about, "errors": tables})
    if run.output.save_mace_model:
        mace_model.write(built.model, folders.model / f"{run.output.name}.model")
    stage = f"stage {summary['stage']}, " if "stage" in summary else ""
    title = f"{run.output.name}: errors of the weights of {stage}epoch {summary['best_epoch']}"
    header, rows = error_rows(tables, run.output.error_table)
    print_table(run_folder.console, title, header, rows, None)
    # Last, because its presence says that the run is complete.
    write_errors(folders.results, tables, about, run.output.error_table)


def _test(run: Run, data: RunData, built: Built, folder: Path) -> dict[str, Any]:
    """Errors on all sets, and the parity plot."""
    tables: dict[str, Any] = {}
    device = distribution.device(run.machine)
    built.model.to(device)
    isolated = isolated_energies(built.model) if run.output.plot_interaction_e else None
    rows = data.evaluated()
    last = list(rows)[-1]
    for row, (split, name) in rows.items():
        begin = time.monotonic()
        keep = PLOTTED if row == last and run.output.plot else ()
        size, loader = len(data.sets(split)[name]), data.loader(split)[name]
        with run_folder.structure_bar(f"testing on {row}", size) as advance:
            errors = evaluate(built.model, loader, built.outputs, device, keep, advance, isolated)
        tables[row] = {"structures": size, "errors": errors.table()}
        tables[row]["seconds"] = time.monotonic() - begin
        if keep and distribution.is_main():
            plots.parity_plot(
                folder / run_folder.PARITY, errors.pairs, row, tables[row]["errors"], isolated is not None
            )
    return tables
