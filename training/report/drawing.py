"""How pictures look: sizes, ticks that are plain numbers, and files; without pyplot's global state."""

import contextlib
import io
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib
import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from phi_equivariant.files import write_atomically

#: Colour of text and frames: in a page it becomes that of the text around the picture, in light and dark.
INK = "#1d1e20"
LINE = "#8c8f94"  # of lines beside the data, to be seen on white and on black
#: Sets by name, after Okabe and Ito's palette, which colour-blind readers tell apart; others take the rest.
COLOURS = {"train": "#1a7fc4", "valid": "#e69f00", "test": "#009e73"}
OTHER_COLOURS = ("#cc79a7", "#56b4e9", "#d55e00", "#7a5195", "#b8a700", "#5d6d7e")
_STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.facecolor": "none",
    "axes.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.3,
    "svg.fonttype": "none",
    "svg.hashsalt": "phi",
}


@contextlib.contextmanager
def style() -> Iterator[None]:
    """A block, or a function, in which figures are drawn and saved alike, whatever the user's matplotlibrc says."""
    with matplotlib.style.context(["default", _STYLE]):
        yield


def density() -> Colormap:
    """Colours for few to many, neither of which fades into white or black."""
    whole = matplotlib.colormaps["viridis"]
    return ListedColormap([whole(0.3 + 0.65 * step / 255) for step in range(256)])


def colour(name: str, number: int) -> str:
    """The colour of a set; ``number`` counts those without one of their own."""
    return COLOURS.get(name, OTHER_COLOURS[number % len(OTHER_COLOURS)])


def panels(count: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of ``count`` axes in rows of ``columns``, each of a size in inches."""
    columns = min(count, columns)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows))
    # A reader's fonts may be wider than the ones that are measured here.
    figure.set_layout_engine("constrained", w_pad=0.07, h_pad=0.07, rect=(0, 0, 0.98, 1))
    axes = list(figure.subplots(rows, columns, squeeze=False).flatten())
    for unused in axes[count:]:
        unused.remove()
    return figure, axes[:count]


def save_png(figure: Figure, path: Path) -> None:
    """Write a PNG on white."""
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=140, format="png", facecolor="white"))


def svg(figure: Figure) -> str:
    """The figure as SVG without a background, its text in the colour that suits the reader's light or dark page."""
    text = io.StringIO()
    figure.savefig(text, format="svg", dpi=160, transparent=True, metadata={"Date": None})
    drawn = text.getvalue()
    start = drawn.index("<svg")
    inside = drawn.index(">", start) + 1
    theme = f"<style>svg{{color:{INK}}}@media(prefers-color-scheme:dark){{svg{{color:#e3e5e8}}}}</style>"
    return drawn[start:inside] + theme + drawn[inside:].replace(INK, "currentColor")


def plain(value: float) -> str:
    """A number as people write it: 600, 0.05, 12,000; powers of ten only below 1e-4 and from 1e6 on, as 5e−6."""
    text = f"{value:,.6g}" if abs(value) < 1e6 else f"{value:.4g}"
    return re.sub(r"e\+?(-?)0*", r"e\1", text).replace("-", "−")


def whole_epochs(axis: Axes, last: int) -> None:
    """An abscissa of epochs from the first to the last, with ticks at whole numbers."""
    margin = max(0.5, 0.02 * last)
    axis.set_xlim(1 - margin, last + margin)
    locator = MaxNLocator(nbins=6, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10])
    ticks = [float(value) for value in locator.tick_values(1, last) if 1 <= value <= last and value == round(value)]
    if len(ticks) > 1 and ticks[0] - 1 > 0.5 * (ticks[1] - ticks[0]):  # there is room for the first one's number
        ticks.insert(0, 1.0)
    axis.xaxis.set_major_locator(FixedLocator(ticks or [1.0]))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))
    axis.set_xlabel("epoch")


def logarithmic(axis: Axes, values: Sequence[float]) -> None:
    """A logarithmic ordinate around values > 0, with plain numbers at its ticks."""
    lowest, highest = min(values), max(values)
    margin = max((highest / lowest) ** 0.06, 1.05)
    low, high = lowest / margin, highest * margin
    axis.set_yscale("log")
    axis.set_ylim(low, high)
    axis.yaxis.set_major_locator(FixedLocator(log_ticks(low, high)))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))


def log_ticks(low: float, high: float) -> list[float]:
    """Three to about eight round numbers between two others > 0: 1, 10, 100; 1, 2, 5, 10; or even steps.

    A range of several decades has powers of ten, thinned where there are many; a narrow one has the ticks of a linear
    axis.
    """
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 2, 5), (1, 3), (1,)):
        found = [digit * 10.0**power for power in decades for digit in digits]
        found = [value for value in found if low <= value <= high]
        if 3 <= len(found) <= 8:
            return found
    if len(found) > 8:
        return found[:: -(-len(found) // 8)]
    steps = MaxNLocator(nbins=5, steps=[1, 2, 5, 10]).tick_values(low, high)
    return [float(value) for value in steps if low <= value <= high]


def square(axis: Axes, low: float, high: float) -> None:
    """Equal axes from ``low`` to ``high``, with the same ticks on both."""
    margin = 0.04 * (high - low) or 0.5 * abs(high) or 1.0
    axis.set(xlim=(low - margin, high + margin), ylim=(low - margin, high + margin), aspect="equal")
    for one in (axis.xaxis, axis.yaxis):
        one.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
        one.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))
