"""Where lattice sums are split: energies do not see it, costs follow the number of atoms, pairs are kept."""

import math
import resource
import time

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from bare_operators import operator_of
from systems import batch_of, ethanol, mace_host, potential, structures_of
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from phi_equivariant import PhiCalculator
from phi_equivariant.operators.coulomb import COULOMB_CONSTANT, GaussianCoulomb
from phi_equivariant.operators.splitting import Splitting

pytestmark = pytest.mark.usefixtures("double")


def cluster(n=60, edge=None, seed=0):
    """Atoms of a molecule's density around one place, in a cubic cell."""
    rng = np.random.default_rng(seed)
    atoms = Atoms(numbers=rng.integers(1, 3, n), positions=rng.uniform(-1, 1, (n, 3)) * 0.5 * (n / 0.05) ** (1 / 3))
    if edge is not None:
        atoms.set_cell([edge] * 3)
        atoms.pbc = True
    return atoms


def energy(operator, atoms, charges):
    """½ qPq of one structure."""
    return 0.5 * (charges * operator.at(structures_of(atoms, elements=[1, 2])).product(charges)).sum().item()


def charges_of(atoms):
    """Of both signs, neutral."""
    charges = torch.randn(len(atoms), 1, generator=torch.Generator().manual_seed(0))
    return charges - charges.mean()


@pytest.mark.parametrize("edge", [10.0, 30.0, 100.0, 1000.0])
def test_the_energy_in_a_box_does_not_depend_on_the_splitting(edge):
    atoms = cluster(30, edge)
    charges, chosen = charges_of(atoms), operator_of(0.4, 0.7)
    s = chosen.splitting.with_waves(edge**3, 30, keep=False)
    energies = [energy(operator_of(0.4, 0.7, splitting=factor * s), atoms, charges) for factor in (0.8, 1.0, 1.25)]
    np.testing.assert_allclose(energies, energy(chosen, atoms, charges), rtol=1e-11)


@pytest.mark.parametrize(
    "cell",
    [[6.0, 6.0, 300.0], [40.0, 40.0, 5.0], [[7, 0, 0], [5, 6, 0], [-6, 4, 90.0]]],
    ids=["long", "flat", "skewed"],
)
def test_flat_and_long_boxes_too(cell):
    atoms = cluster(12)
    atoms.set_cell(cell)
    atoms.pbc = True
    charges = charges_of(atoms)
    energies = [energy(operator_of(0.4, 0.7, splitting=s), atoms, charges) for s in (None, 1.5, 2.0)]
    np.testing.assert_allclose(energies, energies[0], rtol=1e-11)


def test_a_molecule_in_a_growing_box_becomes_an_open_one():
    """What is left is how the cells' dipoles interact, 2π k_e μ²/3V (Makov and Payne, 1995), and then rounding."""
    operator, atoms = operator_of(0.4, 0.7), cluster(60)
    charges, want = charges_of(atoms), energy(operator_of(0.4, 0.7), cluster(60), charges_of(atoms))
    dipole = (charges.numpy()[:, 0] @ atoms.positions).round(15)
    for edge in (100.0, 300.0, 1000.0):
        added = energy(operator, cluster(60, edge), charges) - want
        expected = -2 * math.pi / 3 * COULOMB_CONSTANT * (dipole @ dipole) / edge**3
        assert added == pytest.approx(expected, rel=0.1, abs=1e-11 * abs(want))


@pytest.mark.parametrize(("n", "large"), [(60, False), (200, True), (1200, True)])
def test_empty_space_costs_nothing(n, large):
    """Waves, or mesh points, and pairs: as many for a box of 1000 Å as for one of 100 Å, about."""
    operator, counts = GaussianCoulomb([1, 2]).eval(), []
    for edge in (100.0, 300.0, 1000.0):
        part = operator.at(structures_of(cluster(n, edge), elements=[1, 2])).parts[0][1]
        assert part.dense == (not large)
        points = math.prod(part.smooth.mesh.size) if large else part.smooth.weights.shape[1]
        counts.append((points, len(part.near.pairs.first)))
    counts = np.array(counts)
    assert (counts[:, 0] < (2000 * n if large else 1000)).all()
    assert (counts[:, 1] <= max(10 * n**2, 300 * n)).all() and counts[2, 1] <= 1.3 * counts[1, 1]


def test_a_droplet_in_a_large_box_has_fewer_pairs_than_all():
    operator, atoms = GaussianCoulomb([1, 2]).eval(), cluster(4000, 200.0)
    part = operator.at(structures_of(atoms, elements=[1, 2])).parts[0][1]
    assert len(part.near.pairs.first) < 4000**2 / 8 and math.prod(part.smooth.mesh.size) < 1.2e7


def test_the_rule():
    choose = Splitting()
    for volume, want in ((100.0, 1.5), (1000.0, 1.8), (1e6, 18.0), (1e9, 180.0)):
        assert choose.with_waves(volume, 10, keep=False) == pytest.approx(want, rel=2 ** (1 / 8) - 1 + 1e-9)
    water = bulk("O", "sc", a=2.2) * (6, 6, 6)
    for scale in (1.0, 4.0):
        atoms = water.copy()
        atoms.set_cell(scale * atoms.cell, scale_atoms=True)
        volume = atoms.get_volume()
        s = choose.with_mesh(torch.tensor(atoms.positions), volume, keep=False)
        assert s == pytest.approx(max(1.0, 0.46 * (volume / len(atoms)) ** (1 / 3)), rel=2 ** (1 / 8) - 1 + 0.05)


def test_a_breathing_cell_keeps_its_splitting():
    """Up and down by a fifth of its volume, across where the rounding changes."""
    choose, found = Splitting(), set()
    edge = 1.5 * 2 ** (1.5 / 4) / 0.18  # between two steps
    for step in range(40):
        found.add(choose.with_waves((edge * (1 + 0.03 * math.sin(step))) ** 3, 50, keep=True))
    assert len(found) == 1
    assert choose.with_waves((1.5 * edge) ** 3, 50, keep=True) not in found
    fresh = {choose.with_waves((edge * (1 + 0.03 * math.sin(s))) ** 3, 50, keep=False) for s in range(40)}
    assert len(fresh) == 2, "this must be where it is rounded up and down"


def test_simulations_at_constant_pressure_keep_their_pairs():
    """Volume and shape change at every step; pairs are searched for a few times, the energy is that of fresh ones."""
    operator, fresh = operator_of(0.4, 0.7).eval(), operator_of(0.4, 0.7).train()
    searches, search, rng = [], operator.kept_pairs.search, np.random.default_rng(0)
    operator.kept_pairs.search = lambda *about: searches.append(about[0]) or search(*about)
    atoms, charges = cluster(40, 11.0), charges_of(cluster(40))
    for step in range(40):
        strain = 0.004 * math.sin(0.5 * step) * np.eye(3) + 5e-4 * rng.normal(size=(3, 3))
        atoms.set_cell(atoms.cell @ (np.eye(3) + strain), scale_atoms=True)
        atoms.positions += 0.003 * rng.normal(size=atoms.positions.shape)
        assert energy(operator, atoms, charges) == pytest.approx(energy(fresh, atoms, charges), rel=1e-11)
    assert 1 <= len(searches) <= 4


def seconds(run, repeats=5):
    """The fastest of a few."""
    found = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        found.append(time.process_time() - start)
    return min(found)


def test_a_molecule_in_a_box_of_1000_angstrom_takes_twice_an_open_ones_time_and_memory_at_most():
    """First steps of a calculator, lists of neighbours and all."""
    model = potential(host=mace_host("8x0e", num_interactions=1)).eval()
    ethanols = sum((one for one in rotated(7)), Atoms())
    boxed = ethanols.copy()
    boxed.set_cell([1000.0] * 3)
    boxed.pbc = True

    def first_step(atoms):
        return lambda: PhiCalculator(model).calculate(atoms)

    first_step(ethanols)(), first_step(boxed)()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ratio = seconds(first_step(boxed)) / seconds(first_step(ethanols))
    assert ratio < 2.5, "1.3 where nothing else runs"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000, "KiB"


def rotated(n):
    """Ethanol molecules on a line, each another way round."""
    for i in range(n):
        atoms = ethanol()
        atoms.rotate(50 * i, "xyz"[i % 3])
        atoms.translate([4.5 * i, 0, 0])
        yield atoms


class Work(TorchDispatchMode):
    """Counts the elements of everything that torch's operations return: time and memory without the machine's load."""

    def __init__(self):
        super().__init__()
        self.elements = self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(found) if isinstance(leaf, torch.Tensor)]
        self.elements += sum(sizes)
        self.largest = max(self.largest, *sizes, 0)
        return found


def test_a_large_box_among_small_cells_takes_the_work_of_its_parts():
    """Energies, forces, stress and the gradient of a loss on forces; benchmarks/company.py has the time."""
    model = potential(host=mace_host("4x0e", num_interactions=1))
    small = [bulk("NC", "rocksalt", a=7.0, cubic=True) for _ in range(15)]
    large = molecule("C60")
    large.set_cell([60.0] * 3)
    large.pbc = True
    mixed, parts = batch_of(large, *small), [batch_of(large), batch_of(*small)]

    def work(*batches):
        with Work() as found:
            for batch in batches:
                out = model(dict(batch), compute_stress=True, training=True)
                (out["energy"].square().sum() + out["forces"].square().sum()).backward()
        return found

    for _ in range(2):  # TorchScript's first calls are others
        work(mixed), work(*parts)
    whole, apart = work(mixed), work(*parts)
    assert apart.elements > 1e7 and whole.elements < 1.05 * apart.elements
    assert whole.largest < 1.5 * apart.largest
    together = model(dict(mixed))["energy"].detach()
    alone = torch.cat([model(dict(batch))["energy"].detach() for batch in parts])
    np.testing.assert_allclose(together, alone, rtol=1e-12)
