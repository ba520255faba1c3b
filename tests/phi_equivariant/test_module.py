import numpy as np
import pytest
import torch
from ase.build import molecule
from systems import batch_of, ethanol, mace_host, potential, structures_of

from phi_equivariant import PhiConfig, attach_phi
from phi_equivariant.errors import InputError
from phi_equivariant.operators.graph import GraphLaplacian

pytestmark = pytest.mark.usefixtures("double")
BOTH = pytest.mark.parametrize("operator", ["graph", "coulomb"])


def dense_laplacian(atoms):
    """L (n, n) in e/V, its eigenvalues and eigenvectors."""
    bound = GraphLaplacian(4.0).at(structures_of(atoms, r_max=4.0), matrix=True)
    matrix = bound.parts[0][1].matrix()[0].detach()
    return matrix, *torch.linalg.eigh(matrix)


def dense_coulomb(model, atoms):
    """P (n, n) in V/e for one structure."""
    return model.phi.operator.at(structures_of(atoms), matrix=True).parts[0][1].matrix()[0].detach()


# ---- the paper's statements ---------------------------------------------------------------------------------------


def answer(model, atoms, *fields):
    """The library's output for given fields a (and b), each (n_atoms,), in place of the α-Net's."""
    given = torch.stack(fields, dim=1)[:, :, None]
    handle = model.phi.alpha_net.register_forward_hook(lambda module, arguments, output: given)
    try:
        return model(batch_of(atoms), training=True, compute_force=False)
    finally:
        handle.remove()


def poisson_problem(operator):
    """A Poisson problem that the library solves, with the closed-form minimiser of Theorem 3.1.

    The objective is (a − E_Φ)² + μ R, with the energy E_Φ = ½φᵀρ and the residual R that the library gives for fixed φ
    and any ρ. ``graph``: R = ‖Lφ − ρ‖², as in the paper, ρ* = Lφ + [2(a − ½φᵀLφ)/(4μ + ‖φ‖²)] φ. ``coulomb``:
    R = (s − ρ)ᵀP(s − ρ) with s = Lφ, which makes ρ* = s + [2(a − ½φᵀs)/(4μ + φᵀs)] s.

    Returns
    -------
    objective(ρ), ρ*, the metric of R (1 or P), and a bound on the objective's curvature in that metric
    """
    atoms = ethanol()
    n = len(atoms)
    missing, weight = 0.7, 0.8
    model = potential(
        host=mace_host(hidden_irreps="8x0e", num_interactions=1),
        operator=operator, poisson="learned", charge_constraint="none",
    )  # fmt: skip
    if operator == "graph":
        laplacian, _, vectors = dense_laplacian(atoms)
        inverse = torch.linalg.pinv(laplacian)
        field = phi = vectors[:, 1:5] @ torch.randn(4, generator=torch.Generator().manual_seed(1))
        induced, direction, metric = laplacian @ phi, phi, torch.eye(n)
    else:
        metric = inverse = dense_coulomb(model, atoms)
        field = induced = direction = torch.randn(n, generator=torch.Generator().manual_seed(1)) / 10
        phi = metric @ field
    best = induced + 2 * (missing - 0.5 * phi @ induced) / (4 * weight + phi @ direction) * direction

    def objective(rho):
        out = answer(model, atoms, field, inverse @ rho if operator == "graph" else rho)
        np.testing.assert_allclose(out["potential"].detach().numpy(), phi.numpy(), atol=1e-12)
        np.testing.assert_allclose(out["charges"].detach().numpy(), rho.detach().numpy(), atol=1e-12)
        return ((missing - out["phi_energy"]) ** 2 + weight * n * out["pde_residual"]).sum()

    return objective, best, metric, float(2 * weight + 0.5 * phi @ direction)


@BOTH
def test_theorem_3_1_the_librarys_objective_is_least_at_the_closed_form(operator):
    objective, best, _, _ = poisson_problem(operator)
    rho = best.clone().requires_grad_(True)
    least = objective(rho)
    (gradient,) = torch.autograd.grad(least, rho)
    assert gradient.abs().max() < 1e-11
    for size in (1e-3, 1e-1, 10.0):
        change = torch.randn(len(best))
        assert objective(best + size * (change - change.mean())) > least


@BOTH
def test_theorem_3_2_gradient_descent_lowers_the_objective_towards_the_closed_form(operator):
    """Ten steps of steepest descent in the metric of the residual."""
    objective, best, metric, curvature = poisson_problem(operator)
    start = torch.randn(len(best))
    rho = (best + start - start.mean()).requires_grad_(True)
    values, distances = [], []
    for _ in range(10):
        value = objective(rho)
        (gradient,) = torch.autograd.grad(value, rho)
        values.append(value.item())
        distances.append(((rho - best) @ metric @ (rho - best)).sqrt().item())
        with torch.no_grad():
            rho -= torch.linalg.solve(metric, gradient) / curvature
    assert (np.diff(values) < 0).all()
    assert (np.diff(distances) < 0).all()
    assert distances[-1] < 1e-2 * distances[0]


@pytest.mark.parametrize("num_modes", [None, 4])
def test_prop_f_1_gradients_of_the_residual_with_the_eigenvalue_in_rho(num_modes):
    """φ = U f α, ρ = U Λ f β: the gradients to α and β are equal and opposite, ±(2/n) f²λ²(α − β), mode by mode."""
    atoms = ethanol()
    n = len(atoms)
    model = potential(operator="graph", poisson="learned", num_modes=num_modes)
    _, values, vectors = dense_laplacian(atoms)
    kept = torch.ones(n)
    if num_modes is not None:
        model.phi.spectral_filter.width = 1e-4  # the paper's projection on k modes
        kept[num_modes:] = 0.0
    alpha, beta = torch.randn(2, n).requires_grad_(True).unbind()
    out = answer(model, atoms, vectors @ alpha, vectors @ beta)
    np.testing.assert_allclose(out["potential"].detach(), (vectors @ (kept * alpha)).detach(), atol=1e-9)
    np.testing.assert_allclose(out["charges"].detach(), (vectors @ (values * kept * beta)).detach(), atol=1e-9)
    to_alpha, to_beta = torch.autograd.grad(out["pde_residual"].sum(), [alpha, beta])
    expected = 2 / n * kept * values**2 * (alpha - beta).detach()
    np.testing.assert_allclose(to_alpha.numpy(), expected.numpy(), atol=1e-9)
    np.testing.assert_allclose(to_beta.numpy(), -expected.numpy(), atol=1e-9)


def test_prop_f_1_gradients_of_the_residual_without_the_eigenvalue_in_rho():
    """φ = U α, ρ = U β: the gradients to α and β have the ratio −λ."""
    atoms = ethanol()
    model = potential(operator="graph", poisson="learned")
    _, values, vectors = dense_laplacian(atoms)
    values, vectors = values[1:], vectors[:, 1:]  # ρ has no constant part
    alpha, beta = torch.randn(2, len(values)).requires_grad_(True).unbind()
    out = answer(model, atoms, vectors @ alpha, vectors @ (beta / values))
    np.testing.assert_allclose(out["charges"].detach(), (vectors @ beta).detach(), atol=1e-11)
    to_alpha, to_beta = torch.autograd.grad(out["pde_residual"].sum(), [alpha, beta])
    assert to_beta.abs().min() > 1e-3
    np.testing.assert_allclose(to_alpha.numpy(), (-values * to_beta).numpy(), atol=1e-11)


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
    matrix = dense_coulomb(model, atoms).numpy()
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
    model.phi.spectral_filter.width = 1e-4
    fields, out = fields_of(model, atoms)
    if operator == "graph":
        values, vectors = dense_laplacian(atoms)[1:]
        expected, got = vectors[:, :k] @ vectors[:, :k].T @ torch.tensor(fields[:, 0, 0]), out["potential"]
    else:
        vectors = torch.linalg.eigh(torch.linalg.inv(dense_coulomb(model, atoms)))[1]
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
        ({"width": 0.2}, "width is 0.2; give a number of Å from 0.35"),
        ({"width": float("nan")}, "width is nan"),
        ({"width": "ionic"}, "width is 'ionic'; give a number of Å from 0.35 to 1.15, 'covalent'"),
        ({"operator": "graph", "width": 0.9}, "has no Gaussian charges"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        PhiConfig(**settings)


def test_settings_round_trip_and_unknown_names_get_the_nearest():
    config = PhiConfig(operator="graph", num_modes=4)
    assert PhiConfig.from_dict(config.to_dict()) == config
    with pytest.raises(InputError, match="Did you mean operator"):
        PhiConfig.from_dict({"operatr": "graph"})
