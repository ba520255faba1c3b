"""The Φ-Module: fields that obey Poisson's equation, their energy, charges and residual."""

import math
from collections.abc import Sequence

import ase.data
import torch

from phi_equivariant.alpha_net import AlphaNet
from phi_equivariant.charge_models.model import ChargeModel
from phi_equivariant.config import PhiConfig
from phi_equivariant.operators.gaussians import COULOMB_CONSTANT
from phi_equivariant.operators.kinds import operator_class
from phi_equivariant.poisson import Fields, fields_by_charge_model, fields_by_laplacian, fields_by_potential, filtered
from phi_equivariant.quiet import quiet
from phi_equivariant.solvers.spectral import LowPass, ModeWindow
from phi_equivariant.structures import Structures, is_slab, planes

_PARALLEL = 1e-6  # less than this from 1, a component of a slab's normal is all of it


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

    With ``charge_model`` ``qeq`` or ``sqe``, or ``polarizable``, charges or dipoles of channel 0 are those that make an
    energy least, see ``charge_models``; then φ is still Pρ, but E_Φ is that minimum.

    With an ``electronegativity`` χ̄ of all atoms, χ̄Q joins the energy of a structure of total charge Q.

    In a homogeneous external field F, −F·Σ_i (ρ_i r_i + μ_i) of channel 0 joins the energy.

    In crystals and slabs L acts on neutral charges only; the uniform charge is its smoothest mode, λ = 0.

    Parameters
    ----------
    layer_irreps: irreps of the node features of each tapped layer
    atomic_numbers: elements, in the order of ``species``
    r_max: the host's cut-off radius in Å
    config: ``PhiConfig``

    Raises
    ------
    InputError
        If a layer has no 0e channel; in the forward pass, for a total charge with ``operator="graph"``; with
        ``operator="coulomb"`` for a structure that is periodic in one direction, or in two where charges need not sum
        to the total charge; for one of more than ``dense_limit`` atoms with ``num_modes``, or for which conjugate
        gradients do not converge (``ConvergenceError``).

    Source: arXiv 2505.14606, with the operators described in ``phi_equivariant.operators``.
    """

    start_scale = {"default": 1.0, "small": 1e-3}

    @quiet()
    def __init__(
        self, layer_irreps: Sequence[str], atomic_numbers: Sequence[int], r_max: float, config: PhiConfig
    ) -> None:
        super().__init__()
        self.config = config
        kind, start_scale = operator_class(config), self.start_scale[config.init]
        self.charge_model: ChargeModel | None = None
        if config.responds:
            self.charge_model = ChargeModel(layer_irreps, atomic_numbers, r_max, config, start_scale)
        from_charges = self.charge_model is None or self.charge_model.takes_charges
        self.alpha_net: AlphaNet | None = None
        if from_charges or config.multipoles or config.channels > 1:
            self.alpha_net = AlphaNet(
                layer_irreps,
                atomic_numbers,
                n_fields=2 if config.poisson == "learned" else 1,
                channels=config.channels,
                hidden=config.hidden,
                element_scale=kind.element_scale,
                start_scale=start_scale,
                dipoles=config.multipoles == 1,
                charges=from_charges,
            )
        self.operator = kind.build(atomic_numbers, r_max, config)
        self.spectral_filter: LowPass | ModeWindow | None = None
        if config.num_modes is not None:
            self.spectral_filter = ModeWindow(config.num_modes, kind.window_width, kind.inverse)
        elif config.low_pass is not None:
            self.spectral_filter = LowPass(config.low_pass, kind.inverse)
        masses = torch.tensor([ase.data.atomic_masses[z] for z in atomic_numbers], dtype=torch.get_default_dtype())
        self.register_buffer("masses", masses, persistent=False)
        self.masses: torch.Tensor

    @property
    def conducts(self) -> bool:
        """Whether charge moves however far, as in a conductor."""
        return self.config.charge_model == "qeq"

    def forward(
        self, layers: Sequence[torch.Tensor], structures: Structures, order: int = 1
    ) -> dict[str, torch.Tensor | None]:
        """Fields, energies and charges of a batch of structures.

        Parameters
        ----------
        layers: (n_atoms, irreps.dim) of each tapped layer, its node features
        structures: ``Structures``
        order: which derivatives are wanted: 0 for first ones of energies, 1 also for second ones of energies and first
            ones of charges and dipoles (training through forces), 2 for one more

        Returns
        -------
        dict of phi_energy (n_structures,) and node_energy (n_atoms,) in eV; charges (n_atoms,) in e and potential
        (n_atoms,) in V, of channel 0; dipole (n_structures, 3) in e·Å about the centre of mass, NaN along periodic
        directions, see ``_dipole``, and None if there is nothing else; with ``coulomb`` surface_potential_step
        (n_structures,) of slabs in V, φ above less φ below along the normal of ``planes``, 4π k_e p/A, NaN for other
        structures and None if there is no slab; pde_residual (n_structures,); net_charge (n_structures,), Σρ of
        channel 0 before projection; charge_penalty (n_structures,), Σ_channels (Σρ − Q)² before projection; with
        ``multipoles=1`` or ``polarizable`` also atomic_dipoles (n_atoms, 3) in e·Å, which ``dipole`` contains; with
        ``sqe`` in a batch with periodic structures source_charges (n_atoms,) in e, before anything has flown, and
        flow_dipole (n_structures, 3) in e·Å, Σ over edges of what has flown times the edge's vector.
        """
        return self.of_heads(self.read_heads(layers, structures.species), structures, order)

    @property
    def reads_edges(self) -> bool:
        """Whether the edges of structures matter: to a Laplacian of their graph, or to charge that flows."""
        flows = self.charge_model is not None and self.charge_model.conductance is not None
        return flows or not self.operator.inverse

    def read_heads(self, layers: Sequence[torch.Tensor], species: torch.Tensor) -> dict[str, torch.Tensor]:
        """All that Φ takes from the host's features, {name: (n_atoms, …)}; each row is a function of its atom's alone.

        Parameters
        ----------
        layers: (n_atoms, irreps.dim) of each tapped layer
        species: (n_atoms,), index of each atom's element
        """
        found: dict[str, torch.Tensor] = {}
        if self.alpha_net is not None:
            found["fields"] = self.alpha_net(layers, species)  # (n_atoms, n_fields, channels)
            if self.config.multipoles:
                found["dipoles"] = self.alpha_net.dipoles(layers)  # (n_atoms, channels, 3)
        if self.charge_model is not None:
            found |= self.charge_model.heads(layers, species)
        return found

    def of_heads(
        self, heads: dict[str, torch.Tensor], structures: Structures, order: int = 1
    ) -> dict[str, torch.Tensor | None]:
        """What :meth:`forward` gives, from what :meth:`read_heads` read of all atoms of the structures."""
        self.operator.check(structures)
        fields = self._solve(heads, structures, order)
        uniform = self.operator.uniform_part(structures)
        if uniform is not None:
            fields = fields.without_uniform_part(uniform, structures)
        node_energy, channels = fields.energy, self.config.channels
        if structures.external_field is not None and self.charge_model is None:
            node_energy = node_energy + _in_field(structures, fields)
        if self.config.electronegativity:
            node_energy = node_energy + self.config.electronegativity * _shares(fields.charges[:, 0], structures)
        wanted = torch.nn.functional.pad(structures.total_charge[:, None], (0, channels - 1))
        out = {
            "phi_energy": structures.sum(node_energy),
            "node_energy": node_energy,
            "charges": fields.charges[:, 0],
            "potential": fields.potential[:, 0],
            **self._dipole(fields.charges[:, 0], fields.dipoles, structures),
            "pde_residual": structures.sum(fields.residual) / structures.layout.counts,
            "net_charge": fields.net[:, 0],
            "charge_penalty": (fields.net - wanted).square().sum(-1),
        }
        if fields.flow is not None:
            out |= {"source_charges": fields.source, "flow_dipole": structures.sum(fields.flow)}
        if fields.dipoles is not None:
            out["atomic_dipoles"] = fields.dipoles
        if order > 0:
            return out
        # Only energies have derivatives: those of the others would lack what the solution of a system adds to them.
        energies = ("phi_energy", "node_energy")
        return {name: x if x is None or name in energies else x.detach() for name, x in out.items()}

    def _solve(self, given: dict[str, torch.Tensor], structures: Structures, order: int) -> Fields:
        """φ and ρ with Lφ = ρ."""
        config, heads, dipoles = self.config, given.get("fields"), given.get("dipoles")
        if self.charge_model is not None:
            order = order if torch.is_grad_enabled() else 0
            bound = self.charge_model.bind(self.operator, structures)
            return fields_by_charge_model(
                self.charge_model, given, heads, bound, config, dipoles, order, not self.training
            )
        assert heads is not None  # only charge models do without
        operator = self.operator.at(structures, matrix=self.spectral_filter is not None)

        def apply_filter(columns: torch.Tensor) -> torch.Tensor:
            return filtered(self.spectral_filter, operator, columns, order > 0, not self.training, config)

        if self.operator.inverse:
            return fields_by_potential(heads, operator, apply_filter, config, dipoles)
        return fields_by_laplacian(heads, operator, apply_filter, config)

    def _dipole(
        self, charges: torch.Tensor, dipoles: torch.Tensor | None, structures: Structures
    ) -> dict[str, torch.Tensor | None]:
        """Σ_i [q_i (r_i − r_centre of mass) + μ_i]: dipole (n_structures, 3), and what it makes the potential of a slab
        differ by above and below, surface_potential_step (n_structures,).

        The dipole of a periodic cell depends on where it is cut, that of a slab too but along its normal. A component
        is NaN unless its axis is along open directions only; there is none where all are NaN for every structure.
        """
        found: dict[str, torch.Tensor | None] = {"dipole": None, "surface_potential_step": None}
        if all(number % 2 for number in structures.n_periodic):  # crystals and wires
            return found
        masses, positions = self.masses[structures.species], structures.positions
        centre = structures.sum(masses[:, None] * positions) / structures.sum(masses)[:, None]
        moments = charges[:, None] * (positions - centre[structures.batch])
        dipole = structures.sum(moments if dipoles is None else moments + dipoles)
        slab = is_slab(structures.pbc)
        if 2 not in structures.n_periodic:
            return {**found, "dipole": dipole.masked_fill(structures.pbc.any(1)[:, None], torch.nan)}
        normal, area = planes(structures.cell, structures.pbc)
        along = normal.detach().abs() > 1 - _PARALLEL
        undefined = torch.where(slab[:, None], ~along, structures.pbc.any(1)[:, None])
        found["dipole"] = dipole.masked_fill(undefined, torch.nan)
        if self.operator.inverse:
            step = 4 * math.pi * COULOMB_CONSTANT * (dipole * normal).sum(1) / area
            found["surface_potential_step"] = step.masked_fill(~slab, torch.nan)
        return found


def _shares(charges: torch.Tensor, structures: Structures) -> torch.Tensor:
    """What each atom has of the total charge, (n_atoms,) in e: its own charge and a part of what these miss of it.

    The sum does not depend on the positions, and so no share has a derivative by them.
    """
    own = charges.detach()
    missing = (structures.total_charge - structures.sum(own)) / structures.layout.counts
    return own + missing[structures.batch]


def _in_field(structures: Structures, fields: Fields) -> torch.Tensor:
    """−F·(ρr + μ) of every atom in the external field: (n_atoms,) in eV."""
    assert structures.external_field is not None
    moments = fields.charges[:, :1] * structures.positions
    if fields.dipoles is not None:
        moments = moments + fields.dipoles
    return -(structures.external_field[structures.batch] * moments).sum(-1)
