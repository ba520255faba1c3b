"""What must hold for every potential, checked for one."""

import numpy as np
import torch
from systems import batch_of, ethanol

from e3nn import o3  # isort: skip


def run(model, *structures, **asked):
    """The output for a batch of structures, as arrays."""
    return {k: v.detach().numpy() for k, v in model(batch_of(*structures), **asked).items() if torch.is_tensor(v)}


def check_symmetries(model):
    atoms = ethanol()
    want = run(model, atoms)
    rotation = -o3.rand_matrix().numpy()  # improper: a reflection too
    order = np.random.default_rng(0).permutation(len(atoms))
    moved = atoms[order]
    moved.positions = moved.positions @ rotation.T + [3.0, -2.0, 1.0]
    got = run(model, moved)
    np.testing.assert_allclose(got["energy"], want["energy"], rtol=1e-10)
    np.testing.assert_allclose(got["phi_energy"], want["phi_energy"], rtol=1e-9)
    np.testing.assert_allclose(got["forces"], want["forces"][order] @ rotation.T, atol=1e-9)
    np.testing.assert_allclose(got["charges"], want["charges"][order], atol=1e-10)
    np.testing.assert_allclose(got["dipole"], want["dipole"] @ rotation.T, atol=1e-9)


def check_forces(model, atoms, n_components=4, step=1e-4):
    """Forces against a fourth-order central difference of the total energy."""
    forces = run(model, atoms)["forces"]
    for index in np.random.default_rng(1).permutation(3 * len(atoms))[:n_components]:
        i, c = divmod(int(index), 3)
        energies = []
        for factor in (-2, -1, 1, 2):
            moved = atoms.copy()
            moved.positions[i, c] += factor * step
            energies.append(run(model, moved)["energy"][0])
        slope = (energies[0] - 8 * energies[1] + 8 * energies[2] - energies[3]) / (12 * step)
        assert abs(forces[i, c] + slope) < 1e-6 * max(1.0, np.abs(forces).max())


def phi_forces(model, batch):
    """Φ's share of the forces of a training step, F + ∂E_host/∂r (n_atoms, 3) with its graph; and the outputs."""
    batch["positions"].requires_grad_(True)
    out = model(batch, training=True)
    (host_slope,) = torch.autograd.grad(out["host_energy"].sum(), batch["positions"], create_graph=True)
    return out["forces"] + host_slope, out


def force_loss(model, *structures):
    """Σ|F_Φ|², without the host's forces, beside which Φ's would not be seen."""
    return phi_forces(model, batch_of(*structures))[0].square().sum()


def residual_loss(model, *structures):
    return model(batch_of(*structures), training=True)["pde_residual"].sum()


def check_gradients(model, loss, atoms, step=5e-5):
    """d(loss)/d(parameter) against a central difference: the largest entry of every tensor of Φ and of two of the host,
    those with the largest slopes.

    Every slope counts by its own size, down to a thousandth of the largest.
    """
    model.zero_grad()
    loss(model, atoms).backward()
    parameters = dict(model.phi.named_parameters())
    largest = max(float(p.grad.abs().max()) for p in parameters.values() if p.grad is not None)
    assert largest > 0
    slopes = {name: float(p.grad.abs().max()) for name, p in model.host.named_parameters() if p.grad is not None}
    of_host = {name: model.host.get_parameter(name) for name in sorted(slopes, key=slopes.get)[-2:]}
    for name, parameter in (parameters | of_host).items():
        if parameter.grad is None:  # the residual does not depend on it
            parameter.grad = torch.zeros_like(parameter)
        assert torch.isfinite(parameter.grad).all(), name
        flat, gradient = parameter.data.view(-1), parameter.grad.view(-1)
        index, values = int(gradient.abs().argmax()), []
        kept = flat[index].item()
        for change in (step, -step):
            flat[index] = kept + change
            values.append(loss(model, atoms).item())
        flat[index] = kept
        slope = (values[0] - values[1]) / (2 * step)
        assert abs(slope - gradient[index].item()) < 1e-5 * max(1e-3 * largest, abs(slope)), name
