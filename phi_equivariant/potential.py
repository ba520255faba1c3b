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

    Built by ``attach_phi``. To mace's ase calculator it reads as a mace model: same call, and the attributes the
    calculator looks for.

    Parameters
    ----------
    host: model with mace's call signature
    phi: ``PhiModule``
    taps: names of the host's submodules whose output are the node features, in order
    """

    host_lr_factor = 1.0  # the host's part of the learning rate, which Φ has in full

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
            For a periodic structure, positions or total charges that are not finite, a quantity that is not
            computed, forces in inference mode, or if Φ was detached.
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
        if not self._handles:
            raise InputError("Φ was detached from this potential; call attach_phi on the host again.")
        if compute_force and torch.is_inference_mode_enabled():
            raise InputError("forces need derivatives, which torch.inference_mode() forbids; torch.no_grad() is fine.")
        check_structures(data)
        with torch.set_grad_enabled(compute_force or torch.is_grad_enabled()):
            return self._evaluate(dict(data), training, compute_force)

    def _evaluate(self, data, training, compute_force):
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
            shifts=data["shifts"],
            total_charge=_total_charge(data),
            # Without forces here the caller may differentiate the energy, as often as it likes.
            second_order=training or not compute_force,
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
        for name, head, features in zip(self.tap_names, self.phi.alpha_net.heads, layers, strict=True):
            expected = head.scalars.irreps_in
            if not torch.is_tensor(features):
                raise InputError(
                    f"tap {name!r} gave {type(features).__name__}; expected a tensor (n_atoms, irreps.dim)."
                )
            if features.shape[-1] != expected.dim:
                raise InputError(
                    f"tap {name!r} gave features of width {features.shape[-1]}; irreps {expected} have {expected.dim}."
                )
        return host, layers


def check_structures(data):
    """InputError for a periodic structure (open boundaries only) or positions that are not finite."""
    periodic = data.get("pbc")
    images = data.get("unit_shifts")
    if (periodic is not None and bool(periodic.any())) or (images is not None and bool((images != 0).any())):
        raise InputError(
            "a structure is periodic (pbc), but Φ treats open structures only; for a molecule in a box set pbc=False."
        )
    if not bool(torch.isfinite(data["positions"]).all()):
        raise InputError("positions are not finite (NaN or infinity); a simulation that blew up does this.")


def _total_charge(data):
    """(n_structures,) in e; 0 where the batch has none."""
    n_structures = len(data["ptr"]) - 1
    charge = data.get("total_charge")
    if charge is None:
        return data["positions"].new_zeros(n_structures)
    charge = torch.as_tensor(charge, dtype=data["positions"].dtype, device=data["positions"].device).reshape(-1)
    if len(charge) != n_structures or not bool(torch.isfinite(charge).all()):
        raise InputError(
            f"total_charge is {charge.tolist()} for {n_structures} structures; give one finite number for each, in e."
        )
    return charge


def _forces(energy, positions, training):
    """−∂E/∂r: (n_atoms, 3); zero where the energy does not depend on positions (an isolated atom)."""
    if not energy.requires_grad:
        return torch.zeros_like(positions)
    (gradient,) = torch.autograd.grad(
        energy.sum(), positions, retain_graph=training, create_graph=training, allow_unused=True
    )
    return torch.zeros_like(positions) if gradient is None else -gradient
