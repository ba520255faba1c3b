"""What e3nn, mace and torch say unasked does not reach the user; what they say of anything else does."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from ase.build import molecule
from e3nn import o3

from phi_equivariant import PhiCalculator
from phi_equivariant.quiet import importing, quiet
from zoo import load_pretrained

ROOT = Path(__file__).parents[2]
USE = """
from ase.build import molecule
from phi_equivariant import PhiCalculator
from zoo import load_pretrained

atoms = molecule("CH3CH2OH")
atoms.calc = PhiCalculator(load_pretrained("phi-mace-small.acac"))
print(len(atoms.get_charges()))
"""


@pytest.mark.parametrize("name", ["phi-mace-small.acac", "phi-nequip-small.ala3_gfn2"])
def test_loading_and_using_a_model_warns_of_nothing(name, capfd):
    atoms = molecule("CH3CH2OH")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        atoms.calc = PhiCalculator(load_pretrained(name))
        atoms.get_forces()
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_a_script_prints_its_results_and_nothing_else(tmp_path):
    # mace sets this variable when it is imported, as it was here, and torch warns of it.
    env = {name: value for name, value in os.environ.items() if name != "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"}
    found = subprocess.run(
        [sys.executable, "-W", "default", "-c", USE],
        capture_output=True, text=True, cwd=tmp_path, check=True, env=env | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (found.stdout, found.stderr) == ("9\n", "")


def test_other_warnings_are_kept():
    with pytest.warns(UserWarning, match="mine"), quiet():
        warnings.warn("mine", stacklevel=1)
    with pytest.warns(Warning, match=r"torch\.jit"):  # and outside of the block nothing is changed
        torch.jit.script(o3.Linear("1x0e", "1x0e"))


def test_other_lines_go_to_standard_error(capsys):
    with importing():
        print("cuequivariance or cuequivariance_torch is not available. Cuequivariance acceleration will be disabled.")
        print("another line")
    assert capsys.readouterr() == ("", "another line\n")
