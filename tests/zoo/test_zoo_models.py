"""Fresh models by name."""

import numpy as np
import pytest
import torch
from checks import run
from systems import ELEMENTS, R_MAX, ethanol

from phi_equivariant import PhiConfig, PhiPotential
from phi_equivariant.errors import InputError
from zoo import create_model, list_models, model_info, parameter_groups
from zoo.architectures import ARCHITECTURES

pytestmark = pytest.mark.usefixtures("double")
TINY = dict(hidden_irreps="4x0e+4x1o", num_interactions=1, max_ell=1, correlation=1, radial_MLP=[8])


def test_names():
    assert list_models() == sorted(ARCHITECTURES) and all(name.startswith("phi-") for name in list_models())
    assert list_models("small") == [name for name in list_models() if name.endswith("-small")] != []
    assert list_models("phi-mace-*") == ["phi-mace-medium", "phi-mace-small"] and list_models("MACE") == []
    info = model_info("phi-mace-small")
    assert info["kind"] == "architecture" and info["arguments"]["hidden_irreps"] == "32x0e+32x1o"


def test_overrides_reach_the_model():
    e0s = {8: -30.0, 1: -10.0, 6: -20.0}
    statistics = dict(E0s=e0s, avg_num_neighbors=7.5, scale=0.5, shift=-0.25)
    model = create_model("phi-mace-small", [8, 1, 6, 6], r_max=4.5, phi={"channels": 2}, **TINY, **statistics)
    assert isinstance(model, PhiPotential) and model.atomic_numbers.tolist() == [1, 6, 8] and model.r_max == 4.5
    assert model.atomic_energies_fn.atomic_energies.flatten().tolist() == [-10.0, -20.0, -30.0]
    assert model.host.interactions[0].avg_num_neighbors == 7.5 and str(model.products[0].linear.irreps_out) == "4x0e"
    assert model.host.scale_shift.scale.item() == 0.5 and model.host.scale_shift.shift.item() == -0.25
    assert model.phi.config == PhiConfig(channels=2)
    assert sum(len(g["params"]) for g in parameter_groups(model)) == len(list(model.parameters()))


def test_precision_seed_and_the_bare_host():
    torch.manual_seed(3)
    single = create_model("phi-mace-small", [1, 8], dtype="float32", **TINY)
    torch.manual_seed(3)
    host = create_model("phi-mace-small", [1, 8], dtype="float32", with_phi=False, **TINY)
    assert torch.get_default_dtype() == torch.float64
    assert {p.dtype for p in single.parameters()} == {torch.float32} and not isinstance(host, PhiPotential)
    assert all(torch.equal(a, b) for a, b in zip(single.host.parameters(), host.parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "elements", "overrides", "match"),
    [
        ("phi-mace-smal", [1], {}, "Did you mean phi-mace-small"),
        ("phi-mace-small.x", [1], {}, "load_pretrained"),
        ("phi-mace-small", [], {}, "elements is empty"),
        ("phi-mace-small", [0], {}, "atomic number 0"),
        ("phi-mace-small", "HCO", {}, "elements is 'HCO'"),
        ("phi-mace-small", [1], {"hidden_ireps": "8x0e"}, "Did you mean hidden_irreps"),
        ("phi-mace-small", [1], {"class": "MACE"}, "'class' is not a setting"),
        ("phi-mace-small", [1], {"hidden_irreps": "8y0e"}, "not irreps"),
        ("phi-mace-small", [1], {"hidden_irreps": "8x1o"}, "without 0e channels"),
        ("phi-mace-small", [1], {"correlation": 0}, "correlation is 0"),
        ("phi-mace-small", [1], {"r_max": -1}, "r_max is -1"),
        ("phi-mace-small", [1], {"radial_MLP": 64}, "radial_MLP is 64"),
        ("phi-mace-small", [1], {"gate": "sin"}, "gate 'sin'"),
        ("phi-mace-small", [1], {"phi": {"operater": 1}}, "Did you mean operator"),
        ("phi-mace-small", [1], {"phi": {}, "with_phi": False}, "give one of them"),
        ("phi-mace-small", [1, 8], {"E0s": {1: 0.0}}, r"no energy for atomic numbers \[8\]"),
        ("phi-mace-small", [1], {"E0s": {1: float("nan")}}, "finite number"),
        ("phi-mace-small", [1], {"avg_num_neighbors": 0}, "avg_num_neighbors is 0"),
        ("phi-mace-small", [1], {"dtype": "half"}, "dtype is 'half'"),
        ("phi-mace-small", [1, 6], {"scale": float("nan")}, "scale is nan; give a finite number in eV"),
        ("phi-mace-small", [1, 6], {"shift": [1.0, 2.0]}, "give a finite number in eV"),
        ("phi-nequip-small", [1, 6], {"scale": [1.0, 2.0, 3.0]}, "a finite number, or one for each element"),
        ("phi-mace-small", [1], {"correlation": [3, 2, 1]}, "for 2 interactions; expected one for each"),
        ("phi-nequip-small", [1], {"parity": "no"}, "parity is 'no'"),
        ("phi-mace-small", [1.5, 6], {}, "elements is"),
        ("phi-mace-small", [True, 6], {}, "elements is"),
        ("phi-mace-small", "168", {}, "elements is '168'"),
        (["phi-mace-small"], [1], {}, "There is no model"),
    ],
)
def test_what_cannot_be_created(name, elements, overrides, match):
    with pytest.raises(InputError, match=match) as caught:
        create_model(name, elements, **overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", list_models())
def test_a_fresh_model_starts_sensibly(name):
    """At full size: charges of 0.01 to 0.6 e, an energy that is not of keV, every parameter in one group."""
    torch.manual_seed(0)
    model = create_model(name, ELEMENTS, r_max=R_MAX)
    fresh = run(model, ethanol())
    assert 0.01 < np.abs(fresh["charges"]).mean() < 0.6 and abs(fresh["energy"][0]) < 50.0
    assert sum(len(group["params"]) for group in parameter_groups(model)) == len(list(model.parameters()))
