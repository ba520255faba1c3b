"""The commands before anything is trained: help, version, and a folder whose files hide the packages."""

import os
import re
import subprocess
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path

import pytest

import phi_equivariant
from training.options.parser import Parser
from training.options.refused import IDLE, REFUSED
from training.run import options

ROOT = Path(__file__).parents[2]
#: Console script → the function that it calls.
COMMANDS = {"phi-mace-train": "train", "phi-mace-eval": "evaluate", "phi-lammps": "lammps"}
HEAVY = ("torch", "mace", "lightning", "e3nn", "matplotlib", "pydantic")


def called(command, *words, folder=ROOT, path=ROOT, before=""):
    """What the installed script of a command does, run in a folder, with a path that Python looks into first."""
    script = f"import sys; {before}from phi_equivariant.commands import {COMMANDS[command]} as main\n"
    script += f"sys.argv = ['{command}', *sys.argv[1:]]\nsys.exit(main())"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path if isinstance(path, list) else [path]))}
    return subprocess.run(
        [sys.executable, "-P", "-c", script, *words], capture_output=True, text=True, cwd=folder, env=environment
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_help_and_version_need_neither_torch_nor_mace(command):
    """Nothing heavy is loaded, so that they answer at once; a misspelt option does without it too."""
    watch = "import atexit; atexit.register(lambda: print('LOADED', *sys.modules)); "
    for words, status in ((["--help"], 0), (["--version"], 0), (["--modle", "x", "--output", "y"], 2)):
        done = called(command, *words, before=watch)
        assert done.returncode == status, done.stderr
        text, loaded = done.stdout.split("LOADED")
        assert not set(HEAVY) & {name.split(".")[0] for name in loaded.split()}, words
        if words == ["--version"]:
            assert text == f"{command} {version('phi-equivariant')}\n"
        if status:
            assert done.stderr.startswith(f"{command}: ") and done.stderr.count("\n") == 1


def test_the_library_has_its_version():
    assert phi_equivariant.__version__ == version("phi-equivariant")


def test_help_offers_what_acts_ours_first_and_an_example():
    text = called("phi-mace-train", "--help").stdout
    offered = set(re.findall(r"--(\w+)", text))
    words = {name: action.option_strings for name, action in Parser().actions.items()}
    assert all({word.removeprefix("--") for word in words[name]} & offered for name in options())
    refused = {word for name in (*REFUSED, *IDLE) for word in Parser().actions[name].option_strings}
    assert not {word.removeprefix("--") for word in refused} & offered
    ours, theirs = text.split("mace's options: ", 1)
    assert "--phi KEY=VALUE" in ours and "--train_file" not in ours and "--train_file" in theirs
    example = text[text.index("example:") :]
    assert "phi-mace-train --train_file" in example and text.rstrip().endswith("docs/options.md.")
    words = example.replace("\\\n", " ").split("\n")[1].split()[1:]
    Parser().parse(words, None)  # what the example says is understood


def test_help_of_evaluation_ends_with_an_example():
    text = called("phi-mace-eval", "--help").stdout
    assert text.rstrip().splitlines()[-1].strip().startswith("phi-mace-eval --configs")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("hides", ["zoo.py", "training/__init__.py", "training.py"])
def test_a_file_of_the_users_that_hides_a_package_is_named(command, hides, tmp_path):
    """Where the user's folder is on the path, the message says which file hides what; elsewhere it does not matter."""
    file = tmp_path / hides
    file.parent.mkdir(exist_ok=True)
    file.write_text("x = 1\n")
    done = called(command, "--help", folder=tmp_path, path=[tmp_path, ROOT])
    assert done.returncode == 2 and str(file) in done.stderr
    assert f"the package {Path(hides).parts[0].removesuffix('.py')} of phi-equivariant" in done.stderr
    assert called(command, "--help", folder=tmp_path).returncode == 0


def test_modules_called_by_name_say_so_too(tmp_path):
    """``python -m training.train`` looks into the working folder first."""
    (tmp_path / "zoo.py").write_text("x = 1\n")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for module in ("training.train", "training.evaluate"):
        line = [sys.executable, "-m", module, "--help"]
        done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, env=environment)
        assert done.returncode == 2 and str(tmp_path / "zoo.py") in done.stderr


def test_installed_scripts_call_the_guarded_functions():
    """In a folder with a zoo.py that is on the path; skipped where the scripts are of another installation."""
    script = Path(sysconfig.get_path("scripts")) / "phi-mace-train"
    if not script.is_file() or "phi_equivariant.commands" not in script.read_text():
        pytest.skip("the commands are not installed from this project")
    done = subprocess.run([script, "--version"], capture_output=True, text=True)
    assert done.stdout == f"phi-mace-train {version('phi-equivariant')}\n"
