"""Water at constant pressure with ase.

python water.py --model runs/my_run --steps 10000
"""

import argparse
from pathlib import Path

import ase.io
from ase import units
from ase.md.nose_hoover_chain import IsotropicMTKNPT
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution

from phi_equivariant import PhiCalculator

parser = argparse.ArgumentParser()
parser.add_argument("--model", required=True)
parser.add_argument("--steps", type=int, default=20)
arguments = parser.parse_args()

atoms = ase.io.read(Path(__file__).parents[1] / "ipi" / "water.xyz")
atoms.calc = PhiCalculator(arguments.model)  # the total charge would be atoms.info["total_charge"]
MaxwellBoltzmannDistribution(atoms, temperature_K=300)
dynamics = IsotropicMTKNPT(
    atoms, timestep=0.5 * units.fs, temperature_K=300, pressure_au=1 * units.bar, tdamp=50 * units.fs,
    pdamp=500 * units.fs, trajectory="water.traj", loginterval=10, logfile="water.log",
)  # fmt: skip
dynamics.run(arguments.steps)
print(f"{atoms.get_volume():.1f} Å³, charges of oxygen {atoms.get_charges()[::3].mean():.3f} e")
