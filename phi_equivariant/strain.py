"""Strain of positions and cells, and what the energy's derivatives by it are: virials and stress."""

import torch

from phi_equivariant.operators.lattice import cell_volume


def strain(data, cell, displacement):
    """Strain positions, shifts and cells of ``data``, x → x (1 + ε) with ε = ½ (d + dᵀ); returns the strained cell."""
    epsilon = 0.5 * (displacement + displacement.mT)  # (n_structures, 3, 3)
    positions, shifts, batch = data["positions"], data["shifts"], data["batch"]
    data["positions"] = positions + (positions[:, None, :] @ epsilon[batch])[:, 0]
    data["shifts"] = shifts + (shifts[:, None, :] @ epsilon[batch[data["edge_index"][0]]])[:, 0]
    cell = cell + cell @ epsilon
    data["cell"] = cell.reshape(-1, 3)
    return cell


def slopes(energy, variables, training):
    """∂(Σ energy)/∂ each variable; zero where the energy does not depend on it (an isolated atom)."""
    if not energy.requires_grad:
        return [torch.zeros_like(variable) for variable in variables]
    found = torch.autograd.grad(
        energy.sum(), variables, retain_graph=training, create_graph=training, allow_unused=True
    )
    return [
        torch.zeros_like(variable) if slope is None else slope for variable, slope in zip(variables, found, strict=True)
    ]


def stress_of(slope, cell, pbc):
    """∂E/∂ε per volume: (n_structures, 3, 3) in eV/Å³, NaN where there is no volume."""
    periodic = pbc.all(1)
    volume = cell_volume(cell).where(periodic, cell.new_ones(()))
    return (slope / volume[:, None, None]).masked_fill(~periodic[:, None, None], torch.nan)
