"""The planes of slabs, structures that are periodic in two directions: their normal and the area of their cell."""

import torch


def planes(cell: torch.Tensor, pbc: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """n = a×b/|a×b| and A = |a×b| of the two periodic vectors, in cyclic order: x, y for T T F, y, z for F T T and
    z, x for T F T, so that n is on the side of a right-handed cell's open vector.

    Parameters
    ----------
    cell: (n_structures, 3, 3), rows are the cell vectors in Å; that of the open direction is not used
    pbc: (n_structures, 3)

    Returns
    -------
    normal: (n_structures, 3); area: (n_structures,) in Å². Those of other structures are (0, 0, 1) and 1.
    """
    each = torch.arange(len(pbc), device=pbc.device)
    opened = (~pbc).int().argmax(1)
    across = torch.linalg.cross(cell[each, (opened + 1) % 3], cell[each, (opened + 2) % 3])
    across = across.where(is_slab(pbc)[:, None], across.new_tensor([0.0, 0.0, 1.0]))
    area = across.square().sum(1).sqrt()
    return across / area[:, None], area


def is_slab(pbc: torch.Tensor) -> torch.Tensor:
    """Which structures are periodic in two directions: (n_structures, 3) → (n_structures,)."""
    return pbc.sum(1) == 2
