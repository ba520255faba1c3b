"""The Φ-Module: fields that obey Poisson's equation, their energy, charges and residual."""

import ase.data
import torch

from phi_equivariant.alpha_net import AlphaNet
from phi_equivariant.batching import PaddedLayout
from phi_equivariant.errors import InputError
from phi_equivariant.inputs.cells import all_or_none
from phi_equivariant.operators.coulomb import GaussianCoulomb
from phi_equivariant.operators.graph import GraphLaplacian
from phi_equivariant.poisson import Structures, coulomb_fields, graph_fields
from phi_equivariant.solvers.spectral import LowPass, ModeWindow


class PhiModule(torch.nn.Module):
    """Electrostatics of a host's node features, E_Φ = ½ Σ_channels φᵀρ with Lφ = ρ.

    ================  =================================  =====================================
    ``poisson``       ``operator="graph"``               ``operator="coulomb"``, P = L⁻¹
    ================  =================================  =====================================
    ``learned``       φ = f(L) a, ρ = f(L) L b           φ = P f(L) a, ρ = f(L) b
    ``exact``         φ = f(L) a, ρ = L φ                ρ = f(L) a, φ = P ρ
    ================  =================================  =====================================

    f acts in the eigenbasis of L, so a and b enter as projections Uᵀa, Uᵀb: nothing depends on the sign or basis of
    eigenvectors. With ``coulomb`` and ``charge_constraint="project"``, charges are shifted by a multiple of f(L)1 to
    their exact sum, in the φ of ``learned`` too.

    With ``multipoles=1`` atoms carry Gaussian dipoles μ too; φ contains their potential, and ½ Σ μ·∇φ joins the energy.
    f acts on the charges only.

    In a periodic cell L acts on neutral charges only; the uniform charge is its smoothest mode, λ = 0.

    Parameters
    ----------
    layer_irreps: irreps of the node features of each tapped layer
    atomic_numbers: elements, in the order of ``species``
    r_max: the host's cut-off radius in Å
    config: ``PhiConfig``

    Raises
    ------
    InputError
        If a layer has no 0e channel; in the forward pass, for a total charge with ``operator="graph"``, or for a
        structure that is periodic in one or two directions with ``operator="coulomb"``; for one of more than
        ``dense_limit`` atoms with ``num_modes``, or for which conjugate gradients do not converge
        (``ConvergenceError``).

    Source: arXiv 2505.14606, with the operators described in ``phi_equivariant.operators``.
    """

    # Charges of about 0.2 e in organic molecules: κ of the electronegativity term, e or V per Pauling unit.
    element_scale = {"coulomb": 0.5, "graph": 2.0}
    start_scale = {"default": 1.0, "small": 1e-3}
    # Width τ of the mode window: in units of w₀ for the graph Laplacian, in V/e for the potential matrix.
    window_width = {"coulomb": 0.5, "graph": 0.05}

    def __init__(self, layer_irreps, atomic_numbers, r_max, config):
        super().__init__()
        self.config = config
        self.alpha_net = AlphaNet(
            layer_irreps,
            atomic_numbers,
            n_fields=2 if config.poisson == "learned" else 1,
            channels=config.channels,
            hidden=config.hidden,
            element_scale=self.element_scale[config.operator],
            start_scale=self.start_scale[config.init],
            dipoles=config.multipoles == 1,
        )
        if config.operator == "graph":
            self.operator = GraphLaplacian(r_max)
        else:
            self.operator = GaussianCoulomb(atomic_numbers, config.width)
        self.response = None
        if config.num_modes is not None:
            self.response = ModeWindow(config.num_modes, self.window_width[config.operator])
        elif config.low_pass is not None:
            self.response = LowPass(config.low_pass, inverse=config.operator == "coulomb")
        masses = torch.tensor([ase.data.atomic_masses[z] for z in atomic_numbers], dtype=torch.get_default_dtype())
        self.register_buffer("masses", masses, persistent=False)

    def forward(
        self,
        layers,
        positions,
        species,
        batch,
        ptr,
        edge_index,
        shifts,
        total_charge,
        second_order=True,
        cell=None,
        pbc=None,
    ):
        """Fields, energies and charges of a batch of structures.

        Parameters
        ----------
        layers: list of (n_atoms, irreps.dim), node features of each tapped layer
        positions: (n_atoms, 3) in Å
        species: (n_atoms,) index of each atom's element
        batch: (n_atoms,); ptr: (n_structures + 1,)
        edge_index: (2, n_edges); shifts: (n_edges, 3), cell vectors between the two atoms, in Å
        total_charge: (n_structures,) in e
        second_order: whether second derivatives are wanted (training through forces)
        cell: (n_structures, 3, 3) in Å; pbc: (n_structures, 3), boolean; all structures are open where None

        Returns
        -------
        dict of phi_energy (n_structures,) and node_energy (n_atoms,) in eV; charges (n_atoms,) in e and potential
        (n_atoms,) in V, of channel 0; dipole (n_structures, 3) in e·Å about the centre of mass, NaN for periodic
        structures and None if there is no other; pde_residual (n_structures,); net_charge (n_structures,), Σρ of
        channel 0 before projection; charge_penalty (n_structures,), Σ_channels (Σρ − Q)² before projection; with
        ``multipoles=1`` also atomic_dipoles (n_atoms, 3) in e·Å, which ``dipole`` contains.
        """
        layout = PaddedLayout(batch, ptr)
        pbc = torch.zeros((layout.n_structures, 3), dtype=torch.bool, device=ptr.device) if pbc is None else pbc
        self._check(layout, pbc, total_charge)
        lengths = None
        if self.config.operator == "graph":
            sender, receiver = edge_index
            lengths = (positions[receiver] - positions[sender] + shifts).norm(dim=-1)  # (n_edges,)
        structures = Structures(
            positions, species, batch, ptr, edge_index, lengths, cell, pbc.all(1), total_charge.to(positions.dtype)
        )
        fields = self.alpha_net(layers, species)  # (n_atoms, n_fields, channels)
        potential, charges, residual, net = self._solve(fields, structures, second_order)
        wanted = torch.nn.functional.pad(structures.total_charge[:, None], (0, self.config.channels - 1))
        own, atomic_dipoles = 0.0, None
        if self.config.multipoles:
            potential, own, atomic_dipoles = self._with_dipoles(layers, structures, potential, charges)
        node_energy = 0.5 * (potential * charges).sum(-1) + own  # (n_atoms,)
        out = {
            "phi_energy": layout.sum(node_energy),
            "node_energy": node_energy,
            "charges": charges[:, 0],
            "potential": potential[:, 0],
            "dipole": self._dipole(charges[:, 0], positions, species, layout, pbc.any(1)),
            "pde_residual": layout.sum(residual) / layout.counts,
            "net_charge": net[:, 0],
            "charge_penalty": (net - wanted).square().sum(-1),
        }
        if atomic_dipoles is not None:
            out["atomic_dipoles"] = atomic_dipoles
            if out["dipole"] is not None:
                out["dipole"] = out["dipole"] + layout.sum(atomic_dipoles)
        return out

    def _check(self, layout, pbc, total_charge):
        """InputError for structures that the settings cannot serve."""
        if self.config.operator == "graph":
            if bool((total_charge != 0).any()):
                raise InputError(
                    f"total_charge is {total_charge.tolist()}, but the charges of operator='graph' sum to zero by "
                    "construction; use operator='coulomb' for ions."
                )
        else:
            all_or_none(pbc)

    def _solve(self, fields, structures, second_order):
        """φ, ρ (n_atoms, channels), each atom's share of the residual (n_atoms,), Σρ before projection
        (n_structures, channels)."""
        solve = graph_fields if self.config.operator == "graph" else coulomb_fields
        others = self.operator, self.response, self.config, second_order, not self.training

        def of_part(part, fields):
            *found, net = solve(fields, part, *others)
            return *found, net[part.layout.batch]

        *found, net = self._by_part(of_part, structures, fields)
        return *found, net[structures.ptr[:-1]]

    def _by_part(self, function, structures, *inputs):
        """function(structures of a part, inputs of their atoms) → tensors per atom, in the order of all atoms."""
        parts = structures.split(self._largest_dense(structures))
        if len(parts) == 1:
            return function(parts[0][1], *inputs)
        found = [function(part, *(values[atoms] for values in inputs)) for atoms, part in parts]
        order = torch.cat([atoms for atoms, _ in parts]).argsort()
        return tuple(torch.cat(values)[order] for values in zip(*found, strict=True))

    def _largest_dense(self, structures):
        """(n_structures,), atoms up to which matrices are made: to ``dense_limit``, but where P is only to be applied
        just as far as that is faster with its matrix."""
        largest = torch.full_like(structures.layout.counts, self.config.dense_limit)
        if self.config.operator == "graph" or self.response is not None:
            return largest
        # Tiles with dipoles are no faster than matrices, they only take less memory.
        tiles_from = self.config.dense_limit if self.config.multipoles else self.operator.tiles_from
        mesh_from = self.operator.mesh_from_in_training if self.training else self.operator.mesh_from
        faster = torch.where(structures.periodic, mesh_from, tiles_from)
        return torch.minimum(largest, faster)

    def _with_dipoles(self, layers, structures, potential, charges):
        """φ (n_atoms, channels) with that of the atomic dipoles, their own ½ μ·∇φ (n_atoms,) and μ of channel 0."""

        def of_part(part, charges, dipoles):
            about = part.positions, part.species
            if part.dense:
                return self.operator.dipole_terms(*about, part.layout, charges, dipoles, part.cell, part.periodic)
            cell = part.cell[0] if bool(part.periodic.any()) else None
            return self.operator.dipole_product(*about, charges, dipoles, cell)

        dipoles = self.alpha_net.dipoles(layers)  # (n_atoms, channels, 3)
        added, gradient = self._by_part(of_part, structures, charges, dipoles)
        return potential + added, 0.5 * (dipoles * gradient).sum((-2, -1)), dipoles[:, 0]

    def _dipole(self, charges, positions, species, layout, periodic):
        """Σ_i q_i (r_i − r_centre of mass): (n_structures, 3); None, or NaN in a mixed batch, where periodic.

        The dipole of a periodic cell depends on where it is cut.
        """
        if bool(periodic.all()):
            return None
        masses = self.masses[species]
        centre = layout.sum(masses[:, None] * positions) / layout.sum(masses)[:, None]
        dipole = layout.sum(charges[:, None] * (positions - centre[layout.batch]))
        return dipole.masked_fill(periodic[:, None], torch.nan)
