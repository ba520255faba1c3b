"""Split-charge equilibration: closed forms, limits, an independent minimisation, what flows where."""

import numpy as np
import pytest
import torch
from ase import Atoms
from charged import R_MAX, case, random_cluster, reference_matrix
from scipy.optimize import minimize

from phi_equivariant.charge_models.energy import ChargeEnergy
from phi_equivariant.charge_models.flow import FlowGraph
from phi_equivariant.charge_models.qeq import equilibrate
from phi_equivariant.charge_models.sqe import split_charges
from phi_equivariant.errors import InputError

pytestmark = pytest.mark.usefixtures("double")

WAYS = pytest.mark.parametrize("dense", [True, False], ids=["dense", "iterated"])


def scaled(given, factor):
    """The energy and a graph with conductances times a factor."""
    energy, graph = given.parts()
    edges = torch.stack([graph.sender, graph.receiver])
    return energy, FlowGraph(edges, 2 * factor * graph.half, graph.layout)


@WAYS
def test_two_atoms_in_closed_form(dense):
    given = case(Atoms("CO", [[0, 0, 0], [0, 0, 1.3]]))
    energy, graph = given.parts()
    got = split_charges(energy, graph, given.start, 0, dense)
    k = energy.operator.matrix()[0] + torch.diag(given.hardness)
    level = k @ given.start + given.electronegativity
    w, stiffness = 2 * graph.half[0], k[0, 0] + k[1, 1] - 2 * k[0, 1]
    flow = w * (level[1] - level[0]) / (1 + w * stiffness)
    want = given.start + flow * torch.tensor([1.0, -1.0])
    torch.testing.assert_close(got.charges, want, rtol=0, atol=1e-12)
    lost = 0.5 * w * (level[1] - level[0]) ** 2 / (1 + w * stiffness)
    before = 0.5 * given.start @ k @ given.start + given.electronegativity @ given.start
    torch.testing.assert_close(got.node_energy.sum(), before - lost, rtol=0, atol=1e-11)
    into_first = graph.flows(got.level)[graph.receiver == 0].sum() - graph.flows(got.level)[graph.sender == 0].sum()
    torch.testing.assert_close(into_first, flow, rtol=0, atol=1e-12)


@WAYS
def test_without_conductance_charges_stay(dense):
    given = case(random_cluster(6), random_cluster(3, 1))
    energy, graph = scaled(given, 0.0)
    got = split_charges(energy, graph, given.start, 0, dense)
    torch.testing.assert_close(got.charges, given.start, rtol=0, atol=0 if not dense else 1e-14)
    direct = ChargeEnergy(energy.operator, energy.layout, given.electronegativity, given.hardness)
    want = direct.response(given.start[:, None], direct.fields(given.start[:, None]), given.start, 0 * given.start)
    torch.testing.assert_close(got.node_energy, want.node_energy, rtol=0, atol=1e-12)


@WAYS
def test_large_conductances_tend_to_equilibration(dense):
    """The difference from qeq on a connected graph falls as 1/w."""
    given = case(random_cluster(6, box=2.0), r_max=6.0)
    energy, _ = given.parts()
    total = given.start.sum()[None]
    want = equilibrate(energy, total, 0).charges
    errors = [
        float((split_charges(*scaled(given, factor), given.start, 0, dense).charges - want).abs().max())
        for factor in (1e3, 1e4, 1e5)
    ]
    assert errors[0] < 0.1 and errors[0] / errors[1] == pytest.approx(10, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(10, rel=0.02)


def oracle(given):
    """U + the energy of the flow of one open structure in numpy: f(flows on undirected edges, μ), and the edges."""
    widths = given.shared["operator"].widths()[given.shared["species"]].detach().numpy()
    matrix = reference_matrix(given.positions.numpy(), widths)
    n = len(widths)
    _, graph = given.parts()
    listed = zip(graph.sender.tolist(), graph.receiver.tolist(), graph.half.tolist(), strict=True)
    pairs = [(i, j, 2 * half) for i, j, half in listed if i < j]
    incidence = np.zeros((len(pairs), n))
    for row, (i, j, _) in enumerate(pairs):
        incidence[row, i], incidence[row, j] = 1, -1
    w = np.array([weight for _, _, weight in pairs])
    chi, eta, alpha = (t.numpy() for t in (given.electronegativity, given.hardness, given.polarisability))

    def energy(x):
        flows, induced = x[: len(pairs)], x[len(pairs) :].reshape(n, 3)
        charges = given.start.numpy() + incidence.T @ flows
        z = np.concatenate([charges[:, None], given.dipoles.numpy() + induced], axis=1).ravel()
        model = 0.5 * z @ matrix @ z + chi @ charges + 0.5 * eta @ charges**2
        return model + 0.5 * (flows**2 / w).sum() + 0.5 * ((induced**2).sum(1) / alpha).sum()

    return energy, incidence


@WAYS
def test_is_the_minimum_that_scipy_finds(dense):
    """Flows and induced dipoles together, with permanent dipoles, by an energy in numpy."""
    given = case(random_cluster(4))
    energy, incidence = oracle(given)
    found = minimize(energy, np.zeros(len(incidence) + 12), method="BFGS", options={"gtol": 1e-8})
    got = split_charges(*given.parts(dipoles=True, polarisable=True), given.start, 0, dense)
    assert got.node_energy.sum().item() == pytest.approx(found.fun, abs=1e-9)
    charges = given.start.numpy() + incidence.T @ found.x[: len(incidence)]
    np.testing.assert_allclose(got.charges.detach(), charges, atol=1e-5)
    induced = found.x[len(incidence) :].reshape(4, 3)
    np.testing.assert_allclose(got.dipoles.detach() - given.dipoles, induced, atol=1e-5)


def test_no_other_flows_have_less_energy():
    given = case(random_cluster(5, 3))
    energy, graph = given.parts()
    got = split_charges(energy, graph, given.start, 0)
    rng, laplacian = np.random.default_rng(0), graph.matrix()[0].detach().numpy()
    k = (energy.operator.matrix()[0] + torch.diag(given.hardness)).detach().numpy()
    chi, start = given.electronegativity.numpy(), given.start.numpy()

    def total(charges):
        return (
            0.5 * charges @ k @ charges
            + chi @ charges
            + 0.5 * (charges - start) @ np.linalg.pinv(laplacian) @ (charges - start)
        )

    least, charges = got.node_energy.sum().item(), got.charges.detach().numpy()
    assert total(charges) == pytest.approx(least, abs=1e-10)
    for size in (1e-3, 1e-1):
        for _ in range(20):
            change = rng.normal(size=len(charges))
            assert total(charges + size * (change - change.mean())) > least


@WAYS
def test_fragments_beyond_the_cutoff_exchange_nothing(dense):
    """Each keeps its charge, and far away its energy: ions, an isolated atom and a molecule."""
    parts = [random_cluster(4, 1), Atoms("O"), random_cluster(3, 2)]
    whole = Atoms()
    for index, part in enumerate(parts):
        moved = part.copy()
        moved.translate([1e7 * index, 0, 0])
        whole += moved
    given, alone = case(whole), case(*parts)
    got = split_charges(*given.parts(), given.start, 0, dense)
    want = split_charges(*alone.parts(), alone.start, 0, dense)
    torch.testing.assert_close(got.charges, want.charges, rtol=0, atol=1e-6)
    assert (got.node_energy.sum() - want.node_energy.sum()).item() == pytest.approx(0, abs=1e-5)
    assert float(got.charges[4]) == pytest.approx(float(given.start[4]), abs=1e-14)
    change = alone.shared["layout"].sum(want.charges - alone.start)
    torch.testing.assert_close(change, torch.zeros(3), rtol=0, atol=1e-13)


def test_neighbours_near_but_beyond_the_cutoff_exchange_nothing():
    given = case(Atoms("COCO", [[0, 0, 0], [0, 0, 1.2], [0, 0, 1.2 + R_MAX + 1e-9], [0, 0, 2.4 + R_MAX]]))
    got = split_charges(*given.parts(), given.start, 0)
    sums = got.charges.reshape(2, 2).sum(1) - given.start.reshape(2, 2).sum(1)
    torch.testing.assert_close(sums, torch.zeros(2), rtol=0, atol=1e-14)
    assert (got.charges - given.start).abs().max() > 1e-3


@WAYS
def test_order_of_atoms_edges_and_structures_does_not_matter(dense):
    structures = random_cluster(5), random_cluster(3, 1)
    given = case(*structures)
    want = split_charges(*given.parts(polarisable=True), given.start, 0, dense)
    order = torch.tensor([3, 0, 4, 1, 2, 7, 5, 6])
    energy, graph = given.parts(polarisable=True)
    shared = given.shared
    back = order.argsort()
    shuffled = torch.randperm(len(graph.half))
    moved = given.with_(
        **{name: getattr(given, name)[order] for name in given.names},
        shared={
            **shared,
            "species": shared["species"][order],
            "edge_index": back[shared["edge_index"]][:, shuffled],
            "images": shared["images"][shuffled],
        },
    )
    got = split_charges(*moved.parts(polarisable=True), moved.start, 0, dense)
    torch.testing.assert_close(got.charges, want.charges[order], rtol=0, atol=1e-10)
    torch.testing.assert_close(got.dipoles, want.dipoles[order], rtol=0, atol=1e-10)
    alone = case(structures[0])
    alone = alone.with_(**{name: getattr(given, name)[:5] for name in given.names})
    alone.shared["operator"] = shared["operator"]
    alone.shared["species"] = shared["species"][:5]
    only = split_charges(*alone.parts(polarisable=True), alone.start, 0, dense)
    torch.testing.assert_close(only.charges, want.charges[:5], rtol=0, atol=1e-10)


@WAYS
def test_a_cell_smaller_than_the_cutoff(dense):
    """Several edges between the same atoms, and edges of atoms to their own images: the results of a supercell."""
    cell = np.array([[2.5, 0.1, 0.0], [0.2, 2.4, 0.0], [-0.2, 0.3, 2.6]])
    atoms = random_cluster(2, 1, cell=cell, nearest=1.0)
    given = case(atoms)
    edges = given.shared["edge_index"]
    assert (edges[0] == edges[1]).any() and len(edges[0]) > 2 * len(torch.unique(edges, dim=1)[0])
    larger = case(atoms * (2, 1, 1))
    twice = {name: getattr(given, name).repeat(2, *[1] * (getattr(given, name).ndim - 1)) for name in given.names[1:]}
    larger = larger.with_(**twice)
    want = split_charges(*given.parts(dipoles=True, polarisable=True), given.start, 0, dense)
    got = split_charges(*larger.parts(dipoles=True, polarisable=True), larger.start, 0, dense)
    torch.testing.assert_close(got.charges, want.charges.repeat(2), rtol=0, atol=1e-8)
    torch.testing.assert_close(got.node_energy, want.node_energy.repeat(2), rtol=0, atol=1e-7)


def test_conductances_that_are_not_numbers_are_refused():
    layout = case(Atoms("CO", [[0, 0, 0], [0, 0, 1.3]])).shared["layout"]
    for wrong in (-1e-3, float("nan"), float("inf")):
        with pytest.raises(InputError, match="conductance is negative or not finite"):
            FlowGraph(torch.tensor([[0, 1], [1, 0]]), torch.tensor([0.1, wrong]), layout)


@WAYS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_charge_is_kept_however_well_edges_conduct(dense, dtype):
    """What rounding makes of all that would flow at first, hundreds of e, does not stay."""
    given = case(random_cluster(9, box=3.0), random_cluster(4, 1), dtype=dtype)
    energy, graph = scaled(given, 1e4)
    got = split_charges(energy, graph, given.start, 0, dense)
    lost = energy.layout.sum(got.charges - given.start).abs().max()
    assert lost < {torch.float32: 1e-5, torch.float64: 1e-9}[dtype]


def test_structures_without_any_edge():
    given = case(Atoms("O"), Atoms("C"))
    got = split_charges(*given.parts(), given.start, 1)
    torch.testing.assert_close(got.charges, given.start, rtol=0, atol=1e-15)
