"""Atoms that are so near each other that there is no energy."""

from collections.abc import Mapping

import numpy as np
import torch
from ase import Atoms
from ase.geometry import complete_cell

from phi_equivariant.errors import InputError

#: Å. Bare nuclei of hydrogen repel each other by 144 eV there, heavier ones by keV: nobody computes labels for that.
#: What comes nearer is an atom that is there twice, or a length in nm, in which the bond of H2 is 0.074. Compressed
#: molecules (H2 at 0.3 Å) are well above.
NEAREST = 0.1


def check_distances(atoms: Atoms, where: str) -> None:
    """InputError, naming the atoms, if two are nearer than ``NEAREST``, images in periodic directions counted.

    Parameters
    ----------
    atoms : with finite positions and a cell that :func:`phi_equivariant.inputs.cells.check_cells` accepts
    where : the structure's name in messages
    """
    pair = coinciding(atoms.positions, atoms.cell.array, atoms.pbc)
    if pair is not None:
        i, j, distance = pair
        symbols = atoms.symbols
        raise InputError(
            f"{where} has atoms that coincide: {i} ({symbols[i]}) and {j} ({symbols[j]}) are {distance:.3g} Å apart"
            f"{', images counted' if atoms.pbc.any() else ''}, and below {NEAREST} Å there is no energy. Remove one of "
            "them, or the frame; lengths must be in Å."
        )


def check_edges(data: Mapping[str, torch.Tensor]) -> None:
    """InputError, naming the atoms by their place in the batch, if neighbours are nearer than ``NEAREST``.

    Parameters
    ----------
    data : batch with mace's keys: positions (n_atoms, 3) and shifts (n_edges, 3) in Å, edge_index (2, n_edges), batch
        (n_atoms,)
    """
    sender, receiver = data["edge_index"]
    if not len(sender):
        return
    positions = data["positions"].detach()
    vectors = positions[receiver] - positions[sender] + data["shifts"].detach()
    nearest, edge = vectors.square().sum(1).min(0)
    if not float(nearest) >= NEAREST**2:
        i, j = int(sender[edge]), int(receiver[edge])
        of = f" of structure {int(data['batch'][i])}" if len(data["ptr"]) > 2 else ""
        raise InputError(
            f"atoms {i} and {j}{of} coincide: they are {float(nearest) ** 0.5:.3g} Å apart, images counted, and below "
            f"{NEAREST} Å there is no energy. A structure holds an atom twice, lengths are not in Å, or a simulation "
            "blew up."
        )


def coinciding(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, nearest: float = NEAREST
) -> tuple[int, int, float] | None:
    """Two atoms nearer than ``nearest`` and their distance in Å; None where there are none. O(n log n).

    Atoms are sorted into boxes of edge 4·``nearest`` four times, with the boxes moved by a quarter along the diagonal.
    Along each axis a face parts two atoms that near in at most one of the four; so in one of the four both share a box.

    Parameters
    ----------
    positions : (n_atoms, 3) in Å
    cell : (3, 3) in Å, with heights of 4·``nearest`` or more in periodic directions
    pbc : (3,)
    """
    basis = complete_cell(np.where(np.asarray(pbc)[:, None], cell, 0.0))  # orthonormal in open directions
    inverse = np.linalg.inv(basis)
    places = positions @ inverse
    boxes = np.where(pbc, np.floor(1 / (4 * nearest * np.linalg.norm(inverse, axis=0))), 1 / (4 * nearest))
    for quarter in range(4):
        box = np.floor(places * boxes + quarter / 4)
        box = np.where(pbc, box % np.maximum(boxes, 1), box)
        order = np.lexsort(box.T)
        box = box[order]
        for step in range(1, len(order)):
            (together,) = (box[step:] == box[:-step]).all(1).nonzero()
            if not len(together):
                break
            first, second = order[together], order[together + step]
            apart = places[second] - places[first]
            apart = np.where(pbc, apart - np.round(apart), apart) @ basis
            distances = np.linalg.norm(apart, axis=1)
            least = int(distances.argmin())
            if distances[least] < nearest:
                i, j = sorted((int(first[least]), int(second[least])))
                return i, j, float(distances[least])
    return None
