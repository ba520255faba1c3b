"""A host with Φ attached: one module with the call signature of a mace model."""

import torch

from phi_equivariant.errors import InputError


class FeatureTap:
    """Forward hook that keeps what a submodule returns, while its potential's forward pass lasts.

    A plain object, not a closure: hooks then survive ``copy.deepcopy`` and ``torch.save``.
    """

    def __init__(self):
        self.active = False
        self.features = None

    def __call__(self, module, arguments, output):
        if self.active:
            self.features = output


class PhiPotential(torch.nn.Module):
    """Host energy plus electrostatics, E = E_host + E_Φ, with forces from one derivative of the sum.

    Built by ``attach_phi``. Reads as a mace model to mace's own tools: same call, and ``r_max``, ``atomic_numbers``,
    ``heads``, ``atomic_energies_fn``.

    Parameters
    ----------
    host: model with mace's call signature
    phi: ``PhiModule``
    taps: names of the host's submodules whose output are the node features, in order
    """

    def __init__(self, host, phi, taps):
        super().__init__()
        self.host = host
        self.phi = phi
        self.tap_names = tuple(taps)
        self._taps = [FeatureTap() for _ in taps]
        self._handles = [
            host.get_submodule(name).register_forward_hook(tap) for name, tap in zip(taps, self._taps, strict=True)
        ]

    def detach(self):
        """Take the hooks off and give the host back, as it was."""
        for handle in self._handles:
            handle.remove()
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
        """Energies, forces and charges of a batch.

        Parameters
        ----------
        data: dict with mace's keys: positions (n_atoms, 3) in Å, node_attrs (n_atoms, n_elements) one-hot, edge_index
            (2, n_edges), shifts (n_edges, 3), batch (n_atoms,), ptr (n_structures + 1,), …; total_charge
            (n_structures,) in e, 0 where absent
        training: keep the graph, so that a loss on forces can be differentiated
        compute_force: whether to differentiate
        compute_stress: accepted; the stress of an open structure is None

        Returns
        -------
        dict of energy, host_energy, phi_energy (n_structures,) and node_energy (n_atoms,) in eV; forces (n_atoms, 3) in
        eV/Å or None; stress None; charges (n_atoms,) in e; potential (n_atoms,) in V; dipole (n_structures, 3) in e·Å;
        pde_residual, net_charge, charge_penalty (n_structures,); node_feats, the host's features.

        Raises
        ------
        InputError
            For a periodic structure, or a quantity that is not computed.
        """
        for name, wanted in {
            "compute_virials": compute_virials,
            "compute_hessian": compute_hessian,
            "compute_edge_forces": compute_edge_forces,
            "compute_atomic_stresses": compute_atomic_stresses,
            "lammps_mliap": lammps_mliap,
        }.items():
            if wanted:
                raise InputError(f"{name} is asked for, but a potential with Φ does not compute it; leave it out.")
        refuse_periodic(data)
        data = dict(data)
        if not data["positions"].requires_grad:
            # A leaf of our own: the caller's tensor keeps its flags.
            data["positions"] = data["positions"].detach().requires_grad_(True)
        positions = data["positions"]

        host, layers = self._run_host(data, training)
        phi = self.phi(
            layers,
            positions,
            species=data["node_attrs"].argmax(-1),
            batch=data["batch"],
            ptr=data["ptr"],
            edge_index=data["edge_index"],
            edge_lengths=_edge_lengths(positions, data["edge_index"], data["shifts"]),
            total_charge=_total_charge(data),
            second_order=training,
        )
        energy = host["energy"] + phi["phi_energy"]
        return {
            **phi,
            "energy": energy,
            "host_energy": host["energy"],
            "node_energy": host["node_energy"] + phi["node_energy"],
            "forces": _forces(energy, positions, training) if compute_force else None,
            "stress": None,
            "node_feats": host.get("node_feats"),
        }

    def _run_host(self, data, training):
        """The host's output without derivatives, and the tapped node features."""
        for tap in self._taps:
            tap.active = True
        try:
            host = self.host(data, training=training, compute_force=False)
            layers = [tap.features for tap in self._taps]
        finally:
            for tap in self._taps:
                tap.active, tap.features = False, None
        for name, features in zip(self.tap_names, layers, strict=True):
            if not torch.is_tensor(features):
                raise InputError(
                    f"tap {name!r} gave {type(features).__name__}; expected a tensor (n_atoms, irreps.dim)."
                )
        return host, layers


def refuse_periodic(data):
    """InputError if a structure of the batch is periodic: open boundaries only."""
    periodic = data.get("pbc")
    images = data.get("unit_shifts")
    if (periodic is not None and bool(periodic.any())) or (images is not None and bool((images != 0).any())):
        raise InputError(
            "a structure is periodic (pbc), but Φ treats open structures only; for a molecule in a box set pbc=False."
        )


def _total_charge(data):
    """(n_structures,) in e; 0 where the batch has none."""
    charge = data.get("total_charge")
    if charge is None:
        return data["positions"].new_zeros(len(data["ptr"]) - 1)
    return charge.reshape(-1).to(data["positions"].dtype)


def _edge_lengths(positions, edge_index, shifts):
    """|r_j − r_i + shift|: (n_edges,) in Å."""
    sender, receiver = edge_index
    return (positions[receiver] - positions[sender] + shifts).norm(dim=-1)


def _forces(energy, positions, training):
    """−∂E/∂r: (n_atoms, 3); zero where the energy does not depend on positions (an isolated atom)."""
    if not energy.requires_grad:
        return torch.zeros_like(positions)
    (gradient,) = torch.autograd.grad(
        energy.sum(), positions, retain_graph=training, create_graph=training, allow_unused=True
    )
    return torch.zeros_like(positions) if gradient is None else -gradient
