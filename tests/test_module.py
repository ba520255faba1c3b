import numpy as np
import pytest
import torch
from ase.build import molecule
from systems import batch_of, ethanol, mace_host, potential

from phi_equivariant import PhiConfig, attach_phi
from phi_equivariant.batching import PaddedLayout
from phi_equivariant.errors import InputError
from phi_equivariant.operators import GraphLaplacian

pytestmark = pytest.mark.usefixtures("double")
BOTH = pytest.mark.parametrize("operator", ["graph", "coulomb"])


def dense_laplacian(atoms):
    """L (n, n) in e/V, its eigenvalues and eigenvectors."""
    batch = batch_of(atoms)
    operator = GraphLaplacian(4.0)
    sender, receiver = batch["edge_index"]
    lengths = (batch["positions"][receiver] - batch["positions"][sender]).norm(dim=-1)
    layout = PaddedLayout(batch["batch"], batch["ptr"])
    matrix = operator.matrix(operator.edge_weights(lengths), batch["edge_index"], layout)[0]
    matrix = (matrix * operator.log_weight.exp()).detach()
    return matrix, *torch.linalg.eigh(matrix)


# ---- the paper's statements ---------------------------------------------------------------------------------------


def test_theorem_3_1_minimiser_is_stationary_and_theorem_3_2_descent_is_monotone():
    """For fixed φ, (E − E_model − ½φᵀρ)² + μ‖Lφ − ρ‖² is least at ρ* = Lφ + [2(a − ½φᵀLφ)/(4μ + ‖φ‖²)] φ."""
    matrix, _, vectors = dense_laplacian(ethanol())
    phi = vectors[:, :4] @ torch.randn(4)
    missing, weight = torch.tensor(0.7), 0.3

    def objective(rho):
        return (missing - 0.5 * phi @ rho) ** 2 + weight * (matrix @ phi - rho).square().sum()

    induced = matrix @ phi
    best = induced + 2 * (missing - 0.5 * phi @ induced) / (4 * weight + phi @ phi) * phi
    rho = best.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(objective(rho), rho)
    assert gradient.abs().max() < 1e-12
    start = best + torch.randn(len(phi))
    values = [float(objective(best + t * (start - best))) for t in np.linspace(1, 0, 30)]
    assert (np.diff(values) < 0).all()


def test_prop_f_1_gradients_with_and_without_the_eigenvalue_in_rho():
    """ρ = UΛβ: gradients of the residual to α and β are equal and opposite; ρ = Uβ: their ratio is −λ_i."""
    _, values, vectors = dense_laplacian(ethanol())
    for weighted, ratio in ((True, torch.ones_like(values)), (False, values)):
        alpha = torch.randn(len(values), requires_grad=True)
        beta = torch.randn(len(values), requires_grad=True)
        rho = vectors @ (values * beta if weighted else beta)
        residual = (vectors @ (values * alpha) - rho).square().mean()
        to_alpha, to_beta = torch.autograd.grad(residual, [alpha, beta])
        np.testing.assert_allclose(to_alpha.numpy(), (-ratio * to_beta).numpy(), atol=1e-12)


# ---- what the fields are ------------------------------------------------------------------------------------------


def fields_of(model, atoms):
    """The α-Net's output for one structure: (n_atoms, n_fields, channels)."""
    kept = []
    handle = model.phi.alpha_net.register_forward_hook(lambda module, arguments, output: kept.append(output.detach()))
    out = model(batch_of(atoms), compute_force=False)
    handle.remove()
    return kept[0].numpy(), {k: v.detach().numpy() for k, v in out.items() if torch.is_tensor(v)}


@pytest.mark.parametrize("poisson", ["exact", "learned"])
def test_graph_fields_energy_and_residual_are_those_of_dense_algebra(poisson):
    atoms = ethanol()
    matrix = dense_laplacian(atoms)[0].numpy()
    model = potential(operator="graph", poisson=poisson, channels=2)
    fields, out = fields_of(model, atoms)
    phi = fields[:, 0]
    rho = matrix @ (fields[:, 1] if poisson == "learned" else phi)
    np.testing.assert_allclose(out["potential"], phi[:, 0], atol=1e-12)
    np.testing.assert_allclose(out["charges"], rho[:, 0], atol=1e-12)
    assert out["phi_energy"][0] == pytest.approx(0.5 * (phi * rho).sum(), rel=1e-12)
    assert out["pde_residual"][0] == pytest.approx(((matrix @ phi - rho) ** 2).sum(1).mean(), abs=1e-13)


@pytest.mark.parametrize("poisson", ["exact", "learned"])
def test_coulomb_fields_energy_and_residual_are_those_of_dense_algebra(poisson):
    atoms = ethanol()
    model = potential(operator="coulomb", poisson=poisson, channels=2)
    fields, out = fields_of(model, atoms)
    species = torch.tensor([[1, 6, 7, 8].index(z) for z in atoms.numbers])
    layout = PaddedLayout(torch.zeros(len(atoms), dtype=torch.long), torch.tensor([0, len(atoms)]))
    matrix = model.phi.operator.matrix(torch.tensor(atoms.positions), species, layout)[0].detach().numpy()
    neutral = fields - fields.mean(0)
    source, rho = neutral[:, 0], neutral[:, -1]
    np.testing.assert_allclose(out["charges"], rho[:, 0], atol=1e-12)
    np.testing.assert_allclose(out["potential"], matrix @ source[:, 0], atol=1e-11)
    assert out["phi_energy"][0] == pytest.approx(0.5 * np.sum((matrix @ source) * rho), rel=1e-12)
    difference = source - rho
    expected = np.einsum("ic,ij,jc->", difference, matrix, difference) / len(atoms)
    assert out["pde_residual"][0] == pytest.approx(expected, abs=1e-13)
    if poisson == "exact":
        assert out["phi_energy"][0] > 0, "the matrix is positive definite"


@pytest.mark.parametrize("k", [2, 5])
@BOTH
def test_kept_modes_are_the_smooth_ones(operator, k):
    """A narrow window is the projector on the k lowest modes of L: the paper's ansatz without its sign ambiguity."""
    atoms = ethanol()
    model = potential(operator=operator, poisson="exact", num_modes=k, charge_constraint="none")
    model.phi.response.width = 1e-4
    fields, out = fields_of(model, atoms)
    if operator == "graph":
        values, vectors = dense_laplacian(atoms)[1:]
        expected, got = vectors[:, :k] @ vectors[:, :k].T @ torch.tensor(fields[:, 0, 0]), out["potential"]
    else:
        species = torch.tensor([[1, 6, 7, 8].index(z) for z in atoms.numbers])
        layout = PaddedLayout(torch.zeros(len(atoms), dtype=torch.long), torch.tensor([0, len(atoms)]))
        matrix = model.phi.operator.matrix(torch.tensor(atoms.positions), species, layout)[0].detach()
        vectors = torch.linalg.eigh(torch.linalg.inv(matrix))[1]
        expected, got = vectors[:, :k] @ vectors[:, :k].T @ torch.tensor(fields[:, 0, 0]), out["charges"]
    np.testing.assert_allclose(got, expected.numpy(), atol=1e-9)


# ---- charge -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("response", [{}, {"num_modes": 3}, {"low_pass": 0.3}], ids=["all", "k", "low-pass"])
@pytest.mark.parametrize("poisson", ["exact", "learned"])
def test_projection_keeps_every_total_charge(poisson, response):
    model = potential(operator="coulomb", poisson=poisson, channels=3, **response)
    structures = []
    for charge in (-2, -1, 0, 1, 2, 3):
        atoms = molecule("CH3CH2OH" if charge % 2 else "H2O")
        atoms.info["total_charge"] = charge
        structures.append(atoms)
    batch = batch_of(*structures)
    out = model(batch)
    total = torch.zeros(6).index_add(0, batch["batch"], out["charges"])
    np.testing.assert_allclose(total.detach().numpy(), [-2, -1, 0, 1, 2, 3], atol=1e-12)


@pytest.mark.parametrize("constraint", ["penalty", "none"])
def test_without_projection_the_net_charge_is_reported(constraint):
    model = potential(operator="coulomb", channels=1, charge_constraint=constraint)
    atoms = ethanol()
    atoms.info["total_charge"] = 1
    out = model(batch_of(atoms))
    net = out["charges"].sum()
    assert out["net_charge"][0].item() == pytest.approx(net.item(), rel=1e-12)
    assert out["charge_penalty"][0].item() == pytest.approx((net.item() - 1) ** 2, rel=1e-12)
    assert abs(net) > 1e-3


def test_net_charge_before_projection_is_what_the_penalty_sees():
    projected = potential(operator="coulomb", channels=2, charge_constraint="project")
    free = potential(operator="coulomb", channels=2, charge_constraint="penalty")
    atoms = ethanol()
    a, b = projected(batch_of(atoms)), free(batch_of(atoms))
    for key in ("net_charge", "charge_penalty"):
        np.testing.assert_allclose(a[key].detach().numpy(), b[key].detach().numpy(), rtol=1e-12)


def test_graph_refuses_a_total_charge():
    atoms = ethanol()
    atoms.info["total_charge"] = 1
    with pytest.raises(InputError, match="total_charge.*graph.*coulomb"):
        potential(operator="graph")(batch_of(atoms))


def test_dipole_of_an_ion_is_about_its_centre_of_mass():
    model = potential(operator="coulomb")
    atoms = ethanol()
    atoms.info["total_charge"] = 1
    out = model(batch_of(atoms))
    q = out["charges"].detach().numpy()
    expected = (q[:, None] * (atoms.positions - atoms.get_center_of_mass())).sum(0)
    np.testing.assert_allclose(out["dipole"].detach().numpy()[0], expected, atol=1e-12)


# ---- the start ----------------------------------------------------------------------------------------------------


@BOTH
def test_default_start_is_charges_of_a_fifth_of_an_electron_with_chemical_signs(operator):
    atoms = molecule("CH3CONH2")
    out = attach_phi(mace_host(), PhiConfig(operator=operator))(batch_of(atoms))
    q = out["charges"].detach().numpy()
    assert 0.1 < np.sqrt((q**2).mean()) < 0.4
    assert abs(q.sum()) < 1e-12
    assert q[atoms.numbers == 8].max() < q[atoms.numbers == 1].min(), "oxygen is negative, hydrogen positive"


@BOTH
def test_small_start_moves_no_energy_and_can_be_left(operator):
    atoms = molecule("CH3CONH2")
    model = attach_phi(mace_host(), PhiConfig(operator=operator, init="small"))
    out = model(batch_of(atoms), training=True)
    assert 0 < abs(out["phi_energy"].item()) / len(atoms) < 1e-5
    optimiser = torch.optim.Adam(model.phi.parameters(), lr=0.01)
    before = out["charges"].detach().square().mean().sqrt()
    for _ in range(10):
        optimiser.zero_grad()
        model(batch_of(atoms), training=True, compute_force=False)["phi_energy"].neg().sum().backward()
        optimiser.step()
    assert model(batch_of(atoms))["charges"].detach().square().mean().sqrt() > 10 * before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"operator": "poisson"}, "operator is 'poisson'"),
        ({"num_modes": 0}, "num_modes is 0"),
        ({"channels": 1.5}, "channels is 1.5"),
        ({"low_pass": -1}, "low_pass is -1"),
        ({"low_pass": 1.0, "num_modes": 3}, "both given"),
        ({"operator": "graph", "charge_constraint": "penalty"}, "sum to zero by construction"),
        ({"init": "zero"}, "init is 'zero'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        PhiConfig(**settings)


def test_settings_round_trip_and_unknown_names_get_the_nearest():
    config = PhiConfig(operator="graph", num_modes=4)
    assert PhiConfig.from_dict(config.to_dict()) == config
    with pytest.raises(InputError, match="did you mean 'operator'"):
        PhiConfig.from_dict({"operatr": "graph"})
