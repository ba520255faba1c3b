"""The page of a run: what it says, that it needs nothing else, and that a browser draws what is on it."""

import html.parser
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from ase.build import fcc111, molecule
from training_runs import run, write_molecules

from training.data.labelled_graphs import GraphMaker
from training.report import pictures
from training.report.frame_errors import FrameError
from training.report.views import view

NAME = "<b>run&amp"  # text of a user's, not markup
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SWITCHES = (
    "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
    "disable-component-update", "disable-sync", "enable-unsafe-swiftshader", "virtual-time-budget=10000", "dump-dom",
)  # fmt: skip


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """{kind: folder of a run with Φ, whose charges have labels, and of a bare host}."""
    folder = tmp_path_factory.mktemp("runs")
    file = write_molecules(folder / "train.xyz", count=10, charges=True)
    before = torch.get_default_dtype()
    given = {"train_file": file, "test_file": file, "max_num_epochs": 2, "plot": "True", "num_interactions": 1}
    phi = {"phi": ["operator=coulomb", "hidden=8"], "charges_key": "q", "charges_weight": 3}
    made = {
        "phi": run(folder, name=NAME, **given, **phi),
        "bare": run(folder, name="bare", error_table="TotalMAE", **given),
    }
    torch.set_default_dtype(before)
    return made


class Reader(html.parser.HTMLParser):
    """Attributes of all elements, the text, and the cells of tables."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.rows, self.texts, self.inside = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.inside.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data):
        if self.inside and self.inside[-1] in ("td", "th"):
            self.rows[-1][-1] += data
        elif self.inside and self.inside[-1] not in ("script", "style"):
            self.texts.append(data)

    def structures(self, text):
        return json.loads(re.search(r'id="structures">(.*?)</script>', text, re.DOTALL).group(1))


@pytest.mark.parametrize("kind", ["phi", "bare"])
def test_the_page_has_the_tables_numbers_and_needs_nothing_else(pages, kind):
    text = (pages[kind] / "report.html").read_text()
    page = Reader(text)
    assert len(text.encode()) < 1_500_000
    for tag, attributes in page.elements:
        assert not [
            name for name in ("src", "href", "srcset", "data", "action") if "//" in (attributes.get(name) or "")
        ], tag
        assert tag not in ("link", "iframe", "object", "embed")
    assert all(
        attributes["src"].startswith("data:image/svg+xml;base64,") for tag, attributes in page.elements if tag == "img"
    )
    assert not re.search(r"@import|url\(", re.search(r"<style>(.*?)</style>", text, re.DOTALL).group(1))
    header, _, *lines = (pages[kind] / "errors.md").read_text().splitlines()
    for line in (header, *lines):
        assert [cell.strip() for cell in line.strip("| ").split(" | ")] in page.rows
    pictures = [attributes["alt"] for tag, attributes in page.elements if tag == "img"]
    energy = "energy per atom" if kind == "phi" else "energy"
    assert {f"{energy} of {name}: predictions against labels" for name in ("train", "valid", "test")} <= set(pictures)
    assert {"loss by epoch", f"forces, {'RMSE' if kind == 'phi' else 'MAE'} (meV/Å) by epoch"} <= set(pictures)
    assert any("charges" in alt for alt in pictures) == (kind == "phi")


def test_what_users_wrote_is_text(pages):
    text = (pages["phi"] / "report.html").read_text()
    assert "<b>" not in text.replace(text[text.index("<script>") :], "") and "<title>&lt;b&gt;run&amp;amp" in text
    settings = Reader(text).texts
    assert {"Φ", "operator", "coulomb", "hidden", "8", "charges_weight"} <= {text.strip() for text in settings}
    assert "poisson: exact" in text and "max_num_epochs: 2" in text  # the whole configuration


def test_worst_structures_are_named_by_their_frames(pages):
    """The first of the tables is of the test set, whose frames are those of the file."""
    folder = pages["phi"]
    text = (folder / "report.html").read_text()
    page = Reader(text)
    first = page.rows.index(next(row for row in page.rows if row[0] == "structure"))
    worst = page.rows[first + 1 : first + 11]
    assert {row[0] for row in worst} == {f"frame {number} of train.xyz" for number in range(10)}
    for row in worst:
        number = int(row[0].split()[1])
        assert row[1:4] == (["CH4O", "6", "0"] if number % 2 else ["H2O", "3", "0"])
    sizes = [abs(float(row[4].replace("−", "-"))) for row in worst]
    table = json.loads((folder / "errors.json").read_text())["sets"]["test"]["errors"]["energy_per_atom"]
    assert sizes == sorted(sizes, reverse=True) and np.sqrt(np.mean(np.square(sizes))) == pytest.approx(
        table["rmse"], rel=1e-3
    )
    shown = page.structures(text)
    assert shown[0]["name"] == worst[0][0] and shown[0]["why"] == "worst energy per atom"
    for structure in shown:
        assert sum(structure["charges"]) == pytest.approx(0, abs=1e-3)
        assert len(structure["symbols"]) == len(structure["positions"]) == len(structure["potential"])
    assert all("charges" not in one for one in page.structures((pages["bare"] / "report.html").read_text()))


def test_cells_are_drawn_along_their_periodic_directions():
    slab = fcc111("Cu", (1, 1, 2), vacuum=5.0)
    bulk = slab.copy()
    bulk.pbc = True
    for atoms, edges in ((bulk, 12), (slab, 4), (molecule("H2O"), 0)):
        graph = GraphMaker([1, 8, 29], 3.0)(atoms)
        shown = view("a", "b", graph, {}, [1, 8, 29], FrameError(0, None, 0.05))
        assert len(shown["cell"]) == edges and shown["errors"]["forces, RMSE"] == "50 meV/Å"
        lengths = {round(float(np.linalg.norm(np.subtract(*ends))), 2) for ends in shown["cell"]}
        assert lengths == {
            round(length, 2) for length, edge in zip(atoms.cell.lengths(), atoms.pbc, strict=True) if edge
        }


def test_large_structures_are_left_out():
    graph, frame = {"positions": torch.zeros(pictures.MOST_ATOMS + 1, 3)}, FrameError(0, None, None)
    shown = pictures.Shown(
        sets={f"test_{number}": pictures.Watched("PerAtomRMSE", None) for number in range(8)},
        tables={}, rows=[], heads=["Default"], best={1: 1}, numbers=[1], form="PerAtomRMSE", interaction=False,
        graph=lambda *_: graph, name=lambda *_: "frame 0", output=pytest.fail,
    )  # fmt: skip
    assert pictures._view(shown, 0, "worst forces", frame) is None
    assert list(shown.samples()) == [f"test_{number}" for number in range(2, 8)]
    assert shown.not_drawn() == ["test_0", "test_1"]


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
@pytest.mark.parametrize("kind", ["phi", pytest.param("bare", marks=pytest.mark.slow)])
def test_a_browser_draws_the_structures(pages, kind, tmp_path):
    """Headless, without a network: no error of a script, and all atoms of the worst structure in the viewer."""
    path = pages[kind] / "report.html"
    command = [BROWSER, *(f"--{switch}" for switch in SWITCHES), f"--user-data-dir={tmp_path}", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    page = Reader(done.stdout)
    root = next(attributes for tag, attributes in page.elements if tag == "html")
    assert root["data-errors"] == "0", root.get("data-last-error")
    viewer = next(attributes for _, attributes in page.elements if attributes.get("id") == "viewer")
    if viewer.get("data-missing"):
        pytest.skip("this Chromium offers no WebGL")
    worst = page.structures(path.read_text())
    assert viewer["data-atoms"] == str(len(worst[0]["symbols"]))
    assert viewer["data-colour"] == ("charges" if kind == "phi" else "element")
    buttons = [attributes["value"] for tag, attributes in page.elements if tag == "button" and attributes.get("value")]
    assert buttons == (["charges", "potential", "element"] if kind == "phi" else [])
