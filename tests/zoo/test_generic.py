"""Any network as a host: against ase's Lennard-Jones, which is a network of two parameters here."""

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from ase.calculators.lj import LennardJones
from checks import check_forces, run
from systems import ELEMENTS, R_MAX, batch_of, distorted, ethanol

from phi_equivariant import PhiCalculator, PhiConfig, attach_phi
from phi_equivariant.errors import InputError
from phi_equivariant.weights import save_model
from zoo import GenericModel

pytestmark = pytest.mark.usefixtures("double")
SIGMA, EPSILON, START = 1.1, 0.3, 0.6 * R_MAX


class Pairs(torch.nn.Module):
    """Lennard-Jones energy per atom, switched off between START and the cut-off as ase does."""

    def __init__(self):
        super().__init__()
        self.sigma, self.epsilon = torch.nn.Parameter(torch.tensor(SIGMA)), torch.nn.Parameter(torch.tensor(EPSILON))
        self.width = torch.nn.Linear(1, 4)

    def forward(self, lengths, receiver, n_atoms):
        x = (self.sigma / lengths) ** 6
        a, b, r2 = START**2, R_MAX**2, lengths**2
        switch = torch.where(lengths > START, (b - r2) ** 2 * (b + 2 * r2 - 3 * a) / (b - a) ** 3, 1.0)
        pairs = 2 * self.epsilon * (x**2 - x) * switch
        atoms = pairs.new_zeros(n_atoms).index_add(0, receiver, pairs)
        self.width(atoms[:, None])  # what Φ may tap
        return atoms


def of_edges(network, graph):
    return network(graph.lengths, graph.edge_index[1], len(graph.numbers))


def of_positions(network, graph):
    """With a neighbour list of its own, which knows neither cut-off lists nor periodic images; per structure."""
    near = torch.cdist(graph.positions.detach(), graph.positions.detach()) < R_MAX
    near &= (graph.batch[:, None] == graph.batch).fill_diagonal_(False)
    receiver, sender = near.nonzero().T
    lengths = (graph.positions[receiver] - graph.positions[sender]).norm(dim=-1)
    atoms = network(lengths, receiver, len(graph.numbers))
    return atoms.new_zeros(int(graph.batch.max()) + 1, 1).index_add(0, graph.batch, atoms[:, None])


def host(energies=of_edges, **given):
    torch.manual_seed(0)
    return GenericModel(Pairs(), energies, ELEMENTS, r_max=R_MAX, **given)


def lennard_jones(atoms):
    atoms = atoms.copy()
    atoms.calc = LennardJones(sigma=SIGMA, epsilon=EPSILON, rc=R_MAX, ro=START, smooth=True)
    return atoms


def test_it_is_ases_lennard_jones_in_molecules_and_crystals():
    molecules, crystal = [distorted(molecule("CH3CH2OH")), molecule("H2O")], distorted(bulk("CO", "rocksalt", a=3.9))
    model = host(periodic=True, atomic_energies=[1.0, 2.0, 3.0, 4.0], atomic_inter_scale=1.0)
    out = run(model, *molecules, crystal, compute_stress=True)
    first = 0
    for index, atoms in enumerate([*molecules, crystal]):
        theirs = lennard_jones(atoms)
        e0 = sum(1.0 + ELEMENTS.index(z) for z in atoms.numbers)
        np.testing.assert_allclose(out["energy"][index] - e0, theirs.get_potential_energy(), rtol=1e-10)
        inside = slice(first, first + len(atoms))
        np.testing.assert_allclose(out["forces"][inside], theirs.get_forces(), rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(
            out["node_energy"][inside],
            theirs.get_potential_energies() + [1.0 + ELEMENTS.index(z) for z in atoms.numbers],
            rtol=1e-10,
        )
        first += len(atoms)
    np.testing.assert_allclose(out["stress"][2], lennard_jones(crystal).get_stress(voigt=False), rtol=1e-8, atol=1e-12)
    crystal.calc = PhiCalculator(host(periodic=True))
    np.testing.assert_allclose(crystal.get_stress(), lennard_jones(crystal).get_stress(), rtol=1e-8, atol=1e-12)


def test_energies_of_structures_with_a_neighbour_list_of_its_own():
    model = host(of_positions, per="structure", atomic_inter_scale=2.0, atomic_inter_shift=0.5)
    atoms, water = ethanol(), molecule("H2O")
    out = run(model, atoms, water)
    for index, one in enumerate([atoms, water]):
        want = 2 * lennard_jones(one).get_potential_energy() + 0.5 * len(one)
        np.testing.assert_allclose(out["energy"][index], want, rtol=1e-10)
    np.testing.assert_allclose(out["forces"][:9], 2 * lennard_jones(atoms).get_forces(), rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(out["node_energy"][9:], out["energy"][1] / 3, rtol=1e-12)
    with pytest.raises(InputError, match=r"pbc T T T\), but Pairs sees no periodic images"):
        model(batch_of(bulk("CO", "rocksalt", a=3.9)))


def test_phi_on_it_has_exact_forces():
    potential = attach_phi(host(), PhiConfig(operator="graph", poisson="exact"), taps={"network.width": 4})
    with torch.no_grad():
        potential.phi.alpha_net.heads[0].out.weight.mul_(30.0)
    out = run(potential, ethanol())
    assert abs(out["phi_energy"][0]) > 1e-2 and out["node_feats"].shape == (9, 4)
    check_forces(potential, ethanol())


def test_what_does_not_fit(tmp_path):
    for given, match in (
        ({"per": "molecule"}, "per is 'molecule'; give 'atom' or 'structure'"),
        ({"per": "structure", "atomic_inter_scale": [1.0, 2.0, 1.0, 1.0]}, "give one atomic_inter_scale"),
        ({"per": "structure", "train_scale_shift": True}, "not trained"),
        ({"r_max": 0.0}, "r_max is 0.0"),
        ({"r_max": float("inf")}, "r_max is inf"),
        ({"atomic_numbers": "CHO"}, "atomic_numbers is 'CHO'"),
        ({"atomic_numbers": [1, 1, 6, 8]}, "give each element once"),
        ({"atomic_energies": {1: 0.0}}, "atomic_energies is {1: 0.0}"),
        ({"network": of_edges}, "give a torch.nn.Module"),
        ({"energies": 3}, "energies is 3; give a function"),
    ):
        with pytest.raises(InputError, match=match):
            GenericModel(**{"network": Pairs(), "energies": of_edges, "atomic_numbers": ELEMENTS, **given})
    with pytest.raises(InputError, match=r"gave \(2, 1\) for 12 atoms in 2 structures; with .* expected \(12,\)"):
        host(of_positions)(batch_of(ethanol(), molecule("H2O")))
    with pytest.raises(InputError, match="gave tuple for 9 atoms"):
        host(lambda network, graph: (of_edges(network, graph), None))(batch_of(ethanol()))
    with pytest.raises(InputError, match="GenericModel does not belong to an installed host type"):
        save_model(host(), tmp_path)


def test_a_network_that_hides_its_derivative_is_refused():
    def of_detached_lengths(network, graph):
        return network(graph.lengths.detach(), graph.edge_index[1], len(graph.numbers))

    def without_a_graph(network, graph):
        with torch.no_grad():
            return of_edges(network, graph)

    for energies in (of_detached_lengths, without_a_graph):
        with pytest.raises(InputError, match="forces would be zero"):
            host(energies)(batch_of(ethanol()))
        host(energies)(batch_of(ethanol()), compute_force=False)
    with pytest.raises(InputError, match=r"gave torch.float32 for a graph in torch.float64"):
        host(lambda network, graph: of_edges(network, graph).float())(batch_of(ethanol()))
