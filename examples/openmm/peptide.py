"""A peptide computed by the model in classical water, at constant temperature and pressure.

python peptide.py                                        # a model of the zoo, 20 steps
python peptide.py --model runs/my_run --steps 100000
"""

import argparse
from pathlib import Path

from openmm import LangevinMiddleIntegrator, MonteCarloBarostat, app, unit
from openmmml import MLPotential

parser = argparse.ArgumentParser()
parser.add_argument("--model", default="phi-mace-small.ala3_gfn2")
parser.add_argument("--steps", type=int, default=20)
arguments = parser.parse_args()

# The peptide, water around it, and a classical force field for all.
pdb = app.PDBFile(str(Path(__file__).with_name("peptide.pdb")))
field = app.ForceField("amber14-all.xml", "amber14/tip3p.xml")
modeller = app.Modeller(pdb.topology, pdb.positions)
modeller.addSolvent(field, model="tip3p", padding=0.5 * unit.nanometer)
classical = field.createSystem(
    modeller.topology, nonbondedMethod=app.PME, nonbondedCutoff=0.9 * unit.nanometer, constraints=None
)

# What is not water comes from the model; the total charge is that of these atoms.
atoms = [atom.index for atom in modeller.topology.atoms() if atom.residue.name != "HOH"]
potential = MLPotential("phi", modelPath=arguments.model)
system = potential.createMixedSystem(modeller.topology, classical, atoms, charge=0)
system.addForce(MonteCarloBarostat(1 * unit.bar, 300 * unit.kelvin))

integrator = LangevinMiddleIntegrator(300 * unit.kelvin, 1 / unit.picosecond, 0.5 * unit.femtosecond)
simulation = app.Simulation(modeller.topology, system, integrator)
simulation.context.setPositions(modeller.positions)
simulation.minimizeEnergy(maxIterations=10)
simulation.context.setVelocitiesToTemperature(300 * unit.kelvin, 1)
simulation.reporters.append(
    app.StateDataReporter("peptide.csv", 10, step=True, potentialEnergy=True, temperature=True, volume=True)
)
simulation.reporters.append(app.DCDReporter("peptide.dcd", 10))
simulation.step(arguments.steps)
simulation.saveState("peptide.xml")
