"""Sums that need no matrix: splines on a mesh, pairs in boxes, the particle mesh and tiles, against other libraries,
the dense matrix and finite differences."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.neighborlist import primitive_neighbor_list
from bare_operators import matrix_of, operator_of, triclinic
from systems import structures_of
from torchpme.lib.mesh_interpolator import MeshInterpolator

from phi_equivariant.operators import free_space
from phi_equivariant.operators.coulomb import COULOMB_CONSTANT
from phi_equivariant.operators.mesh import SLOPES, VALUE, Stencils, read, spread
from phi_equivariant.pairs import both_ways, find_pairs
from phi_equivariant.solvers.partwise import sum_of_parts

pytestmark = pytest.mark.usefixtures("double")
WIDTHS = (0.3, 0.5, 0.8, 1.1, 1.19)


def crowd(n=60, seed=0):
    """Atoms anywhere in and out of a skewed cell, none closer than chance has it."""
    rng = np.random.default_rng(seed)
    cell = np.array([[9.0, 0, 0], [1.3, 8.5, 0.2], [-1.8, 0.5, 7.0]])
    return Atoms(numbers=rng.integers(1, 6, n), positions=rng.uniform(-1, 2, (n, 3)) @ cell, cell=cell, pbc=True)


def product_of(operator, atoms):
    """The operator's map without a matrix."""
    operator.mesh_from = operator.mesh_from_in_training = operator.tiles_from = 0
    bound = operator.at(structures_of(atoms, elements=list(range(1, 10))))
    assert not bound.parts[0][1].dense
    return bound.product


def test_splines_equal_torch_pmes():
    torch.manual_seed(0)
    size, place, mesh = (7, 6, 8), 5 * torch.rand(9, 3), torch.randn(2, 7, 6, 8)
    theirs = MeshInterpolator(torch.diag(torch.tensor(size) * 1.0), torch.tensor(size), 5, "P3M")
    theirs.compute_weights(place)
    # Theirs are centred on the atom, ours begin there.
    stencils, values = Stencils(place + 2.5, size, 5), torch.randn(9, 2)
    np.testing.assert_allclose(read(stencils, mesh)[..., 0], theirs.mesh_to_points(mesh), atol=1e-14)
    np.testing.assert_allclose(spread(stencils, values[..., None]), theirs.points_to_mesh(values), atol=1e-14)


def test_spreading_and_reading_are_twice_differentiable():
    torch.manual_seed(0)
    place = (torch.rand(3, 3) * torch.tensor([5.0, 4, 6])).requires_grad_()
    values, mesh = torch.randn(3, 2, 4, requires_grad=True), torch.randn(2, 5, 4, 6, requires_grad=True)
    orders = (*VALUE, *SLOPES)
    for function, inputs in (
        (lambda u, q: spread(Stencils(u, (5, 4, 6), 6), q, orders).square(), (place, values)),
        (lambda u, g: read(Stencils(u, (5, 4, 6), 6), g, orders).square(), (place, mesh)),
    ):
        assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
        assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("radius", [1.5, 4.0, 11.0])
def test_pairs_equal_ases_neighbour_list(radius):
    """Every pair once, in cells that are wider and in cells that are thinner than the radius."""
    atoms = crowd(20)
    about = map(torch.tensor, (atoms.positions, atoms.cell.array, atoms.pbc))
    ours = np.c_[tuple(part.numpy() for part in both_ways(radius, *about))].astype(int)
    i, j, s = primitive_neighbor_list("ijS", atoms.pbc, atoms.cell[:], atoms.positions, radius, self_interaction=False)
    theirs = np.c_[i, j, s]
    assert len(ours) == len(theirs)
    np.testing.assert_array_equal(np.unique(ours, axis=0), np.unique(theirs, axis=0))


@pytest.mark.parametrize("atoms", [crowd(), triclinic(), crowd(1)], ids=["crowd", "thin cell", "one atom"])
def test_particle_mesh_equals_the_matrix(atoms):
    operator, charges = operator_of(*WIDTHS), torch.randn(len(atoms), 3, generator=torch.Generator().manual_seed(0))
    want = matrix_of(operator, atoms)[0] @ charges
    got = product_of(operator, atoms)(charges)
    np.testing.assert_allclose(got.detach(), want.detach(), rtol=0, atol=1e-8 * want.abs().max().item())


def test_kept_pairs_give_the_potential_of_a_fresh_search():
    """Atoms that walk, in and out of the cell, and then a cell that shrinks."""
    searches = []

    def counted(*arguments):
        searches.append(arguments[0])
        return find_pairs(*arguments)

    keeps, fresh, atoms = operator_of(*WIDTHS).eval(), operator_of(*WIDTHS).train(), crowd()
    keeps.kept_pairs.search = counted
    charges, rng = torch.randn(len(atoms), 1, generator=torch.Generator().manual_seed(0)), np.random.default_rng(0)
    for step in range(8):
        atoms.positions += 0.02 * rng.normal(size=atoms.positions.shape)
        if step == 4:
            atoms.set_cell(0.95 * atoms.cell, scale_atoms=True)
        torch.testing.assert_close(product_of(keeps, atoms)(charges), product_of(fresh, atoms)(charges))
    assert 2 <= len(searches) < 5


def test_particle_mesh_in_single_precision():
    atoms, charges = crowd(), torch.randn(60, 1, generator=torch.Generator().manual_seed(0))
    want = matrix_of(operator_of(*WIDTHS), atoms)[0] @ charges
    operator = operator_of(*WIDTHS).float()
    structures = structures_of(atoms, elements=list(range(1, 10)))
    structures = dataclasses.replace(structures, positions=structures.positions.float(), cell=structures.cell.float())
    operator.mesh_from_in_training = 0
    got = operator.at(structures).product(charges.float())
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.detach(), want.detach(), rtol=0, atol=1e-5 * want.abs().max().item())


def test_the_mesh_does_not_move_the_potential_where_its_size_changes():
    """As the cell grows, the numbers of mesh points jump; energies do not."""
    operator, charges = operator_of(0.4, 0.6, splitting=1.0), torch.tensor([[1.0], [-1.0]])
    energies, sizes = [], set()
    for edge in np.linspace(8.0, 8.0004, 5):
        atoms = Atoms("HHe", positions=[[0, 0, 0], [1.1, 0.3, 0.2]], cell=[edge - 2e-4] * 3, pbc=True)
        product = product_of(operator, atoms)
        sizes.add(tuple(product.__self__.parts[0][1].smooth.mesh.size))
        energies.append((charges * product(charges)).sum().item())
    assert len(sizes) > 1, "the size of the mesh must change in this test"
    assert np.abs(np.diff(energies, 2)).max() < 1e-8


def test_particle_mesh_is_twice_differentiable_in_positions_cell_widths_and_charges():
    operator, atoms = operator_of(0.4, 0.9), triclinic(n=3, numbers=(1, 2, 1))
    structures = structures_of(atoms, elements=[1, 2])
    operator.mesh_from_in_training = 0

    def product(positions, cell, charges):
        return operator.at(dataclasses.replace(structures, positions=positions, cell=cell[None])).product(charges)

    operator.forward = product

    def potential(positions, cell, charges, logit):
        return torch.func.functional_call(operator, {"width_logit": logit}, (positions, cell, charges))

    charges = torch.tensor([[0.7], [-0.3], [0.2]])
    inputs = torch.tensor(atoms.positions), torch.tensor(np.asarray(atoms.cell)), charges, operator.width_logit.detach()
    inputs = [x.clone().requires_grad_(True) for x in inputs]
    # The mesh is good to 1e-8, the finite differences of the check to no more than that over their step.
    assert torch.autograd.gradcheck(potential, inputs, fast_mode=True, eps=1e-4, atol=1e-4)
    assert torch.autograd.gradgradcheck(potential, inputs, fast_mode=True, eps=1e-4, atol=1e-3)


@pytest.mark.parametrize("tile", [7, 64, 10**6])
def test_tiles_equal_the_matrix(tile, monkeypatch):
    monkeypatch.setattr(free_space, "_TILE", tile)
    atoms = crowd(23)
    atoms.pbc = False
    operator, charges = operator_of(*WIDTHS), torch.randn(23, 3, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(
        product_of(operator, atoms)(charges).detach(), (matrix_of(operator, atoms)[0] @ charges).detach(), rtol=1e-12
    )


def test_tiles_are_twice_differentiable(monkeypatch):
    monkeypatch.setattr(free_space, "_TILE", 5)
    torch.manual_seed(0)
    inputs = [x.requires_grad_(True) for x in (torch.randn(4, 3), 0.1 + torch.rand(4), torch.randn(4, 2))]
    structures = structures_of(Atoms("H4", positions=np.eye(4)[:, :3]))

    def potential(positions, width_squared, charges):
        moved = dataclasses.replace(structures, positions=positions)
        return free_space.FreeSpaceTiles(moved, width_squared).product(charges)

    assert torch.autograd.gradcheck(potential, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(potential, inputs, fast_mode=True)


def test_two_far_charges_and_one_alone():
    operator = operator_of(0.4)
    far = product_of(operator, Atoms("HH", positions=[[0, 0, 0], [0, 0, 50.0]]))(torch.tensor([[1.0], [0.0]]))
    alone = product_of(operator, Atoms("H"))(torch.tensor([[1.0]]))
    np.testing.assert_allclose(far[1].item(), COULOMB_CONSTANT / 50, rtol=1e-12)
    np.testing.assert_allclose([far[0].item(), alone.item()], COULOMB_CONSTANT / (math.sqrt(math.pi) * 0.4), rtol=1e-7)


def test_a_sum_of_parts_has_every_derivative_of_the_sum():
    x, y = torch.tensor([0.3, -0.2], requires_grad=True), torch.tensor(0.7, requires_grad=True)

    def function(power, x, y):
        return (x**power * y).sum(), (x * y).sin() / power

    def whole(x, y):
        values = [function(power, x, y) for power in (1, 2, 3)]
        return sum(a.sum() + (b**2).sum() for a, b in [tuple(map(sum, zip(*values, strict=True)))])

    def parted(x, y):
        a, b = sum_of_parts(function, (1, 2, 3), x, y)
        return a.sum() + (b**2).sum()

    for _ in range(3):
        got, want = parted(x, y), whole(x, y)
        np.testing.assert_allclose(got.detach(), want.detach(), rtol=1e-12)
        parted, whole = (lambda x, y, f=f: derivative(f, x, y) for f in (parted, whole))


def derivative(function, x, y):
    """Σ ∂f/∂x + ∂f/∂y as a differentiable number."""
    found = torch.autograd.grad(function(x, y), (x, y), create_graph=True)
    return found[0].sin().sum() + found[1]
