"""Under mpirun: operators and flow of structures that are shared among the processes, against those on one process,
with their derivatives."""

import dataclasses
import json
import sys

import numpy as np
import torch
from ase import Atoms
from mpi4py import MPI
from systems import ELEMENTS, structures_of

from phi_equivariant.charge_models.flow import Conductance, FlowGraph
from phi_equivariant.division import ShareOfProcesses
from phi_equivariant.operators import slabs
from phi_equivariant.operators.coulomb import GaussianCoulomb
from phi_equivariant.operators.graph import GraphLaplacian

R_MAX = 4.0
KINDS = "open", "crystal", "thin", "small", "slab", "waves in parts"


def atoms_of(kind):
    """Random atoms, enough to be computed on a mesh, or by tiles."""
    n = {"open": 510, "crystal": 160, "thin": 160, "small": 160, "slab": 152, "waves in parts": 152}[kind]
    random = np.random.default_rng(1)
    cell = np.array([[13.0, 0, 0], [2.0, 12.0, 0], [1.0, -1.5, 12.5]])
    if kind == "thin":  # than the splines reach: windows of the mesh overlap themselves, and some have no atom
        cell[0] *= 0.3
    if kind == "small":  # so that of many processes some have no planes and no waves
        cell *= 0.3
    pbc = {"open": False, "crystal": True, "thin": True, "small": True}.get(kind, (True, False, True))
    return Atoms(random.choice(ELEMENTS, n), random.random((n, 3)) @ cell, cell=cell, pbc=pbc)


def everything(operator, structures, moments):
    """P's products, diagonal, and first and second derivatives of energies: a flat tensor."""
    charges, dipoles = moments
    leaves = [structures.positions, structures.cell, operator.width_logit, charges, dipoles]
    bound = operator.at(structures)
    potential, gradient = bound.joint(charges, dipoles)
    energy = (charges * bound.product(charges)).sum() + (charges * potential).sum() + (dipoles * gradient).sum()
    slopes = torch.autograd.grad(energy, leaves, create_graph=True, allow_unused=True)
    slopes = [slope for slope in slopes if slope is not None]
    curvatures = torch.autograd.grad(sum(slope.square().sum() for slope in slopes), leaves, allow_unused=True)
    with torch.no_grad():
        fixed = bound.product(charges), *bound.joint(charges, dipoles)
    found = [potential, gradient, bound.diagonal(), *fixed, *slopes, *(c for c in curvatures if c is not None)]
    return torch.cat([values.detach().flatten() / values.detach().abs().max() for values in found])


def of_edges(structures, levels, of_atoms):
    """A Laplacian's products, matrix and diagonal, flow and its energy, and first and second derivatives: a flat
    tensor."""
    laplacian, conductance = GraphLaplacian(R_MAX).eval(), Conductance(R_MAX)
    leaves = [structures.positions, conductance.log_weight, levels, of_atoms]
    bound = laplacian.at(structures, matrix=True, up_to=0)
    dense = laplacian.at(structures, matrix=True).parts[0][1].matrix()
    found = conductance(of_atoms[:, 0], structures.edge_index, structures.edge_lengths(), structures.share)
    flow = FlowGraph(structures.edge_index, found, structures.layout, structures.share)
    products = bound.product(levels), flow.apply(levels[:, 0]), flow.energy(levels[:, 0])
    energy = sum(values.square().sum() for values in products) + flow.matrix().square().sum()
    slopes = torch.autograd.grad(energy, leaves, create_graph=True)
    curvatures = torch.autograd.grad(sum(slope.square().sum() for slope in slopes), leaves)
    matrices = bound.diagonal(), flow.matrix(), dense
    found = [*products, *matrices, *slopes, *curvatures]
    return torch.cat([values.detach().flatten() / values.detach().abs().max() for values in found])


def main(place):
    """Write, for every kind of structure, the largest deviation of any process, relative to the largest number."""
    torch.set_default_dtype(torch.float64)
    deviations = {"edges": deviation_of_edges()}
    for kind in KINDS:
        slabs._ENTRIES = 1000 if kind == "waves in parts" else 2**20
        operator = GaussianCoulomb(ELEMENTS).eval()
        structures, random = structures_of(atoms_of(kind)), np.random.default_rng(2)
        n = len(structures.positions)
        structures.positions.requires_grad_()
        structures.cell.requires_grad_()
        charges = random.normal(size=(n, 1))
        charges -= charges.mean(0)
        moments = [torch.tensor(m).requires_grad_() for m in (charges, random.normal(size=(n, 1, 3)))]
        whole = everything(operator, structures, moments)
        shared = everything(operator, dataclasses.replace(structures, share=ShareOfProcesses(MPI.COMM_WORLD)), moments)
        deviations[kind] = MPI.COMM_WORLD.allreduce(float((whole - shared).abs().max()), MPI.MAX)
    if MPI.COMM_WORLD.rank == 0:
        with open(place, "w") as file:
            json.dump(deviations, file)


def deviation_of_edges():
    """That of sums over edges, of which each process has some."""
    structures, random = structures_of(atoms_of("slab"), r_max=R_MAX), np.random.default_rng(2)
    structures.positions.requires_grad_()
    values = [torch.tensor(random.random((len(structures.positions), 1))).requires_grad_() for _ in range(2)]
    share = ShareOfProcesses(MPI.COMM_WORLD)
    rows = share.rows(structures.edge_index.shape[1])
    edges = {"edge_index": structures.edge_index[:, rows], "shifts": structures.shifts[rows]}
    whole, shared = (
        of_edges(one, *values) for one in (structures, dataclasses.replace(structures, share=share, **edges))
    )
    return MPI.COMM_WORLD.allreduce(float((whole - shared).abs().max()), MPI.MAX)


if __name__ == "__main__":
    main(sys.argv[1])
