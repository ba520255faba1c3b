"""The ``.model`` file that a run leaves for mace's own tools."""

import subprocess
import sys

import ase.io
import numpy as np
import pytest
import torch
from ase.build import molecule
from mace.calculators import MACECalculator
from training_runs import keep_default_dtype, refused, run, words, write_molecules  # noqa: F401

from phi_equivariant import PhiCalculator

#: What another machine has: mace without this library.
WITHOUT_US = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("phi_equivariant", "zoo", "training"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import ase.io
from mace.calculators import MACECalculator
atoms = ase.io.read(sys.argv[2])
atoms.calc = MACECalculator(model_paths=sys.argv[1], device="cpu", default_dtype="float64")
print(repr(atoms.get_potential_energy()))
"""


@pytest.fixture(scope="module")
def molecules(tmp_path_factory):
    return write_molecules(tmp_path_factory.mktemp("mace_model") / "train.xyz", count=12, seed=3)


def shaken():
    atoms = molecule("CH3OH")
    atoms.rattle(0.05, seed=1)
    return atoms


@pytest.mark.slow
@pytest.mark.honours("save_mace_model")
@pytest.mark.parametrize("phi", [None, ["operator=coulomb"]])
def test_maces_tools_run_the_file(molecules, tmp_path, phi):
    """Of both stages, with equal energies and forces; a bare host needs nothing of this library."""
    two = {"swa": True, "start_swa": 1, "max_num_epochs": 2, "plot": "False"}
    folder = run(tmp_path, name="run", train_file=molecules, phi=phi, save_mace_model=True, **two)
    atoms = shaken()
    for place in (folder, folder / "stage_one"):
        atoms.calc = MACECalculator(model_paths=place / "run.model", device="cpu", default_dtype="float64")
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        atoms.calc = PhiCalculator(place)
        assert energy == pytest.approx(atoms.get_potential_energy(), abs=1e-10)
        np.testing.assert_allclose(forces, atoms.get_forces(), atol=1e-10)
    ase.io.write(tmp_path / "in.xyz", atoms, format="extxyz")
    energy = PhiCalculator(folder).get_potential_energy(ase.io.read(tmp_path / "in.xyz"))
    out = tmp_path / "out.xyz"
    words = ["--configs", tmp_path / "in.xyz", "--model", folder / "run.model", "--output", out]
    subprocess.run([sys.executable, "-m", "mace.cli.eval_configs", *map(str, words)], check=True, capture_output=True)
    assert ase.io.read(out).info["MACE_energy"] == pytest.approx(energy, abs=1e-8)
    command = [sys.executable, "-c", WITHOUT_US, str(folder / "run.model"), str(tmp_path / "in.xyz")]
    done = subprocess.run(command, capture_output=True, text=True)
    if phi is None:
        assert type(torch.load(folder / "run.model", weights_only=False)).__module__ == "mace.modules.models"
        assert float(done.stdout.split()[-1]) == pytest.approx(energy, abs=1e-10)
    else:
        assert "ModuleNotFoundError: phi_equivariant" in done.stderr


@pytest.mark.honours("save_mace_model")
def test_a_host_that_mace_does_not_know_is_refused(molecules, tmp_path, capsys):
    given = dict.fromkeys(("hidden_irreps", "max_ell", "correlation", "num_radial_basis", "radial_MLP", "MLP_irreps"))
    line = words(tmp_path, train_file=molecules, save_mace_model=True, model="phi-nequip-small", **given)
    assert "--save_mace_model: the host is a " in refused(capsys, line)
    assert not list(tmp_path.iterdir())
