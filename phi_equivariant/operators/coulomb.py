"""The Coulomb operator: −∇² as the inverse of the potential matrix of Gaussian charges."""

import math

import ase.data
import torch

from phi_equivariant.operators.ewald import ewald_matrix
from phi_equivariant.operators.multipoles import dipole_terms, lattice_dipole_terms, open_dipole_terms
from phi_equivariant.operators.pairs import KeptPairs, pairs_of_one, pairs_within
from phi_equivariant.operators.particle_mesh import ParticleMesh
from phi_equivariant.operators.tiles import open_potential

COULOMB_CONSTANT = 14.399645  # eV·Å/e², 1/(4πε₀)


class GaussianCoulomb(torch.nn.Module):
    """Potential matrix P = L⁻¹ of Gaussian charges of width σ, in V/e; positive definite.

        P_ij = k_e erf(r_ij / (√2 γ_ij)) / r_ij,   γ_ij² = σ_i² + σ_j²,   P_ii = k_e / (√π σ_i)

    Its inverse L is the Maxwell capacitance matrix and is never formed. In a periodic cell P is the Ewald sum with a
    uniform neutralising background, see ``operators.ewald``.

    Parameters
    ----------
    atomic_numbers: elements, in the order of the host's one-hot encoding
    start: see ``width`` of ``PhiConfig``
    """

    narrowest, widest = 0.3, 1.2  # Å
    start_per_covalent_radius = 0.7
    splitting = 1.5  # Å, where the two sums of a periodic cell cost about the same for 50 to 200 atoms
    mesh_splitting = 1.0  # Å, the same for the sum over pairs and the mesh
    # Atoms above which a product Pq is faster without P: in a cell, the same with second derivatives, in free space.
    mesh_from, mesh_from_in_training, tiles_from = 150, 250, 500

    def __init__(self, atomic_numbers, start=None):
        super().__init__()
        radii = [ase.data.covalent_radii[z] for z in atomic_numbers]
        start = torch.tensor([self.start_per_covalent_radius * r if start is None else start for r in radii])
        fraction = (start.to(torch.get_default_dtype()) - self.narrowest) / (self.widest - self.narrowest)
        self.width_logit = torch.nn.Parameter(torch.logit(fraction.clamp(0.05, 0.95)))
        self.kept_pairs, self.kept_pairs_of_one = KeptPairs(pairs_within), KeptPairs(pairs_of_one)

    def widths(self):
        """σ of every element in Å: (n_elements,), always within the bounds."""
        return self.narrowest + (self.widest - self.narrowest) * torch.sigmoid(self.width_logit)

    @property
    def _find_pairs(self):
        """Batches of training have no pairs in common, steps of a simulation have."""
        return pairs_within if self.training else self.kept_pairs

    def matrix(self, positions, species, layout, cell=None, periodic=None):
        """P of every structure.

        Parameters
        ----------
        positions: (n_atoms, 3) in Å; species: (n_atoms,)
        cell: (n_structures, 3, 3) in Å; periodic: (n_structures,), True where all three directions are periodic;
            all structures are open where None

        Returns
        -------
        (n_structures, n_max, n_max), zero where there is no pair of atoms
        """
        width = self.widths()[species]  # (n_atoms,)
        place = layout.pad(positions)  # (n_structures, n_max, 3)
        if periodic is None or not bool(periodic.any()):
            return self._open(place, width, layout)
        inside = periodic.nonzero()[:, 0]
        lattice = ewald_matrix(
            place[inside],
            layout.pad(width)[inside],
            layout.mask[inside],
            cell[inside],
            self.splitting,
            COULOMB_CONSTANT,
            self._find_pairs,
        )
        if len(inside) == layout.n_structures:
            return lattice
        return self._open(place, width, layout).index_copy(0, inside, lattice)

    def product(self, positions, species, cell=None):
        """P of one structure as a map that needs no matrix: charges (n_atoms, c) in e → potential (n_atoms, c) in V.

        Memory is in proportion to the number of atoms; so is time in a periodic cell, in free space to its square.

        Parameters
        ----------
        positions: (n_atoms, 3) in Å; species: (n_atoms,)
        cell: (3, 3) in Å, or None for an open structure
        """
        if cell is None:
            width_squared = self._width_squared(species)
            return lambda charges: open_potential(positions, width_squared, charges, COULOMB_CONSTANT)
        return self._mesh(positions, species, cell)

    def _width_squared(self, species):
        """σ² of every atom in Å²: (n_atoms,)."""
        return self.widths()[species].square()

    def _mesh(self, positions, species, cell):
        search = pairs_of_one if self.training else self.kept_pairs_of_one
        width_squared = self._width_squared(species)
        return ParticleMesh(positions, width_squared, cell, self.mesh_splitting, COULOMB_CONSTANT, search)

    def dipole_product(self, positions, species, charges, dipoles, cell=None):
        """What ``dipole_terms`` gives for one structure, in memory proportional to its number of atoms; positions,
        species and cell as in ``product``."""
        if cell is None:
            return open_dipole_terms(positions, self._width_squared(species), charges, dipoles, COULOMB_CONSTANT)
        return self._mesh(positions, species, cell).dipole_terms(charges, dipoles)

    def dipole_terms(self, positions, species, layout, charges, dipoles, cell=None, periodic=None):
        """Potential (n_atoms, c) in V of atomic dipoles, and gradient (n_atoms, c, 3) in V/Å of that of charges and
        dipoles: charges (n_atoms, c), dipoles (n_atoms, c, 3), see ``operators.multipoles``; others as in
        ``matrix``."""
        place, width = layout.pad(positions), layout.pad(self.widths()[species])
        moments = layout.pad(charges), layout.pad(dipoles)
        if periodic is None or not bool(periodic.any()):
            terms = dipole_terms(place, width, layout.mask, *moments, COULOMB_CONSTANT)
            return tuple(layout.unpad(term) for term in terms)
        inside, outside = periodic.nonzero()[:, 0], (~periodic).nonzero()[:, 0]
        inner = [term[inside] for term in (place, width, layout.mask)]
        terms = lattice_dipole_terms(
            *inner,
            cell[inside],
            self.splitting,
            *(moment[inside] for moment in moments),
            COULOMB_CONSTANT,
            self._find_pairs,
        )
        if len(outside):
            outer = [term[outside] for term in (place, width, layout.mask, *moments)]
            order = torch.cat([inside, outside]).argsort()
            pairs = zip(terms, dipole_terms(*outer, COULOMB_CONSTANT), strict=True)
            terms = (torch.cat(pair)[order] for pair in pairs)
        return tuple(layout.unpad(term) for term in terms)

    def _open(self, place, width, layout):
        """P in free space: place (n_structures, n_max, 3), width (n_atoms,) → (n_structures, n_max, n_max)."""
        pairs = layout.mask[:, :, None] & layout.mask[:, None, :]
        pairs = pairs & ~torch.eye(layout.n_max, dtype=torch.bool, device=pairs.device)
        squared = (place[:, :, None] - place[:, None, :]).square().sum(-1)
        # A root has no derivative at zero: entries that are no pair of atoms get a distance that is not used.
        distance = squared.where(pairs, squared.new_ones(())).sqrt()  # (n_structures, n_max, n_max)
        width_squared = layout.pad(width.square())
        spread = (width_squared[:, :, None] + width_squared[:, None, :]).where(pairs, squared.new_ones(()))
        potential = (torch.erf(distance * (2 * spread).rsqrt()) / distance).where(pairs, squared.new_zeros(()))
        own = layout.pad(1 / (math.sqrt(math.pi) * width))  # (n_structures, n_max)
        return COULOMB_CONSTANT * (potential + torch.diag_embed(own))
