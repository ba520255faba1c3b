import argparse

import pytest
import torch
from systems import mace_host, potential

from mace.tools.scripts_utils import get_params_options  # isort: skip

from phi_equivariant.errors import InputError
from zoo import parameter_groups

pytestmark = pytest.mark.usefixtures("double")


def test_every_trainable_parameter_is_in_exactly_one_group():
    model = potential()
    grouped = [id(p) for group in parameter_groups(model) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    for parameter in model.host.parameters():
        parameter.requires_grad_(False)
    assert [group["name"] for group in parameter_groups(model)] == ["phi"]


def test_weight_decay_is_where_mace_has_it():
    host = mace_host()
    settings = argparse.Namespace(
        lr=0.01, weight_decay=5e-7, amsgrad=True, beta=0.9, lr_params_factors="{}", freeze=None
    )
    expected = {
        group["name"]: ([id(p) for p in group["params"]], group["weight_decay"] > 0)
        for group in get_params_options(settings, host)["params"]
    }
    got = {g["name"]: ([id(p) for p in g["params"]], g["decay"]) for g in parameter_groups(host)}
    assert got == expected


def test_parameters_that_a_host_type_would_leave_out_are_found():
    host = mace_host()
    host.extra = torch.nn.Linear(2, 2)
    with pytest.raises(InputError, match="missing: .*extra.weight"):
        parameter_groups(host)
    with pytest.raises(InputError, match="installed host type"):
        parameter_groups(torch.nn.Linear(2, 2))
