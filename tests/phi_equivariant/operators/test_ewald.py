"""The potential matrix of periodic cells: lattice sums that are known, and sums that nobody needs to split."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, make_supercell
from bare_operators import matrix_of, operator_of, triclinic
from systems import structures_of
from torchpme import CoulombPotential, EwaldCalculator

from phi_equivariant.inputs.cells import lattice_heights
from phi_equivariant.operators.coulomb import COULOMB_CONSTANT
from phi_equivariant.pairs import find_pairs

pytestmark = pytest.mark.usefixtures("double")


def fourier_sum(atoms, widths, k_max):
    """4π k_e/V Σ_{k≠0} e^{−k²γ²/2}/k² cos k·r without any splitting: (n, n)."""
    cell = np.asarray(atoms.cell)
    limits = [int(k_max * length / (2 * math.pi)) for length in atoms.cell.lengths()]
    indices = np.stack(np.meshgrid(*(np.arange(-m, m + 1) for m in limits)), -1).reshape(-1, 3)
    k = 2 * math.pi * indices[np.abs(indices).sum(1) > 0] @ np.linalg.inv(cell).T
    k = k[(k**2).sum(1) < k_max**2]
    k2 = (k**2).sum(1)
    waves = np.exp(1j * k @ atoms.positions.T - 0.5 * k2[:, None] * np.asarray(widths) ** 2)  # (n_k, n)
    return 4 * math.pi * COULOMB_CONSTANT / abs(np.linalg.det(cell)) * ((waves.conj() / k2[:, None]).T @ waves).real


@pytest.mark.parametrize(
    ("structure", "charges", "constant"),
    [
        ("rocksalt", [1, -1], 1.747564594633182),
        ("cesiumchloride", [1, -1], 1.762674773070988),
        ("zincblende", [1, -1], 1.638055053388790),
        # Two zincblendes share the cations: E = 4 E(zincblende) − E(rocksalt) for one cube.
        ("fluorite", [2, -1, -1], 4 * 1.638055053388790 - math.sqrt(0.75) * 1.747564594633182),
    ],
)
def test_madelung_constants(structure, charges, constant):
    """E = −M k_e/d per formula unit, d the shortest distance between ions that do not overlap."""
    name = "HHeHe" if structure == "fluorite" else "HHe"
    atoms = bulk(name, structure, a=8.0)
    d = atoms.get_all_distances(mic=True)[0, 1]
    potential = matrix_of(operator_of(0.3, 0.3), atoms)[0].detach().numpy()
    q = np.array(charges)
    own = q**2 @ np.full(len(q), COULOMB_CONSTANT / (math.sqrt(math.pi) * 0.3)) / 2
    energy = q @ potential @ q / 2 - own
    assert energy == pytest.approx(-constant * COULOMB_CONSTANT / d, rel=1e-9)


@pytest.mark.parametrize("width", [0.3, 0.7])
def test_a_charged_lattice_has_the_closed_form_with_its_background(width):
    """A lattice of Gaussians in a background: Wigner's constant of the simple cubic lattice and 2π k_e γ²/V."""
    edge = 7.0
    potential = matrix_of(operator_of(width), Atoms("H", cell=[edge] * 3, pbc=True)).item()
    wigner = -2.837297479480620 / edge
    gaussian = 1 / (math.sqrt(math.pi) * width) + 4 * math.pi * width**2 / edge**3
    assert potential == pytest.approx(COULOMB_CONSTANT * (wigner + gaussian), rel=1e-9)


def test_matrix_equals_the_unsplit_fourier_sum_for_every_splitting():
    atoms, widths = triclinic(), (0.35, 0.5, 0.8, 1.1, 1.19)
    want = fourier_sum(atoms, widths, k_max=24.0)
    for splitting in (0.8, 1.5, 2.5):
        got = matrix_of(operator_of(*widths, splitting=splitting), atoms)[0].detach().numpy()
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-9)
    thin = Atoms("HHe", positions=[[0, 0, 0], [2.0, 0.1, 0.3]], cell=[4.0, 0.6, 1.0], pbc=True)
    got = matrix_of(operator_of(0.5, 0.9), thin)[0].detach().numpy()
    np.testing.assert_allclose(got, fourier_sum(thin, (0.5, 0.9), k_max=20.0), rtol=0, atol=1e-9)


def test_matrix_equals_torch_pmes_ewald_calculator():
    """Point charges, with torch-pme's own sums: 0.3 Å wide Gaussians 3 Å apart are such, but for their constants."""
    rng = np.random.default_rng(1)
    atoms = bulk("HHe", "rocksalt", a=7.0, cubic=True)
    atoms.positions += 0.1 * rng.normal(size=atoms.positions.shape)
    positions, cell = torch.tensor(atoms.positions), torch.tensor(np.asarray(atoms.cell))
    first, second, images = find_pairs(7.0, positions, cell, torch.tensor([True] * 3))
    distances = (positions[second] - positions[first] + images @ cell).norm(dim=1)
    calculator = EwaldCalculator(CoulombPotential(smearing=1.0, prefactor=COULOMB_CONSTANT), lr_wavelength=0.4).double()
    pairs = torch.stack([first, second], dim=1)
    want = 2 * calculator(torch.eye(len(atoms)), cell, positions, pairs, distances)
    got = matrix_of(operator_of(0.3, 0.3), atoms)[0].detach()
    own = 1 / (math.sqrt(math.pi) * 0.3) * torch.eye(len(atoms)) + 4 * math.pi * 0.3**2 / atoms.get_volume()
    np.testing.assert_allclose((got - COULOMB_CONSTANT * own).numpy(), want.numpy(), rtol=0, atol=1e-8)


def test_positive_for_neutral_and_for_charged_vectors():
    widths = (0.3, 0.5, 0.8, 1.1, 1.2)
    dense = bulk("He", "fcc", a=4.05) * (2, 2, 2)
    for atoms in (triclinic(), triclinic(1), dense):
        operator = operator_of(*widths)
        lowest = torch.linalg.eigvalsh(matrix_of(operator, atoms)[0])[0]
        assert lowest > 0
        spread = operator.widths()[torch.tensor(atoms.numbers) - 1].square()
        constant = 2 * math.pi * COULOMB_CONSTANT * (spread[:, None] + spread) / atoms.get_volume()
        assert torch.linalg.eigvalsh(matrix_of(operator, atoms)[0] - constant)[0] < -0.01, "the constant is needed"


def test_a_supercell_repeats_the_potentials_of_its_cell():
    atoms, operator = triclinic(n=3), operator_of(0.4, 0.6, 1.0)
    large = make_supercell(atoms, [[2, 1, 0], [0, 1, 0], [-1, 0, 2]])
    copies = len(large) // 3
    want = matrix_of(operator, atoms)[0].detach().numpy()
    got = matrix_of(operator, large)[0].detach().numpy().reshape(copies, 3, copies, 3)
    np.testing.assert_allclose(got.sum(2), np.broadcast_to(want, (copies, 3, 3)), atol=1e-9)


def test_a_molecule_in_a_growing_box_becomes_an_open_one():
    operator, charges = operator_of(0.4, 0.6), torch.tensor([0.4, 0.3, -0.7])
    molecule = Atoms("HHHe", positions=[[0.9, 0, 0], [0, 0.9, 0.2], [0, 0, 0]])

    def energy():
        return float(0.5 * charges @ matrix_of(operator, molecule)[0].detach() @ charges)

    open_energy = energy()
    errors = []
    for edge in (12.0, 24.0, 48.0):
        molecule.set_cell([edge] * 3)
        molecule.pbc = True
        errors.append(energy() - open_energy)
    dipole = charges.numpy() @ molecule.positions
    # Makov and Payne, Phys. Rev. B 51, 4014 (1995): dipoles of a cubic lattice interact by 2π k_e μ²/3V.
    want = [-2 * math.pi / 3 * COULOMB_CONSTANT * (dipole @ dipole) / edge**3 for edge in (12.0, 24.0, 48.0)]
    np.testing.assert_allclose(errors[1:], want[1:], rtol=0.03)
    assert abs(errors[2]) < 1e-4


def test_open_and_periodic_structures_share_a_batch():
    operator = operator_of(0.4, 0.5, 0.6, 0.7, 0.8)
    molecule = Atoms("HHe", positions=[[0, 0, 0], [0, 0, 1.5]])
    crystals = triclinic(), triclinic(1, n=3)
    mixed = matrix_of(operator, crystals[0], molecule, crystals[1])
    for index, atoms in enumerate((crystals[0], molecule, crystals[1])):
        n = len(atoms)
        assert (mixed[index, :n, :n] - matrix_of(operator, atoms)[0]).abs().max() < 1e-12
        assert (mixed[index, n:] == 0).all() and (mixed[index, :, n:] == 0).all()


def test_twice_differentiable_in_positions_cell_and_widths():
    operator, atoms = operator_of(0.4, 0.9), triclinic(n=3, numbers=(1, 2, 1))
    structures, charges = structures_of(atoms, elements=[1, 2]), torch.tensor([0.7, -0.3, 0.2])

    def energy(positions, cell, logit):
        potential = torch.func.functional_call(operator, {"width_logit": logit}, (positions, cell))
        return charges @ potential[0] @ charges

    def matrix(positions, cell):
        moved = dataclasses.replace(structures, positions=positions, cell=cell)
        return operator.at(moved, matrix=True).parts[0][1].matrix()

    operator.forward = matrix
    inputs = torch.tensor(atoms.positions), torch.tensor(np.asarray(atoms.cell))[None], operator.width_logit.detach()
    inputs = [x.clone().requires_grad_(True) for x in inputs]
    assert torch.autograd.gradcheck(energy, inputs)
    assert torch.autograd.gradgradcheck(energy, inputs, fast_mode=True)


def test_single_precision():
    atoms, widths = bulk("HHe", "rocksalt", a=5.6, cubic=True), (0.4, 0.8)
    want = matrix_of(operator_of(*widths), atoms)
    operator = operator_of(*widths).float()
    moved = structures_of(atoms, elements=[1, 2])
    moved = dataclasses.replace(
        moved, positions=(moved.positions + 3 * moved.cell[0, 0]).float(), cell=moved.cell.float()
    )
    got = operator.at(moved, matrix=True).parts[0][1].matrix()
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.detach().numpy(), want.detach().numpy(), atol=2e-5 * want.abs().max().item())


def test_heights_of_lattices_of_one_two_and_three_vectors():
    cell = torch.tensor(np.asarray(triclinic().cell))
    volume = torch.linalg.det(cell)
    faces = [torch.linalg.cross(cell[i - 2], cell[i - 1]).norm() for i in range(3)]
    np.testing.assert_allclose(lattice_heights(cell), [volume / face for face in faces], rtol=1e-12)
    np.testing.assert_allclose(lattice_heights(torch.tensor([[3.0, 0, 0], [4.0, 2.0, 0]])), [6 / math.sqrt(20), 2.0])
    np.testing.assert_allclose(lattice_heights(torch.tensor([[0, 3.0, 4.0]])), [5.0])
    assert lattice_heights(torch.tensor([[1.0, 0, 0], [2.0, 1e-7, 0]])) is None
    assert lattice_heights(torch.zeros(1, 3)) is None


def test_kept_pairs_give_the_matrix_of_a_fresh_search():
    """Atoms that walk, cross faces and are put back into the cell, two structures at once, while a cell breathes and is
    then compressed: a search for each structure at first, one for the compressed cell, none for what was put back."""
    searches = []

    def counted(*arguments):
        searches.append(arguments[0])
        return find_pairs(*arguments)

    keeps, fresh = operator_of(0.4, 0.9, 0.6, 0.5, 0.7).eval(), operator_of(0.4, 0.9, 0.6, 0.5, 0.7).train()
    keeps.kept_pairs.search = counted
    rng, structures, counts = np.random.default_rng(0), [triclinic(), triclinic(1, n=3)], []
    for step in range(16):
        for atoms in structures:
            atoms.positions += 0.04 * rng.normal(size=atoms.positions.shape)
        shear = np.eye(3) + 3e-3 * rng.normal(size=(3, 3)) if step < 8 else np.diag([1.0, 1.0, 0.9 if step == 8 else 1])
        structures[0].set_cell(structures[0].cell @ shear, scale_atoms=True)
        if step == 12:
            structures[0].wrap()
        before = len(searches)
        found = matrix_of(keeps, *structures)
        counts.append(len(searches) - before)
        torch.testing.assert_close(found, matrix_of(fresh, *structures), rtol=1e-13, atol=1e-12)
    assert counts[0] == 2 and counts[8] == 1 and counts[12] == 0 and sum(counts) < 12
    assert not copy.deepcopy(keeps).kept_pairs._kept
