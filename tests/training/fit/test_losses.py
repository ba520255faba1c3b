"""The objective against mace's own losses and against numpy."""

import numpy as np
import pytest
import torch
from mace import modules

from phi_equivariant.errors import InputError
from phi_equivariant.inputs.graphs import GraphBatch
from training.fit import losses
from training.fit.terms import TERMS
from training.options import command_line, phi_section


@pytest.fixture
def batch(double):
    """Three structures of 2, 3 and 1 atoms; the second has no charges, the third no dipole."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    return GraphBatch(
        ptr=torch.tensor([0, 2, 5, 6]),
        batch=torch.tensor([0, 0, 1, 1, 1, 2]),
        energy=normal(3),
        forces=normal(6, 3),
        stress=normal(3, 3, 3),
        virials=normal(3, 3, 3),
        charges=normal(6),
        dipole=normal(3, 3),
        weight=torch.tensor([1.0, 2.0, 0.5]),
        energy_weight=torch.tensor([1.0, 0.5, 1.0]),
        forces_weight=torch.tensor([1.0, 3.0, 1.0]),
        stress_weight=torch.ones(3),
        virials_weight=torch.ones(3),
        charges_weight=torch.tensor([1.0, 0.0, 2.0]),
        dipole_weight=torch.tensor([[1.0] * 3, [3.0] * 3, [0.0] * 3]),
    )


@pytest.fixture
def output(batch):
    generator = torch.Generator().manual_seed(1)
    made = {
        name: torch.randn(batch[name].shape, generator=generator)
        for name in ("energy", "forces", "stress", "charges", "dipole")
    }
    made |= {"pde_residual": torch.tensor([1.0, 2.0, 6.0]), "charge_penalty": torch.tensor([0.5, 0.0, 1.0])}
    return {name: value.requires_grad_(True) for name, value in made.items()}


@pytest.mark.parametrize(
    "host_loss",
    [
        lambda: modules.WeightedEnergyForcesLoss(2.0, 30.0),
        lambda: modules.WeightedForcesLoss(30.0),
        lambda: modules.WeightedHuberEnergyForcesStressLoss(2.0, 30.0, 4.0, huber_delta=0.02),
        lambda: modules.UniversalLoss(2.0, 30.0, 4.0, huber_delta=0.02),
        lambda: modules.WeightedEnergyForcesL1L2Loss(2.0, 30.0),
        lambda: modules.WeightedEnergyForcesStressLoss(2.0, 30.0, 4.0),
    ],
)
def test_total_is_macess_loss_plus_weighted_terms(batch, output, host_loss):
    """Each term is logged apart, and the terms sum to the total."""
    weights = {"charges": 3.0, "dipole": 0.2, "pde": 0.1, "net_charge": 5.0}
    total, terms = losses.Objective(host_loss(), weights)(output, batch)
    own = 3.0 * TERMS["charges"].loss(output, batch) + 0.2 * TERMS["dipole"].loss(output, batch) + 0.1 * 3.0 + 5.0 * 0.5
    torch.testing.assert_close(total, host_loss()(pred=output, ref=batch) + own)
    torch.testing.assert_close(sum(terms.values()), total)
    assert set(weights) < set(terms)


WEIGHTS = {"energy": (2.0, 60.0), "forces": (30.0, 7.0), "stress": (4.0, 0.5), "virials": (3.0, 0.3)}
TWO_STAGES = {
    "weighted": ("WeightedEnergyForcesLoss", "energy", "forces"),
    "ef": ("WeightedEnergyForcesLoss",),
    "forces_only": ("WeightedForcesLoss", "forces"),
    "virials": ("WeightedEnergyForcesVirialsLoss", "energy", "forces", "virials"),
    "stress": ("WeightedEnergyForcesStressLoss", "energy", "forces", "stress"),
    "huber": ("WeightedHuberEnergyForcesStressLoss", "energy", "forces", "stress", "huber_delta"),
    "universal": ("UniversalLoss", "energy", "forces", "stress", "huber_delta"),
    "l1l2energyforces": ("WeightedEnergyForcesL1L2Loss", "energy", "forces"),
}


@pytest.mark.honours(
    "loss", "energy_weight", "forces_weight", "stress_weight", "virials_weight", "huber_delta", "swa_energy_weight",
    "swa_forces_weight", "swa_stress_weight", "swa_virials_weight",
)  # fmt: skip
@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("name", TWO_STAGES)
def test_losses_of_both_stages_are_maces(batch, output, name, stage):
    """The loss of that name with the weights of the stage; losses without one of their own have the weighted one."""
    kind, *arguments = TWO_STAGES[name]
    if stage == 2 and name in ("ef", "huber", "l1l2energyforces"):
        kind, *arguments = TWO_STAGES["weighted"]
    given = [
        word
        for term, (one, two) in WEIGHTS.items()
        for word in (f"--{term}_weight", str(one), f"--swa_{term}_weight", str(two))
    ]
    line = ["--train_file", "x", "--loss", name, "--huber_delta", "0.03", *given]
    if stage == 2 and name == "forces_only":
        with pytest.raises(InputError, match="--swa"):
            command_line.parse([*line, "--swa"])
        return
    loss = command_line.parse(line).loss
    numbers = {f"{term}_weight": WEIGHTS[term][stage - 1] for term in arguments if term in WEIGHTS}
    numbers |= {"huber_delta": 0.03} if "huber_delta" in arguments else {}
    output["virials"] = output["stress"] * 2.0
    theirs = getattr(modules, kind, None) or getattr(modules.loss, kind)
    expected = theirs(**numbers)(pred=output, ref=batch)
    total, _ = losses.build_objective(loss, None, stage)(output, batch)
    torch.testing.assert_close(total, expected, rtol=1e-12, atol=0.0)


def test_charge_loss_is_a_mean_over_labelled_atoms(batch, output):
    """Structure 1 has no charges: its atoms count neither above nor below."""
    loss = TERMS["charges"].loss(output, batch)
    error = (output["charges"] - batch["charges"]).detach().numpy()
    weight = np.array([1.0, 1.0, 0.0, 0.0, 0.0, 0.5 * 2.0])
    assert float(loss.detach()) == pytest.approx((weight * error**2).sum() / 3)
    (gradient,) = torch.autograd.grad(loss, output["charges"])
    assert (gradient[2:5] == 0).all() and (gradient[[0, 1, 5]] != 0).all()


def test_dipole_loss_is_a_mean_over_labelled_structures(batch, output):
    loss = float(TERMS["dipole"].loss(output, batch).detach())
    error = (output["dipole"] - batch["dipole"]).detach().numpy()
    assert loss == pytest.approx(((error[0] ** 2).sum() + 2.0 * 3.0 * (error[1] ** 2).sum()) / 6)


def test_no_labels_no_loss(batch, output):
    """Charge and dipole losses of a batch without labels are zero, not nan."""
    batch["charges_weight"] = torch.zeros(3)
    batch["dipole_weight"] = torch.zeros(3, 3)
    assert TERMS["charges"].loss(output, batch) == 0.0
    assert TERMS["dipole"].loss(output, batch) == 0.0


def test_regularisation_does_not_depend_on_batch_size(batch, output):
    """Means over structures: a batch of the same structures twice has the same terms."""
    twice = {name: output[name].repeat(2) for name in ("pde_residual", "charge_penalty")}
    for name in ("pde", "net_charge"):
        torch.testing.assert_close(TERMS[name].loss(output, batch), TERMS[name].loss(twice, batch))


def test_warm_up(batch, output):
    """λ_pde and λ_q do not act in the first epochs; charges do; validation counts every term."""
    objective = losses.Objective(modules.WeightedEnergyForcesLoss(), {"pde": 2.0, "net_charge": 1.0, "charges": 1.0}, 3)
    for epoch in (0, 2):
        total, terms = objective(output, batch, epoch)
        assert terms["pde"] == terms["net_charge"] == 0.0 and terms["charges"] > 0.0
        assert torch.autograd.grad(total, output["pde_residual"])[0].abs().max() == 0.0
    for epoch in (3, None):
        total, terms = objective(output, batch, epoch)
        assert terms["pde"] == pytest.approx(6.0) and terms["net_charge"] == pytest.approx(0.5)


def test_open_structures_have_no_stress_error(batch, output):
    """mace's huber losses want a stress; a potential with Φ gives None, and the stress term is then zero."""
    huber = modules.WeightedHuberEnergyForcesStressLoss(1.0, 1.0, 5.0)
    total, terms = losses.Objective(huber, {})({**output, "stress": None}, batch)
    assert terms["stress"] == 0.0 and torch.isfinite(total)


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"poisson": "exact", "pde_weight": 0.1}, ("pde_weight", "exact", "learned")),
        ({"operator": "graph", "net_charge_weight": 1.0}, ("net_charge_weight", "graph", "coulomb")),
        ({"poisson": "learned", "pde_warmup_epochs": 3}, ("pde_warmup_epochs", "zero")),
        ({"poisson": "learned", "pde_weight": -1.0}, ("pde_weight", "greater than or equal to 0")),
        ({"chanels": 2}, ("chanels", "Did you mean channels")),
        ({"channels": "two"}, ("channels", "'two'", "a whole number")),
        ({"channels": True}, ("channels", "a whole number")),
        ({"num_modes": 1.5}, ("num_modes", "a whole number or null")),
        ({"operator": "ewald"}, ("operator", "'coulomb'", "'graph'")),
        ("coulomb", ("expected a section",)),
    ],
)
def test_phi_section_is_strict(section, words):
    """Unknown and mistyped keys, and weights on terms that are zero by construction, are refused by name."""
    with pytest.raises(InputError) as error:
        phi_section.validate(section)
    for word in words:
        assert word in str(error.value)


def test_phi_section_gives_a_configuration():
    settings = phi_section.validate({"operator": "graph", "poisson": "learned", "pde_weight": 1, "num_modes": 8})
    assert settings.config.operator == "graph" and settings.config.num_modes == 8
    assert settings.pde_weight == 1.0 and settings.pde_warmup_epochs == 0
    assert phi_section.validate(settings.section()) == settings
    written = {"operator": "graph", "poisson": "learned", "pde_weight": "1e0", "num_modes": 8}  # text in YAML's eyes
    assert phi_section.validate(written) == settings


def test_command_line_values_are_typed():
    assert phi_section.from_command_line(["channels=4", "low_pass=0.5", "num_modes=null", "operator=graph"]) == {
        "channels": 4,
        "low_pass": 0.5,
        "num_modes": None,
        "operator": "graph",
    }
    with pytest.raises(InputError, match="KEY=VALUE"):
        phi_section.from_command_line(["channels"])


LOSSES = sorted(set(TWO_STAGES))


def objective_of(name):
    weights = [word for term, (one, _) in WEIGHTS.items() for word in (f"--{term}_weight", str(one))]
    return losses.build_objective(command_line.parse(["--train_file", "x", "--loss", name, *weights]).loss, None)


@pytest.mark.parametrize("absent", [("energy",), ("forces",), ("stress",), ("energy", "forces", "stress", "virials")])
@pytest.mark.parametrize("name", LOSSES)
def test_labels_of_weight_zero_are_not_trained(batch, output, name, absent):
    """Not with mace's losses either that take no weights, and read an absent label as zero: no gradient, no error.

    mace's loss, given the label as prediction, has the same value.
    """
    output["virials"] = (output["stress"] * 2.0).detach().requires_grad_(True)
    for term in absent:
        batch[f"{term}_weight"] = batch[f"{term}_weight"] * torch.tensor([1.0, 0.0, 1.0])
        batch[term][slice(2, 5) if term == "forces" else 1] = 0.0
    objective = objective_of(name)
    total, terms = objective(output, batch)
    told = {key: value.detach().clone() for key, value in output.items()}
    for term in absent:
        rows = slice(2, 5) if term == "forces" else 1
        told[term][rows] = batch[term][rows]
    torch.testing.assert_close(total, objective.host_loss(pred=told, ref=batch), rtol=1e-12, atol=0.0)
    torch.testing.assert_close(sum(terms.values()), total.detach())
    for term in set(absent) & set(terms):
        (gradient,) = torch.autograd.grad(total, output[term], retain_graph=True)
        assert gradient[slice(2, 5) if term == "forces" else 1].abs().max() == 0 and gradient[0].abs().max() > 0


def test_structures_of_weight_zero_are_not_trained(batch, output):
    """mace's universal loss does not multiply by weights of structures: zero acts all the same."""
    batch["weight"][1] = 0.0
    total, _ = objective_of("universal")(output, batch)
    for term, rows in (("energy", 1), ("forces", slice(2, 5)), ("stress", 1)):
        (gradient,) = torch.autograd.grad(total, output[term], retain_graph=True)
        assert gradient[rows].abs().max() == 0 and gradient.abs().max() > 0


@pytest.mark.parametrize("name", LOSSES)
def test_weights_that_maces_losses_ignore_are_known(batch, output, name):
    """Found by doubling each weight of mace's own terms."""
    output["virials"] = output["stress"] * 2.0
    objective = objective_of(name)
    before = objective(output, batch)[1]
    ignored = set()
    for term in before:
        for entry, key in (("weight", "config_weight"), (f"{term}_weight", f"config_{term}_weight")):
            other = GraphBatch({**batch, entry: 2.0 * batch[entry]})
            if float(objective(output, other)[1][term]) == pytest.approx(float(before[term]), rel=1e-9):
                ignored.add(key)
    assert ignored == set(losses.IGNORED_WEIGHTS.get(name, ()))


def test_a_label_that_no_weight_trains_is_no_need():
    """Labels come from the terms of the losses of both stages, with the options that weigh them."""
    line = ["--train_file", "x", "--forces_weight", "0", "--swa", "--loss", "huber", "--stress_weight", "3"]
    chosen = command_line.parse([*line, "--max_num_epochs", "8"])
    objectives = {stage: losses.build_objective(chosen.loss, None, stage) for stage in (1, 2)}
    needs = {need.label.name: need for need in losses.needs(chosen.loss, objectives, chosen.given).labels}
    assert needs["energy"].options == ("energy_weight", "swa_energy_weight") and not needs["energy"].asked
    assert needs["forces"].options == ("swa_forces_weight",)
    assert needs["stress"].options == ("stress_weight",) and needs["stress"].asked
    assert set(needs) == {"energy", "forces", "stress"}
    assert objectives[1].describe().startswith("energy 1, forces 0, stress 3 (WeightedHuber")
    own = losses.Objective(modules.WeightedForcesLoss(2.0), {"dipole": 0.5, "pde": 3.0})
    assert own.describe() == "forces 2, dipole 0.5 per (e·Å)², pde 3 per e² or eV (WeightedForcesLoss)"
    assert own.labels() == ["forces", "dipole"]
