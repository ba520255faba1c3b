"""Hosts on faster kernels: the same model, saved so that any machine reads it."""

import pytest
import torch
from training_runs import batch_of, build, keep_default_dtype, write_molecules  # noqa: F401

from phi_equivariant import attach_phi
from phi_equivariant.errors import InputError
from phi_equivariant.weights import load_model, save_model
from zoo import parameter_groups
from zoo.mace_host import CUET_AVAILABLE, MaceHost, accelerate, accelerated

GIVEN = {"hidden_irreps": "4x0e+4x1o", "max_ell": 1, "correlation": 2}
installed = pytest.mark.skipif(not CUET_AVAILABLE, reason="cuequivariance is not installed")


@pytest.fixture(scope="module")
def molecules(tmp_path_factory):
    return write_molecules(tmp_path_factory.mktemp("cueq") / "train.xyz", count=8)


@installed
@pytest.mark.honours("enable_cueq")
@pytest.mark.parametrize(
    "config", [{"operator": "coulomb", "channels": 2}, {"operator": "graph", "poisson": "learned"}]
)
def test_phi_on_a_converted_host_gives_the_same_energies_forces_and_gradients(molecules, tmp_path, config):
    """Features have another layout there, (ir, mul); what Φ reads of them has not."""
    host, data, _ = build(molecules, **GIVEN)
    plain = attach_phi(host, config)
    fast = attach_phi(accelerate(host, "cueq", "cpu"), config)
    fast.phi.load_state_dict(plain.phi.state_dict())
    assert accelerated(fast.host) == "cueq" and accelerated(host) is None
    batch = batch_of(data)
    results = [model(batch, training=True) for model in (plain, fast)]
    for name in ("energy", "phi_energy", "charges", "forces"):
        torch.testing.assert_close(results[1][name], results[0][name], rtol=1e-10, atol=1e-12)
    vectors = [result["node_feats"] for result in results]
    assert not torch.allclose(*vectors) and torch.allclose(vectors[0].norm(dim=1), vectors[1].norm(dim=1))
    for result in results:
        result["forces"].square().sum().backward()
    for mine, theirs in zip(fast.phi.parameters(), plain.phi.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-8, atol=1e-12)
    assert {group["name"] for group in parameter_groups(fast)} == {group["name"] for group in parameter_groups(plain)}
    save_model(fast, tmp_path)
    loaded = load_model(tmp_path)
    assert accelerated(loaded.host) is None
    again = loaded(batch)
    torch.testing.assert_close(again["energy"], results[0]["energy"], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(again["forces"], results[0]["forces"], rtol=1e-10, atol=1e-12)
    assert MaceHost.describe(loaded.host) == MaceHost.describe(host)


@installed
def test_atomic_dipoles_are_refused_on_the_kernels_by_name(molecules):
    host, *_ = build(molecules, **GIVEN)
    fast = accelerate(host, "cueq", "cpu")
    with pytest.raises(InputError, match="multipoles is 1.*'products.0'.*enable_cueq"):
        attach_phi(fast, {"multipoles": 1})
    attach_phi(host, {"multipoles": 1})


@installed
@pytest.mark.honours("enable_cueq", "only_cueq", "use_reduced_cg")
def test_the_command_trains_on_the_kernels(molecules, tmp_path):
    given = {**GIVEN, "correlation": 3, "phi": "operator=coulomb"}
    for option in ("enable_cueq", "only_cueq"):
        model, data, _ = build(molecules, **{**given, option: "True"})
        assert accelerated(model.host) == "cueq"
        save_model(model, tmp_path / option)
        batch = batch_of(data)
        loaded = load_model(tmp_path / option)
        torch.testing.assert_close(loaded(batch)["energy"], model(batch)["energy"], rtol=1e-10, atol=1e-12)
    full, *_ = build(molecules, **given)
    reduced, *_ = build(molecules, **given, use_reduced_cg="True")
    size = [sum(p.numel() for p in model.host.products.parameters()) for model in (full, reduced)]
    assert size[1] < size[0] and MaceHost.describe(reduced.host)["use_reduced_cg"]
    with pytest.raises(InputError, match="mace cannot convert this model .*Correlation 1 not supported"):
        build(molecules, enable_cueq="True")


@pytest.mark.skipif(CUET_AVAILABLE, reason="cuequivariance is installed")
@pytest.mark.honours("enable_cueq", "only_cueq", "use_reduced_cg")
@pytest.mark.parametrize("option", ["enable_cueq", "only_cueq", "use_reduced_cg"])
def test_missing_packages_are_named(molecules, option):
    """mace trains without, in silence."""
    with pytest.raises(InputError, match=f"--{option}: .*pip install cuequivariance"):
        build(molecules, **{option: "True"})


@pytest.mark.honours("enable_oeq")
def test_openequivariance_is_refused_where_it_cannot_run(molecules):
    with pytest.raises(InputError, match="--enable_oeq: openequivariance"):
        build(molecules, enable_oeq="True")
    with pytest.raises(InputError, match="--enable_oeq and --enable_cueq are both given"):
        build(molecules, enable_oeq="True", enable_cueq="True")
