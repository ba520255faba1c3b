"""Bounds on what a file may build, also of hosts that nobody here knows."""

import json
import math
import tracemalloc

import pytest
import torch

from phi_equivariant.errors import InputError
from phi_equivariant.weights import describe_model, host_type
from zoo import create_model
from zoo.bounds import Irreps, at_most, most_counts, read_irreps
from zoo.hosts import EnergyModelHost
from zoo.sizes import ARCHITECTURES

TINY = {"hidden_irreps": "4x0e+4x1o", "radial_MLP": [8]}


class Stranger(torch.nn.Module):
    """A host of somebody else's: what its annotations say is all that is known of it."""

    def __init__(self, width: int, irreps: Irreps, rate: float, layers: list[int], name: str = "x") -> None:
        super().__init__()
        self.maps = torch.nn.ModuleList(torch.nn.Linear(width, width) for _ in layers)


class StrangerHost(EnergyModelHost):
    """Its type."""

    model_class = Stranger


GOOD = {"width": 50, "irreps": "8x0e", "rate": 1.0, "layers": [1, 2], "name": "x"}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"width": 10**6}, "width is 1000000; expected at most"),
        ({"width": 400}, "width is 400; expected at most 200"),
        ({"width": True}, "width is True"),
        ({"width": 3.5}, "width is 3.5"),
        ({"layers": [1, -(10**9)]}, "layers is -1000000000"),
        ({"layers": "12"}, "layers is '12'"),
        ({"irreps": "1_000x0e"}, "irreps is '1_000x0e'; .*not irreps"),
        ({"irreps": "300x0e"}, "300 channels of a kind need more parameters"),
        ({"rate": math.inf}, "rate is inf"),
        ({"rate": "1"}, "rate is '1'"),
        ({"name": ["x"]}, "name is"),
        ({"colour": 1}, "colour is not an argument of this host"),
    ],
)
def test_a_host_that_is_unknown_here_has_bounds_by_its_types(change, match):
    StrangerHost.check_arguments(GOOD, parameters=2500)
    with pytest.raises(InputError, match=match):
        StrangerHost.check_arguments({**GOOD, **change}, parameters=2500)


def test_building_stops_when_there_are_more_parameters_than_in_the_file():
    with at_most(2 * 50 * 51):
        Stranger(50, "8x0e", 1.0, [1, 2])
    tracemalloc.start()
    with pytest.raises(InputError, match="more parameters than the 5100"), at_most(5100):
        Stranger(50, "8x0e", 1.0, list(range(100_000)))
    assert tracemalloc.get_traced_memory()[1] < 2e7
    tracemalloc.stop()
    assert len(Stranger(50, "8x0e", 1.0, list(range(10))).maps) == 10  # nothing is counted afterwards


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_size_is_within_its_own_bounds(name):
    """Counts of a model are never refused to a file that holds its parameters, and no more are made on the way."""
    for given in ({}, {"hidden_channels": 16} if "hidden_channels" in ARCHITECTURES[name].arguments else TINY):
        model = create_model(name, [1, 8], with_phi=False, **given)
        n_parameters = sum(p.numel() for p in model.parameters())
        described = json.loads(json.dumps(describe_model(model)["host"]))
        kind = host_type(described["type"])
        kind.check_arguments(described["arguments"], n_parameters)
        with at_most(n_parameters):
            kind.build(described["arguments"])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"max_ell": 6, "correlation": 4}, "too many couplings"),
        ({"correlation": [4, 1], "max_ell": 5}, "too many couplings"),
        ({"correlation": [1]}, "correlation is .1. for 2 interactions"),
        ({"hidden_irreps": "4x1o"}, "without 0e channels"),
        ({"embedding_specs": {"q": {"num_classes": 10**9, "emb_dim": 64}}}, "num_classes is 1000000000"),
        ({"cueq_config": {"enabled": True}}, "cueq_config is not an argument"),
        ({"gate": ["silu"]}, "gate is"),
    ],
)
def test_what_mace_is_not_asked_for(change, match):
    arguments = describe_model(create_model("phi-mace-small", [1], with_phi=False, **TINY))["host"]["arguments"]
    with pytest.raises(InputError, match=match):
        host_type("mace").check_arguments({**arguments, **change}, parameters=10**6)


def test_the_most_counts_grow_with_the_file():
    assert [most_counts(n) for n in (None, 0, 10**4, 10**12)] == [8192, 128, 400, 8192]
    assert read_irreps("2x0e + 1o", most=2) == [(2, "0e"), (1, "1o")]
