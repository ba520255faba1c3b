"""The page of a run: one HTML file that needs nothing else, neither files nor a network."""

import base64
import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup  # of jinja2

from phi_equivariant.files import write_atomically
from zoo import viewer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """A table of texts."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Page:
    """What a page says.

    title : the run's name; subtitle : what was trained; command; facts, versions : {name: value};
    data : lines of the log about the data; errors : the table of the log; curves : {what is drawn: SVG};
    parity : {quantity: {set: SVG}}; not_drawn : sets that are not among them;
    charges : {what is drawn: SVG}; charge_table : None without charges;
    worst : tables of structures, the shown set's first; structures : of :func:`training.report.views.view`;
    left_out : structures that are too large to show; settings : of changed ones, {title: {setting: value}};
    configuration : all of them as YAML
    """

    title: str
    subtitle: str
    command: str
    facts: Mapping[str, str]
    versions: Mapping[str, str]
    data: Sequence[str]
    errors: Table
    curves: Mapping[str, str]
    parity: Mapping[str, Mapping[str, str]]
    not_drawn: Sequence[str]
    charges: Mapping[str, str]
    charge_table: Table | None
    worst: Sequence[Table]
    structures: Sequence[Mapping[str, Any]]
    left_out: int
    settings: Mapping[str, Mapping[str, Any]]
    configuration: str


def write_page(path: Path, page: Page) -> None:
    """Write the file."""
    environment = Environment(
        loader=PackageLoader("training.report", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["image"] = _data_uri
    fields = {field.name: getattr(page, field.name) for field in dataclasses.fields(page)}
    text = environment.get_template("report.html.jinja").render(
        **fields,
        written=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        style=_asset("style"),
        script=_asset("script"),
        viewer=_asset("viewer") if page.structures else "",
        viewer_version=viewer.VERSION,
        viewer_licence=_asset("licence"),
    )
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _asset(name: str) -> Markup:
    """A file of the viewer, put into the page as it is."""
    return Markup(viewer.asset(name))


def _data_uri(svg: str) -> str:
    """An SVG as the address of an image: as an image it cannot run scripts, whatever its texts say."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
