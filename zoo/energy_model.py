"""The base of our own hosts: mace's call signature around an energy per atom."""

import abc
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from phi_equivariant.batching import segment_sum
from phi_equivariant.derivatives import Batch, Output, Wanted, with_derivatives
from phi_equivariant.errors import InputError
from phi_equivariant.host_energy import energies_of, keep_exact

#: One number in eV, or one for each element.
PerElement = float | Sequence[float] | Sequence[Sequence[float]] | np.ndarray | torch.Tensor


class AtomicEnergies(torch.nn.Module):
    """Energies of the isolated atoms in eV, (1, n_elements); the row is the one head."""

    atomic_energies: torch.Tensor

    def __init__(self, atomic_energies: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("atomic_energies", atomic_energies[None])  # (1, n_elements)

    def forward(self, node_attrs: torch.Tensor) -> torch.Tensor:
        """One-hot elements (n_atoms, n_elements) → (n_atoms, 1), float64."""
        return energies_of(self)[0, node_attrs.argmax(-1)][:, None]


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
        For lists that do not fit the elements, or a cut-off that is not a length.
    """

    heads = ("Default",)
    atomic_numbers: torch.Tensor  # (n_elements,)
    r_max: torch.Tensor  # (), Å
    scale: torch.Tensor  # (n_elements,), eV
    shift: torch.Tensor  # (n_elements,), eV
    atomic_energies_fn: AtomicEnergies
    arguments: dict[str, Any]  # what a saved model is built from again; models with an ``EnergyModelHost`` set it

    def __init__(
        self,
        atomic_numbers: Sequence[int],
        atomic_energies: PerElement,
        r_max: float,
        atomic_inter_scale: PerElement,
        atomic_inter_shift: PerElement,
        train_scale_shift: bool,
    ) -> None:
        super().__init__()
        if not isinstance(r_max, int | float) or not 0 < r_max < math.inf:
            raise InputError(f"r_max is {r_max!r}; give a length in Å above 0.")
        numbers = list(atomic_numbers)
        whole = all(hasattr(z, "__index__") and not isinstance(z, bool) and 1 <= z <= 118 for z in numbers)
        if not numbers or not whole or len({int(z) for z in numbers}) != len(numbers):
            raise InputError(f"atomic_numbers is {atomic_numbers!r}; give each element once, as in [1, 6, 8].")
        n = len(numbers)
        self.register_buffer("atomic_numbers", torch.tensor([int(z) for z in numbers]))
        self.register_buffer("r_max", torch.tensor(float(r_max)))
        self.atomic_energies_fn = AtomicEnergies(_per_element("atomic_energies", atomic_energies, n))
        keep_exact(self, _per_element("atomic_energies", atomic_energies, n, torch.float64))
        for name, given in (("scale", atomic_inter_scale), ("shift", atomic_inter_shift)):
            values = _per_element(f"atomic_inter_{name}", given, n)
            if train_scale_shift:
                self.register_parameter(name, torch.nn.Parameter(values))
            else:
                self.register_buffer(name, values)

    @abc.abstractmethod
    def atom_terms(self, data: Batch, vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """ε (n_atoms,) and node features (n_atoms, any), or None, from the batch and the vectors from sender to
        receiver (n_edges, 3) in Å."""

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
    ) -> Output:
        """Energies, forces and stress of a batch.

        Parameters
        ----------
        data: dict with mace's keys: positions (n_atoms, 3) in Å, node_attrs (n_atoms, n_elements) one-hot, edge_index
            (2, n_edges), shifts (n_edges, 3), batch (n_atoms,), ptr (n_structures + 1,); cell (3 n_structures, 3) in Å
            and pbc (n_structures, 3) if a structure is periodic
        training: keep the graph, so that a loss on forces can be differentiated
        compute_force, compute_stress, compute_virials: what to differentiate for

        Returns
        -------
        dict of energy, interaction_energy (n_structures,) and node_energy (n_atoms,) in eV, those with E0 in float64
        whatever the precision; forces (n_atoms, 3) in eV/Å; virials −∂E/∂strain in eV; stress (n_structures, 3, 3) in
        eV/Å³, of slabs in their plane, see ``derivatives.stress_of``, NaN for molecules and wires and None if there is
        no other; all three None where not asked for; displacement, the strain that was differentiated by; node_feats
        (n_atoms, any), None from a model that gives none.

        Raises
        ------
        InputError
            For a quantity that is not computed, another number of elements, a cell that nothing can be computed in, or
            forces in inference mode.
        """
        wanted = Wanted(
            type(self).__name__,
            training,
            compute_force,
            compute_virials,
            compute_stress,
            compute_displacement,
            compute_hessian,
            compute_edge_forces,
            compute_atomic_stresses,
            lammps_mliap,
        )
        if data["node_attrs"].shape[1] != len(self.atomic_numbers):
            raise InputError(
                f"node_attrs has {data['node_attrs'].shape[1]} columns for the model's {len(self.atomic_numbers)} "
                f"elements {self.atomic_numbers.tolist()}; make the batch with these."
            )
        return with_derivatives(self._energies, data, wanted)

    def _energies(self, data: Batch, cell: torch.Tensor, pbc: torch.Tensor) -> Output:
        """Energies per structure and per atom, and the node features."""
        sender, receiver = data["edge_index"]
        vectors = data["positions"][receiver] - data["positions"][sender] + data["shifts"]  # (n_edges, 3)
        terms, features = self.atom_terms(data, vectors)
        species = data["node_attrs"].argmax(-1)
        interaction = self.scale[species] * terms + self.shift[species]
        atoms = self.atomic_energies_fn(data["node_attrs"]).squeeze(-1)
        n_structures = len(data["ptr"]) - 1
        sums = [segment_sum(values, data["batch"], n_structures) for values in (atoms, interaction)]
        return {
            "energy": sums[0] + sums[1],
            "interaction_energy": sums[1],
            "node_energy": atoms + interaction,
            "node_feats": features,
        }


def _per_element(name: str, given: PerElement, n_elements: int, dtype: torch.dtype | None = None) -> torch.Tensor:
    """(n_elements,) from one number or a list."""
    try:
        values = torch.as_tensor(given, dtype=dtype or torch.get_default_dtype()).detach().clone()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name} is {given!r}; give one number, or one for each element, in eV.") from error
    if values.numel() not in (1, n_elements) or not bool(torch.isfinite(values).all()):
        raise InputError(
            f"{name} is {values.tolist()} for {n_elements} elements; give one finite number for each, in eV."
        )
    return values.reshape(-1).expand(n_elements).clone()
