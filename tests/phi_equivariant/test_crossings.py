"""Nothing jumps where two eigenvalues cross at the edge of the kept modes."""

import numpy as np
import pytest
import torch
from ase import Atoms
from checks import phi_forces
from systems import batch_of, potential

pytestmark = pytest.mark.usefixtures("double")


def far_triatomics(stretch):
    """One is stretched past its like: two modes of the graph Laplacian cross as the third and fourth lowest."""
    line = 1.16 * np.array([[-1, 0, 0], [0, 0, 0], [1, 0, 0.0]])
    return Atoms("OCN", stretch * line) + Atoms("NCH", line + [0, 0, 40.0])


def rectangle(stretch):
    """Unlike atoms on a rectangle that passes through the square, where two modes are equal by symmetry."""
    corners = np.array([[1, 1, 0], [1, -1, 0], [-1, -1, 0], [-1, 1, 0.0]])
    return Atoms("CNOH", 0.7 * corners * [stretch, 1.0, 1.0])


@pytest.mark.parametrize("poisson", ["exact", "learned"])
@pytest.mark.parametrize(
    ("operator", "path", "k"),
    [("graph", far_triatomics, 3), ("graph", rectangle, 2), ("coulomb", rectangle, 2)],
    ids=["graph-triatomics", "graph-rectangle", "coulomb-rectangle"],
)
def test_crossing_eigenvalues_give_neither_jump_nor_kink(operator, path, k, poisson):
    """Two eigenvalues cross at the edge of the kept modes; energy and force stay smooth along the path."""
    model = potential(operator=operator, poisson=poisson, num_modes=k)
    if operator == "coulomb":
        with torch.no_grad():
            model.phi.operator.width_logit.fill_(0.0)  # equal widths, so that the square is symmetric

    tangent = path(2.0).positions - path(1.0).positions
    batches = [batch_of(*(path(stretch) for stretch in np.linspace(0.975, 1.025, n))) for n in (21, 81)]

    def differences(batch):
        """Largest second difference of Φ's energy and largest first difference of its force along the path."""
        n = len(batch["ptr"]) - 1
        forces, out = phi_forces(model, batch)
        along = (forces.detach().numpy().reshape(n, *tangent.shape) * tangent).sum((1, 2))
        energies = out["phi_energy"].detach().numpy()
        assert np.ptp(energies) > 1e-4
        return np.abs(np.diff(energies, 2)).max(), np.abs(np.diff(along)).max()

    (energy_coarse, force_coarse), (energy_fine, force_fine) = map(differences, batches)
    assert energy_fine / energy_coarse < 0.08, "second differences of a smooth energy fall as the step squared, 1/16"
    assert force_fine / force_coarse < 0.28, "first differences of a continuous force fall as the step, 1/4"
    model.phi.spectral_filter.width = 1e-6
    hard_coarse, hard_fine = map(differences, batches)
    assert hard_fine[0] / hard_coarse[0] > 0.5, "a sharp window must jump, or the path does not cross what it should"
