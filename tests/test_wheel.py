"""The wheel, installed into an empty environment outside of the checkout, has everything that the library needs."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
PACKAGES = ("phi_equivariant", "zoo", "training")
COMMANDS = ("phi-mace-train", "phi-mace-eval", "phi-lammps", "phi-zoo")
USE = """
import phi_equivariant, training, zoo
from ase.build import molecule
from training.data.named_files import load_dataset

for package in (phi_equivariant, training, zoo):
    print(package.__file__)
atoms = molecule("CH3CH2OH")
atoms.calc = phi_equivariant.PhiCalculator(zoo.load_pretrained("phi-mace-small.ala3_gfn2"))
print(len(atoms.get_charges()), len(load_dataset("ala3_gfn2").test))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this checkout, built from a copy: setuptools leaves its work beside the sources."""
    source = tmp_path_factory.mktemp("source")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", source / "dist", source], check=True)
    (made,) = (source / "dist").glob("*.whl")
    return made


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """A new environment with the wheel alone of ours; libraries are lent by the environment of the tests."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, wheel], check=True)
    (packages,) = (folder / "lib").glob("python*/site-packages")
    # A folder named in a .pth file is searched last, and what .pth files in it say, an editable install, is not read.
    (packages / "libraries.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    return folder


def call(environment, name, *words):
    """A program of the environment, in a folder without our sources."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [environment / "bin" / name, *words], capture_output=True, text=True, cwd=environment, env=env
    )


@pytest.mark.slow
def test_the_wheel_has_every_file_of_the_packages(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = (path for name in PACKAGES for path in (ROOT / name).rglob("*") if path.is_file())
    assert held == {path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts}


@pytest.mark.slow
def test_a_model_and_a_data_set_are_found(environment):
    found = call(environment, "python", "-c", USE)
    assert found.returncode == 0, found.stderr
    *places, counts = found.stdout.splitlines()
    assert len(places) == 3 and all(Path(place).is_relative_to(environment) for place in places)
    assert counts == "9 500"


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_answer(environment, command):
    told = call(environment, command, "--version")
    version = importlib.metadata.version("phi-equivariant")
    assert (told.returncode, told.stdout) == (0, f"{command} {version}\n")
    helped = call(environment, command, "--help")
    assert helped.returncode == 0 and command in helped.stdout
