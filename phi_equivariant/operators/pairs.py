"""Pairs of atoms of periodic cells that are closer than a radius.

The list of the host does not reach far enough for Ewald sums. A search takes a radius in Å, ``fractional``
(n_structures, n_max, 3), ``mask`` (n_structures, n_max) and ``cell`` (n_structures, 3, 3) in Å. It gives every pair of
atoms, and of an atom and its own images, once: structure, first, second (n_pairs,) and images (n_pairs, 3), the cell
vectors to add to ``second``.
"""

from collections.abc import Callable

import torch

from phi_equivariant.kept import keep, recall

Pairs = tuple[torch.Tensor, ...]
Search = Callable[[float, torch.Tensor, torch.Tensor, torch.Tensor], Pairs]

_CHUNK = 2_000_000  # distances looked at together
_PER_RADIUS = 2  # boxes along a radius: finer ones look at fewer pairs in vain, but there are more of them


@torch.no_grad()
def pairs_in_boxes(radius, positions, cell):
    """Every pair of atoms, and of an atom and its own images, closer than ``radius``, once.

    Atoms are sorted into boxes; only those of boxes near each other are compared, across the cell's faces too.

    Parameters
    ----------
    radius: Å
    positions: (n_atoms, 3) in Å; cell: (3, 3), rows are the cell vectors in Å

    Returns
    -------
    first, second: (n_pairs,); images: (n_pairs, 3), whole numbers of cell vectors to add to ``second``
    """
    inverse = torch.linalg.inv(cell)
    fractional = positions @ inverse
    home = fractional.floor()
    heights = 1 / inverse.norm(dim=0)  # between opposite faces
    count = (_PER_RADIUS * heights / radius).floor().clamp(1, 1000).long()  # (3,) boxes in each direction
    place = torch.minimum(((fractional - home) * count).long(), count - 1)  # (n_atoms, 3)
    stride = torch.stack([count[1] * count[2], count[2], torch.ones_like(count[0])])
    box = (place * stride).sum(1)
    order = box.argsort()
    occupied = torch.bincount(box, minlength=int(count.prod()))
    starts = occupied.cumsum(0) - occupied
    reach = (radius * count / heights).ceil().long().tolist()

    found = []
    for step in torch.cartesian_prod(*(torch.arange(-m, m + 1, device=cell.device) for m in reach)):
        if tuple(step.tolist()) < (0, 0, 0):
            continue  # the opposite step finds the same pairs
        target = place + step
        image = target.div(count, rounding_mode="floor")
        there = ((target - image * count) * stride).sum(1)
        many = occupied[there]  # (n_atoms,) candidates of each atom
        first = torch.arange(len(positions), device=cell.device).repeat_interleave(many)
        rank = torch.arange(len(first), device=cell.device) - (many.cumsum(0) - many).repeat_interleave(many)
        second = order[starts[there[first]] + rank]
        if not bool(step.any()):
            first, second = first[first < second], second[first < second]
        images = image[first].to(cell.dtype) + home[first] - home[second]
        vectors = positions[second] - positions[first] + images @ cell
        near = vectors.square().sum(1) < radius**2
        found.append((first[near], second[near], images[near]))
    first, second, images = (torch.cat(parts) for parts in zip(*found, strict=True))
    # In the order of the first atom: sums over pairs then go through memory in order.
    order = first.argsort()
    return first[order], second[order], images[order]


@torch.no_grad()
def pairs_within(radius, fractional, mask, cell):
    """A search among all pairs of each structure: the fastest for up to a few hundred atoms."""
    found = []
    for index, (positions, vectors) in enumerate(zip(fractional, cell, strict=True)):
        positions = positions[mask[index]]
        n = len(positions)
        heights = 1 / torch.linalg.inv(vectors).norm(dim=0)  # between opposite faces
        # Differences of coordinates are brought to ±½, so that a cell more than radius + ½ height away has none near.
        a, b, c = (torch.arange(-m, m + 1, device=cell.device) for m in (radius / heights + 0.5).int().tolist())
        images = torch.cartesian_prod(a, b, c)
        first, second = torch.triu_indices(n, n, device=cell.device)
        differences = positions[second] - positions[first]  # (n_half, 3)
        nearest = differences.round()
        differences = (differences - nearest) @ vectors
        x, y, z = images.unbind(1)
        positive = (x > 0) | ((x == 0) & ((y > 0) | ((y == 0) & (z > 0))))
        for part, forward in zip(*(t.split(max(1, _CHUNK // len(first))) for t in (images, positive)), strict=True):
            shifts = part.to(cell.dtype) @ vectors
            near = (differences + shifts[:, None]).square().sum(-1) < radius**2  # (n_images, n_half)
            near = near & ((first != second) | forward[:, None])
            image, pair = near.nonzero(as_tuple=True)
            which = torch.full_like(pair, index)
            found.append((which, first[pair], second[pair], part[image].to(cell.dtype) - nearest[pair]))
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


def pairs_of_one(radius, fractional, mask, cell):
    """A search in a single structure, by ``pairs_in_boxes``."""
    first, second, images = pairs_in_boxes(radius, (fractional @ cell)[0, mask[0]], cell[0])
    return torch.zeros_like(first), first, second, images


def vectors_between(place, cell, pairs):
    """Vectors from the first to the second atom of every pair: (n_pairs, 3) in Å."""
    structure, first, second, images = pairs
    if len(cell) == 1:
        return place[0].index_select(0, second) - place[0].index_select(0, first) + images @ cell[0]
    return place[structure, second] - place[structure, first] + (images[:, None, :] @ cell[structure])[:, 0]


class KeptPairs:
    """A search for simulations: a list that reaches further is kept, by each caller, until another pair might have come
    near.

    Each call gives the pairs that a fresh search would find. A deformation of the cell whose least singular value is σ
    leaves no pair nearer than σ times its old distance, and atoms that move by u in addition, 2u less.

    Parameters
    ----------
    search: ``pairs_within`` or ``pairs_of_one``
    """

    skin = 0.5  # Å

    def __init__(self, search: Search) -> None:
        self.search = search

    @torch.no_grad()
    def __call__(self, radius: float, fractional: torch.Tensor, mask: torch.Tensor, cell: torch.Tensor) -> Pairs:
        """As the search."""
        kept = recall(self)
        if kept is None or not self._serves(kept, radius, fractional, mask, cell):
            pairs = self.search(radius + self.skin, fractional, mask, cell)
            kept = (radius, fractional.clone(), mask, cell.clone(), pairs)
            keep(self, kept)
        pairs = kept[-1]
        near = vectors_between(fractional @ cell, cell, pairs).square().sum(-1) < radius**2
        return tuple(part[near] for part in pairs)

    def _serves(self, kept, radius, fractional, mask, cell):
        built_radius, built_at, built_mask, built_cell, _ = kept
        same_kind = (
            fractional.shape == built_at.shape and cell.dtype == built_cell.dtype and cell.device == built_cell.device
        )
        if radius != built_radius or not same_kind:
            return False
        if not torch.equal(mask, built_mask):
            return False
        nearest = radius + self.skin
        if not torch.equal(cell, built_cell):
            nearest = nearest * torch.linalg.svdvals(torch.linalg.solve(built_cell, cell)).min()
        moved = ((fractional - built_at) @ cell).norm(dim=-1)[mask]
        return bool(nearest - 2 * moved.max() > radius)
