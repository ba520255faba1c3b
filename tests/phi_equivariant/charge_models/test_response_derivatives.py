"""Derivatives of charge models: energies to second order, charges and dipoles to the order that was asked for."""

import numpy as np
import pytest
import torch
from ase import Atoms
from charged import R_MAX, Case, case, random_cluster
from systems import ideal_ring, regular_tetrahedron

from phi_equivariant.charge_models.induced import polarise
from phi_equivariant.charge_models.qeq import equilibrate
from phi_equivariant.charge_models.sqe import split_charges

pytestmark = pytest.mark.usefixtures("double")

CELL = np.array([[3.6, 0.0, 0.0], [0.4, 3.7, 0.2], [-0.3, 0.2, 3.9]])
MODELS = pytest.mark.parametrize("model", ["qeq", "sqe", "direct"])
WITH = {
    "charges": dict(),
    "permanent": dict(dipoles=True),
    "polarisable": dict(polarisable=True),
    "both-in-a-field": dict(dipoles=True, polarisable=True, field=True),
}
KINDS = pytest.mark.parametrize("kind", WITH)


def solve(model, given, order, dense=True, with_matrix=True, **kind):
    energy, graph = given.parts(with_matrix=with_matrix, **kind)
    if model == "qeq":
        return equilibrate(energy, given.total_charge, order, dense)
    if model == "sqe":
        return split_charges(energy, graph, given.start, order, dense)
    return polarise(energy, given.start, order, dense)


def leaves(given: Case):
    """(names, tensors that may be differentiated by)."""
    names = (*given.names, "total_charge", "field", *(() if given.cell is None else ("cell",)))
    return names, [getattr(given, name).clone().requires_grad_(True) for name in names]


def results(model, given, order, outputs, **how):
    """A function of all leaves that gives energies, or charges and dipoles."""
    names, inputs = leaves(given)

    def function(*tensors):
        got = solve(model, given.with_(**dict(zip(names, tensors, strict=True))), order, **how)
        if outputs == "energies":
            return given.shared["layout"].sum(got.node_energy)
        return torch.cat([got.charges, got.level, *([] if got.dipoles is None else [got.dipoles.flatten()])])

    return function, inputs


@pytest.mark.slow
@MODELS
@KINDS
def test_energies_are_twice_differentiable(model, kind):
    given = case(random_cluster(3), random_cluster(2, 1))
    function, inputs = results(model, given, 1, "energies", **WITH[kind])
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs, atol=1e-4, fast_mode=kind != "permanent")


@pytest.mark.slow
@MODELS
def test_energies_of_crystals_are_twice_differentiable(model):
    given = case(random_cluster(3, cell=CELL, nearest=1.2))
    kind = WITH["both-in-a-field"] | ({"field": False} if model != "direct" else {})
    function, inputs = results(model, given, 1, "energies", **kind)
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, atol=1e-4, fast_mode=True)


@pytest.mark.slow
@MODELS
@KINDS
def test_charges_and_dipoles_are_differentiable(model, kind):
    given = case(random_cluster(3), random_cluster(2, 1))
    function, inputs = results(model, given, 1, "moments", **WITH[kind])
    assert torch.autograd.gradcheck(function, inputs)
    function, inputs = results(model, given, 2, "moments", **WITH[kind])
    assert torch.autograd.gradgradcheck(function, inputs, atol=1e-4, fast_mode=True)


@MODELS
def test_third_derivatives_of_energies(model):
    """A loss on a polarisability, ∂²E/∂F², has the right slope with order 1, by 2n + 1."""
    given = case(random_cluster(4))
    names, inputs = leaves(given)

    def loss(*tensors):
        now = given.with_(**dict(zip(names, tensors, strict=True)))
        energy = solve(model, now, 1, **WITH["both-in-a-field"]).node_energy.sum()
        (slope,) = torch.autograd.grad(energy, now.field, create_graph=True)
        rows = [torch.autograd.grad(slope[0, a], now.field, create_graph=True)[0] for a in range(3)]
        return torch.stack(rows).square().sum()

    slopes = dict(zip(names, torch.autograd.grad(loss(*inputs), inputs, allow_unused=True), strict=True))
    for name in ("positions", "polarisability", *(("hardness",) if model != "direct" else ())):
        at, slope, values = names.index(name), slopes[name].flatten(), []
        index = int(slope.abs().argmax())
        for step in (-2e-4, -1e-4, 1e-4, 2e-4):
            moved = [tensor.detach().clone().requires_grad_(True) for tensor in inputs]
            moved[at].data.view(-1)[index] += step
            values.append(loss(*moved).item())
        want = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / 12e-4
        assert slope[index].item() == pytest.approx(want, rel=1e-6), name


def far_apart():
    first, second = random_cluster(4), random_cluster(3, 1)
    second.translate([8.0, 0, 0])
    return first + second + Atoms("H", [[0, 9.0, 0]])


STRUCTURES = {
    "cluster": random_cluster(6),
    "K4": regular_tetrahedron(),
    "like-K4": Atoms("C4", regular_tetrahedron().positions),
    "ring": ideal_ring("CCCCCC"),
    "disconnected": far_apart(),
    "at-the-cut-off": Atoms("CON", [[0, 0, 0], [0, 0, 1.2], [0, 0, 1.2 + R_MAX - 1e-4]]),
    "one": Atoms("O"),
}


@MODELS
@pytest.mark.parametrize("name", STRUCTURES)
def test_forces_and_charges_against_finite_differences(model, name):
    """Fourth order, relative 1e-6; elements alike have heads alike, so that symmetric structures are degenerate."""
    given = case(STRUCTURES[name])
    species = given.shared["species"]
    given = given.with_(**{key: getattr(given, key)[species] for key in given.names[1:]})
    kind, step = dict(dipoles=True, polarisable=True), 2e-4
    x = given.positions.clone().requires_grad_(True)
    got = solve(model, given.with_(positions=x), 1, **kind)
    weights = torch.linspace(-1, 2, len(x))
    outputs = [got.node_energy.sum(), weights @ got.charges + (weights[:, None] * got.dipoles).sum()]
    slopes = [torch.autograd.grad(output, x, retain_graph=True)[0] for output in outputs]
    for index in np.random.default_rng(0).permutation(x.numel())[:6]:
        values = []
        for factor in (-2, -1, 1, 2):
            moved = given.positions.clone()
            moved.view(-1)[index] += factor * step
            at = solve(model, given.with_(positions=moved), 0, **kind)
            values.append(
                [at.node_energy.sum().item(), (weights @ at.charges + (weights[:, None] * at.dipoles).sum()).item()]
            )
        values = np.array(values)
        want = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * step)
        for slope, number in zip(slopes, want, strict=True):
            assert slope.view(-1)[index].item() == pytest.approx(number, abs=1e-6 * max(1, slope.abs().max().item()))


def test_an_edge_at_the_cutoff_changes_nothing_suddenly():
    """Energy, forces and charges on either side of the distance at which an edge comes to be listed."""
    found = []
    for distance in (R_MAX - 1e-6, R_MAX + 1e-6):
        given = case(Atoms("CON", [[0, 0, 0], [0, 0, 1.2], [0, 0, 1.2 + distance]]))
        x = given.positions.clone().requires_grad_(True)
        got = solve("sqe", given.with_(positions=x), 1, polarisable=True)
        (force,) = torch.autograd.grad(got.node_energy.sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(force[2, 2], x)
        assert torch.isfinite(second).all()
        found.append((given.shared["edge_index"].shape[1], got.node_energy, force, got.charges, second))
    assert found[0][0] == found[1][0] + 2
    for near, beyond in zip(found[0][1:4], found[1][1:4], strict=True):
        torch.testing.assert_close(near, beyond, rtol=0, atol=1e-4)
    torch.testing.assert_close(found[0][4], found[1][4], rtol=0, atol=1e-3)


@MODELS
@KINDS
@pytest.mark.parametrize("periodic", [False, True], ids=["open", "periodic"])
def test_without_matrices_as_with_them(model, kind, periodic):
    """Values, and first and second derivatives of a loss on energy, charges and dipoles by everything."""
    atoms = random_cluster(6, cell=1.4 * CELL, nearest=1.2) if periodic else random_cluster(6)
    given, kind, found = case(atoms), dict(WITH[kind]), []
    if periodic:
        kind.pop("field", None)
    for way in (dict(dense=True), dict(dense=False), dict(dense=False, with_matrix=False)):
        names, inputs = leaves(given)
        got = solve(model, given.with_(**dict(zip(names, inputs, strict=True))), 1, **way, **kind)
        loss = got.node_energy.sum() + got.charges.square().sum()
        if got.dipoles is not None:
            loss = loss + got.dipoles.square().sum()
        (force,) = torch.autograd.grad(got.node_energy.sum(), inputs[0], create_graph=True)
        slopes = torch.autograd.grad(loss + force.square().sum(), inputs, allow_unused=True)
        pairs = zip(slopes, inputs, strict=True)
        found.append(
            [got.node_energy, got.charges, force, *(torch.zeros_like(x) if g is None else g for g, x in pairs)]
        )
    for other in found[1:]:
        for want, value in zip(found[0], other, strict=True):  # the mesh ends where its splines do
            torch.testing.assert_close(value, want, rtol=0, atol=1e-6 * max(1.0, want.abs().max().item()))


@MODELS
@KINDS
def test_in_single_precision(model, kind):
    structures = random_cluster(6), random_cluster(4, 1)
    want = solve(model, case(*structures), 1, **WITH[kind])
    for dense in (True, False):
        given = case(*structures, dtype=torch.float32)
        x = given.positions.clone().requires_grad_(True)
        got = solve(model, given.with_(positions=x), 1, dense, **WITH[kind])
        assert got.charges.dtype == got.node_energy.dtype == torch.float32
        torch.testing.assert_close(got.charges.double(), want.charges, rtol=0, atol=1e-5)
        torch.testing.assert_close(got.node_energy.double(), want.node_energy, rtol=1e-5, atol=1e-4)
        if got.dipoles is not None:
            torch.testing.assert_close(got.dipoles.double(), want.dipoles, rtol=0, atol=2e-5)
        (force,) = torch.autograd.grad(got.node_energy.sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(force.square().sum(), x)
        assert torch.isfinite(second).all()


def test_nothing_is_solved_twice_for_forces():
    """Without second derivatives, forces are one differentiation at fixed charges: no system but the first."""
    given = case(random_cluster(6))
    x = given.positions.clone().requires_grad_(True)
    for model in ("qeq", "sqe"):
        got = solve(model, given.with_(positions=x), 0, polarisable=True)
        assert not got.charges.requires_grad and not got.level.requires_grad
        (force,) = torch.autograd.grad(got.node_energy.sum(), x)
        again = solve(model, given.with_(positions=x), 1, polarisable=True)
        (want,) = torch.autograd.grad(again.node_energy.sum(), x)
        torch.testing.assert_close(force, want, rtol=0, atol=1e-10)
