"""The structures of a batch, and how they are put into groups that are computed together."""

import dataclasses
import functools
from collections.abc import Hashable, Mapping, Sequence

import torch

from phi_equivariant.batching import PaddedLayout
from phi_equivariant.division import WHOLE, Share

# Entries of padding in a group's matrices that take no longer than the calls for one more group.
_PADDING = 20_000
_WAVES_PER_ATOM = 10  # rows of the matrices of a lattice sum: its padding costs as many times more
_PADDED_SHARE = 0.2  # of the entries that are there


@dataclasses.dataclass(frozen=True, eq=False)
class Structures:
    """Atoms, edges and cells of a batch.

    Parameters
    ----------
    positions: (n_atoms, 3) in Å
    species: (n_atoms,), index of each atom's element
    batch: (n_atoms,), structure of each atom, ascending
    ptr: (n_structures + 1,), first atom of each structure
    edge_index: (2, n_edges), sender and receiver; shifts: (n_edges, 3), cell vectors between the two, in Å; both None
        where edges are not needed; with several processes, those of this one's share
    total_charge: (n_structures,) in e
    cell: (n_structures, 3, 3), rows are the cell vectors in Å
    pbc: (n_structures, 3), True for periodic directions
    external_field: (n_structures, 3), homogeneous, in V/Å; None where there is none
    share: this process's, of the sums of large structures and of sums over edges
    """

    positions: torch.Tensor
    species: torch.Tensor
    batch: torch.Tensor
    ptr: torch.Tensor
    edge_index: torch.Tensor | None
    shifts: torch.Tensor | None
    total_charge: torch.Tensor
    cell: torch.Tensor
    pbc: torch.Tensor
    external_field: torch.Tensor | None = None
    share: Share = WHOLE

    @classmethod
    def of_batch(
        cls,
        data: Mapping[str, torch.Tensor],
        total_charge: torch.Tensor,
        cell: torch.Tensor,
        pbc: torch.Tensor,
        external_field: torch.Tensor | None = None,
    ) -> "Structures":
        """Those of a batch with mace's keys, whose total charges, cells and periodic directions were read already."""
        return cls(
            positions=data["positions"],
            species=data["node_attrs"].argmax(-1),
            batch=data["batch"],
            ptr=data["ptr"],
            edge_index=data["edge_index"],
            shifts=data["shifts"],
            total_charge=total_charge,
            cell=cell,
            pbc=pbc,
            external_field=external_field,
        )

    @functools.cached_property
    def layout(self) -> PaddedLayout:
        """Where each atom stands in padded arrays."""
        return PaddedLayout(self.batch, self.ptr)

    @functools.cached_property
    def counts(self) -> list[int]:
        """Number of atoms of each structure."""
        return self.layout.counts.tolist()

    @functools.cached_property
    def n_periodic(self) -> list[int]:
        """Number of periodic directions of each structure."""
        return self.pbc.sum(1).tolist()

    def to(self, dtype: torch.dtype) -> "Structures":
        """The same atoms and cells in another precision, without edges and derivatives."""
        return dataclasses.replace(
            self,
            positions=self.positions.detach().to(dtype),
            cell=self.cell.detach().to(dtype),
            edge_index=None,
            shifts=None,
        )

    def __len__(self) -> int:
        return len(self.ptr) - 1

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """(n_atoms, ...) → (n_structures, ...), the sum over the atoms of each structure."""
        return self.layout.sum(values)

    def edge_vectors(self) -> torch.Tensor:
        """From sender to receiver of every edge, (n_edges, 3) in Å."""
        if self.edge_index is None or self.shifts is None:
            raise ValueError("these structures were selected without their edges.")
        sender, receiver = self.edge_index
        (positions,) = self.share.enter(self.positions)
        return positions[receiver] - positions[sender] + self.shifts

    def edge_lengths(self) -> torch.Tensor:
        """Distance in Å between the two atoms of every edge, (n_edges,)."""
        return self.edge_vectors().norm(dim=-1)

    def groups(self, kinds: Sequence[Hashable], alone: Sequence[bool], lattice: Sequence[bool] = ()) -> list[list[int]]:
        """Structures to be computed together: of one kind, of about one size, or alone where told so.

        Matrices of a group are padded to the largest, so its structures are as many as that pays for. ``lattice``:
        which structures have lattice sums, none where it is empty.
        """
        groups: list[list[int]] = []
        # The largest of a group comes first.
        order = sorted(range(len(self)), key=lambda index: -self.counts[index])
        open_groups: dict[Hashable, tuple[list[int], int, int]] = {}
        for index in order:
            entries, kind = self.counts[index] ** 2, kinds[index]
            members, largest, used = open_groups.get(kind, ([], 0, 0))
            padding = (len(members) + 1) * largest - used - entries
            allowed = _PADDING / (_WAVES_PER_ATOM if lattice and lattice[index] else 1)
            if alone[index] or not members or padding > allowed + _PADDED_SHARE * (used + entries):
                members, largest, used = [], entries, 0
                groups.append(members)
            members.append(index)
            if not alone[index]:
                open_groups[kind] = members, largest, used + entries
        return [sorted(group) for group in groups]

    def select(self, chosen: Sequence[int], edges: bool = False) -> tuple[torch.Tensor | None, "Structures"]:
        """Some of the structures: their atoms (n_chosen,), and the structures; None and self where all are chosen.

        Parameters
        ----------
        chosen: indices of structures, ascending
        edges: whether their edges are needed
        """
        if len(chosen) == len(self):
            return None, self
        device = self.ptr.device
        index = torch.tensor(chosen, device=device)
        counts = self.layout.counts[index]
        ptr = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
        batch = torch.arange(len(chosen), device=device).repeat_interleave(counts)
        atoms = torch.arange(int(ptr[-1]), device=device) + (self.ptr[index] - ptr[:-1])[batch]
        edge_index = shifts = None
        if edges and self.edge_index is not None and self.shifts is not None:
            new = torch.full_like(self.batch, -1).index_copy(0, atoms, torch.arange(len(atoms), device=device))
            inside = new[self.edge_index[0]] >= 0
            edge_index, shifts = new[self.edge_index[:, inside]], self.shifts[inside]
        return atoms, Structures(
            positions=self.positions[atoms],
            species=self.species[atoms],
            batch=batch,
            ptr=ptr,
            edge_index=edge_index,
            shifts=shifts,
            total_charge=self.total_charge[index],
            cell=self.cell[index],
            pbc=self.pbc[index],
            external_field=None if self.external_field is None else self.external_field[index],
            share=self.share,
        )


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
