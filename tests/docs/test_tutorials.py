"""The tutorials, and the Python of the README, run as they stand, and print what they say they print."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(python|bash|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"-?\d+(?:\.\d*)?(?:e[+-]?\d+)?")
MARK = "=== block"
SHELL = "import subprocess, sys\nsys.stdout.flush()\nsubprocess.run(['bash', '-euc', {!r}], check=True)\n"


def blocks(page):
    """[(language, text)] of a page, in order."""
    return BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))


def script(page, before=""):
    """All Python and shell of a page as one program, which says where each block begins."""
    parts = [before]
    for number, (language, text) in enumerate(blocks(page)):
        if language != "text":
            parts += [f"print('{MARK} {number}', flush=True)\n", text if language == "python" else SHELL.format(text)]
    return "".join(parts)


def printed(page, folder, before=""):
    """{number of a block: what it printed} of a page that is run in a folder, after some lines of Python."""
    tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": tools, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    (folder / "page.py").write_text(script(page, before), encoding="utf-8")
    ended = subprocess.run(
        [sys.executable, "page.py"], cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8"
    )
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-4000:]
    output = re.sub(r"^cuequivariance .*\n", "", ended.stdout, flags=re.MULTILINE)  # mace says so when it is imported
    found = re.split(rf"^{MARK} (\d+)\n", output, flags=re.MULTILINE)
    return dict(zip(map(int, found[1::2]), found[2::2], strict=True))


def words(text):
    """Everything but the numbers, without regard to spaces: they follow the numbers' lengths."""
    return NUMBER.sub("#", text).split()


def alike(shown, got):
    """Whether two numbers are of one size: training gives others on another machine."""
    return abs(shown - got) <= 0.5 * max(abs(shown), abs(got)) + 0.11


def check_page(page, folder, before=""):
    """Run a page, and compare what its Python prints with the text that is shown behind it."""
    output = printed(page, folder, before)
    for number, (language, text) in enumerate(blocks(page)):
        if language == "text":
            got = output[number - 1]
            assert words(got) == words(text), f"{page} prints\n{got}"
            pairs = zip(NUMBER.findall(text), NUMBER.findall(got), strict=True)
            different = [pair for pair in pairs if not alike(*map(float, pair))]
            assert not different, f"{page} prints\n{got}"


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "docs/tutorials").glob("*.md")))
def test_a_tutorial_runs_and_prints_what_it_shows(name, tmp_path):
    check_page(f"docs/tutorials/{name}.md", tmp_path)


@pytest.mark.slow
def test_the_page_on_fine_tuning_runs_and_prints_what_it_shows(tmp_path):
    check_page("docs/howto/fine_tuning.md", tmp_path)


@pytest.mark.slow
def test_the_python_of_the_readme_runs_and_prints_what_it_shows(tmp_path):
    host = "from zoo import load_pretrained\nmace_model = load_pretrained('phi-mace-small.ala3_gfn2').detach()\n"
    check_page("README.md", tmp_path, host)
