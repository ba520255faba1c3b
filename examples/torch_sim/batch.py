"""Ions and a molecule at constant temperature with torch-sim, in one batch.

python batch.py --model runs/my_run --steps 10000
"""

import argparse

import torch_sim
from ase.build import molecule

from phi_equivariant.engines.torch_sim import PhiTorchSimModel

parser = argparse.ArgumentParser()
parser.add_argument("--model", required=True)
parser.add_argument("--steps", type=int, default=20)
arguments = parser.parse_args()

model = PhiTorchSimModel(arguments.model, total_charge={"OH": -1, "H2O": 0})
systems = [molecule("OH"), molecule("H2O"), molecule("H2O")]
state = torch_sim.initialize_state(systems, model.device, model.dtype)
# torch-sim 0.6 (Python 3.12) has names for its integrators, 0.3 (Python 3.11) functions.
named = getattr(torch_sim, "Integrator", None)
state = torch_sim.integrate(
    state, model, integrator=named.nvt_langevin if named else torch_sim.nvt_langevin, n_steps=arguments.steps,
    temperature=300.0, timestep=0.0005,
)  # fmt: skip
print("energies in eV:", *(f"{energy:.3f}" for energy in model(state)["energy"].tolist()))
