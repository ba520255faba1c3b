"""A host with Φ attached: one module with the call signature of a mace model."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch

from phi_equivariant.derivatives import Batch, Output, Wanted, response_to, with_derivatives
from phi_equivariant.errors import InputError
from phi_equivariant.host_energy import run_host
from phi_equivariant.host_protocol import MaceLike
from phi_equivariant.inputs.distances import check_edges
from phi_equivariant.inputs.embedded import check_classes
from phi_equivariant.inputs.external_field import NAME as FIELD
from phi_equivariant.inputs.external_field import field_of_batch
from phi_equivariant.inputs.tensors import numbers
from phi_equivariant.phi_module import PhiModule
from phi_equivariant.structures import Structures, is_slab
from phi_equivariant.taps import RecordedOutput, Taps, read_layers, recording, submodules


class PhiPotential(torch.nn.Module):
    """Host energy plus electrostatics, E = E_host + E_Φ, with forces and stress from one derivative of the sum.

    Built by ``attach_phi``. mace's ase calculator takes it as a mace model: it has the same call, and the attributes
    that the calculator looks for.

    Parameters
    ----------
    host: model with mace's call signature
    phi: ``PhiModule``
    taps: {"submodule.name": (Tap, …)}, the node features of each layer, in order
    """

    host_lr_factor = 1.0  # the host's part of the learning rate, which Φ has in full

    def __init__(self, host: torch.nn.Module, phi: PhiModule, taps: Taps) -> None:
        super().__init__()
        self.host = host
        self.phi = phi
        self.taps = dict(taps)
        self._recorded = {name: RecordedOutput() for name in submodules(taps)}
        self._handles = [host.get_submodule(name).register_forward_hook(hook) for name, hook in self._recorded.items()]

    def detach(self) -> torch.nn.Module:
        """Take the hooks off and give the host back, as it was. This potential cannot be called any more."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        return self.host

    @property
    def r_max(self) -> Any:
        """Cut-off radius of the host in Å."""
        return self.host.r_max

    @property
    def atomic_numbers(self) -> torch.Tensor:
        """Elements the host knows, (n_elements,)."""
        return cast(MaceLike, self.host).atomic_numbers

    @property
    def heads(self) -> Sequence[str]:
        """Names of the host's heads."""
        return getattr(self.host, "heads", ["Default"])

    @property
    def num_interactions(self) -> Any:
        """Number of the host's layers."""
        return self.host.num_interactions

    @property
    def products(self) -> torch.nn.ModuleList:
        """The blocks of the host whose outputs are its node features."""
        return cast(torch.nn.ModuleList, self.host.products)

    @property
    def atomic_energies_fn(self) -> torch.nn.Module:
        """The host's isolated-atom energies."""
        return cast(torch.nn.Module, self.host.atomic_energies_fn)

    def forward(
        self,
        data: Batch,
        training: bool = False,
        compute_force: bool = True,
        compute_virials: bool = False,
        compute_stress: bool = False,
        compute_displacement: bool = False,
        compute_hessian: bool = False,
        compute_edge_forces: bool = False,
        compute_atomic_stresses: bool = False,
        lammps_mliap: bool = False,
        compute_polarizability: bool = False,
    ) -> Output:
        """Energies, forces, stress and charges of a batch.

        Forces and stress come from one derivative of the sum, as in :func:`derivatives.with_derivatives`. Total
        energies are in float64, whatever the precision of the model.

        Parameters
        ----------
        data: dict with mace's keys: positions (n_atoms, 3) in Å, node_attrs (n_atoms, n_elements) one-hot, edge_index
            (2, n_edges), shifts (n_edges, 3), batch (n_atoms,), ptr (n_structures + 1,), …; cell (3 n_structures, 3) in
            Å and pbc (n_structures, 3) if a structure is periodic; total_charge (n_structures,) in e and external_field
            (n_structures, 3) in V/Å, 0 where absent
        training: keep the graph, so that a loss on forces can be differentiated
        compute_force, compute_virials, compute_stress: what to differentiate for
        compute_displacement: give the strain, a leaf, as displacement (n_structures, 3, 3), for your own derivatives
        compute_polarizability: give ∂μ_a/∂F_b as polarizability (n_structures, 3, 3) in e·Å²/V, NaN for periodic
            structures and None if there is no other

        Returns
        -------
        dict of energy, host_energy, phi_energy (n_structures,) and node_energy (n_atoms,) in eV; forces (n_atoms, 3) in
        eV/Å or None; stress (n_structures, 3, 3) in eV/Å³, of slabs in their plane, see ``derivatives.stress_of``, NaN
        for molecules and wires, None if there is no other or it is not asked for; virials (n_structures, 3, 3) in eV or
        None; charges (n_atoms,) in e; potential (n_atoms,) in V, in a crystal relative to the cell's mean, in a neutral
        slab to half-way between above and below; dipole (n_structures, 3) in e·Å, of a slab along its normal where that
        is along an axis, else NaN for periodic structures and None if there is no other; surface_potential_step
        (n_structures,) in V, φ(above) − φ(below) of slabs, NaN for others and None if there is none, "above" being
        where a×b of the periodic vectors, in cyclic order, points; pde_residual, net_charge,
        charge_penalty (n_structures,); node_feats (n_atoms, any), the host's features, or where it gives none those
        that Φ reads.

        Raises
        ------
        InputError
            For positions, cells or total charges that are not finite, atoms that coincide, a charge or spin that is not
            a class of the host's embedding, a cell that is singular or too thin, with ``operator="coulomb"`` a wire, or
            a slab whose charges need not sum to the total charge, a field along a periodic direction, a quantity that
            is not computed, derivatives in inference mode, or if Φ was detached. A charged crystal or slab gives a
            warning.
        """
        wanted = Wanted(
            "a potential with Φ",
            training,
            compute_force,
            compute_virials,
            compute_stress,
            compute_displacement,
            compute_hessian,
            compute_edge_forces,
            compute_atomic_stresses,
            lammps_mliap,
            compute_polarizability,
        )
        if not self._handles:
            raise InputError("Φ was detached from this potential; call attach_phi on the host again.")
        if not bool(torch.isfinite(data["positions"]).all()):
            raise InputError("positions are not finite (NaN or infinity); a simulation that blew up does this.")
        check_edges(data)

        def energies(data: Batch, cell: torch.Tensor, pbc: torch.Tensor) -> Output:
            return self._energies(data, cell, pbc, wanted)

        return with_derivatives(energies, data, wanted)

    def _energies(self, data: Batch, cell: torch.Tensor, pbc: torch.Tensor, wanted: Wanted) -> Output:
        """Energies and charges, without derivatives."""
        total_charge = _total_charge(data, pbc)
        field = field_of_batch(data, cell, pbc)
        if wanted.compute_polarizability:
            field = cell.new_zeros((len(pbc), 3)) if field is None else field
            field = field if field.requires_grad else field.detach().requires_grad_(True)
        host, layers = self.host_and_layers(data, wanted.training)
        phi = self.phi(layers, Structures.of_batch(data, total_charge, cell, pbc, field), wanted.order)
        features = host.get("node_feats")
        if wanted.compute_polarizability and field is not None:
            phi["polarizability"] = response_to(field, phi["dipole"], pbc, wanted.training)
        return {
            **phi,
            "energy": host["energy"] + phi["phi_energy"],
            "host_energy": host["energy"],
            "node_energy": host["node_energy"] + phi["node_energy"],
            "node_feats": torch.cat(layers, dim=-1) if features is None else features,
        }

    def host_and_layers(
        self, data: Batch, training: bool, run: Callable[..., Output] = run_host
    ) -> tuple[Output, list[torch.Tensor]]:
        """The host's output without derivatives, and the tapped node features (n_atoms, irreps.dim) of each layer.

        Parameters
        ----------
        data: dict with mace's keys
        training: as of :meth:`forward`
        run: calls the host, as :func:`run_host` does
        """
        check_classes(self.host, data)
        with recording(self._recorded) as outputs:
            host = run(self.host, data, training=training, compute_force=False)
            return host, read_layers(self.taps, outputs())


def run_model(model: torch.nn.Module, data: Batch, **options: Any) -> Output:
    """The output of a potential or of a bare host, total energies in float64 from either.

    Parameters
    ----------
    model: ``PhiPotential``, or a model with mace's call signature
    data: dict with mace's keys
    options: as :meth:`PhiPotential.forward` takes them
    """
    if isinstance(model, PhiPotential):
        return dict(model(data, **options))
    check_no_field(data)
    return run_host(model, data, **options)


def check_no_field(data: Mapping[str, Any]) -> None:
    """InputError if there is an external field in what a bare host is told."""
    field = data.get(FIELD)
    if field is not None and bool((torch.as_tensor(field) != 0).any()):
        raise InputError(
            f"{FIELD} is given, but the model is a bare host, which does not have charges for a field to act on. Leave "
            "it out, or use a model with Φ."
        )


def _total_charge(data: Batch, pbc: torch.Tensor) -> torch.Tensor:
    """(n_structures,) in e; 0 where the batch has none."""
    n_structures = len(pbc)
    charge = data.get("total_charge")
    if charge is None:
        return data["positions"].new_zeros(n_structures)
    charge = numbers("total_charge", charge, data["positions"]).reshape(-1)
    told, pbc = charge.detach().cpu(), pbc.cpu()  # at once, not at every question
    if len(told) != n_structures or not bool(torch.isfinite(told).all()):
        raise InputError(
            f"total_charge is {told.tolist()} for {n_structures} structures; give one finite number for each, in e."
        )
    slab = is_slab(pbc)
    if bool((pbc.any(1) & ~slab & (told != 0)).any()):
        warnings.warn(
            "total_charge is not 0 in a periodic cell: a uniform background of the opposite charge makes it neutral. "
            "Energies then depend on the cell's size (by about 1.4 k_e Q²/L for a cube of edge L) and compare only "
            "between cells of one charge and shape; the stress holds the background's share.",
            stacklevel=3,
        )
    if bool((slab & (told != 0)).any()):
        charged = sorted({float(f"{one:.6g}") for one in told[slab & (told != 0)].tolist()})
        warnings.warn(
            f"total_charge is {', '.join(f'{one:g}' for one in charged)} e in a slab: nothing makes it neutral, and "
            "its field of 2π k_e Q/A does not decay. The energy leaves out that of this field up to infinity, so it "
            "compares only between slabs of one charge and area.",
            stacklevel=3,
        )
    return charge
