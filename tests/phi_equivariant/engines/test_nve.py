"""Molecular dynamics at constant energy: the benchmark's estimator, its restart, and a short run."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import molecule
from systems import mace_host, potential

from phi_equivariant import PhiCalculator

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))
import nve  # noqa: E402


def test_slope_and_its_error_for_correlated_fluctuations():
    """x_t = 0.95 x_{t−1} + noise on a known slope: the error is the scatter of the slopes of many such series."""
    rng, times, found = np.random.default_rng(0), 0.01 * np.arange(4000), []
    for _ in range(300):
        x, noise = np.empty(len(times)), rng.normal(size=len(times))
        x[0] = noise[0] / np.sqrt(1 - 0.95**2)
        for t in range(1, len(x)):
            x[t] = 0.95 * x[t - 1] + noise[t]
        found.append(nve.slope(times, 0.3 * times + x))
    slopes, errors = np.array(found).T
    assert slopes.mean() == pytest.approx(0.3, abs=3 * slopes.std() / np.sqrt(len(slopes)))
    assert np.sqrt(np.mean(errors**2)) == pytest.approx(slopes.std(), rel=0.15)
    # Without the inefficiency (1 + 0.95)/(1 − 0.95) = 39 the error would be 6 times too small.
    assert slopes.std() == pytest.approx(np.sqrt(39 / (1 - 0.95**2) / np.sum((times - times.mean()) ** 2)), rel=0.15)


@pytest.mark.slow
@pytest.mark.usefixtures("double")
def test_a_short_run_goes_on_from_its_file_and_drifts_no_more_than_the_bare_hosts(tmp_path, monkeypatch):
    monkeypatch.setattr(nve, "EQUILIBRATION", 0)
    monkeypatch.setattr(nve, "TEMPERATURE", 50.0)  # warmer, untrained charges pull atoms together
    model = potential(host=mace_host("8x0e"))
    with torch.no_grad():  # an untrained host pushes atoms apart: keep its forces small beside Φ's
        model.host.scale_shift.scale.mul_(0.05)

    def trajectory(model, name, *parts):
        for steps in parts:
            run = nve.Trajectory(molecule("CH3OH"), PhiCalculator(model), tmp_path / f"{name}.npz")
            run.run(steps)
        return run

    with_phi, stopped = trajectory(model, "phi", 200), trajectory(model, "stopped", 80, 120)
    np.testing.assert_allclose(stopped.energies, with_phi.energies, rtol=0, atol=1e-9)
    assert stopped.steps == 200 and stopped.summary()["picoseconds"] == pytest.approx(0.1)
    bare, found = trajectory(model.detach(), "bare", 200).summary(), with_phi.summary()
    assert abs(found["slope"]) < abs(bare["slope"]) + 3 * np.hypot(found["slope_error"], bare["slope_error"])
    # Of velocity Verlet itself; forces that miss the energy's derivative by 1 % make it many times larger.
    assert found["fluctuation"] < 30
