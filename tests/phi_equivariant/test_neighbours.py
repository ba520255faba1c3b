"""Kept neighbour lists against matscipy's, which are made anew."""

import numpy as np
import pytest
from ase import Atoms
from matscipy.neighbours import neighbour_list

from phi_equivariant.engines.neighbours import NeighbourList

CUTOFF = 4.0


def pairs(senders, receivers, images):
    return sorted(zip(senders.tolist(), receivers.tolist(), *np.round(images).astype(int).T.tolist(), strict=True))


def crystal(pbc):
    """A skewed cell that is thinner than the cut-off."""
    atoms = Atoms("CONH", [[0, 0, 0], [1.7, 0.2, 0.1], [0.3, 1.6, 1.8], [1.9, 1.7, 1.4]], pbc=pbc)
    atoms.set_cell([[3.6, 0, 0], [0.7, 3.4, 0.2], [-0.4, 0.3, 3.8]])
    return atoms


@pytest.mark.parametrize("pbc", [True, False, [True, True, False]], ids=["bulk", "open", "slab"])
def test_lists_that_are_kept_while_atoms_move_and_are_wrapped(pbc):
    atoms, neighbours, rng = crystal(pbc), NeighbourList(CUTOFF, skin=0.5), np.random.default_rng(0)
    built = []
    for _ in range(30):
        atoms.positions += 0.03 * rng.normal(size=(4, 3))
        atoms.wrap()
        found = neighbours(atoms.positions, np.asarray(atoms.cell), atoms.pbc)
        assert pairs(*found) == pairs(*neighbour_list("ijS", atoms, CUTOFF))
        if neighbours.built_at is not (built[-1] if built else None):
            built.append(neighbours.built_at)
    assert 1 < len(built) < 12


def test_another_cell_makes_a_list_void():
    atoms, neighbours = crystal(True), NeighbourList(CUTOFF, skin=0.5)
    for change in (lambda a: a, lambda a: a.set_cell(a.cell * 1.3), lambda a: a.set_pbc([True, False, True])):
        change(atoms)
        found = neighbours(atoms.positions, np.asarray(atoms.cell), atoms.pbc)
        assert pairs(*found) == pairs(*neighbour_list("ijS", atoms, CUTOFF))
