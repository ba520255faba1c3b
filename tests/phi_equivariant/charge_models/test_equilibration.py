"""Charge equilibration: closed forms, minima, total charges, screening, and what goes wrong."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc100
from charged import case, random_cluster, reference_matrix
from scipy.optimize import minimize

from phi_equivariant.charge_models import energy as energy_module
from phi_equivariant.charge_models.energy import ChargeEnergy
from phi_equivariant.charge_models.induced import polarise
from phi_equivariant.charge_models.qeq import equilibrate
from phi_equivariant.charge_models.sqe import split_charges
from phi_equivariant.errors import ConvergenceError, InputError
from phi_equivariant.solvers import batched, kept_inverse
from phi_equivariant.solvers.kept_inverse import KeptInverse, Last

pytestmark = pytest.mark.usefixtures("double")

WAYS = pytest.mark.parametrize("dense", [True, False], ids=["dense", "iterated"])
CELL = np.array([[5.1, 0.0, 0.0], [0.6, 4.7, 0.2], [-0.5, 0.4, 5.4]])


@WAYS
@pytest.mark.parametrize("distance", [0.5, 1.3, 50.0])
def test_two_atoms_in_closed_form(dense, distance):
    given = case(Atoms("CO", [[0, 0, 0], [0, 0, distance]]))
    energy, _ = given.parts()
    total = torch.tensor([0.7])
    got = equilibrate(energy, total, 0, dense)
    k, chi = energy.operator.matrix()[0] + torch.diag(given.hardness), given.electronegativity
    first = (chi[1] - chi[0] + total[0] * (k[1, 1] - k[0, 1])) / (k[0, 0] + k[1, 1] - 2 * k[0, 1])
    torch.testing.assert_close(got.charges, torch.stack([first, total[0] - first]), rtol=0, atol=1e-12)
    want = 0.5 * got.charges @ k @ got.charges + chi @ got.charges
    torch.testing.assert_close(got.node_energy.sum(), want, rtol=0, atol=1e-12)
    torch.testing.assert_close(got.level, (k @ got.charges + chi), rtol=0, atol=1e-8)


@WAYS
def test_total_charges_are_exact_and_levels_are_the_slopes_by_them(dense):
    given = case(random_cluster(5), Atoms("O"), random_cluster(3, 1, cell=None))
    total = torch.tensor([1.0, -2.0, 0.0], requires_grad=True)
    got = equilibrate(given.parts(polarisable=True)[0], total, 0, dense)
    layout = given.shared["layout"]
    torch.testing.assert_close(layout.sum(got.charges), total.detach(), rtol=0, atol=1e-13)
    (slope,) = torch.autograd.grad(got.node_energy.sum(), total)
    torch.testing.assert_close(slope[layout.batch], got.level, rtol=0, atol=1e-9)


@WAYS
def test_no_other_charges_of_the_same_sum_have_less_energy(dense):
    """By scipy, with induced dipoles, on an energy in numpy; and beside random ones."""
    given = case(random_cluster(4, 2))
    widths = given.shared["operator"].widths()[given.shared["species"]].detach().numpy()
    matrix = reference_matrix(given.positions.numpy(), widths)
    chi, eta, alpha = (t.numpy() for t in (given.electronegativity, given.hardness, given.polarisability))
    dipoles, total = given.dipoles.numpy(), given.total_charge.item()

    def energy_of(x):
        charges = np.append(x[:3], total - x[:3].sum())
        z = np.concatenate([charges[:, None], dipoles + x[3:].reshape(4, 3)], axis=1).ravel()
        model = 0.5 * z @ matrix @ z + chi @ charges + 0.5 * eta @ charges**2
        return model + 0.5 * ((x[3:].reshape(4, 3) ** 2).sum(1) / alpha).sum()

    found = minimize(energy_of, np.zeros(15), method="BFGS", options={"gtol": 1e-8})
    got = equilibrate(given.parts(dipoles=True, polarisable=True)[0], given.total_charge, 0, dense)
    least = got.node_energy.sum().item()
    assert least == pytest.approx(found.fun, abs=1e-9)
    np.testing.assert_allclose(got.charges.detach()[:3], found.x[:3], atol=1e-5)
    np.testing.assert_allclose(got.dipoles.detach().numpy() - dipoles, found.x[3:].reshape(4, 3), atol=1e-5)
    best, rng = np.append(got.charges[:3].detach(), (got.dipoles - given.dipoles).detach()), np.random.default_rng(0)
    assert energy_of(best) == pytest.approx(least, abs=1e-10)
    for size in (1e-3, 1e-1):
        assert all(energy_of(best + size * rng.normal(size=15)) > least for _ in range(20))


@WAYS
def test_in_a_crystal_charges_are_those_of_its_supercell(dense):
    atoms = random_cluster(4, cell=CELL, nearest=1.2)
    given, larger = case(atoms), case(atoms * (1, 2, 1))
    twice = {name: getattr(given, name).repeat(2, *[1] * (getattr(given, name).ndim - 1)) for name in given.names[1:]}
    total = torch.tensor([0.0])
    want = equilibrate(given.parts(dipoles=True, polarisable=True)[0], total, 0, dense)
    got = equilibrate(larger.with_(**twice).parts(dipoles=True, polarisable=True)[0], total, 0, dense)
    torch.testing.assert_close(got.charges, want.charges.repeat(2), rtol=0, atol=1e-9)
    torch.testing.assert_close(got.dipoles, want.dipoles.repeat(2, 1), rtol=0, atol=1e-9)
    torch.testing.assert_close(got.node_energy, want.node_energy.repeat(2), rtol=0, atol=1e-8)


def test_a_soft_plate_screens_a_field():
    """Inside a conductor, what a field and the charges that it moves make together is level."""
    plate = fcc100("Ag", (6, 6, 2), a=3.2, vacuum=0)
    plate.pbc = False
    given = case(plate)
    n, place = len(plate), given.positions
    field = torch.tensor([0.1, 0.05, 0.0])
    applied, inner = -(place @ field), (place[:, :2] - place[:, :2].mean(0)).abs().amax(1) < 5.0
    left = []
    for hardness in (1e4, 1.0, 1e-3):
        operator = given.parts()[0].operator
        energy = ChargeEnergy(operator, given.shared["layout"], applied, torch.full((n,), hardness))
        got = equilibrate(energy, torch.zeros(1), 0)
        left.append(((got.potential + applied)[inner].std() / applied[inner].std()).item())
    assert left[0] > 0.95 and left[1] < 0.15 and left[2] < 1e-3


@pytest.mark.parametrize("model", ["qeq", "sqe"])
def test_a_field_acts_on_charges_and_dipoles(model):
    """−∂E/∂F is the dipole about the origin, for ions too, and the energy of a rigid shift −F·QΔ."""
    given = case(random_cluster(5), random_cluster(3, 1))
    given.field.requires_grad_(True)
    solve = {
        "qeq": lambda given, parts: equilibrate(parts[0], given.total_charge, 1),
        "sqe": lambda given, parts: split_charges(*parts, given.start, 1),
    }[model]
    layout = given.shared["layout"]
    got = solve(given, given.parts(dipoles=True, polarisable=True, field=True))
    (slope,) = torch.autograd.grad(got.node_energy.sum(), given.field, create_graph=True)
    dipole = layout.sum(got.charges[:, None] * given.positions + got.dipoles)
    torch.testing.assert_close(-slope, dipole, rtol=0, atol=1e-10)
    # The two polarisabilities, of the energy and of the dipole, agree; they are symmetric and positive.
    rows = [torch.autograd.grad(-slope[0, a], given.field, retain_graph=True)[0][0] for a in range(3)]
    others = [torch.autograd.grad(dipole[0, a], given.field, retain_graph=True)[0][0] for a in range(3)]
    tensor = torch.stack(rows)
    torch.testing.assert_close(tensor, torch.stack(others), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(tensor, tensor.T, rtol=1e-9, atol=1e-10)
    assert torch.linalg.eigvalsh(tensor).min() > 0
    shift = torch.tensor([0.3, -1.0, 2.0])
    moved = given.with_(positions=given.positions + shift)
    again = solve(moved, moved.parts(dipoles=True, polarisable=True, field=True))
    change = layout.sum(again.node_energy - got.node_energy)
    want = -(given.field @ shift) * layout.sum(got.charges)
    torch.testing.assert_close(change, want, rtol=0, atol=1e-9)
    torch.testing.assert_close(again.charges, got.charges, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["hardness", "polarisability"])
@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan"), float("inf")])
def test_what_must_be_positive_is_checked(name, wrong):
    given = case(random_cluster(3))
    getattr(given, name)[1] = wrong
    with pytest.raises(InputError, match=f"{name} of atom 1 is .*must be positive and finite"):
        given.parts(polarisable=True)


@pytest.mark.parametrize("model", ["qeq", "sqe", "direct"])
def test_what_does_not_converge_is_said(model, monkeypatch):
    """With the number of atoms, what was asked and reached, and what to do; with the worst structure of a batch."""
    given = case(random_cluster(12, box=4), Atoms("O"))
    monkeypatch.setattr(batched, "MAX_STEPS", 2)
    parts = given.parts(polarisable=True)
    with pytest.raises(ConvergenceError, match="of 12 atoms did not converge.*1e-10.*after 2 steps.*dense_limit"):
        if model == "qeq":
            equilibrate(parts[0], given.total_charge, 0, dense=False)
        elif model == "sqe":
            split_charges(*parts, given.start, 0, dense=False)
        else:
            polarise(parts[0], given.start, 0, dense=False)


@pytest.mark.parametrize("model", ["qeq", "sqe"])
def test_what_is_not_finite_is_seen(model):
    """Iterations say so; factorised, it is in the result of the structure that has it, and in no other."""
    given = case(random_cluster(4), random_cluster(3, 1))
    given.electronegativity[2] = float("nan")
    energy, graph = given.parts()

    def solve(dense):
        if model == "qeq":
            return equilibrate(energy, given.total_charge, 0, dense)
        return split_charges(energy, graph, given.start, 0, dense)

    got = solve(True)
    assert torch.isnan(got.charges[:4]).all() and torch.isfinite(got.charges[4:]).all()
    with pytest.raises(ConvergenceError, match="of 4 atoms have no solution.*not finite"):
        solve(False)


@pytest.mark.parametrize(("entry", "reason"), [(float("nan"), "not finite"), (1e3, "not positive definite in float64")])
def test_a_matrix_that_cannot_be_factorised_is_said(entry, reason):
    given = case(random_cluster(3), Atoms("CO", [[0, 0, 0], [0, 0, 1.2]]))
    energy, _ = given.parts()
    matrix = energy.operator.matrix().detach().clone()
    matrix[1, 0, 1] = matrix[1, 1, 0] = entry
    energy.operator.matrix = lambda: matrix
    with pytest.raises(ConvergenceError, match=f"structure of 2 atoms.*{reason}"):
        equilibrate(energy, given.total_charge, 0, True)


def test_a_second_solution_nearby_takes_few_steps():
    """Conjugate gradients start from the last solution."""
    given = case(random_cluster(30, box=6.0))
    counts = []
    for model in ("qeq", "sqe"):
        last = Last()
        for step in range(2):
            moved = given.with_(positions=given.positions + 1e-6 * step)
            energy, graph = moved.parts(polarisable=True)
            operator, calls = energy.operator, []
            plain = operator.joint
            operator.joint = lambda q, mu, plain=plain, calls=calls: calls.append(1) or plain(q, mu)
            if model == "qeq":
                got = equilibrate(energy, given.total_charge, 0, False, last)
            else:
                got = split_charges(energy, graph, given.start, 0, False, last)
            counts.append(len(calls))
            torch.testing.assert_close(last.solution[:, 0], got.charges.detach(), rtol=0, atol=0)
    assert counts[1] < counts[0] / 2 and counts[3] < counts[2] / 2


@pytest.mark.parametrize("model", ["qeq", "sqe", "direct"])
@pytest.mark.parametrize("polarisable", [False, True])
def test_on_a_mesh_few_products_suffice(model, polarisable):
    """Preconditioned by nearly the same matrix, whatever the start."""
    energy, graph = case(random_cluster(40, cell=2.2 * CELL, nearest=1.2)).parts(
        polarisable=polarisable, with_matrix=False
    )
    operator, calls = energy.operator, []
    for name in ("product", "joint"):
        plain = getattr(operator, name)
        setattr(operator, name, lambda *given, plain=plain: calls.append(1) or plain(*given))
    start = torch.linspace(-0.3, 0.3, 40)
    if model == "qeq":
        equilibrate(energy, torch.tensor([1.0]), 0)
    elif model == "sqe":
        split_charges(energy, graph, start, 0)
    else:
        polarise(energy, start, 0)
    assert len(calls) <= 8


@pytest.mark.parametrize("model", ["qeq", "sqe", "direct"])
def test_what_preconditioned_one_step_serves_the_next_ones(model, monkeypatch):
    """It is made anew where it serves no longer: far too late, and after atoms have jumped. Results do not depend on
    it."""
    given = case(random_cluster(40, cell=2.2 * CELL, nearest=1.2))
    monkeypatch.setattr(kept_inverse, "_ROWS", 80)  # as if it took longer to make
    made, rng, last = [], np.random.default_rng(0), Last()
    plain = KeptInverse._new
    monkeypatch.setattr(KeptInverse, "_new", lambda self: made.append(1) or plain(self))

    def solve(moved, last):
        energy, graph = moved.parts(polarisable=True, with_matrix=False)
        if model == "qeq":
            return equilibrate(energy, torch.tensor([1.0]), 0, last=last)
        if model == "sqe":
            return split_charges(energy, graph, given.start, 0, last=last)
        return polarise(energy, given.start, 0, last=last)

    numbers = []
    for step in range(8):
        if step == 6:
            jumped = case(random_cluster(40, seed=1, cell=2.2 * CELL, nearest=1.2)).positions
            given = given.with_(positions=jumped)
        given = given.with_(positions=given.positions + torch.tensor(0.003 * rng.normal(size=(40, 3))))
        got = solve(given, last)
        numbers.append(len(made))
        want = solve(given, None)
        made.pop()
        torch.testing.assert_close(got.charges, want.charges, rtol=0, atol=1e-9)
        torch.testing.assert_close(got.dipoles, want.dipoles, rtol=0, atol=1e-9)
        torch.testing.assert_close(got.node_energy, want.node_energy, rtol=0, atol=1e-8)
    assert numbers[:4] == [1, 2, 2, 2] and numbers[5] <= 3  # the first solve starts from nothing
    assert numbers[6] == numbers[5] + 1 and numbers[7] == numbers[6]


def test_long_wavelengths_are_screened_on_a_coarse_mesh(monkeypatch):
    """In a long cell, a third of it empty: by a symmetric positive definite map that saves products."""
    given = crystal(8, vacuum=20.0)
    given = given.with_(hardness=torch.full_like(given.hardness, 1.0))
    energy, _ = given.parts(with_matrix=False)
    monkeypatch.setattr(energy_module, "_NEARLY_TO", {1: 0, 4: 0})
    operator, n = energy.operator, len(given.start)
    with torch.no_grad():
        screened = operator.screened(operator.diagonal() + given.hardness)
        inverse = torch.stack([screened(column) for column in torch.eye(n)[::7]])[:, ::7]
    assert (inverse - inverse.mT).abs().max() < 1e-14 and torch.linalg.eigvalsh(inverse).min() > 0
    (with_it, found), (without, want) = (products_and_charges(given, helped) for helped in (True, False))
    torch.testing.assert_close(found, want, rtol=0, atol=1e-8)
    assert with_it < 0.7 * without


def test_screened_steps_hardly_grow_with_the_crystal(monkeypatch):
    """Four times as long, it takes twice as many without: the square root of the condition number."""
    monkeypatch.setattr(energy_module, "_NEARLY_TO", {1: 0, 4: 0})
    short, long = (crystal(cells) for cells in (4, 16))
    (few, _), (more, _) = products_and_charges(short, True), products_and_charges(long, True)
    assert more < 1.4 * few
    assert products_and_charges(long, False)[0] > 1.8 * products_and_charges(short, False)[0]


def products_and_charges(given, helped):
    """How many products equilibration of a crystal takes, with or without the coarse mesh, and its charges."""
    given = given.with_(hardness=torch.full_like(given.hardness, 1.0))
    energy, _ = given.parts(with_matrix=False)
    operator, calls = energy.operator, []
    plain = operator.product
    operator.product = lambda values: calls.append(1) or plain(values)
    if not helped:
        operator.screened = lambda diagonal: None
    charges = equilibrate(energy, given.total_charge, 0).charges
    return len(calls), charges


def test_a_matrix_that_single_precision_cannot_factorise_is_iterated_without():
    given = case(random_cluster(20, cell=2 * CELL, nearest=1.2))
    energy, _ = given.parts(with_matrix=False)
    want = equilibrate(energy, given.total_charge, 0)
    nearly = energy.operator.nearly()
    indefinite = nearly.matrix() - 30 * torch.eye(20, dtype=torch.float32)
    nearly.matrix = lambda: indefinite
    energy.operator.nearly = lambda: nearly
    got = equilibrate(energy, given.total_charge, 0)
    torch.testing.assert_close(got.charges, want.charges, rtol=0, atol=1e-9)
    assert not torch.equal(got.charges, want.charges)


def crystal(cells, vacuum=0.0):
    """A disordered rock salt of so many cubic cells, with a gap along z."""
    atoms = bulk("NaCl", "rocksalt", a=5.0, cubic=True) * (2, 2, cells)
    atoms.rattle(0.2, seed=1)
    atoms.cell[2, 2] += vacuum
    return case(atoms, r_max=0.1)
