"""Φ in LAMMPS: ``LammpsPotential`` attaches a potential to a LAMMPS object, ``run_script`` runs an input with it."""

from phi_equivariant.engines.lammps.fix_external import LammpsPotential
from phi_equivariant.engines.lammps.mpi import load_lammps
from phi_equivariant.engines.lammps.script import run_script

__all__ = ["LammpsPotential", "load_lammps", "run_script"]
