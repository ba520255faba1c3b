"""The Coulomb operator: −∇² as the inverse of the potential matrix of Gaussian charges."""

import math
from collections.abc import Sequence

import ase.data
import torch

from phi_equivariant.operators import particle_mesh, waves
from phi_equivariant.operators.base import Bound, Operator, Part, Settings
from phi_equivariant.operators.free_space import FreeSpaceMatrix, FreeSpaceTiles
from phi_equivariant.operators.gaussians import COULOMB_CONSTANT as COULOMB_CONSTANT
from phi_equivariant.operators.lattice import LatticeSum, NearPairs, Smooth, cell_volume
from phi_equivariant.operators.splitting import Splitting
from phi_equivariant.pairs import KeptPairs, Pairs, find_pairs
from phi_equivariant.structures import Structures


class GaussianCoulomb(Operator):
    """Potential matrix P = L⁻¹ of Gaussian charges of width σ, in V/e; positive definite.

        P_ij = k_e erf(r_ij / (√2 γ_ij)) / r_ij,   γ_ij² = σ_i² + σ_j²,   P_ii = k_e / (√π σ_i)

    Its inverse L is the Maxwell capacitance matrix and is never formed. In a periodic cell P is the Ewald sum with a
    uniform neutralising background, see ``operators.lattice``.

    Parameters
    ----------
    atomic_numbers: elements, in the order of the host's one-hot encoding
    start: see ``width`` of ``PhiConfig``
    dense_limit: atoms up to which matrices are made where they are needed
    with_dipoles: whether its joint product of charges and dipoles is what will be asked for
    """

    name = "coulomb"
    inverse, carries_charge, dipoles, widths_of_charges = True, True, True, True
    periodicities = frozenset({0, 3})
    element_scale, window_width = 0.5, 0.5

    narrowest, widest = 0.3, 1.2  # Å
    start_per_covalent_radius = 0.7
    # Atoms above which a product Pq is faster on a mesh, the same with second derivatives, and by tiles in free space.
    mesh_from, mesh_from_in_training, tiles_from = 150, 250, 500

    def __init__(
        self,
        atomic_numbers: Sequence[int],
        start: float | None = None,
        dense_limit: int = 2000,
        with_dipoles: bool = False,
    ) -> None:
        super().__init__()
        radii = [float(ase.data.covalent_radii[z]) for z in atomic_numbers]
        widths = torch.tensor([self.start_per_covalent_radius * r if start is None else start for r in radii])
        fraction = (widths.to(torch.get_default_dtype()) - self.narrowest) / (self.widest - self.narrowest)
        self.width_logit = torch.nn.Parameter(torch.logit(fraction.clamp(0.05, 0.95)))
        self.dense_limit = dense_limit
        if with_dipoles:
            # Tiles with dipoles are no faster than matrices, they only take less memory.
            self.tiles_from = dense_limit
        self.splitting = Splitting()
        self.kept_pairs = KeptPairs()

    @classmethod
    def build(cls, atomic_numbers: Sequence[int], r_max: float, config: Settings) -> "GaussianCoulomb":
        """The operator of a host with these elements."""
        return cls(atomic_numbers, config.width, config.dense_limit, config.multipoles == 1 or config.polarizable)

    def widths(self) -> torch.Tensor:
        """σ of every element in Å: (n_elements,), always within the bounds."""
        return self.narrowest + (self.widest - self.narrowest) * torch.sigmoid(self.width_logit)

    def at(self, structures: Structures, matrix: bool = False, up_to: int | None = None, edges: bool = False) -> Bound:
        """P at the structures of a batch; products of large structures go without a matrix, where that is faster if
        none is needed."""
        width_squared = self.widths()[structures.species].square()  # (n_atoms,)
        periodic = [number == 3 for number in structures.n_periodic]
        tiles_from, mesh_from = self._largest_together(matrix, up_to)
        alone = [
            count > (mesh_from if inside else tiles_from)
            for count, inside in zip(structures.counts, periodic, strict=True)
        ]
        parts = []
        for group in structures.groups(list(zip(periodic, alone, strict=True)), alone, periodic):
            atoms, chosen = structures.select(group, edges)
            widths = width_squared if atoms is None else width_squared[atoms]
            parts.append((atoms, self._part(chosen, widths, group, periodic[group[0]], alone[group[0]])))
        return Bound(structures, parts)

    def _largest_together(self, matrix: bool, up_to: int | None) -> tuple[int, int]:
        """Atoms up to which structures are not computed alone, in free space and in a cell."""
        if matrix:
            limit = self.dense_limit if up_to is None else min(self.dense_limit, up_to)
            return limit, limit
        mesh_from = self.mesh_from_in_training if self.training else self.mesh_from
        return min(self.dense_limit, self.tiles_from), min(self.dense_limit, mesh_from)

    def _part(
        self, structures: Structures, width_squared: torch.Tensor, places: list[int], periodic: bool, alone: bool
    ) -> Part:
        """P of structures of one kind: places, which they are of the batch."""
        if not periodic:
            return (FreeSpaceTiles if alone else FreeSpaceMatrix)(structures, width_squared)
        splitting, near = self._near(structures, width_squared, places, alone)
        smooth: Smooth
        if alone:
            smooth = particle_mesh.ParticleMesh(structures, float(splitting))
        else:
            smooth = waves.Waves(structures, splitting)
        return LatticeSum(structures, width_squared, splitting, near, smooth, dense=not alone)

    @torch.no_grad()
    def _near(
        self, structures: Structures, width_squared: torch.Tensor, places: list[int], on_mesh: bool
    ) -> tuple[torch.Tensor, NearPairs]:
        """s of periodic structures (n_structures,), and their pairs up to where the sum over them ends."""
        cell, device = structures.cell, structures.cell.device
        reach = (particle_mesh.REACH if on_mesh else waves.REACH)[cell.dtype]
        volumes = cell_volume(cell).tolist()
        widest = structures.layout.pad(width_squared).amax(1).tolist()
        starts = structures.ptr.tolist()
        splittings, found = [], []
        for index, place in enumerate(places):
            positions = structures.positions[starts[index] : starts[index + 1]]
            # Wider Gaussians reach further than s asks for: then s may do so too.
            s = max(self._choose(positions, volumes[index], on_mesh), math.sqrt(2 * widest[index]))
            about = positions, cell[index], structures.pbc[index]
            # Batches of training have no pairs in common, steps of a simulation have.
            pairs = find_pairs(reach * s, *about) if self.training else self.kept_pairs(reach * s, *about, place)
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
