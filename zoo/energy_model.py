"""The base of our own hosts: mace's call signature around an energy per atom."""

import abc

import torch

from phi_equivariant.batching import segment_sum
from phi_equivariant.errors import InputError


class AtomicEnergies(torch.nn.Module):
    """Energies of the isolated atoms in eV, (1, n_elements); the row is the one head."""

    def __init__(self, atomic_energies):
        super().__init__()
        self.register_buffer("atomic_energies", atomic_energies[None])  # (1, n_elements)

    def forward(self, node_attrs):
        """One-hot elements (n_atoms, n_elements) → (n_atoms, 1)."""
        return node_attrs @ self.atomic_energies.T.to(node_attrs.dtype)


class EnergyModel(torch.nn.Module, abc.ABC):
    """E = Σ_i E0_(Z_i) + shift_(Z_i) + scale_(Z_i) ε_i, with forces and stress; ε_i comes from :meth:`atom_terms`.

    Parameters
    ----------
    atomic_numbers: elements, in the order of ``node_attrs``
    atomic_energies: E0 of each element in eV
    r_max: cut-off radius in Å
    atomic_inter_scale, atomic_inter_shift: one number in eV, or one for each element
    train_scale_shift: whether these two are trained

    Raises
    ------
    InputError
        For lists that do not fit the elements, or a cut-off that is no length.
    """

    heads = ("Default",)

    def __init__(
        self, atomic_numbers, atomic_energies, r_max, atomic_inter_scale, atomic_inter_shift, train_scale_shift
    ):
        super().__init__()
        if not r_max > 0:
            raise InputError(f"r_max is {r_max!r}; give a length in Å above 0.")
        n = len(atomic_numbers)
        self.register_buffer("atomic_numbers", torch.tensor([int(z) for z in atomic_numbers]))
        self.register_buffer("r_max", torch.tensor(float(r_max)))
        self.atomic_energies_fn = AtomicEnergies(_per_element("atomic_energies", atomic_energies, n))
        for name, given in (("scale", atomic_inter_scale), ("shift", atomic_inter_shift)):
            values = _per_element(f"atomic_inter_{name}", given, n)
            if train_scale_shift:
                self.register_parameter(name, torch.nn.Parameter(values))
            else:
                self.register_buffer(name, values)

    @abc.abstractmethod
    def atom_terms(self, node_attrs, edge_index, vectors):
        """ε (n_atoms,) and node features (n_atoms, any) from elements (n_atoms, n_elements), edges (2, n_edges) and
        the vectors from sender to receiver (n_edges, 3) in Å."""

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
        """Energies, forces and stress of a batch.

        Parameters
        ----------
        data: dict with mace's keys: positions (n_atoms, 3) in Å, node_attrs (n_atoms, n_elements) one-hot, edge_index
            (2, n_edges), shifts (n_edges, 3), batch (n_atoms,), ptr (n_structures + 1,), cell (3 n_structures, 3)
        training: keep the graph, so that a loss on forces can be differentiated
        compute_force, compute_stress, compute_virials: what to differentiate for

        Returns
        -------
        dict of energy, interaction_energy (n_structures,) and node_energy (n_atoms,) in eV; forces (n_atoms, 3) in
        eV/Å; stress (n_structures, 3, 3) in eV/Å³, 0 where there is no cell, and virials −∂E/∂strain in eV; all three
        None where not asked for; displacement, the strain that was differentiated by; node_feats (n_atoms, any).

        Raises
        ------
        InputError
            For a quantity that is not computed, another number of elements, or forces in inference mode.
        """
        for name, wanted in {
            "compute_hessian": compute_hessian,
            "compute_edge_forces": compute_edge_forces,
            "compute_atomic_stresses": compute_atomic_stresses,
            "lammps_mliap": lammps_mliap,
        }.items():
            if wanted:
                raise InputError(f"{name} is asked for, but {type(self).__name__} does not compute it; leave it out.")
        if data["node_attrs"].shape[1] != len(self.atomic_numbers):
            raise InputError(
                f"node_attrs has {data['node_attrs'].shape[1]} columns for the model's {len(self.atomic_numbers)} "
                f"elements {self.atomic_numbers.tolist()}; make the batch with these."
            )
        strained = compute_stress or compute_virials
        derived = compute_force or strained
        if derived and torch.is_inference_mode_enabled():
            raise InputError("forces need derivatives, which torch.inference_mode() forbids; torch.no_grad() is fine.")
        with torch.set_grad_enabled(derived or torch.is_grad_enabled()):
            positions, displacement = data["positions"], None
            if derived and not positions.requires_grad:
                # A leaf of our own: the caller's tensor keeps its flags.
                positions = positions.detach().requires_grad_(True)
            geometry = positions, data["shifts"]
            if strained or compute_displacement:
                *geometry, displacement = _strain(data, positions)
            out = self._energies(data, *geometry)
            forces, slope = None, None
            if derived:
                wanted = [positions, displacement] if strained else [positions]
                forces, slope = _slopes(out["interaction_energy"], wanted, training)
        return {
            **out,
            "forces": forces,
            "virials": None if slope is None else -slope,
            "stress": None if slope is None else _per_volume(slope, data["cell"]),
            "displacement": displacement,
        }

    def _energies(self, data, positions, shifts):
        """Energies per structure and per atom, and the node features."""
        sender, receiver = data["edge_index"]
        vectors = positions[receiver] - positions[sender] + shifts  # (n_edges, 3)
        terms, features = self.atom_terms(data["node_attrs"], data["edge_index"], vectors)
        species = data["node_attrs"].argmax(-1)
        atoms = self.atomic_energies_fn(data["node_attrs"]).squeeze(-1)
        interaction = self.scale[species] * terms + self.shift[species]
        n_structures = len(data["ptr"]) - 1
        sums = [segment_sum(values, data["batch"], n_structures) for values in (atoms, interaction)]
        return {
            "energy": sums[0] + sums[1],
            "interaction_energy": sums[1],
            "node_energy": atoms + interaction,
            "node_feats": features,
        }


def _per_element(name, values, n_elements):
    """(n_elements,) from one number or a list."""
    values = torch.as_tensor(values, dtype=torch.get_default_dtype()).detach().clone()
    if values.numel() not in (1, n_elements) or not bool(torch.isfinite(values).all()):
        raise InputError(
            f"{name} is {values.tolist()} for {n_elements} elements; give one finite number for each, in eV."
        )
    return values.reshape(-1).expand(n_elements).clone()


def _strain(data, positions):
    """Positions and shifts strained by x → x (1 + ε) with ε = ½ (d + dᵀ), and d (n_structures, 3, 3), which is zero."""
    displacement = positions.new_zeros((len(data["ptr"]) - 1, 3, 3)).requires_grad_(True)
    strain = 0.5 * (displacement + displacement.mT)
    shifts, of_edge = data["shifts"], data["batch"][data["edge_index"][0]]
    positions = positions + (positions[:, None] @ strain[data["batch"]])[:, 0]
    return positions, shifts + (shifts[:, None] @ strain[of_edge])[:, 0], displacement


def _slopes(energy, variables, training):
    """Forces −∂E/∂r, and ∂E/∂strain where the strain is among the variables; zero where E does not depend on them."""
    slopes = [None for _ in variables]
    if energy.requires_grad:
        slopes = torch.autograd.grad(
            energy.sum(), variables, retain_graph=training, create_graph=training, allow_unused=True
        )
    slopes = [torch.zeros_like(x) if slope is None else slope for x, slope in zip(variables, slopes, strict=True)]
    return -slopes[0], slopes[1] if len(slopes) > 1 else None


def _per_volume(slope, cell):
    """Stress (n_structures, 3, 3): ∂E/∂strain over the cell's volume, 0 where there is no cell."""
    volume = torch.linalg.det(cell.view(-1, 3, 3)).abs()[:, None, None]
    return torch.where(volume > 0, slope / torch.where(volume > 0, volume, 1.0), 0.0)
