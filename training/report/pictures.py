"""The pictures of a run and its page: what is watched for them, and how they are made of it."""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from training import run_folder
from training.quantities import drawn
from training.report import charges, curves, parity
from training.report.error_sums import Energies
from training.report.frame_errors import RANKS, FrameError, FrameErrors
from training.report.page import Page, Table, write_page
from training.report.samples import ElementCharges, LabelPairs
from training.report.views import error_texts, formula, short, total_charge, view
from zoo.viewer import MOST_ATOMS

logger = logging.getLogger("phi_mace_train")
LISTED = 10  # structures in a table of the worst
MOST_SETS = 6  # whose predictions are drawn: of more, the last ones of the table
SHOWN = 2  # of the worst by each error, in three dimensions


@contextlib.contextmanager
def attempted(what: str) -> Iterator[None]:
    """A block whose failure is told in the log and ends nothing: a training is worth more than its pictures."""
    try:
        yield
    except Exception as error:
        logger.warning(f"{what} could not be written ({type(error).__name__}: {error}); the results do not need it")
        logger.debug("where that happened:", exc_info=True)


class Watched:
    """What is kept of the predictions for one set of structures.

    form : of the error tables
    isolated : as of :class:`training.report.samples.LabelPairs`
    """

    def __init__(self, form: str, isolated: Energies | None) -> None:
        self.pairs = LabelPairs([measure.name for measure in drawn(form)[1] if measure.plotted], isolated)
        self.frames, self.charges = FrameErrors(), ElementCharges()

    def all(self) -> list[Any]:
        """What :func:`training.fit.predict.evaluate` shall show the predictions to."""
        return [self.pairs, self.frames, self.charges]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shown:
    """What pictures are made of, for the weights of one stage.

    sets : {row of the error table: what was watched}; tables : {row: its table of errors}, as in errors.json;
    rows : metrics of the epochs; heads; best : {stage: epoch, from 1 on} of the weights; numbers : atomic numbers of
    the model's elements; form : of the error tables; interaction : whether energies are without isolated atoms';
    graph, name, output : from a row and an index to a structure's fields, its name, and the model's output for it
    """

    sets: Mapping[str, Watched]
    tables: Mapping[str, Mapping[str, Any]]
    rows: Sequence[Mapping[str, Any]]
    heads: Sequence[str]
    best: Mapping[int, int]
    numbers: Sequence[int]
    form: str
    interaction: bool
    graph: Callable[[str, int], Any]
    name: Callable[[str, int], str]
    output: Callable[[str, int], Mapping[str, Any]]

    @property
    def last(self) -> str:
        """The set whose charges and structures are shown."""
        return list(self.sets)[-1]

    def samples(self) -> dict[str, Any]:
        """{set: its pairs by measure} of the sets that are drawn."""
        return {name: self.sets[name].pairs.samples for name in list(self.sets)[-MOST_SETS:]}

    def not_drawn(self) -> list[str]:
        """Sets that are in the table alone."""
        return list(self.sets)[:-MOST_SETS]

    def errors(self) -> dict[str, Any]:
        """{set: its errors by measure}."""
        return {name: table["errors"] for name, table in self.tables.items()}


def write_pictures(folder: Path, shown: Shown) -> None:
    """parity.png, learning_curve.png and, with Φ, charges.png."""
    measures = drawn(shown.form)[1]
    if shown.not_drawn():
        logger.info(f"pictures show the last {MOST_SETS} sets of the table, not {', '.join(shown.not_drawn())}")
    with attempted(run_folder.LEARNING_CURVE):
        curves.learning_curve(folder / run_folder.LEARNING_CURVE, shown.rows, shown.form, shown.heads, shown.best)
    with attempted(run_folder.PARITY):
        place = folder / run_folder.PARITY
        parity.parity_plot(place, shown.samples(), shown.errors(), measures, interaction=shown.interaction)
    with attempted(run_folder.CHARGES):
        charges.charges_plot(folder / run_folder.CHARGES, shown.sets[shown.last].charges, shown.numbers, shown.last)


def write_report(folder: Path, shown: Shown, **about: Any) -> None:
    """report.html; ``about``: the fields of :class:`training.report.page.Page` that are not made of ``shown``."""
    last = shown.last
    picked = [(index, why) for index, why in shown.sets[last].frames.picked(SHOWN).items()]
    errors = {frame.index: frame for name in RANKS for frame in shown.sets[last].frames.ranked(name)}
    views = [_view(shown, index, why, errors[index]) for index, why in picked]
    by_element = shown.sets[last].charges
    page = Page(
        **about,
        curves=curves.curve_panels(shown.rows, shown.form, shown.heads, shown.best),
        parity=parity.parity_panels(shown.samples(), shown.errors(), drawn(shown.form)[1], shown.interaction),
        not_drawn=shown.not_drawn(),
        charges=charges.charges_panels(by_element, shown.numbers, last),
        charge_table=charges.charge_table(by_element, shown.numbers, last) if by_element.predicted else None,
        worst=[
            table for name in reversed(list(shown.sets)) for rank in RANKS if (table := _worst(shown, name, rank)).rows
        ],
        structures=[found for found in views if found is not None],
        left_out=sum(found is None for found in views),
    )
    write_page(folder / run_folder.REPORT, page)


def _view(shown: Shown, index: int, why: str, frame: FrameError) -> dict[str, Any] | None:
    """One structure of the last set for the viewer; None if it has too many atoms."""
    graph = shown.graph(shown.last, index)
    if len(graph["positions"]) > MOST_ATOMS:
        return None
    return view(short(shown.name(shown.last, index)), why, graph, shown.output(shown.last, index), shown.numbers, frame)


def _worst(shown: Shown, name: str, rank: str) -> Table:
    """The structures of a set with the largest errors of one kind."""
    rows = []
    for frame in shown.sets[name].frames.ranked(rank)[:LISTED]:
        graph, errors = shown.graph(name, frame.index), error_texts(frame)
        about = [formula(graph, shown.numbers), f"{len(graph['positions'])}", total_charge(graph)]
        rows.append([short(shown.name(name, frame.index)), *about, *(errors[other] for other in RANKS)])
    titles = [f"{title} ({unit})" for title, unit, _ in RANKS.values()]
    header = ["structure", "formula", "atoms", "total charge", *titles]
    return Table(title=f"{name}: by the error of {RANKS[rank][0].split(',')[0]}", header=header, rows=rows)
