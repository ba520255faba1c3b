"""Sums over the atoms of a structure, and the padded layout in which a batch of structures is one dense array."""

import torch

try:
    from torch_scatter import scatter_sum
except ImportError:
    scatter_sum = None


def segment_sum(values: torch.Tensor, index: torch.Tensor, size: int) -> torch.Tensor:
    """Sum rows that share an index: out_g = Σ_{i: index_i = g} values_i.

    Parameters
    ----------
    values: (n, ...)
    index: (n,) in [0, size)

    Returns
    -------
    (size, ...). Uses ``torch_scatter`` where it is installed, else ``torch.index_add``.
    """
    if scatter_sum is not None:
        found: torch.Tensor = scatter_sum(values, index, dim=0, dim_size=size)
        return found
    return values.new_zeros((size, *values.shape[1:])).index_add(0, index, values)


class PaddedLayout:
    """Where each atom of a batch stands in arrays of shape (n_structures, n_max, ...).

    Parameters
    ----------
    batch: (n_atoms,) structure of each atom, ascending
    ptr: (n_structures + 1,) first atom of each structure
    """

    def __init__(self, batch: torch.Tensor, ptr: torch.Tensor) -> None:
        self.batch = batch
        self.counts = ptr[1:] - ptr[:-1]  # (n_structures,)
        self.n_structures = len(self.counts)
        self.n_max = int(self.counts.max())
        self.slot = torch.arange(len(batch), device=batch.device) - ptr[batch]  # (n_atoms,) place within the structure
        self.index = batch * self.n_max + self.slot
        self.is_full = len(batch) == self.n_structures * self.n_max

    @property
    def mask(self) -> torch.Tensor:
        """(n_structures, n_max), True where there is an atom."""
        return torch.arange(self.n_max, device=self.counts.device) < self.counts[:, None]

    def pad(self, values: torch.Tensor) -> torch.Tensor:
        """(n_atoms, ...) → (n_structures, n_max, ...), zero where there is no atom."""
        shape = (self.n_structures, self.n_max, *values.shape[1:])
        if self.is_full:
            return values.reshape(shape)
        flat = values.new_zeros((self.n_structures * self.n_max, *values.shape[1:]))
        return flat.index_copy(0, self.index, values).reshape(shape)

    def unpad(self, values: torch.Tensor) -> torch.Tensor:
        """(n_structures, n_max, ...) → (n_atoms, ...)."""
        flat = values.reshape(-1, *values.shape[2:])
        return flat if self.is_full else flat[self.index]

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """(n_atoms, ...) → (n_structures, ...), the sum over the atoms of each structure.

        That of one structure has the same bits at each call, on a GPU too: processes that iterate together rely on it.
        """
        if self.n_structures == 1:
            return values.sum(0, keepdim=True)
        return segment_sum(values, self.batch, self.n_structures)
