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
    """Forces against a fourth-order central difference of the total energy, whose structures share a batch."""
    forces, moved = run(model, atoms)["forces"], []
    chosen = [divmod(int(index), 3) for index in np.random.default_rng(1).permutation(3 * len(atoms))[:n_components]]
    for i, c in chosen:
        for factor in (-2, -1, 1, 2):
            moved.append(atoms.copy())
            moved[-1].positions[i, c] += factor * step
    energies = run(model, *moved, compute_force=False)["energy"].reshape(-1, 4)
    slopes = energies @ [1, -8, 8, -1] / (12 * step)
    for (i, c), slope in zip(chosen, slopes, strict=True):
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


def check_slopes(parameters, loss, floor=1e-3, precision=1e-5, step=5e-5):
    """The gradients that parameters {name: tensor} have of loss() against central differences, for the largest entry of
    each.

    Every slope counts by its own size, down to ``floor`` of the largest. Tensors with slopes of like size share a
    difference, in which they move so far that each adds the same.
    """
    entries = []  # (size, name, parameter's values, index, slope)
    largest = max(float(p.grad.abs().max()) for p in parameters.values() if p.grad is not None)
    assert largest > 0
    for name, parameter in parameters.items():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad  # not depended on, then
        assert torch.isfinite(gradient).all(), name
        index = int(gradient.abs().argmax())
        slope = float(gradient.view(-1)[index])
        entries.append((max(floor * largest, abs(slope)), name, parameter.data.view(-1), index, slope))
    entries.sort(key=lambda entry: entry[0])
    while entries:
        smallest = entries[0][0]
        group = [entry for entry in entries if entry[0] < 10 * smallest]
        del entries[: len(group)]
        kept = [float(values[index]) for _, _, values, index, _ in group]
        losses, expected = [], sum(abs(slope) * smallest / size for size, _, _, _, slope in group)
        for change in (step, -step):
            for (size, _, values, index, slope), value in zip(group, kept, strict=True):
                values[index] = value + change * smallest / size * (1 if slope >= 0 else -1)
            losses.append(loss().item())
        for (_, _, values, index, _), value in zip(group, kept, strict=True):
            values[index] = value
        found = (losses[0] - losses[1]) / (2 * step)
        assert abs(found - expected) < precision * smallest, [name for _, name, *_ in group]


def check_gradients(model, loss, atoms):
    """d(loss)/d(parameter) of every tensor of Φ and of two of the host, those with the largest slopes."""
    model.zero_grad()
    loss(model, atoms).backward()
    slopes = {name: float(p.grad.abs().max()) for name, p in model.host.named_parameters() if p.grad is not None}
    of_host = {name: model.host.get_parameter(name) for name in sorted(slopes, key=slopes.get)[-2:]}
    assert any(p.grad is not None and p.grad.any() for p in model.phi.parameters())
    check_slopes(dict(model.phi.named_parameters()) | of_host, lambda: loss(model, atoms))
