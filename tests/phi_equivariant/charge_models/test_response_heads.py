"""What charge models start from: tables of free atoms, positive numbers, charges of a sensible size."""

import numpy as np
import pytest
import torch
from ase.build import molecule
from ase.calculators.vdwcorrection import vdWDB_alphaC6
from ase.data import atomic_numbers
from charged import case

from phi_equivariant.charge_models.energy import ChargeEnergy
from phi_equivariant.charge_models.flow import Conductance, FlowGraph
from phi_equivariant.charge_models.induced import polarise
from phi_equivariant.charge_models.qeq import equilibrate
from phi_equivariant.charge_models.response_heads import NAMES, ResponseHeads
from phi_equivariant.charge_models.sqe import split_charges
from phi_equivariant.elements import electronegativity, hardness, polarisability
from phi_equivariant.errors import InputError

pytestmark = pytest.mark.usefixtures("double")


def test_tables_against_others():
    """Pearson's own hardnesses, and the polarisabilities of another table (Chu and Dalgarno, as ase has them)."""
    pearson = {"H": 6.43, "Li": 2.39, "C": 5.00, "N": 7.23, "O": 6.08, "F": 7.01, "Na": 2.30, "Cl": 4.68, "Ag": 3.14}
    for symbol, want in pearson.items():
        assert hardness(atomic_numbers[symbol]) == pytest.approx(want, abs=0.05)
    units = 14.399645 / 0.14818471
    ratios = [polarisability(atomic_numbers[symbol]) * units / values[0] for symbol, values in vdWDB_alphaC6.items()]
    assert (
        len(ratios) > 35 and np.median(ratios) == pytest.approx(1, abs=0.02) and 0.6 < min(ratios) < max(ratios) < 1.5
    )


def test_every_element_has_values_and_others_are_refused():
    for number in range(1, 119):
        assert hardness(number) > 1 and polarisability(number) > 0.01
    for wrong in (0, -1, 119):
        for function in (hardness, polarisability):
            with pytest.raises(InputError, match=f"{wrong} is not an element's"):
                function(wrong)


def test_values_are_positive_for_features_far_from_the_start():
    heads = ResponseHeads(["4x0e+2x1o", "4x0e"], [1, 8], 8, NAMES)
    species = torch.tensor([0, 1, 1])
    start = heads([torch.zeros(3, 10), torch.zeros(3, 4)], species)
    torch.testing.assert_close(start["hardness"], torch.tensor([6.42, 6.08, 6.08]), rtol=0.05, atol=0)
    torch.testing.assert_close(start["conductance"], torch.ones(3), rtol=0.05, atol=0)
    assert start["polarisability"][1].item() == pytest.approx(polarisability(8), rel=0.05)
    for scale in (1.0, 10.0):
        with torch.no_grad():
            for head in heads.heads:
                head.out.weight.mul_(10)
        found = heads([scale * torch.randn(3, 10), scale * torch.randn(3, 4)], species)
        for name in NAMES[1:]:
            assert (found[name] > 0).all() and not torch.allclose(found[name], start[name])
    sum(found[name].sum() for name in NAMES).backward()
    assert all(parameter.grad is not None for parameter in heads.parameters())


def test_names_are_checked():
    for wrong in (["hardnes"], []):
        with pytest.raises(InputError, match="response heads are .*use some of electronegativity"):
            ResponseHeads(["4x0e"], [1], 8, wrong)


def test_charges_start_at_about_two_tenths_of_an_electron():
    """Of both models on organic molecules, oxygen and nitrogen negative; and close to one another."""
    names = ["CH3CH2OH", "CH3CONH2", "C6H6", "CH3NO2", "HCOOH", "CH3CN", "C5H5N", "H2O", "CH3CHO", "CH3COCH3"]
    found = {"qeq": [], "sqe": []}
    for name in names:
        atoms = molecule(name)
        elements = sorted({int(z) for z in atoms.numbers})
        given = case(atoms, r_max=4.5)
        values = ResponseHeads(["4x0e"], elements, 8, NAMES[:3])([torch.zeros(len(atoms), 4)], given.shared["species"])
        bare, _ = given.parts()
        energy = ChargeEnergy(bare.operator, bare.layout, values["electronegativity"], values["hardness"])
        start = torch.tensor([0.5 * (electronegativity(6) - electronegativity(int(z))) for z in atoms.numbers])
        sender, receiver = edges = given.shared["edge_index"]
        lengths = (given.positions[receiver] - given.positions[sender]).norm(dim=-1)
        graph = FlowGraph(edges, Conductance(4.5)(values["conductance"], edges, lengths), bare.layout)
        found["qeq"].append(equilibrate(energy, torch.zeros(1), 0).charges)
        found["sqe"].append(split_charges(energy, graph, start - start.mean(), 0).charges)
        for charges in (found["qeq"][-1], found["sqe"][-1]):
            assert all(charges[i] < 0 for i in range(len(atoms)) if atoms.numbers[i] == 8)
    sizes = {model: torch.cat(charges).square().mean().sqrt().item() for model, charges in found.items()}
    assert 0.15 < sizes["qeq"] < 0.3 and 0.15 < sizes["sqe"] < 0.3


@pytest.mark.parametrize(("name", "measured"), [("CH4", 2.45), ("H2O", 1.45), ("C6H6", 10.0)])
def test_polarisabilities_of_molecules_start_at_the_right_size(name, measured):
    """Of induced dipoles alone, in Å³: from half of what is measured (CRC Handbook) to 1.15 of it."""
    atoms = molecule(name)
    given = case(atoms)
    elements = sorted({int(z) for z in atoms.numbers})
    heads = ResponseHeads(["4x0e"], elements, 8, ["polarisability"])
    alpha = heads([torch.zeros(len(atoms), 4)], given.shared["species"])["polarisability"]
    operator, columns = given.parts()[0].operator, []
    for axis in torch.eye(3):
        energy = ChargeEnergy(operator, given.shared["layout"], polarisability=alpha, field=axis.expand(len(atoms), 3))
        columns.append(polarise(energy, torch.zeros(len(atoms)), 0).dipoles.sum(0))
    tensor = 14.399645 * torch.stack(columns)
    torch.testing.assert_close(tensor, tensor.T, rtol=0, atol=1e-8)
    assert 0.5 * measured < tensor.trace().item() / 3 < 1.15 * measured
    if name == "CH4":
        torch.testing.assert_close(tensor, tensor[0, 0] * torch.eye(3), rtol=1e-4, atol=1e-4)
