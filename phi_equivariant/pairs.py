"""Pairs of atoms of one periodic cell, at a cost in proportion to their number."""

import torch

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
