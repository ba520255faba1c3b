"""The Coulomb operator: −∇² as the inverse of the potential matrix of Gaussian charges."""

import math
from collections.abc import Sequence
from typing import Literal

import ase.data
import torch

from phi_equivariant.division import WHOLE
from phi_equivariant.errors import InputError
from phi_equivariant.inputs.cells import describe_pbc
from phi_equivariant.operators import particle_mesh, waves
from phi_equivariant.operators.base import Bound, Operator, Part, Settings
from phi_equivariant.operators.free_space import FreeSpaceMatrix, FreeSpaceTiles
from phi_equivariant.operators.gaussians import COULOMB_CONSTANT as COULOMB_CONSTANT
from phi_equivariant.operators.lattice import LatticeSum, Smooth, cell_volume
from phi_equivariant.operators.meshed import MeshSum
from phi_equivariant.operators.near import NearPairs
from phi_equivariant.operators.slabs import SlabSum, in_boxes, uniform_part
from phi_equivariant.operators.splitting import Splitting
from phi_equivariant.pairs import KeptPairs, Pairs, find_pairs
from phi_equivariant.structures import Structures, is_slab


class GaussianCoulomb(Operator):
    """Potential matrix P = L⁻¹ of Gaussian charges of width σ, in V/e; positive definite.

        P_ij = k_e erf(r_ij / (√2 γ_ij)) / r_ij,   γ_ij² = σ_i² + σ_j²,   P_ii = k_e / (√π σ_i)

    Its inverse L is the Maxwell capacitance matrix and is never formed. In a periodic cell P is the Ewald sum with a
    uniform neutralising background, see ``operators.lattice``; in a slab it is that of the lattice in the plane, with a
    constant that acts on net charges only, see ``operators.slabs``.

    Parameters
    ----------
    atomic_numbers: elements, in the order of the host's one-hot encoding
    start: see ``width`` of ``PhiConfig``
    dense_limit: atoms up to which matrices are made where they are needed
    with_dipoles: whether its joint product of charges and dipoles is what will be asked for
    exact_charge: whether charges sum to the total charge exactly, which slabs need
    """

    name = "coulomb"
    inverse, carries_charge, dipoles, widths_of_charges = True, True, True, True
    periodicities = frozenset({0, 2, 3})
    element_scale, window_width = 0.5, 0.5

    narrowest, widest = 0.3, 1.2  # Å
    start_width = 0.7  # in Å, or in covalent radii
    # Atoms above which a product Pq is faster on a mesh, the same with second derivatives, and by tiles in free space.
    mesh_from, mesh_from_in_training, tiles_from = 150, 250, 500

    def __init__(
        self,
        atomic_numbers: Sequence[int],
        start: float | Literal["covalent"] | None = None,
        dense_limit: int = 2000,
        with_dipoles: bool = False,
        exact_charge: bool = True,
    ) -> None:
        super().__init__()
        if start == "covalent":
            widths = torch.tensor([self.start_width * float(ase.data.covalent_radii[z]) for z in atomic_numbers])
        else:
            widths = torch.full((len(atomic_numbers),), self.start_width if start is None else start)
        fraction = (widths.to(torch.get_default_dtype()) - self.narrowest) / (self.widest - self.narrowest)
        self.width_logit = torch.nn.Parameter(torch.logit(fraction.clamp(0.05, 0.95)))
        self.dense_limit, self.exact_charge = dense_limit, exact_charge
        if with_dipoles:
            # Tiles with dipoles are no faster than matrices, they only take less memory.
            self.tiles_from = dense_limit
        self.splitting = Splitting()
        self.kept_pairs = KeptPairs()

    @classmethod
    def build(cls, atomic_numbers: Sequence[int], r_max: float, config: Settings) -> "GaussianCoulomb":
        """The operator of a host with these elements."""
        exact_charge = 2 in cls.periodicities_with(config)
        with_dipoles = config.multipoles == 1 or config.polarizable
        return cls(atomic_numbers, config.width, config.dense_limit, with_dipoles, exact_charge)

    @classmethod
    def periodicities_with(cls, config: Settings) -> frozenset[int]:
        """Slabs with ``charge_constraint="project"`` only: elsewhere a net charge that the heads leave would have a
        negative energy in them, without bound."""
        return cls.periodicities if config.charge_constraint == "project" else cls.periodicities - {2}

    def check(self, structures: Structures) -> None:
        """InputError for wires, and for slabs where charges do not sum to the total charge exactly."""
        super().check(structures)
        if not self.exact_charge and 2 in structures.n_periodic:
            index = structures.n_periodic.index(2)
            raise InputError(
                f"structure {index} is a slab (pbc {describe_pbc(structures.pbc[index])}), in which charges must sum "
                "to the total charge exactly; use charge_constraint='project', or operator='graph'."
            )

    def uniform_part(self, structures: Structures) -> torch.Tensor | None:
        """c of charged slabs: the potential is Pq less c Σq."""
        slab = is_slab(structures.pbc)
        if not bool((slab & (structures.total_charge != 0)).any()):
            return None
        return uniform_part(structures, self.widths()[structures.species].square()).masked_fill(~slab, 0.0)

    def widths(self) -> torch.Tensor:
        """σ of every element in Å: (n_elements,), always within the bounds."""
        return self.narrowest + (self.widest - self.narrowest) * torch.sigmoid(self.width_logit)

    def at(self, structures: Structures, matrix: bool = False, up_to: int | None = None, edges: bool = False) -> Bound:
        """P at the structures of a batch; products of large structures go without a matrix, where that is faster if
        none is needed."""
        width_squared = self.widths()[structures.species].square()  # (n_atoms,)
        directions = structures.n_periodic
        tiles_from, mesh_from = self._largest_together(matrix, up_to)
        alone = [
            count > (mesh_from if number else tiles_from)
            for count, number in zip(structures.counts, directions, strict=True)
        ]
        parts = []
        lattice = [number > 0 for number in directions]
        for group in structures.groups(list(zip(directions, alone, strict=True)), alone, lattice):
            atoms, chosen = structures.select(group, edges)
            widths = width_squared if atoms is None else width_squared[atoms]
            parts.append((atoms, self._part(chosen, widths, group, alone[group[0]])))
        return Bound(structures, parts)

    def _largest_together(self, matrix: bool, up_to: int | None) -> tuple[int, int]:
        """Atoms up to which structures are not computed alone, in free space and in a cell."""
        if matrix and up_to is None:
            return self.dense_limit, self.dense_limit
        tiles_from = self.tiles_from if up_to is None else up_to
        mesh_from = self.mesh_from_in_training if self.training else self.mesh_from
        return min(self.dense_limit, tiles_from), min(self.dense_limit, mesh_from)

    def _part(self, structures: Structures, width_squared: torch.Tensor, places: list[int], alone: bool) -> Part:
        """P of structures of one kind: places, which they are of the batch."""
        directions = structures.n_periodic[0]
        if directions == 0:
            return (FreeSpaceTiles if alone else FreeSpaceMatrix)(structures, width_squared)
        if directions == 2:
            structures = in_boxes(structures, width_squared)
        splitting, near = self._near(structures, width_squared, places, alone)
        smooth: Smooth
        if alone:
            smooth = particle_mesh.ParticleMesh(structures, float(splitting))
        else:
            smooth = waves.Waves(structures, splitting)
        kind = SlabSum if directions == 2 else MeshSum if alone else LatticeSum
        return kind(structures, width_squared, splitting, near, smooth, dense=not alone)

    @torch.no_grad()
    def _near(
        self, structures: Structures, width_squared: torch.Tensor, places: list[int], on_mesh: bool
    ) -> tuple[torch.Tensor, NearPairs]:
        """s of structures in cells that all three vectors are summed over, (n_structures,), and their pairs up to where
        the sum over them ends."""
        cell, device = structures.cell, structures.cell.device
        reach = (particle_mesh.REACH if on_mesh else waves.REACH)[cell.dtype]
        volumes = cell_volume(cell).tolist()
        widest = structures.layout.pad(width_squared).amax(1).tolist()
        starts, share = structures.ptr.tolist(), structures.share if on_mesh else WHOLE  # matrices are small
        splittings, found = [], []
        for index, place in enumerate(places):
            positions = structures.positions[starts[index] : starts[index + 1]]
            # Wider Gaussians reach further than s asks for: then s may do so too.
            s = max(self._choose(positions, volumes[index], on_mesh), math.sqrt(2 * widest[index]))
            about = positions, cell[index], torch.ones_like(structures.pbc[index])
            # Batches of training have no pairs in common, steps of a simulation have.
            if self.training:
                pairs = find_pairs(reach * s, *about, share)
            else:
                pairs = self.kept_pairs(reach * s, *about, place, share)
            splittings.append(s)
            found.append(pairs)
        splitting = torch.tensor(splittings, dtype=cell.dtype, device=device)
        if len(found) == 1:
            return splitting, NearPairs(found[0], None, splitting.expand(len(found[0].first)))
        numbers = torch.tensor([len(pairs.first) for pairs in found], device=device)
        owner = torch.arange(len(found), device=device).repeat_interleave(numbers)
        first, second, images = (torch.cat(parts) for parts in zip(*found, strict=True))
        offset = structures.ptr[owner]
        return splitting, NearPairs(Pairs(first + offset, second + offset, images), owner, splitting[owner])

    def _choose(self, positions: torch.Tensor, volume: float, on_mesh: bool) -> float:
        """s of one structure in Å."""
        keep = not self.training
        if on_mesh:
            return self.splitting.with_mesh(positions, volume, keep)
        return self.splitting.with_waves(volume, len(positions), keep)
