"""What commands show on a terminal of 80 columns: lines that fit, and the errors of what is trained."""

import io
import re

import pytest
from rich.cells import cell_len
from rich.console import Console
from training_runs import keep_default_dtype, run, write_molecules  # noqa: F401

from training import evaluate, run_folder
from training.report.tables import print_table

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture
def screen(monkeypatch):
    """A terminal of 80 columns: a function that gives the lines that were written to it."""
    file = io.StringIO()
    monkeypatch.setattr(run_folder, "console", Console(file=file, width=80, force_terminal=True))
    return lambda: re.split(r"[\r\n]+", CONTROL.sub("", file.getvalue()))


def too_wide(lines):
    """Lines of more than 80 columns, but for the command, which is there to be copied, and paths."""
    wide = (line for line in lines if cell_len(line) > 80)
    return [line for line in wide if not line.startswith("command: ") and "/pytest-" not in line]


def test_lines_of_a_run_with_charges_fit(tmp_path, screen):
    file = write_molecules(tmp_path / "train.xyz", count=10, charges=True)
    weights = {"charges_key": "q", "charges_weight": 1, "dipole_key": "mu", "dipole_weight": 1}
    given = {"train_file": file, "test_file": file, "max_num_epochs": 2, "plot": "False", "phi": "operator=coulomb"}
    folder = run(tmp_path, name="run", **given, **weights)
    lines = screen()
    assert not too_wide(lines)
    below_the_bar = {line.strip() for line in lines if line.startswith("valid RMSE")}
    assert below_the_bar and all(" q " in line and " μ " in line for line in below_the_bar)
    assert all(line in (folder / "log.txt").read_text() for line in below_the_bar)
    words = ["--configs", str(file), "--model", str(folder), "--output", str(tmp_path / "o.xyz")]
    assert evaluate.main(words) == 0
    found = screen()[len(lines) :]
    assert not too_wide(found) and any("dipole" in line and " / " in line for line in found)


def test_tables_that_are_too_wide_are_turned(capsys):
    header, row = ["set", *(f"quantity {n} / meV/Å" for n in range(5))], ["test", *"12345"]
    shown = {}
    for width in (100, 40, 25):
        file = io.StringIO()
        print_table(Console(file=file, width=width), "title", header, [row])
        shown[width] = file.getvalue()
        assert all(cell_len(line.rstrip()) <= width for line in shown[width].splitlines())
        assert "…" not in shown[width] and shown[width].count("meV/Å") == 5
    line = next(line for line in shown[100].splitlines() if "test" in line)
    assert line.replace("│", " ").split() == row
    assert re.search(r"quantity 2 / meV/Å +│ 3 ", shown[40]) and re.search(r"quantity 2 +│ 3 ", shown[25])


def test_lines_are_folded_where_double_spaces_part():
    line = "epoch 1/2   4.7 s  loss 130.5  valid RMSE E 213.74 meV/atom  F 1102.8 meV/Å  q 0.1065 e  μ 0.2475 e·Å"
    assert run_folder.folded(line, 200) == line
    folded = run_folder.folded(line, 80).split("\n")
    assert len(folded) == 2 and max(map(len, folded)) <= 80 and folded[1] == "    q 0.1065 e  μ 0.2475 e·Å"
    command = f"command: phi-mace-train {'--phi operator=coulomb ' * 5}"
    assert run_folder.folded(command, 80) == command
