"""Atoms at one place, and structures without their empty space, against ase's own neighbour lists."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.neighborlist import primitive_neighbor_list
from systems import ethanol, mace_host, potential

from phi_equivariant import PhiCalculator
from phi_equivariant.errors import InputError
from phi_equivariant.inputs.distances import NEAREST, check_distances, coinciding
from phi_equivariant.inputs.empty_space import compact, mostly_empty


def random_structures(count, seed):
    """Positions, a skew cell that is not thin, periodic directions."""
    rng = np.random.default_rng(seed)
    while count:
        cell = rng.normal(size=(3, 3)) * rng.uniform(2, 9)
        if (1 / np.linalg.norm(np.linalg.inv(cell), axis=0)).min() > 0.6:
            count -= 1
            yield rng, rng.uniform(-10, 10, (rng.integers(1, 40), 3)), cell, rng.random(3) < 0.5


def test_pairs_that_coincide_are_those_of_ases_list():
    """Planted pairs at 0.08 to 0.12 Å, across faces of the cell too, are found below the limit and not above."""
    seen = set()
    for rng, positions, cell, pbc in random_structures(150, 1):
        if len(positions) > 1:
            i, j = rng.choice(len(positions), 2, replace=False)
            step = rng.normal(size=3)
            step *= rng.uniform(0.8, 1.2) * NEAREST / np.linalg.norm(step)
            positions[i] = positions[j] + step + (rng.integers(-2, 3, 3) * pbc) @ cell
        found = coinciding(positions, cell, pbc)
        senders, receivers, lengths = primitive_neighbor_list("ijd", pbc, cell, positions, NEAREST)
        assert (found is not None) == (len(lengths) > 0)
        if found is not None:
            assert {*found[:2]} == {senders[0], receivers[0]} and found[2] == pytest.approx(lengths[0], abs=1e-12)
        seen.add(found is None)
    assert seen == {True, False}


def test_coinciding_atoms_are_named():
    for atoms in (
        Atoms("HOO", [[1, 0, 0], [0, 0, 0], [6, 0, 0]], cell=[6, 6, 6], pbc=True),
        Atoms("HOO", [[1, 0, 0], [0, 0, 0], [0.05, 0, 0]]),
        Atoms("HOO", [[1, 0, 0], [0, 0, 0], [0, 0, 5.99]], cell=[6, 6, 6], pbc=[False, False, True]),
    ):
        with pytest.raises(InputError, match=r"frame 7 has atoms that coincide: 1 \(O\) and 2 \(O\) are 0"):
            check_distances(atoms, "frame 7")
    for atoms in (
        Atoms("H2", [[0, 0, 0], [0.3, 0, 0]]),
        Atoms("OO", [[0, 0, 0], [6, 0, 0]], cell=[6, 6, 6]),
        Atoms("H", cell=[1, 1, 1], pbc=True),
        Atoms("OO", [[0, 0, 0], [6, 0, 0]], cell=[6, 6, 6], pbc=[False, True, True]),
    ):
        check_distances(atoms, "frame 7")


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("phi", [True, False])
def test_calculators_refuse_atoms_at_one_place(phi):
    model = potential() if phi else mace_host("4x0e", correlation=1)
    atoms = Atoms("HOO", [[1, 0, 0], [0, 0, 0], [6, 0, 0]], cell=[6, 6, 6], pbc=True)
    atoms.calc = PhiCalculator(model)
    with pytest.raises(InputError, match="atoms .* coincide: they are 0 Å apart"):
        atoms.get_potential_energy()
    atoms.positions[2, 0] = 3.0
    assert np.isfinite(atoms.get_potential_energy())
    near = Atoms("H2", [[0, 0, 0], [0, 0, 0.3]], calculator=PhiCalculator(model))
    assert np.isfinite(near.get_forces()).all()


@pytest.mark.usefixtures("double")
def test_a_batch_names_the_structure():
    calculator = PhiCalculator(potential())
    twice = ethanol()
    twice.positions[4] = twice.positions[2] + [0, 0.02, 0]
    with pytest.raises(InputError, match="atoms 11 and 13 of structure 1 coincide|atoms 13 and 11 of structure 1"):
        calculator.model(calculator.input([ethanol(), twice]))


def edges(positions, cell, pbc, cutoff):
    senders, receivers, images = primitive_neighbor_list("ijS", pbc, cell, positions, cutoff)
    return sorted(map(tuple, np.column_stack([senders, receivers, images]).astype(int).tolist()))


def test_neighbours_without_the_empty_space_are_the_same():
    """Every cell, vacuum on any side, pieces far apart: the same pairs and images after the images are put back."""
    opened = set()
    for number, (rng, positions, cell, pbc) in enumerate(random_structures(200, 2)):
        cutoff, cell = rng.uniform(1, 4), cell * rng.uniform(1, 6)
        if number % 3 == 0:
            positions[: len(positions) // 2] += rng.normal(size=3) * 100 * ~pbc
        small = compact(positions, cell, pbc, cutoff)
        senders, receivers, images = primitive_neighbor_list("ijS", [True] * 3, small.cell, small.positions, cutoff)
        assert not images[:, small.opened].any()
        images = images + small.wraps[receivers] - small.wraps[senders]
        found = sorted(map(tuple, np.column_stack([senders, receivers, images]).astype(int).tolist()))
        assert found == edges(positions, cell, pbc, cutoff)
        opened.add((int(pbc.sum()), int(small.opened.sum())))
    assert (3, 0) in opened and any(periodic and periodic + free > 3 for periodic, free in opened)


def test_how_small_a_molecule_in_a_large_box_becomes():
    positions = molecule("C60").positions
    for moved, edge in ((0.0, 1000.0), (500.0, 1000.0), (237.0, 1e5)):
        for pbc in (True, False):
            small = compact(positions + moved, np.eye(3) * edge, np.array([pbc] * 3), 5.0)
            assert np.linalg.norm(small.cell, axis=1).max() < np.ptp(positions, axis=0).max() + 5.1
            if pbc or moved:
                assert mostly_empty(positions + moved, np.eye(3) * edge, np.array([pbc] * 3), 5.0)
    assert not mostly_empty(positions, np.eye(3) * 10, np.array([True] * 3), 5.0)


@pytest.mark.usefixtures("double")
def test_edges_that_are_near_but_not_too_near():
    """The potential itself, for programs that bring their own neighbour lists."""
    calculator = PhiCalculator(potential())
    batch = calculator.input([ethanol()])
    assert torch.isfinite(calculator.model(batch)["energy"]).all()
    batch["positions"] = batch["positions"].clone()
    batch["positions"][1] = batch["positions"][0]
    with pytest.raises(InputError, match="coincide"):
        calculator.model(batch)
