"""Born effective charges of molecules and crystals, and polarisabilities: derivatives of the polarisation."""

import math
import warnings
from typing import Any

import torch

from phi_equivariant.derivatives import Batch, Output, check_differentiable
from phi_equivariant.errors import InputError
from phi_equivariant.inputs.cells import check_open, lattice_heights, read_cells


def born_effective_charges(potential: torch.nn.Module, data: Batch) -> torch.Tensor:
    """Born effective charges Z*_iαβ = ∂P_α/∂r_iβ, P the dipole of a structure, or of a crystal's cell.

    Along open directions P = Σ_i (q_i r_i + μ_i) about a fixed origin, and Σ_i Z*_iαβ = Q δ_αβ. Along a periodic one,
    with s = r·b in units of the cell vector a, charge that moves from atom to atom counts by

        Σ_j ∂q_j/∂r_iβ a sin 2π(s_j − s_i)/2π,

    the real part of e^{−2πis_i} ∂/∂r_i Σ_j q_j e^{2πis_j} a/2πi without the charge's own q_i δ_αβ, which is added. That
    is right to (2πx/a)²/6 of what moves by x: exact as the cell grows, and so is the sum rule. Under ``sqe`` what flows
    along edges counts by the vectors of the edges instead, without that error.

    Parameters
    ----------
    potential: ``PhiPotential``
    data: batch with mace's keys

    Returns
    -------
    (n_atoms, 3, 3) in e, first the polarisation's component, then the atom's. A cell that the model's own range, its
    number of layers times its cut-off, spans more than half of gives a warning, and so does a crystal under ``qeq``,
    where charge moves any distance.

    Raises
    ------
    InputError
        For a model without Φ, in inference mode, and what the potential itself refuses.

    Source: P. Zhong et al., arXiv:2504.05169.
    """
    check_differentiable("Born effective charges")
    _check_charged(potential, "Born effective charges")
    cell, pbc = read_cells(data)
    _warn_of_small_cells(potential, cell, pbc)
    with torch.enable_grad():
        positions = data["positions"].detach().requires_grad_(True)
        out = potential({**data, "positions": positions}, compute_force=False)
        return _of_output(out, positions, cell.detach(), pbc, data["batch"]).detach()


def polarizability(potential: torch.nn.Module, data: Batch) -> torch.Tensor:
    """Polarisability α_ab = ∂μ_a/∂F_b of open structures in their external fields: (n_structures, 3, 3) in e·Å²/V.

    Parameters
    ----------
    potential: ``PhiPotential``
    data: batch of open structures with mace's keys

    Raises
    ------
    InputError
        For a model without Φ, a periodic structure, and what the potential itself refuses.
    """
    _check_charged(potential, "a polarisability")
    _, pbc = read_cells(data)
    check_open(pbc, "the polarisability is computed from the dipole, which only open structures have")
    out: Output = potential(data, compute_force=False, compute_polarizability=True)
    found = out["polarizability"]
    assert found is not None  # all are open
    return found


def _of_output(
    out: dict[str, Any], positions: torch.Tensor, cell: torch.Tensor, pbc: torch.Tensor, batch: torch.Tensor
) -> torch.Tensor:
    """Z* (n_atoms, 3, 3) from a potential's output and the positions that it was computed from."""
    charges, flow = out["charges"], out.get("flow_dipole")  # (n_atoms,), (n_structures, 3)
    moved = charges if flow is None else out["source_charges"]  # what has come by no edge
    dipole = out["atomic_dipoles"].sum(0) if "atomic_dipoles" in out else positions.new_zeros(3)
    if flow is not None:
        dipole = dipole + flow.sum(0)  # of all structures: none depends on another's atoms

    def slope(value: torch.Tensor) -> torch.Tensor:
        if not value.requires_grad:
            return torch.zeros_like(positions)
        found = torch.autograd.grad(value, positions, retain_graph=True, allow_unused=True)[0]
        return torch.zeros_like(positions) if found is None else found

    # Cell vectors of open directions are made up, so that r = Σ_a s_a A_a holds.
    lattice = _filled(cell, pbc)
    fractional = (positions.detach()[:, None, :] @ torch.linalg.inv(lattice)[batch])[:, 0]  # s (n_atoms, 3)
    periodic, own = pbc[batch], moved.detach()
    rows = []
    for a in range(3):
        phase = 2 * math.pi * fractional[:, a]
        cosine, sine = phase.cos(), phase.sin()
        by_sine, by_cosine = slope((moved * sine).sum()), slope((moved * cosine).sum())
        around = (cosine[:, None] * by_sine - sine[:, None] * by_cosine) / (2 * math.pi)
        straight = slope((moved * fractional[:, a]).sum())
        rows.append(around.where(periodic[:, a, None], straight))
    moving = torch.stack(rows, dim=1)  # ∂(charge that moves)/∂r_iβ along each cell vector, (n_atoms, 3, 3)
    found = lattice[batch].mT @ moving + torch.stack([slope(component) for component in dipole], dim=1)
    return found + own[:, None, None] * torch.eye(3).to(positions)


def _filled(cell: torch.Tensor, pbc: torch.Tensor) -> torch.Tensor:
    """Cells with vectors of length 1 Å, at right angles to the periodic ones, in place of those of open directions."""
    filled = []
    for vectors, periodic in zip(cell, pbc, strict=True):
        if bool(periodic.all()):
            filled.append(vectors)
            continue
        kept = vectors[periodic]
        basis = torch.linalg.svd(kept, full_matrices=True)[2] if len(kept) else torch.eye(3).to(vectors)
        one = torch.zeros_like(vectors)
        one[periodic], one[~periodic] = kept, basis[len(kept) :]
        filled.append(one)
    return torch.stack(filled)


def _warn_of_small_cells(potential: torch.nn.Module, cell: torch.Tensor, pbc: torch.Tensor) -> None:
    # Features of the last layer know of as many steps along edges, whichever layers are tapped.
    layers = max(1, len(getattr(potential, "taps", ())), int(getattr(potential, "num_interactions", 1)))
    reach = float(torch.as_tensor(potential.r_max)) * layers
    for index in pbc.any(1).nonzero()[:, 0].tolist():
        if getattr(getattr(potential, "phi", None), "conducts", False):
            warnings.warn(
                "Born effective charges of a periodic structure with charge_model='qeq': charge moves any distance, as "
                "in a conductor, and they go to zero as the cell grows.",
                stacklevel=3,
            )
            return
        heights = lattice_heights(cell[index][pbc[index]])
        if heights is not None and float(heights.min()) < 2 * reach:
            warnings.warn(
                f"opposite faces of the cell of structure {index} are {float(heights.min()):.3g} Å apart, and the "
                f"charges of this model depend on atoms up to {reach:.3g} Å away: charge that moves by half of a cell "
                "or more has no direction there, and Born effective charges are not those of the crystal. Repeat the "
                f"cell until it is {2 * reach:.3g} Å wide.",
                stacklevel=3,
            )
            return


def _check_charged(potential: torch.nn.Module, what: str) -> None:
    if not hasattr(potential, "phi"):
        raise InputError(f"the model is a bare host, which does not have charges; attach Φ for {what}.")
