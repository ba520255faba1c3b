"""What the benchmarks of the paper's experiments and of fine-tuning compute themselves."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from systems import ELEMENTS, ethanol, structures_of

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import fine_tuning  # noqa: E402
import paper  # noqa: E402

from phi_equivariant.operators import kinds  # noqa: E402
from training.options import command_line  # noqa: E402


def test_the_expected_best_of_n_trials_is_what_drawing_them_gives():
    rng = np.random.default_rng(3)
    losses = rng.exponential(size=9)
    mean, spread = paper.expected_best(losses)
    drawn = losses[rng.integers(9, size=(200_000, 4))].min(1)
    assert mean[0] == pytest.approx(losses.mean()) and spread[0] == pytest.approx(losses.std())
    assert mean[3] == pytest.approx(drawn.mean(), rel=1e-2) and spread[3] == pytest.approx(drawn.std(), rel=1e-2)
    assert (np.diff(mean) < 0).all() and mean[-1] > losses.min()


def test_a_trial_that_diverged_counts_as_the_worst_of_those_that_did_not():
    def trial(forces):
        errors = {"energy_per_atom": {"rmse": 0.0}, "forces": {"rmse": forces}}
        return {"errors": {"valid": errors, "test": errors}}

    found = {"Φ": [trial(50.0), {"diverged": True}], "no Φ": [trial(100.0), trial(40.0)]}
    picture, axis = paper.plt.subplots()
    lines = paper.report_hyperparameters(found, axis)
    paper.plt.close(picture)
    best, worst = (paper.validation_loss(trial(forces)) for forces in (50.0, 100.0))
    assert lines[2].split(" | ")[1:4] == ["2", "1", f"{(best + worst) / 2:.3f}"]
    assert lines[3].split(" | ")[1:3] == ["2", "0"]
    drawn = axis.lines[0].get_ydata()
    assert drawn[0] == pytest.approx((best + worst) / 2) and drawn[1] == pytest.approx(0.75 * best + 0.25 * worst)


def test_options_of_every_trial_and_of_fine_tuning_are_understood():
    """By the trainer's own parser; a trial is the same whenever it is drawn."""
    assert paper.draw(paper.COULOMB, 5) == paper.draw(paper.COULOMB, 5) != paper.draw(paper.COULOMB, 6)
    for _, row, settings, phi, *_ in paper.jobs("hyperparameters", 3, ()):
        assert (phi is None) == (row == paper.BARE)
        words = [*paper.runs.words_of({**paper.HOST, **paper.BUDGET, **settings, "train_file": "x.xyz"})]
        run = command_line.parse([*words, "--E0s", "average", *(["--no_phi"] if phi is None else ["--phi", *phi])])
        assert run.optimiser.lr == float(settings["lr"])
        assert phi is None or run.phi.config.num_modes in (3, 5, 7, 9, 10, 15)
    counted = [len(list(paper.jobs(name, paper.TRIALS, paper.SEEDS))) for name in paper.REPORTS]
    assert counted == [72, 45, 15]
    for row in (fine_tuning.SCRATCH, fine_tuning.TUNED):
        words = fine_tuning.words(row, "phi-mace-small.ala3_gfn2", steps=100, train_frames=50, seed=1)
        run = command_line.parse([*words, "--train_file", "x.xyz", "--E0s", "average"])
        assert run.stages.max_num_epochs == 10 and run.phi.config.operator == "coulomb"
        assert run.host.foundation_model == ("phi-mace-small.ala3_gfn2" if row == fine_tuning.TUNED else None)
    frames = list(range(100))
    assert set(fine_tuning.few(frames, 10)) < set(fine_tuning.few(frames, 30)) < set(frames)


@pytest.mark.usefixtures("double")
def test_random_modes_know_nothing_of_the_geometry_and_are_a_laplacians():
    """Symmetric, no negative eigenvalue, one constant null vector, whatever is beside it in the batch."""
    near, far = ethanol(), ethanol()
    far.positions *= 1.3
    with paper.random_modes(True):
        operator = kinds.OPERATORS["graph"](4.0)
    assert kinds.OPERATORS["graph"] is not paper.RandomLaplacian
    matrices = [
        operator.at(structures_of(*atoms, elements=ELEMENTS), matrix=True).parts[0][1].matrix().detach()
        for atoms in ((near,), (far, near))
    ]
    one, two = matrices[0][0], matrices[1]
    assert torch.equal(two[0], one) and torch.equal(two[1], one) and torch.equal(one, one.T)
    values, vectors = torch.linalg.eigh(one / operator.log_weight.exp().detach())
    assert abs(float(values[0])) < 1e-12 < 0.5 < float(values[1]) and float(vectors[:, 0].std()) < 1e-12
    assert 3 < float(values.mean()) < 9  # as the graph's own, about six neighbours
