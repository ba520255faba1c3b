"""Searches for pairs, and lists that are kept, against ase's and matscipy's, which are made anew."""

import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.neighborlist import primitive_neighbor_list
from matscipy.neighbours import neighbour_list
from systems import batch_of, distorted, ethanol, mace_host

from phi_equivariant.division import WHOLE, ShareOfProcesses
from phi_equivariant.engines.inference import ModelInput
from phi_equivariant.engines.neighbours import NeighbourList
from phi_equivariant.pairs import KeptPairs, both_ways, find_pairs

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


@pytest.mark.parametrize("n", [1, 2, 20, 150])
@pytest.mark.parametrize("pbc", [[1, 1, 1], [0, 0, 0], [1, 1, 0], [0, 1, 0], [1, 0, 1]], ids=str)
def test_searches_equal_ases_in_every_kind_of_cell(n, pbc):
    """Few atoms and many, in and far out of the cell, radii below and above its size."""
    rng = np.random.default_rng(n)
    cell = np.array([[9.0, 0, 0], [1.3, 8.5, 0.2], [-1.8, 0.5, 7.0]])
    positions, pbc = rng.uniform(-1, 2, (n, 3)) @ cell, np.array(pbc, bool)
    for radius in (1.5, 4.0, 11.0) if n < 100 else (1.5, 4.0):
        found = both_ways(radius, *map(torch.tensor, (positions, cell, pbc)))
        want = primitive_neighbor_list("ijS", pbc, cell, positions, radius, self_interaction=False)
        assert pairs(*(part.numpy() for part in found)) == pairs(*want)
        vectors = found.vectors(torch.tensor(positions), torch.tensor(cell))
        assert (vectors.norm(dim=1) < radius).all()


@pytest.mark.parametrize("n", [5, 150], ids=["all pairs", "boxes"])
def test_shares_of_a_search_are_all_of_it(n):
    cell = np.array([[9.0, 0, 0], [1.3, 8.5, 0.2], [-1.8, 0.5, 7.0]])
    positions = np.random.default_rng(n).uniform(-1, 2, (n, 3)) @ cell
    about = 4.0, *map(torch.tensor, (positions, cell, [True, True, False]))
    shares = [ShareOfProcesses(SimpleNamespace(rank=rank, size=7)) for rank in range(7)]
    parts = [find_pairs(*about, share) for share in shares]
    numbers = [len(part.first) for part in parts]
    assert n < 7 or max(numbers) < 2 * min(numbers)
    whole, together = find_pairs(*about), (torch.cat(values) for values in zip(*parts, strict=True))
    assert pairs(*(part.numpy() for part in whole)) == pairs(*(part.numpy() for part in together))


@pytest.mark.parametrize("size", [3, 300], ids=["all pairs", "boxes"])
@pytest.mark.parametrize("pbc", [[False] * 3, [True, False, False]], ids=["open", "wire"])
def test_empty_space_and_where_atoms_are_in_it_cost_nothing(size, pbc):
    """Two molecules, or two crowds, 10⁶ Å apart, or a stored cell of 10⁵ Å: the lists of what is there, at once."""
    rng = np.random.default_rng(0)
    positions = rng.uniform(0, 3 if size == 3 else 12, (size, 3))
    far = np.concatenate([positions, positions + [0, 1e6, 237.0]])
    cell, pbc = np.diag([40.0, 1e5, 1e5]), np.array(pbc)
    start = time.process_time()
    found = NeighbourList(CUTOFF, 0.5)(far, cell, pbc)
    assert time.process_time() - start < 2.0
    near = NeighbourList(CUTOFF, 0.5)(positions, cell, pbc)
    assert len(found[0]) == 2 * len(near[0]) > 0
    assert pairs(*(part[: len(near[0])] for part in found)) == pairs(*near)


def test_a_cell_that_changes_a_little_keeps_its_list():
    atoms, neighbours = crystal(True), NeighbourList(CUTOFF, skin=0.5)
    built = []
    for factor in (1.0, 1.01, 0.99, 1.02, 0.8):
        atoms.set_cell(factor * crystal(True).cell, scale_atoms=True)
        found = neighbours(atoms.positions, np.asarray(atoms.cell), atoms.pbc)
        assert pairs(*found) == pairs(*neighbour_list("ijS", atoms, CUTOFF))
        built.append(neighbours.built_at)
    assert built[0] is built[1] is built[2] is built[3] is not built[4]


def test_structures_that_take_turns_do_not_take_each_others_lists():
    """Images of a band on one calculator: each is searched in once, while they move a little."""
    searches = []

    def counted(*about):
        searches.append(about[0])
        return both_ways(*about)

    kept, rng = KeptPairs(counted), np.random.default_rng(0)
    images = [crystal(True) for _ in range(6)]
    for number, image in enumerate(images):
        image.positions += 0.5 * number * rng.normal(size=image.positions.shape)
    for _ in range(5):
        for image in images:
            image.positions += 0.01 * rng.normal(size=image.positions.shape)
            found = kept(CUTOFF, *map(torch.tensor, (image.positions, image.cell.array, image.pbc)))
            assert pairs(*(part.numpy() for part in found)) == pairs(*neighbour_list("ijS", image, CUTOFF))
    assert len(searches) == len(images)


def test_few_lists_are_kept_of_large_structures():
    kept, rng = KeptPairs(find_pairs), np.random.default_rng(0)
    kept.most_pairs = 100
    for number in range(4):
        for n in (4, 40):
            positions = torch.tensor(rng.uniform(0, 6, (n, 3)))
            kept(CUTOFF, positions, torch.eye(3, dtype=torch.float64), torch.tensor([False] * 3), place=n)
        assert len(kept._kept[40, WHOLE]) == 1 and len(kept._kept[4, WHOLE]) == number + 1


@pytest.mark.parametrize("pbc", [False, True, (True, True, False)])
def test_live_structures_and_maces_pipeline_give_the_same_batch(double, pbc):
    """Field by field, with the edges in one order; cells of open directions are made up by mace."""
    first, second = molecule("H2O"), distorted(ethanol())
    for atoms in (first, second):
        atoms.set_cell([[5.0, 0.3, 0.0], [0.0, 6.0, 0.4], [0.2, 0.0, 7.0]])
        atoms.pbc = pbc
    theirs, ours = batch_of(first, second), ModelInput(mace_host("8x0e", 1))([first, second])
    assert {"positions", "node_attrs", "edge_index", "shifts", "cell", "pbc", "batch", "ptr", "head"} <= set(ours)
    order = {}
    for name, batch in (("theirs", theirs), ("ours", ours)):
        rows = torch.cat([batch["edge_index"].T.double(), batch["unit_shifts"]], dim=1).round().tolist()
        order[name] = torch.tensor(sorted(range(len(rows)), key=rows.__getitem__))
    for key in ours:
        here, there = ours[key], theirs[key]
        if key == "edge_index":
            here, there = here[:, order["ours"]], there[:, order["theirs"]]
        elif key in ("shifts", "unit_shifts"):
            here, there = here[order["ours"]], there[order["theirs"]]
        elif key == "cell":
            here, there = here[ours["pbc"].flatten()], there[ours["pbc"].flatten()]
        torch.testing.assert_close(here, there.to(here.dtype).view_as(here), rtol=0, atol=1e-12)
