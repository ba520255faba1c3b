"""Charged structures without a host: an operator bound to its atoms, graphs, and what heads would give."""

import dataclasses
import itertools
import math

import numpy as np
import torch
from ase import Atoms
from ase.neighborlist import neighbor_list

from phi_equivariant.batching import PaddedLayout
from phi_equivariant.charge_models.energy import ChargeEnergy
from phi_equivariant.charge_models.flow import FlowGraph
from phi_equivariant.operators.coulomb import COULOMB_CONSTANT, GaussianCoulomb
from phi_equivariant.operators.graph import smooth_cutoff
from phi_equivariant.structures import Structures

R_MAX = 3.0


class BoundCoulomb:
    """``GaussianCoulomb`` at the places of a batch, by matrices, or without any however few the atoms."""

    def __init__(self, operator, positions, species, layout, cell=None, periodic=None, with_matrix=True):
        counts = layout.counts
        n = len(counts)
        pbc = torch.zeros((n, 3), dtype=torch.bool) if periodic is None else periodic[:, None].expand(n, 3)
        structures = Structures(
            positions,
            species,
            torch.arange(n).repeat_interleave(counts),
            torch.nn.functional.pad(counts.cumsum(0), (1, 0)),
            None,
            None,
            positions.new_zeros(n),
            positions.new_zeros((n, 3, 3)) if cell is None else cell,
            pbc,
        )
        limit = 10_000 if with_matrix else 0
        operator.dense_limit = operator.tiles_from = limit
        operator.mesh_from = operator.mesh_from_in_training = limit
        self.dense, self.width = with_matrix, operator.widths()[species]
        self._bound = operator.at(structures, matrix=with_matrix)
        self.product, self.joint, self.diagonal = self._bound.product, self._bound.joint, self._bound.diagonal

    def matrix(self):
        ((_, part),) = self._bound.parts
        return part.matrix()

    def joint_matrix(self):
        ((_, part),) = self._bound.parts
        return part.joint_matrix()

    def nearly(self):
        parts = self._bound.parts
        return parts[0][1].nearly() if len(parts) == 1 else None

    def screened(self, diagonal):
        parts = self._bound.parts
        return parts[0][1].screened(diagonal) if len(parts) == 1 else None

    def agreed(self, values):
        return values

    def dipole_diagonal(self):
        return COULOMB_CONSTANT / (6 * math.sqrt(math.pi) * self.width**3)


@dataclasses.dataclass
class Case:
    """What a charge model takes, every tensor a leaf that may be differentiated by."""

    positions: torch.Tensor
    start: torch.Tensor
    electronegativity: torch.Tensor
    hardness: torch.Tensor
    conductance: torch.Tensor  # c of every atom
    dipoles: torch.Tensor
    polarisability: torch.Tensor
    total_charge: torch.Tensor
    field: torch.Tensor
    cell: torch.Tensor | None
    shared: dict

    names = "positions", "start", "electronegativity", "hardness", "conductance", "dipoles", "polarisability"

    def tensors(self, *names):
        return [getattr(self, name) for name in names or self.names]

    def with_(self, **changes):
        return dataclasses.replace(self, **changes)

    def parts(self, dipoles=False, polarisable=False, with_matrix=True, field=False):
        """(ChargeEnergy, FlowGraph)."""
        shared, layout = self.shared, self.shared["layout"]
        operator = BoundCoulomb(
            shared["operator"], self.positions, shared["species"], layout, self.cell, shared["periodic"], with_matrix
        )
        chi = self.electronegativity
        if field:
            chi = chi - (self.field[layout.batch] * self.positions).sum(-1)
        energy = ChargeEnergy(
            operator,
            layout,
            chi,
            self.hardness,
            self.dipoles if dipoles else None,
            self.polarisability if polarisable else None,
            self.field[layout.batch] if field else None,
        )
        sender, receiver = shared["edge_index"]
        shifts = 0.0 if self.cell is None else (shared["images"][:, None] @ self.cell[layout.batch[receiver]])[:, 0]
        lengths = (self.positions[receiver] - self.positions[sender] + shifts).norm(dim=-1)
        weights = 0.05 * self.conductance[sender] * self.conductance[receiver] * smooth_cutoff(lengths / R_MAX)
        return energy, FlowGraph(shared["edge_index"], weights, layout)


def case(*structures, seed=0, dtype=torch.float64, r_max=R_MAX):
    """Random heads on structures, all periodic in three directions or none."""
    rng = np.random.default_rng(seed)
    elements = sorted({int(z) for atoms in structures for z in atoms.numbers})
    counts = torch.tensor([len(atoms) for atoms in structures])
    layout = PaddedLayout(
        torch.arange(len(counts)).repeat_interleave(counts), torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    )
    edges, images = [], []
    for offset, atoms in zip(layout.counts.cumsum(0) - layout.counts, structures, strict=True):
        first, second, shift = neighbor_list("ijS", atoms, r_max)
        edges.append(np.stack([first, second]) + int(offset))
        images.append(shift)
    n, number = int(counts.sum()), {"dtype": dtype}
    periodic = torch.tensor([bool(atoms.pbc.all()) for atoms in structures])
    cell = None
    if bool(periodic.any()):
        cell = torch.tensor(np.stack([atoms.cell.array for atoms in structures]), **number)
    operator = GaussianCoulomb(elements).to(dtype)
    species = torch.tensor([elements.index(int(z)) for atoms in structures for z in atoms.numbers])
    return Case(
        positions=torch.tensor(np.concatenate([atoms.positions for atoms in structures]), **number),
        start=torch.tensor(0.3 * rng.normal(size=n), **number),
        electronegativity=torch.tensor(2.0 * rng.normal(size=n), **number),
        hardness=torch.tensor(rng.uniform(3, 9, size=n), **number),
        conductance=torch.tensor(rng.uniform(0.5, 1.5, size=n), **number),
        dipoles=torch.tensor(0.2 * rng.normal(size=(n, 3)), **number),
        polarisability=torch.tensor(rng.uniform(0.02, 0.15, size=n), **number),
        total_charge=torch.tensor(rng.integers(-1, 2, size=len(counts)), **number),
        field=torch.tensor(0.5 * rng.normal(size=(len(counts), 3)), **number),
        cell=cell,
        shared={
            "operator": operator,
            "species": species,
            "layout": layout,
            "periodic": periodic if cell is not None else None,
            "edge_index": torch.tensor(np.concatenate(edges, axis=1)),
            "images": torch.tensor(np.concatenate(images), **number),
        },
    )


def random_cluster(n, seed=0, box=2.5, nearest=0.9, symbols="CNOH", cell=None):
    """Atoms at random places, none too near another."""
    rng, places = np.random.default_rng(seed), []
    for _ in itertools.count():
        place = rng.uniform(size=3) * box if cell is None else rng.uniform(size=3) @ cell
        trial = Atoms(["H"] * (len(places) + 1), [*places, place], cell=cell, pbc=cell is not None)
        if (
            len(places) == 0
            or trial.get_distances(len(places), range(len(places)), mic=cell is not None).min() > nearest
        ):
            places.append(place)
        if len(places) == n:
            return Atoms([symbols[i % len(symbols)] for i in range(n)], places, cell=cell, pbc=cell is not None)


def reference_matrix(positions, widths):
    """Charges and dipoles in free space by closed forms, numpy only: (4N, 4N), an atom's charge and dipole together."""
    n = len(positions)
    matrix = np.zeros((n, 4, n, 4))
    for i, j in itertools.product(range(n), repeat=2):
        if i == j:
            matrix[i, 0, i, 0] = COULOMB_CONSTANT / (math.sqrt(math.pi) * widths[i])
            matrix[i, 1:, i, 1:] = np.eye(3) * COULOMB_CONSTANT / (6 * math.sqrt(math.pi) * widths[i] ** 3)
            continue
        d = positions[i] - positions[j]
        r, a = np.linalg.norm(d), 1 / math.sqrt(2 * (widths[i] ** 2 + widths[j] ** 2))
        bell = 2 * a / math.sqrt(math.pi) * math.exp(-((a * r) ** 2))
        g = math.erf(a * r) / r
        first = bell / r - g / r  # g'
        second = -2 * a**2 * bell - 2 * first / r  # g''
        matrix[i, 0, j, 0] = COULOMB_CONSTANT * g
        matrix[i, 0, j, 1:] = -COULOMB_CONSTANT * first * d / r
        matrix[i, 1:, j, 0] = COULOMB_CONSTANT * first * d / r
        outer = np.outer(d, d) / r**2
        matrix[i, 1:, j, 1:] = -COULOMB_CONSTANT * (first / r * (np.eye(3) - outer) + second * outer)
    return matrix.reshape(4 * n, 4 * n)
