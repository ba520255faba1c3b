"""Born effective charges, the derivatives of the dipole by positions."""

import torch

from phi_equivariant.derivatives import Batch
from phi_equivariant.inputs.cells import check_open, read_cells


def born_effective_charges(potential: torch.nn.Module, data: Batch) -> torch.Tensor:
    """Born effective charges Z*_iαβ = ∂μ_α/∂r_iβ, with μ = Σ_i (q_i r_i + μ_i) about a fixed origin.

    They sum to the total charge, Σ_i Z*_iαβ = Q δ_αβ.

    Parameters
    ----------
    potential: ``PhiPotential``
    data: batch of open structures with mace's keys

    Returns
    -------
    (n_atoms, 3, 3) in e, first the dipole's component, then the atom's

    Raises
    ------
    InputError
        For a periodic structure, and what the potential itself refuses.
    """
    _, pbc = read_cells(data)
    check_open(pbc, "Born effective charges are computed from the dipole, which only open structures have")
    with torch.enable_grad():
        positions = data["positions"].detach().requires_grad_(True)
        out = potential({**data, "positions": positions}, compute_force=False)
        dipole = (out["charges"][:, None] * positions).sum(0)  # of all structures: none depends on another's atoms
        if "atomic_dipoles" in out:
            dipole = dipole + out["atomic_dipoles"].sum(0)
        rows = [torch.autograd.grad(component, positions, retain_graph=True)[0] for component in dipole]
    return torch.stack(rows, dim=1)
