"""Pairs of atoms that are closer than a radius, in free space and across the faces of a cell; searched, and kept."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from phi_equivariant.division import WHOLE, Share

_PER_STEP = 10_000  # distances that are as fast to compute as it is to look at one more box around each
_CHUNK = 1_000_000  # distances looked at together
_PER_RADIUS = 2  # boxes along a radius: finer ones look at fewer pairs in vain, but there are more of them
_MOST_BOXES = 2**20  # along one direction: their numbers stay whole


class Pairs(NamedTuple):
    """Pairs of atoms: ``first``, ``second`` (n_pairs,), and ``images`` (n_pairs, 3), the whole numbers of cell vectors
    to add to ``second``, so that the vector between them is r_second − r_first + images · cell."""

    first: torch.Tensor
    second: torch.Tensor
    images: torch.Tensor

    def vectors(self, positions: torch.Tensor, cell: torch.Tensor) -> torch.Tensor:
        """From the first to the second atom of every pair, (n_pairs, 3) in Å: positions (n_atoms, 3), cell (3, 3)."""
        difference = positions.index_select(0, self.second) - positions.index_select(0, self.first)
        return difference + self.images @ cell


@torch.no_grad()
def find_pairs(
    radius: float, positions: torch.Tensor, cell: torch.Tensor, pbc: torch.Tensor, share: Share = WHOLE
) -> Pairs:
    """Every pair of atoms of one structure, and of an atom and its own images, closer than ``radius``, once.

    Time follows the number of atoms and neighbours: empty space, and where the atoms are in it, costs nothing.

    Parameters
    ----------
    radius: Å
    positions: (n_atoms, 3) in Å
    cell: (3, 3), rows are the cell vectors in Å; those of directions that are not periodic are not used
    pbc: (3,), True for periodic directions
    share: this process's of the pairs

    Returns
    -------
    ``Pairs`` in the order of the first atom: sums over them go through memory in order
    """
    cell, fractional = _frame(positions, cell, pbc)
    home = fractional.floor() * pbc
    heights = 1 / torch.linalg.inv(cell).norm(dim=0)  # between opposite faces
    n = len(positions)
    # Differences of coordinates are brought to ±½, so that a cell more than radius + ½ height away has none near.
    images = torch.where(pbc, (radius / heights + 0.5).floor(), 0).long().tolist()
    boxes = (_PER_RADIUS * heights / radius).floor().clamp(1, _MOST_BOXES).long()  # (3,) in each direction
    reach = (radius * boxes / heights).ceil().long().tolist()
    if n * (n + 1) // 2 * _number(images) <= _PER_STEP * max(30, _number(reach) // 2):
        found = _among_all(radius, fractional - home, cell, pbc, images, share)
    else:
        found = _in_boxes(radius, fractional - home, cell, pbc, boxes, reach, share.rows(n))
    first, second, shift = found
    order = first.argsort(stable=True)
    first, second, shift = first[order], second[order], shift[order]
    return Pairs(first, second, shift + home[first] - home[second])


def both_ways(radius: float, positions: torch.Tensor, cell: torch.Tensor, pbc: torch.Tensor) -> Pairs:
    """What ``find_pairs`` finds, and the same pairs from their second atom: a host's edges."""
    first, second, images = find_pairs(radius, positions, cell, pbc)
    order = torch.cat([first, second]).argsort(stable=True)
    both = torch.cat([first, second]), torch.cat([second, first]), torch.cat([images, -images])
    return Pairs(*(part[order] for part in both))


def _frame(positions: torch.Tensor, cell: torch.Tensor, pbc: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A cell (3, 3) with the periodic vectors of this one, at right angles to which it holds all atoms, and the
    atoms' coordinates in it (n_atoms, 3)."""
    if bool(pbc.all()):
        return cell, positions @ torch.linalg.inv(cell)
    periodic = cell[pbc]  # (m, 3)
    across = torch.eye(3, dtype=cell.dtype, device=cell.device)
    if len(periodic):
        across = torch.linalg.qr(periodic.mT, mode="complete")[0][:, len(periodic) :].mT  # (3 − m, 3)
    height = positions @ across.mT
    low = height.amin(0)
    cell = cell.clone()
    cell[~pbc] = (height.amax(0) - low + 1.0)[:, None] * across
    return cell, (positions - low @ across) @ torch.linalg.inv(cell)


def _number(reach: list[int]) -> int:
    """Of the cells, or boxes, that are up to so many steps away along each vector."""
    return math.prod(2 * m + 1 for m in reach)


_Found = tuple[torch.Tensor, ...]  # first and second atom, and cell vectors to add to the second


def _among_all(
    radius: float, fractional: torch.Tensor, cell: torch.Tensor, pbc: torch.Tensor, images: list[int], share: Share
) -> _Found:
    """A share of all pairs of atoms, in as many cells around as are wanted along each vector."""
    n, device = len(fractional), fractional.device
    grid = torch.cartesian_prod(*(torch.arange(-m, m + 1, device=device) for m in images))
    half = torch.triu_indices(n, n, device=device)
    first, second = half[:, share.rows(half.shape[1])]
    differences = fractional[second] - fractional[first]  # (n_half, 3)
    nearest = differences.round() * pbc
    differences = (differences - nearest) @ cell
    itself, middle, found = first == second, len(grid) // 2, []
    per_chunk = max(1, _CHUNK // max(1, len(first)))
    for start in range(0, len(grid), per_chunk):
        part = grid[start : start + per_chunk].to(cell.dtype)
        near = (differences + (part @ cell)[:, None]).square().sum(-1) < radius**2  # (n_images, n_half)
        # Of the two images ±n of an atom one is enough, and none of it at its own place.
        near[: max(0, middle + 1 - start)] &= ~itself
        image, pair = near.nonzero(as_tuple=True)
        found.append((first[pair], second[pair], part[image] - nearest[pair]))
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


def _in_boxes(
    radius: float,
    fractional: torch.Tensor,
    cell: torch.Tensor,
    pbc: torch.Tensor,
    count: torch.Tensor,
    reach: list[int],
    rows: slice,
) -> _Found:
    """Atoms are sorted into boxes, count (3,) along each vector; only those of boxes near each other are compared,
    across the cell's faces too. The first atoms are those of ``rows``."""
    device = fractional.device
    box = torch.minimum((fractional * count).long(), count - 1)  # (n_atoms, 3)
    stride = torch.stack([count[1] * count[2], count[2], torch.ones_like(count[0])])
    number, order = (box * stride).sum(1).sort()
    # Boxes that hold an atom: there may be many more.
    occupied, held = number.unique_consecutive(return_counts=True)
    starts = held.cumsum(0) - held
    everyone, box, found = torch.arange(len(fractional), device=device)[rows], box[rows], []
    for step in torch.cartesian_prod(*(torch.arange(-m, m + 1, device=device) for m in reach)):
        if tuple(step.tolist()) < (0, 0, 0):
            continue  # the opposite step finds the same pairs
        target = box + step
        image = target.div(count, rounding_mode="floor") * pbc
        target = target - image * count
        there = (target * stride).sum(1)
        slot = torch.searchsorted(occupied, there).clamp(max=len(occupied) - 1)
        inside = ((target >= 0) & (target < count)).all(1) & (occupied[slot] == there)
        many = held[slot] * inside  # (n_rows,) candidates of each atom
        row = torch.arange(len(many), device=device).repeat_interleave(many)
        rank = torch.arange(len(row), device=device) - (many.cumsum(0) - many).repeat_interleave(many)
        first, second = everyone[row], order[starts[slot[row]] + rank]
        if not bool(step.any()):
            later = first < second
            row, first, second = row[later], first[later], second[later]
        shift = image[row].to(cell.dtype)
        near = ((fractional[second] - fractional[first] + shift) @ cell).square().sum(1) < radius**2
        found.append((first[near], second[near], shift[near]))
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


class _Kept(NamedTuple):
    """Pairs, and the structure that they were found in."""

    radius: float
    positions: torch.Tensor
    cell: torch.Tensor
    pbc: torch.Tensor
    pairs: Pairs

    def wraps(
        self, radius: float, positions: torch.Tensor, cell: torch.Tensor, pbc: torch.Tensor, skin: float
    ) -> torch.Tensor | None:
        """Cell vectors by which atoms were moved since, (n_atoms, 3); None if another pair may have come near."""
        there = self.positions
        if radius != self.radius or (there.shape, there.dtype, there.device) != (
            positions.shape, positions.dtype, positions.device
        ):  # fmt: skip
            return None
        nearest = radius + skin
        if not torch.equal(pbc, self.pbc):
            return None
        if not torch.equal(cell[pbc], self.cell[pbc]):
            if not bool(pbc.all()):
                return None
            change = torch.linalg.solve(self.cell, cell)
            nearest, there = nearest * float(torch.linalg.svdvals(change).min()), there @ change
        moved, wraps = positions - there, torch.zeros_like(positions)
        if bool(pbc.any()):
            completed = cell if bool(pbc.all()) else _frame(positions, cell, pbc)[0]
            wraps = (moved @ torch.linalg.inv(completed)).round() * pbc
            moved = moved - wraps @ completed
        farthest = float(moved.square().sum(1).max().sqrt())
        return wraps if nearest - 2 * farthest > radius else None


class KeptPairs:
    """A search for simulations: lists that reach further are kept until another pair might have come near.

    Each call gives the pairs that a fresh search would find. A deformation of the cell whose least singular value is σ
    leaves no pair nearer than σ times its old distance, and atoms that move by u in addition, 2u less. Programs that
    wrap atoms back into the cell do not make a list void. A few lists are kept for each place in a batch, so that the
    images of a band, or threads, do not take each other's.

    Parameters
    ----------
    search: ``find_pairs`` or ``both_ways``
    skin: Å by which a list reaches further
    """

    most_lists, most_pairs = 8, 500_000  # kept for one place, all lists together; one is always kept

    def __init__(self, search: Callable[..., Pairs] = find_pairs, skin: float = 0.5) -> None:
        self.search, self.skin = search, skin
        self._kept: dict[tuple[int, Share], tuple[_Kept, ...]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Copies and files do without the lists."""
        return {"search": self.search, "skin": self.skin, "_kept": {}}

    def latest(self, place: int = 0) -> object:
        """What the list that was used last was made for; None before the first."""
        return next((kept.positions for kept in self._kept.get((place, WHOLE), ())), None)

    @torch.no_grad()
    def __call__(
        self,
        radius: float,
        positions: torch.Tensor,
        cell: torch.Tensor,
        pbc: torch.Tensor,
        place: int = 0,
        share: Share = WHOLE,
    ) -> Pairs:
        """A share of what the search finds: place is the structure's in its batch."""
        lists, wraps = self._kept.get((place, share), ()), None
        for index, kept in enumerate(lists):
            wraps = kept.wraps(radius, positions, cell, pbc, self.skin)
            if wraps is not None:
                lists = (kept, *lists[:index], *lists[index + 1 :])
                break
        if wraps is None:
            pairs = self.search(radius + self.skin, positions, cell, pbc, *(() if share is WHOLE else (share,)))
            wraps = torch.zeros_like(positions)
            lists = (_Kept(radius, positions.clone(), cell.clone(), pbc.clone(), pairs), *lists)
            while len(lists) > 1 and (
                len(lists) > self.most_lists or sum(len(one.pairs.first) for one in lists) > self.most_pairs
            ):
                lists = lists[:-1]
        self._kept[place, share] = lists  # in one step: threads see the old lists or the new ones
        pairs = lists[0].pairs
        if bool(wraps.any()):
            first, second, images = pairs
            images = images + wraps.index_select(0, first) - wraps.index_select(0, second)
            pairs = Pairs(first, second, images)
        near = pairs.vectors(positions, cell.where(pbc[:, None], 0.0)).square().sum(1) < radius**2
        return Pairs(*(part[near] for part in pairs))
