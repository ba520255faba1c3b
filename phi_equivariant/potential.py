"""A host with Φ attached: one module with the call signature of a mace model."""

import warnings

import torch

from phi_equivariant.errors import InputError
from phi_equivariant.inputs.cells import read_cells
from phi_equivariant.inputs.embedded import check_classes
from phi_equivariant.strain import slopes, strain, stress_of
from phi_equivariant.structures import Structures
from phi_equivariant.taps import RecordedOutput, read_layers, submodules


class PhiPotential(torch.nn.Module):
    """Host energy plus electrostatics, E = E_host + E_Φ, with forces and stress from one derivative of the sum.

    Built by ``attach_phi``. To mace's ase calculator it reads as a mace model: same call, and the attributes the
    calculator looks for.

    Parameters
    ----------
    host: model with mace's call signature
    phi: ``PhiModule``
    taps: {"submodule.name": (Tap, …)}, the node features of each layer, in order
    """

    host_lr_factor = 1.0  # the host's part of the learning rate, which Φ has in full

    def __init__(self, host, phi, taps):
        super().__init__()
        self.host = host
        self.phi = phi
        self.taps = dict(taps)
        self._recorded = {name: RecordedOutput() for name in submodules(taps)}
        self._handles = [host.get_submodule(name).register_forward_hook(hook) for name, hook in self._recorded.items()]

    def detach(self):
        """Take the hooks off and give the host back, as it was; this potential cannot be called any more."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        return self.host

    @property
    def r_max(self):
        """Cut-off radius of the host in Å."""
        return self.host.r_max

    @property
    def atomic_numbers(self):
        """Elements the host knows, (n_elements,)."""
        return self.host.atomic_numbers

    @property
    def heads(self):
        """Names of the host's heads."""
        return getattr(self.host, "heads", ["Default"])

    @property
    def num_interactions(self):
        """Number of the host's layers."""
        return self.host.num_interactions

    @property
    def products(self):
        """The blocks of the host whose output are its node features."""
        return self.host.products

    @property
    def atomic_energies_fn(self):
        """The host's isolated-atom energies."""
        return self.host.atomic_energies_fn

    def forward(
        self,
        data,
        training=False,
        compute_force=True,
        compute_virials=False,
        compute_stress=False,
        compute_displacement=False,
        compute_hessian=False,
        compute_edge_forces=False,
        compute_atomic_stresses=False,
        lammps_mliap=False,
    ):
        """Energies, forces, stress and charges of a batch.

        Forces and the strain derivative come from one call, F = −∂E/∂r, σ = (1/V) ∂E/∂ε, virials −∂E/∂ε, where ε
        strains positions and cell, symmetrised, as in mace.

        Parameters
        ----------
        data: dict with mace's keys: positions (n_atoms, 3) in Å, node_attrs (n_atoms, n_elements) one-hot, edge_index
            (2, n_edges), shifts (n_edges, 3), batch (n_atoms,), ptr (n_structures + 1,), …; cell (3 n_structures, 3) in
            Å and pbc (n_structures, 3) if a structure is periodic; total_charge (n_structures,) in e, 0 where absent
        training: keep the graph, so that a loss on forces can be differentiated
        compute_force, compute_virials, compute_stress: what to differentiate for
        compute_displacement: give the strain, a leaf, as displacement (n_structures, 3, 3), to differentiate by oneself

        Returns
        -------
        dict of energy, host_energy, phi_energy (n_structures,) and node_energy (n_atoms,) in eV; forces (n_atoms, 3) in
        eV/Å or None; stress (n_structures, 3, 3) in eV/Å³, NaN for structures that are not periodic in all three
        directions, None if there is no other or it is not asked for; virials (n_structures, 3, 3) in eV or None;
        charges (n_atoms,) in e; potential (n_atoms,) in V, in a periodic cell relative to the cell's mean; dipole
        (n_structures, 3) in e·Å, NaN for periodic structures and None if there is no other; pde_residual, net_charge,
        charge_penalty (n_structures,); node_feats (n_atoms, any), the host's features, or where it gives none those
        that Φ reads.

        Raises
        ------
        InputError
            For positions, cells or total charges that are not finite, a charge or spin that is no class of the host's
            embedding, a cell that nothing can be computed in, with ``operator="coulomb"`` a structure periodic in one
            or two directions, a quantity that is not computed, derivatives in inference mode, or if Φ was detached. A
            charged periodic cell gives a warning.
        """
        _refuse(
            compute_hessian=compute_hessian,
            compute_edge_forces=compute_edge_forces,
            compute_atomic_stresses=compute_atomic_stresses,
            lammps_mliap=lammps_mliap,
        )
        if not self._handles:
            raise InputError("Φ was detached from this potential; call attach_phi on the host again.")
        differentiate = compute_force or compute_virials or compute_stress
        if (differentiate or compute_displacement) and torch.is_inference_mode_enabled():
            raise InputError("forces need derivatives, which torch.inference_mode() forbids; torch.no_grad() is fine.")
        if not bool(torch.isfinite(data["positions"]).all()):
            raise InputError("positions are not finite (NaN or infinity); a simulation that blew up does this.")
        cell, pbc = read_cells(data)
        charge = _total_charge(data, pbc)
        compute_stress = compute_stress and bool(pbc.all(1).any())
        with torch.set_grad_enabled(differentiate or compute_displacement or torch.is_grad_enabled()):
            data = dict(data)
            if not data["positions"].requires_grad:
                # A leaf of our own: the caller's tensor keeps its flags.
                data["positions"] = data["positions"].detach().requires_grad_(True)
            variables = [data["positions"]]
            if compute_virials or compute_stress or compute_displacement:
                variables.append(cell.new_zeros(cell.shape).requires_grad_(True))
                cell = strain(data, cell, variables[1])
            # Without derivatives here the caller may differentiate the energy, as often as it likes.
            out = self._evaluate(data, cell, pbc, charge, training, second_order=training or not differentiate)
            gradients = slopes(out["energy"], variables, training) if differentiate else None
        return {
            **out,
            "forces": -gradients[0] if differentiate else None,
            "virials": -gradients[1] if compute_virials else None,
            "stress": stress_of(gradients[1], cell.detach(), pbc) if compute_stress else None,
            "displacement": variables[1] if len(variables) == 2 else None,
        }

    def _evaluate(self, data, cell, pbc, total_charge, training, second_order):
        """Energies and charges, without derivatives."""
        host, layers = self._run_host(data, training)
        phi = self.phi(layers, Structures.of_batch(data, total_charge, cell, pbc), second_order)
        energy, features = host["energy"] + phi["phi_energy"], host.get("node_feats")
        return {
            **phi,
            "energy": energy,
            "host_energy": host["energy"],
            "node_energy": host["node_energy"] + phi["node_energy"],
            "node_feats": torch.cat(layers, dim=-1) if features is None else features,
        }

    def _run_host(self, data, training):
        """The host's output without derivatives, and the tapped node features."""
        check_classes(self.host, data)
        for recorded in self._recorded.values():
            recorded.active = True
        try:
            host = self.host(data, training=training, compute_force=False)
            layers = read_layers(self.taps, {name: one.take(name) for name, one in self._recorded.items()})
        finally:
            for recorded in self._recorded.values():
                recorded.active, recorded.outputs = False, []
        return host, layers


def _refuse(**asked):
    for name, wanted in asked.items():
        if wanted:
            raise InputError(f"{name} is asked for, but a potential with Φ does not compute it; leave it out.")


def _total_charge(data, pbc):
    """(n_structures,) in e; 0 where the batch has none."""
    n_structures = len(pbc)
    charge = data.get("total_charge")
    if charge is None:
        return data["positions"].new_zeros(n_structures)
    charge = torch.as_tensor(charge, dtype=data["positions"].dtype, device=data["positions"].device).reshape(-1)
    if len(charge) != n_structures or not bool(torch.isfinite(charge).all()):
        raise InputError(
            f"total_charge is {charge.tolist()} for {n_structures} structures; give one finite number for each, in e."
        )
    if bool((pbc.any(1) & (charge != 0)).any()):
        warnings.warn(
            "total_charge is not 0 in a periodic cell: a uniform background of the opposite charge makes it neutral. "
            "Energies then depend on the cell's size (by about 1.4 k_e Q²/L for a cube of edge L) and compare only "
            "between cells of one charge and shape; the stress holds the background's share.",
            stacklevel=3,
        )
    return charge
