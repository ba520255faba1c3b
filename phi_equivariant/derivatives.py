"""Energy and its derivatives: the strain of positions and cells, forces, virials and stress, for every model."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from phi_equivariant.division import WHOLE, Share
from phi_equivariant.errors import InputError
from phi_equivariant.inputs.cells import read_cells
from phi_equivariant.operators.lattice import cell_volume
from phi_equivariant.structures import is_slab, planes

_FLAT = 1e-6  # Å, the height up to which a slab's cell has no volume

Batch = dict[str, Any]  # with mace's keys
Output = dict[str, torch.Tensor | None]


@dataclass(frozen=True)
class Wanted:
    """What to differentiate an energy for, by the names of mace's arguments; ``unknown`` holds those not computed.

    Raises
    ------
    InputError
        For something that is not computed, or derivatives in inference mode.
    """

    model: str
    training: bool = False
    compute_force: bool = True
    compute_virials: bool = False
    compute_stress: bool = False
    compute_displacement: bool = False
    compute_hessian: bool = False
    compute_edge_forces: bool = False
    compute_atomic_stresses: bool = False
    lammps_mliap: bool = False
    compute_polarizability: bool = False

    def __post_init__(self) -> None:
        for name in ("compute_hessian", "compute_edge_forces", "compute_atomic_stresses", "lammps_mliap"):
            if getattr(self, name):
                raise InputError(f"{name} is asked for, but {self.model} does not compute it; leave it out.")
        if self.differentiates:
            check_differentiable("forces")

    @property
    def derived(self) -> bool:
        """Whether anything is differentiated here."""
        return self.compute_force or self.compute_virials or self.compute_stress

    @property
    def differentiates(self) -> bool:
        """Whether anything that is computed here takes derivatives, or is to be differentiated by."""
        return self.derived or self.compute_displacement or self.compute_polarizability

    @property
    def order(self) -> int:
        """How often outputs are differentiated beside the first derivatives of the energy: by a loss on forces once,
        by a caller of a model that differentiates nothing itself perhaps twice."""
        if not self.derived and not self.compute_polarizability:
            return 2
        return int(self.training) + int(self.compute_polarizability)


def check_differentiable(what: str) -> None:
    """InputError in inference mode, where nothing can be differentiated; ``what`` says what needs it."""
    if torch.is_inference_mode_enabled():
        raise InputError(f"{what} need derivatives, which torch.inference_mode() forbids; torch.no_grad() is fine.")


def with_derivatives(
    energies: Callable[[Batch, torch.Tensor, torch.Tensor], Output], data: Batch, wanted: Wanted
) -> Output:
    """The output of a model with F = −∂E/∂r, σ = (1/V) ∂E/∂ε and virials −∂E/∂ε from one derivative of its energy.

    ε strains positions and cell, symmetrised, as in mace.

    Parameters
    ----------
    energies: function of a batch, its cells (n_structures, 3, 3) in Å and periodic directions (n_structures, 3) → at
        least energy (n_structures,) in eV
    data: dict with mace's keys; it is not changed, nor are the flags of its tensors
    wanted: what to differentiate for

    Returns
    -------
    the output with forces (n_atoms, 3) in eV/Å; virials (n_structures, 3, 3) in eV; stress (n_structures, 3, 3) in
    eV/Å³, that of slabs in their plane, NaN for molecules and wires and None if there is no other, see ``stress_of``;
    displacement (n_structures, 3, 3), the strain that was differentiated by. Each is None where not asked for.

    Raises
    ------
    InputError
        For a cell that nothing can be computed in.
    """
    cell, pbc = read_cells(data)
    stressed = wanted.compute_stress and bool((pbc.sum(1) >= 2).any())
    with torch.set_grad_enabled(wanted.differentiates or torch.is_grad_enabled()):
        data = dict(data)
        if not data["positions"].requires_grad:
            # A leaf of our own: the caller's tensor keeps its flags, which mace would set.
            data["positions"] = data["positions"].detach().requires_grad_(wanted.derived)
        variables = [data["positions"]]
        if wanted.compute_virials or stressed or wanted.compute_displacement:
            variables.append(cell.new_zeros(cell.shape).requires_grad_(True))
            cell = strain(data, cell, variables[1])
        # Without derivatives here the caller may differentiate the energy, as often as it likes.
        out = energies(data, cell, pbc)
        gradients = _slopes(out["energy"], variables, wanted.training) if wanted.derived else []
    return {
        **out,
        "forces": -gradients[0] if gradients else None,
        "virials": -gradients[1] if wanted.compute_virials else None,
        "stress": stress_of(gradients[1], cell.detach(), pbc) if stressed else None,
        "displacement": variables[1] if len(variables) == 2 else None,
    }


def strain(data: Batch, cell: torch.Tensor, displacement: torch.Tensor, share: Share = WHOLE) -> torch.Tensor:
    """Strain positions, shifts and cells of ``data``, x → x (1 + ε) with ε = ½ (d + dᵀ); returns the strained cell.

    Parameters
    ----------
    data: dict with mace's keys, which is changed
    cell: (n_structures, 3, 3) in Å; displacement: d, likewise
    share: this process's of the edges
    """
    epsilon = 0.5 * (displacement + displacement.mT)  # (n_structures, 3, 3)
    positions, shifts, batch = data["positions"], data["shifts"], data["batch"]
    data["positions"] = positions + (positions[:, None, :] @ epsilon[batch])[:, 0]
    (of_edges,) = share.enter(epsilon)
    data["shifts"] = shifts + (shifts[:, None, :] @ of_edges[batch[data["edge_index"][0]]])[:, 0]
    cell = cell + cell @ epsilon
    data["cell"] = cell.reshape(-1, 3)
    return cell


def _slopes(energy: torch.Tensor | None, variables: list[torch.Tensor], training: bool) -> list[torch.Tensor]:
    """∂(Σ energy)/∂ each variable; zero where the energy does not depend on it (an isolated atom)."""
    if energy is None or not energy.requires_grad:
        return [torch.zeros_like(variable) for variable in variables]
    found = torch.autograd.grad(
        energy.sum(), variables, retain_graph=training, create_graph=training, allow_unused=True
    )
    return [
        torch.zeros_like(variable) if slope is None else slope for variable, slope in zip(variables, found, strict=True)
    ]


def stress_of(slope: torch.Tensor, cell: torch.Tensor, pbc: torch.Tensor) -> torch.Tensor:
    """∂E/∂ε per volume: (n_structures, 3, 3) in eV/Å³, NaN where there is neither a volume nor a plane.

    Of slabs it has the components in the plane, zero elsewhere. Their volume is that of the cell as it is given, so
    that stress times volume does not depend on the vector across the slab, A times 1 Å where that is zero, as ase's
    ``Cell.complete`` has it.

    Parameters
    ----------
    slope: ∂E/∂ε (n_structures, 3, 3) in eV; cell: (n_structures, 3, 3) in Å; pbc: (n_structures, 3)
    """
    defined, volume = pbc.sum(1) >= 2, cell_volume(cell)
    slab = is_slab(pbc)
    if bool(slab.any()):
        normal, area = planes(cell, pbc)
        inside = torch.eye(3, dtype=cell.dtype, device=cell.device) - normal[:, :, None] * normal[:, None, :]
        slope = torch.where(slab[:, None, None], inside @ slope @ inside, slope)
        volume = torch.where(slab & (volume <= _FLAT * area), area, volume)
    volume = volume.where(defined, cell.new_ones(()))
    return (slope / volume[:, None, None]).masked_fill(~defined[:, None, None], torch.nan)


def response_to(
    field: torch.Tensor, dipole: torch.Tensor | None, pbc: torch.Tensor, training: bool
) -> torch.Tensor | None:
    """∂μ_a/∂F_b of every structure: (n_structures, 3, 3) in e·Å²/V, NaN where there is no dipole, None if nowhere.

    Parameters
    ----------
    field: F (n_structures, 3) in V/Å, which the dipole was computed from; dipole: μ (n_structures, 3) in e·Å
    pbc: (n_structures, 3)
    training: keep the graph, so that a loss on it can be differentiated
    """
    if dipole is None:
        return None
    rows = [torch.zeros_like(field)] * 3
    if dipole.requires_grad:
        open_ones = dipole.where(~pbc.any(1)[:, None], torch.zeros_like(dipole))
        found = [
            torch.autograd.grad(column.sum(), field, retain_graph=True, create_graph=training, allow_unused=True)[0]
            for column in open_ones.unbind(1)
        ]
        rows = [torch.zeros_like(field) if row is None else row for row in found]
    return torch.stack(rows, dim=1).masked_fill(pbc.any(1)[:, None, None], torch.nan)
