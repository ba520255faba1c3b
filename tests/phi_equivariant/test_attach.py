import copy
import io

import numpy as np
import pytest
import torch
from ase.build import molecule
from systems import batch_of, ethanol, mace_host, potential

from mace.calculators import MACECalculator  # isort: skip

from phi_equivariant import PhiConfig, attach_phi
from phi_equivariant.errors import InputError

pytestmark = pytest.mark.usefixtures("double")


def same(a, b):
    return all(torch.equal(a[key], b[key]) for key in ("energy", "forces", "node_energy"))


def test_off_is_the_bare_host_bit_for_bit():
    atoms, bare = ethanol(), mace_host()
    model = potential()
    host = model.detach()
    assert same(host(batch_of(atoms)), bare(batch_of(atoms)))
    assert not any(module._forward_hooks for module in host.modules())


def test_host_keeps_its_weights_and_can_be_called_beside_the_potential():
    bare, host = mace_host(), mace_host()
    model = attach_phi(host, PhiConfig())
    assert all(torch.equal(a, b) for a, b in zip(bare.parameters(), host.parameters(), strict=True))
    assert same(host(batch_of(ethanol())), bare(batch_of(ethanol())))
    assert all(vars(hook) == {} for hook in model._recorded.values()), "a tap keeps nothing between calls"


def test_energy_is_the_sum_and_the_callers_batch_is_not_changed():
    batch = batch_of(ethanol(), molecule("H2O"))
    model = potential()
    out = model(batch)
    assert torch.equal(out["energy"], out["host_energy"] + out["phi_energy"])
    total = torch.zeros(2).index_add(0, batch["batch"], out["node_energy"])
    np.testing.assert_allclose(total.detach().numpy(), out["energy"].detach().numpy(), rtol=1e-12)
    assert not batch["positions"].requires_grad


@pytest.mark.parametrize("irreps", ["8x0e", "4x0e+4x1o+4x2e"])
@pytest.mark.parametrize("num_interactions", [1, 2, 3])
@pytest.mark.parametrize("scale_shift", [True, False])
def test_every_mace_architecture(irreps, num_interactions, scale_shift):
    model = attach_phi(mace_host(irreps, num_interactions, scale_shift=scale_shift))
    assert len(model.taps) == num_interactions
    out = model(batch_of(ethanol()))
    assert out["phi_energy"].abs() > 1e-3 and torch.isfinite(out["forces"]).all()


def test_hosts_with_several_heads():
    heads = ("low", "high")
    host = mace_host(heads=list(heads))
    with torch.no_grad():
        host.atomic_energies_fn.atomic_energies[1] += 1.0
    model = potential(host=host)
    assert model.heads == list(heads)
    low, high = ethanol(), ethanol()
    low.info["head"], high.info["head"] = heads
    out = model(batch_of(low, high, heads=heads))
    bare = model.host(batch_of(low, high, heads=heads))
    assert torch.equal(out["host_energy"], bare["energy"]) and (out["energy"][1] - out["energy"][0]).abs() > 1


def test_copies_and_saved_potentials_have_their_own_working_hooks():
    model, atoms = potential(), ethanol()
    want = model(batch_of(atoms))["energy"]
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(model), torch.load(buffer, weights_only=False)):
        assert torch.equal(twin(batch_of(atoms))["energy"], want)
        with torch.no_grad():
            twin.phi.alpha_net.scale.mul_(2.0)
        assert not torch.equal(twin(batch_of(atoms))["energy"], want)
        assert torch.equal(model(batch_of(atoms))["energy"], want)
        host = twin.detach()
        assert not any(module._forward_hooks for module in host.modules())


def test_a_trained_model_file(tmp_path):
    """Trained for a few steps, saved as mace saves: its energies stay within 1e-5 eV/atom, its forces near."""
    host = mace_host()
    optimiser = torch.optim.Adam(host.parameters(), lr=1e-2)
    for _ in range(3):
        optimiser.zero_grad()
        host(batch_of(ethanol()), training=True)["forces"].square().sum().backward()
        optimiser.step()
    bare = host(batch_of(ethanol()))
    torch.save(host, tmp_path / "trained.model")
    host = torch.load(tmp_path / "trained.model", weights_only=False)
    model = attach_phi(host, PhiConfig(init="small"))
    out = model(batch_of(ethanol()))
    assert (out["energy"] - bare["energy"]).abs() / len(ethanol()) < 1e-5
    np.testing.assert_allclose(out["forces"].detach().numpy(), bare["forces"].detach().numpy(), atol=1e-3)


def test_maces_calculator_takes_a_potential():
    model, atoms = potential(), ethanol()
    atoms.info["total_charge"] = 1
    want = model(batch_of(atoms))
    del atoms.info["total_charge"]
    atoms.info["charge"] = 1  # the key that mace's calculator reads
    atoms.calc = MACECalculator(models=[copy.deepcopy(model)], device="cpu", default_dtype="float64")
    assert atoms.get_potential_energy() == pytest.approx(want["energy"].item(), rel=1e-12)
    np.testing.assert_allclose(atoms.get_forces(), want["forces"].detach().numpy(), atol=1e-10)
    assert atoms.calc.get_descriptors(atoms).shape == (len(atoms), 16)


def test_forces_without_gradient_mode():
    model, batch = potential(), batch_of(ethanol())
    want = model(batch)["forces"]
    with torch.no_grad():
        assert torch.equal(model(batch)["forces"], want)
        assert not model(batch, compute_force=False)["energy"].requires_grad
    with torch.inference_mode(), pytest.raises(InputError, match="inference_mode"):
        model(batch_of(ethanol()))


def test_a_users_own_hessian_through_a_window_of_modes():
    model, batch = (
        potential(operator="graph", poisson="learned", num_modes=3),
        batch_of(molecule("H2O") + molecule("CH4")),
    )
    positions = batch["positions"].clone()

    def energy(x):
        return model({**batch, "positions": x}, compute_force=False)["phi_energy"].sum()

    hessian = torch.autograd.functional.hessian(energy, positions)[0, 0]
    step = torch.zeros_like(positions)
    step[0, 0] = 1e-4
    up, down = (torch.autograd.functional.jacobian(energy, positions + sign * step) for sign in (1, -1))
    np.testing.assert_allclose(hessian.numpy(), ((up - down) / 2e-4).numpy(), atol=1e-6)


def test_single_precision_is_close_to_double():
    model, atoms = potential(), ethanol()
    want = model(batch_of(atoms))["forces"]
    out = copy.deepcopy(model).float()(batch_of(atoms, dtype=torch.float32))
    assert out["forces"].dtype == torch.float32
    assert (out["forces"].double() - want).abs().max() < 1e-3


def test_explicit_taps_equal_those_found():
    found = attach_phi(mace_host(), PhiConfig())
    given = attach_phi(mace_host(), PhiConfig(), taps={"products.0": "8x0e+8x1o", "products.1": "8x0e"})
    given.load_state_dict(found.state_dict())
    assert torch.equal(found(batch_of(ethanol()))["energy"], given(batch_of(ethanol()))["energy"])


def test_attaching_where_it_makes_no_sense():
    host = mace_host()
    with pytest.raises(InputError, match="'blocks.0' is not a submodule of ScaleShiftMACE"):
        attach_phi(host, taps={"blocks.0": "8x0e"})
    with pytest.raises(InputError, match="Linear does not have r_max and atomic_numbers.*GenericModel"):
        attach_phi(torch.nn.Linear(2, 2))
    attach_phi(host)
    with pytest.raises(InputError, match="already carries Φ; call detach"):
        attach_phi(host)
    with pytest.raises(InputError, match="already carries Φ"):
        attach_phi(attach_phi(mace_host()))
    with pytest.raises(InputError, match="'trained.model'.*read_model"):
        attach_phi("trained.model")
    with pytest.raises(InputError, match="Did you mean operator"):
        attach_phi(mace_host(), {"operatr": "graph"})
    with pytest.raises(InputError, match="not irreps"):
        attach_phi(mace_host(), taps={"products.0": "hello"})
    with pytest.raises(InputError, match="shape .*32.*; irreps 4x0e have width 4"):
        attach_phi(mace_host(), taps={"products.0": "4x0e"})(batch_of(ethanol()))
    model = attach_phi(mace_host())
    model.detach()
    with pytest.raises(InputError, match="detached"):
        model(batch_of(ethanol()))


@pytest.mark.parametrize("charge", [torch.tensor([np.nan, 0.0]), torch.tensor(1.0), torch.zeros(3), [1.0]])
def test_total_charges_that_do_not_fit(charge):
    with pytest.raises(InputError, match="total_charge is .* for 2 structures"):
        potential()({**batch_of(ethanol(), ethanol()), "total_charge": charge})


@pytest.mark.parametrize("config", [{}, {"operator": "graph", "num_modes": 3}])
def test_positions_that_are_not_finite(config):
    batch = batch_of(ethanol())
    batch["positions"][0, 0] = np.nan
    with pytest.raises(InputError, match="positions are not finite"):
        potential(**config)(batch)


def test_quantities_that_are_not_computed_are_refused():
    with pytest.raises(InputError, match="compute_hessian"):
        potential()(batch_of(ethanol()), compute_hessian=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(
    "config", [{}, {"operator": "graph", "poisson": "learned", "num_modes": 3}], ids=["coulomb", "graph"]
)
def test_gpu_equals_cpu(config):
    model, batch = potential(**config), batch_of(ethanol(), molecule("C6H6"))
    want = model(batch)
    moved = {k: v.cuda() if torch.is_tensor(v) else v for k, v in batch.items()}
    out = copy.deepcopy(model).cuda()(moved)
    for key in ("energy", "forces", "charges"):
        np.testing.assert_allclose(out[key].detach().cpu().numpy(), want[key].detach().numpy(), atol=1e-9)
