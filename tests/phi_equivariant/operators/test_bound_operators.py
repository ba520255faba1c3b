"""Operators bound to structures: one linear map, however it is computed; what they say of themselves; a new one."""

import ast
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from bare_operators import operator_of, triclinic
from systems import R_MAX, batch_of, ethanol, mace_host, structures_of

from phi_equivariant import PhiConfig, attach_phi
from phi_equivariant.division import Share
from phi_equivariant.errors import InputError
from phi_equivariant.operators import kinds
from phi_equivariant.operators.base import Bound, Operator, Part
from phi_equivariant.operators.graph import GraphLaplacian

pytestmark = pytest.mark.usefixtures("double")
ROOT = Path(__file__).parents[3]
WIDTHS = (0.3, 0.5, 0.8, 1.1, 1.19)
ELEMENTS = [1, 2, 3, 4, 5]


def crowd(n, pbc, seed=0):
    """Atoms anywhere in and out of a skewed cell."""
    rng = np.random.default_rng(seed)
    cell = np.array([[9.0, 0, 0], [1.3, 8.5, 0.2], [-1.8, 0.5, 7.0]])
    return Atoms(numbers=rng.integers(1, 6, n), positions=rng.uniform(-1, 2, (n, 3)) @ cell, cell=cell, pbc=pbc)


def moments(n, channels=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, channels, generator=generator), torch.randn(n, channels, 3, generator=generator)


def coulomb(large=False):
    """The Coulomb operator: with every structure computed alone and without a matrix, if ``large``."""
    operator = operator_of(*WIDTHS)
    if large:
        operator.mesh_from_in_training = operator.tiles_from = 0
    return operator


KINDS = {
    "matrix": lambda: (coulomb(), crowd(23, False)),
    "tiles": lambda: (coulomb(large=True), crowd(23, False)),
    "waves": lambda: (coulomb(), crowd(23, True)),
    "waves, thin": lambda: (coulomb(), triclinic()),
    "mesh": lambda: (coulomb(large=True), crowd(23, True)),
    "slab": lambda: (coulomb(), crowd(23, (True, False, True))),
    "slab on a mesh": lambda: (coulomb(large=True), crowd(23, (True, False, True))),
    "graph": lambda: (GraphLaplacian(4.0), crowd(23, True)),
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_product_and_diagonal_are_those_of_the_matrix(kind):
    operator, atoms = kind()
    structures = structures_of(atoms, elements=ELEMENTS, r_max=4.0)
    matrix = operator.at(structures, matrix=True).parts[0][1].matrix()[0].detach()
    bound, (charges, _) = operator.at(structures), moments(len(atoms))
    scale = matrix.abs().max().item()
    np.testing.assert_allclose(bound.product(charges).detach(), matrix @ charges, rtol=0, atol=1e-8 * scale)
    with torch.no_grad():
        np.testing.assert_allclose(bound.product(charges), matrix @ charges, rtol=0, atol=1e-8 * scale)
    np.testing.assert_allclose(bound.diagonal().detach(), matrix.diagonal(), rtol=0, atol=1e-8 * scale)
    assert (matrix - matrix.mT).abs().max() < 1e-12 * scale


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_the_joint_product_is_symmetric_and_that_of_charges_where_there_are_no_dipoles(kind):
    operator, atoms = kind()
    if not operator.dipoles:
        pytest.skip("no potentials of dipoles")
    bound = operator.at(structures_of(atoms, elements=ELEMENTS))
    (charges, dipoles), others = moments(len(atoms)), moments(len(atoms), seed=1)

    def energy(moments, fields):
        return sum((one * other).sum().item() for one, other in zip(moments, fields, strict=True))

    given, reverse = energy(others, bound.joint(charges, dipoles)), energy((charges, dipoles), bound.joint(*others))
    assert given == pytest.approx(reverse, rel=1e-10)
    potential, _ = bound.joint(charges, torch.zeros_like(dipoles))
    np.testing.assert_allclose(potential.detach(), bound.product(charges).detach(), rtol=1e-10, atol=1e-8)
    assert energy((charges, dipoles), bound.joint(charges, dipoles)) > 0


@pytest.mark.parametrize("kind", ["matrix", "waves", "waves, thin", "slab"])
def test_the_joint_matrix_is_the_joint_product(kind):
    operator, atoms = KINDS[kind]()
    part, n = operator.at(structures_of(atoms, elements=ELEMENTS)).parts[0][1], len(atoms)
    charges, dipoles = moments(n)
    want = torch.cat([values.reshape(n, -1, 2) for values in joint_of(part, charges, dipoles)], dim=1)
    given = torch.cat([charges[:, None], dipoles.transpose(1, 2)], dim=1).reshape(4 * n, 2)
    got = (part.joint_matrix()[0] @ given).reshape(n, 4, 2)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-11 * want.abs().max().item())


@pytest.mark.parametrize("pbc", [False, True, (True, True, False)], ids=["molecules", "crystals", "slabs"])
def test_joint_matrices_of_a_batch_are_those_of_its_structures(pbc):
    """Of unlike numbers of atoms: nothing is where there is no atom."""
    several = [crowd(n, pbc, seed) for seed, n in enumerate((23, 5, 11))]
    together = coulomb().at(structures_of(*several, elements=ELEMENTS)).parts[0][1].joint_matrix()
    for matrix, atoms in zip(together, several, strict=True):
        (want,) = coulomb().at(structures_of(atoms, elements=ELEMENTS)).parts[0][1].joint_matrix()
        np.testing.assert_allclose(matrix[: len(want), : len(want)], want, rtol=0, atol=1e-12 * want.abs().max())
        assert not matrix[len(want) :].any() and not matrix[:, len(want) :].any()


@torch.no_grad()
def joint_of(part, charges, dipoles):
    potential, gradient = part.joint(charges, dipoles)
    return potential, gradient.transpose(1, 2)


@pytest.mark.parametrize("pbc", [True, (True, True, False)], ids=["crystal", "slab"])
def test_what_is_nearly_a_sum_on_a_mesh(pbc):
    """In single precision, to some 1e-5 of the largest entry."""
    structures = structures_of(crowd(40, pbc), elements=ELEMENTS)
    part = coulomb(large=True).at(structures).parts[0][1]
    want, nearly = coulomb().at(structures).parts[0][1], part.nearly()
    for got, exact in ((nearly.matrix(), want.matrix()), (nearly.joint_matrix(), want.joint_matrix())):
        assert got.dtype == torch.float32 and not got.requires_grad
        error = torch.linalg.matrix_norm(got.double() - exact.detach(), 2) / exact.detach().abs().max()
        assert 0 < error < 1e-4


class OneOfTwo(Share):
    """A share of two processes, the other of which is silent."""

    def rows(self, n):
        return slice(0, n // 2)


def test_what_is_nearly_a_shared_sum_is_made_of_all_pairs_on_every_process():
    structures = structures_of(crowd(40, True), elements=ELEMENTS)
    shared = dataclasses.replace(structures, share=OneOfTwo())
    operator = coulomb(large=True)
    part, whole = (operator.at(one).parts[0][1] for one in (shared, structures))
    assert len(part.near.pairs.first) < 0.6 * len(whole.near.pairs.first)
    scale = whole.nearly().joint_matrix().abs().max()
    torch.testing.assert_close(
        part.nearly().joint_matrix(), whole.nearly().joint_matrix(), rtol=0, atol=2e-6 * float(scale)
    )
    diagonal, residual = whole.diagonal().detach() + 5.0, torch.linspace(-1, 1, 40)
    got, want = (one.screened(diagonal)(residual) for one in (part, whole))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-14)
    values = torch.ones(40, 4)
    assert whole.agreed(values) is values
    torch.testing.assert_close(part.agreed(values)[:20], values[:20], rtol=0, atol=0)
    assert not part.agreed(values)[20:].any()


def test_a_batch_of_all_kinds_gives_each_structure_what_it_has_alone():
    operator = coulomb()
    operator.mesh_from_in_training, operator.tiles_from = 40, 50
    batch = [crowd(n, pbc, seed) for seed, (n, pbc) in enumerate([(5, False), (60, True), (70, False), (9, True)])]
    batch += [crowd(30, False, 4), crowd(1, True, 5)]
    bound = operator.at(structures_of(*batch, elements=ELEMENTS))
    kinds = [type(part).__name__ for _, part in bound.parts]
    assert {"FreeSpaceMatrix", "FreeSpaceTiles", "LatticeSum", "MeshSum"} == set(kinds) and len(kinds) >= 4
    charges, dipoles = moments(sum(map(len, batch)))
    (potential, gradient), products, start = bound.joint(charges, dipoles), bound.product(charges), 0
    for atoms in batch:
        alone, end = operator.at(structures_of(atoms, elements=ELEMENTS)), start + len(atoms)
        q, mu = charges[start:end], dipoles[start:end]
        torch.testing.assert_close(products[start:end], alone.product(q), rtol=1e-12, atol=1e-11)
        for got, want in zip((potential, gradient), alone.joint(q, mu), strict=True):
            torch.testing.assert_close(got[start:end], want, rtol=1e-12, atol=1e-11)
        start = end


def test_what_an_operator_does_not_serve_is_refused_by_its_name():
    for atoms, operator, message in (
        (crowd(3, [True, False, False]), coulomb(), r"pbc T F F, but operator='coulomb' sums over two or three"),
        (crowd(3, False), GraphLaplacian(4.0), r"total_charge is \[2.0\].*operator='graph' sum to zero"),
    ):
        atoms.info["total_charge"] = 2.0
        with pytest.raises(InputError, match=message):
            operator.check(structures_of(atoms, elements=ELEMENTS))


@pytest.mark.parametrize("claim", ["carries_charge", "dipoles"])
def test_an_operator_that_claims_what_a_laplacian_cannot_do_is_refused(claim):
    with pytest.raises(TypeError, match=f"{claim}=True needs inverse=True"):
        type("Charged", (GraphLaplacian,), {claim: True})


class Screened(Operator):
    """P_ij = e^{−r_ij}, positive definite: an operator that the library does not know."""

    name = "screened"
    inverse, carries_charge, dipoles, widths_of_charges = True, True, False, False
    periodicities = frozenset({0})
    element_scale, window_width = 0.5, 0.5

    @classmethod
    def build(cls, atomic_numbers, r_max, config):
        return cls()

    def at(self, structures, matrix=False):
        return Bound(structures, [(None, ScreenedPart(structures))])


class ScreenedPart(Part):
    """Its matrix."""

    dense = True

    def matrix(self):
        layout = self.structures.layout
        x = layout.pad(self.structures.positions)
        distance = (x[:, :, None] - x[:, None]).square().sum(-1).add(1e-12).sqrt()
        return torch.exp(-distance) * (layout.mask[:, :, None] & layout.mask[:, None])

    def product(self, values):
        layout = self.structures.layout
        return layout.unpad(self.matrix() @ layout.pad(values))

    def diagonal(self):
        return torch.ones(len(self.structures.positions))


@pytest.mark.parametrize("config", [{}, {"low_pass": 0.5}, {"num_modes": 3}, {"poisson": "learned"}], ids=str)
def test_a_new_operator_is_one_class_and_one_registration(config, monkeypatch):
    monkeypatch.setitem(kinds.OPERATORS, "screened", Screened)
    with pytest.raises(InputError, match="multipoles is 1 with operator='screened'"):
        PhiConfig(operator="screened", multipoles=1)
    with pytest.raises(InputError, match="width is 0.5 with operator='screened'"):
        PhiConfig(operator="screened", width=0.5)
    model, atoms = attach_phi(mace_host(), PhiConfig(operator="screened", **config)), ethanol()
    atoms.info["total_charge"] = 1
    out = model(batch_of(atoms, molecule("H2O")))
    assert out["charges"][: len(atoms)].sum().item() == pytest.approx(1, abs=1e-12)
    step, ends = 1e-4, []
    for sign in (1, -1):
        moved = atoms.copy()
        moved.positions[3, 1] += sign * step
        ends.append(model(batch_of(moved), compute_force=False)["energy"].item())
    assert out["forces"][3, 1].item() == pytest.approx((ends[1] - ends[0]) / (2 * step), abs=1e-6)
    boxed = Atoms("H", cell=[9, 9, 9], pbc=True)
    with pytest.raises(InputError, match="operator='screened'"):
        model(batch_of(boxed))


def test_nothing_but_the_registry_compares_the_name_of_an_operator():
    """It is asked what it can do."""
    found = []
    for package in ("phi_equivariant", "zoo", "training"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                sides = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
                if any(isinstance(side, ast.Attribute) and side.attr == "operator" for side in sides):
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not found


def test_edges_of_some_structures_are_theirs():
    batch = [ethanol(), molecule("H2O"), molecule("CH4")]
    structures = structures_of(*batch, elements=[1, 6, 8], r_max=R_MAX)
    atoms, chosen = structures.select([0, 2], edges=True)
    alone = structures_of(batch[0], batch[2], elements=[1, 6, 8], r_max=R_MAX)
    assert torch.equal(chosen.positions, structures.positions[atoms])
    for name in ("positions", "species", "batch", "ptr", "edge_index", "shifts", "cell", "pbc"):
        torch.testing.assert_close(getattr(chosen, name), getattr(alone, name), rtol=0, atol=0)
    with pytest.raises(ValueError, match="without their edges"):
        structures.select([1])[1].edge_lengths()
