"""Many callers of one model: threads, calculators side by side, copies, files and other processes."""

import copy
import io
import multiprocessing
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.mep import NEB
from systems import distorted, mace_host, nequip_host, potential

from phi_equivariant import PhiCalculator
from phi_equivariant.kept import Memory, keep, recall
from phi_equivariant.weights import save_model

pytestmark = pytest.mark.usefixtures("double")
CONFIGS = {
    "coulomb": {},
    "low-pass without a matrix": {"low_pass": 2.0, "dense_limit": 2},
    "mesh": {"dense_limit": 2},
    "qeq without a matrix": {"charge_model": "qeq", "dense_limit": 2},
    "graph": {"operator": "graph", "low_pass": 0.2, "dense_limit": 2},
}


def model_of(config):
    return potential(host=mace_host("4x0e"), **config).eval()


def frames(periodic, n=8):
    """Structures of different sizes, elements and charges."""
    found = []
    for seed in range(n):
        atoms = distorted(molecule(("H2O", "CH3OH", "CH4", "HCN")[seed % 4]), seed)
        if periodic:
            atoms.set_cell(np.diag([7.0, 7.5, 8.0]) + 0.1 * seed)
            atoms.pbc = True
        found.append(atoms)
    return found


def values(calculator, atoms):
    atoms = atoms.copy()
    atoms.calc = calculator
    return atoms.get_potential_energy(), atoms.get_forces()


def assert_same(found, expected, tolerance=0.0):
    for (energy, forces), (energy_alone, forces_alone) in zip(found, expected, strict=True):
        assert energy == pytest.approx(energy_alone, abs=tolerance, rel=0)
        np.testing.assert_allclose(forces, forces_alone, atol=tolerance, rtol=0)


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_calculators_on_one_model_in_threads(name, periodic):
    """Each result is that of the structure alone, by a calculator that has seen nothing else, on another model."""
    model, structures = model_of(CONFIGS[name]), frames(periodic)
    other = copy.deepcopy(model)
    expected = [values(PhiCalculator(other), atoms) for atoms in structures]
    calculators = [PhiCalculator(model) for _ in structures]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(2):
            found = list(pool.map(values, calculators, structures))
            assert_same(found, expected, tolerance=1e-9)


@pytest.mark.parametrize("host", ["mace", "nequip"])
def test_threads_share_one_calculator(host):
    """They wait for each other; each gets the energy and forces of its own structure."""
    made = mace_host("8x0e+8x1o") if host == "mace" else nequip_host()
    calculator, structures = PhiCalculator(potential(host=made)), frames(periodic=False, n=4)
    expected = [values(calculator, atoms) for atoms in structures]

    def both(atoms):
        atoms = atoms.copy()
        atoms.calc = calculator
        return atoms.get_potential_energy(), atoms.get_forces()

    with ThreadPoolExecutor(4) as pool:
        assert_same(list(pool.map(both, 4 * structures)), 4 * expected, tolerance=1e-12)


def test_bare_hosts_in_threads():
    host, structures = mace_host().eval(), frames(periodic=False)
    expected = [values(PhiCalculator(host), atoms) for atoms in structures]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(values, [PhiCalculator(host) for _ in structures], structures))
    assert_same(found, expected)


@pytest.mark.slow
def test_models_are_loaded_in_threads(tmp_path):
    """Torch's default precision belongs to the process: builders wait for each other."""
    folders = [tmp_path / f"{seed}" for seed in range(3)]
    for seed, (folder, precision) in enumerate(zip(folders, ("float32", "float64", "float32"), strict=True)):
        model = potential(seed=seed, host=nequip_host("4x0e", seed=seed))
        save_model(model.to(getattr(torch, precision)), folder)
    atoms = distorted(molecule("CH3OH"))
    expected = [values(PhiCalculator(folder), atoms) for folder in folders]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda folder: values(PhiCalculator(folder), atoms), 3 * folders))
    assert_same(found, 3 * expected)
    assert torch.get_default_dtype() == torch.float64


def test_nudged_elastic_band_in_threads():
    """ase's threads, one for each image, with one model: the forces of the band are those without threads."""
    model, ends = model_of({}), (distorted(molecule("CH3OH"), 1), distorted(molecule("CH3OH"), 2))
    found = []
    for parallel in (False, True):
        images = [ends[0].copy(), *(ends[0].copy() for _ in range(3)), ends[1].copy()]
        band = NEB(images, parallel=parallel, allow_shared_calculator=False, method="improvedtangent")
        band.interpolate()
        for image in images:
            image.calc = PhiCalculator(model)
        found.append([band.get_forces() for _ in range(3)][-1])
    np.testing.assert_allclose(found[1], found[0], atol=1e-10)


def test_two_calculators_do_not_take_each_others_lists():
    """What is kept from step to step is each caller's: two simulations on one model rebuild no list of the other's."""
    model, fresh = model_of({}), model_of({})
    search = model.phi.operator.kept_pairs
    searched, original = [], search.search

    def counting(*arguments):
        searched.append(1)
        return original(*arguments)

    search.search = counting
    one, other = frames(periodic=True, n=2)
    calculators = [PhiCalculator(model), PhiCalculator(model)]
    rng = np.random.default_rng(0)
    for _ in range(4):
        for atoms, calculator in zip((one, other), calculators, strict=True):
            atoms.positions += 0.01 * rng.normal(size=atoms.positions.shape)
            assert_same([values(calculator, atoms)], [values(PhiCalculator(fresh), atoms)], tolerance=1e-10)
    assert len(searched) == 2


def test_memory_is_the_callers_and_goes_with_the_part():
    part, mine, other = torch.nn.Linear(1, 1), Memory(), Memory()
    with mine.used():
        keep(part, "mine")
        with other.used():
            assert recall(part) is None
        assert recall(part) == "mine"
    assert recall(part) is None
    assert len(mine._items) == 1
    with ThreadPoolExecutor(1) as pool:
        keep(part, "this thread's")
        assert pool.submit(recall, part).result() is None
    with copy.deepcopy(mine).used():
        assert recall(part) is None
    del part
    assert len(mine._items) == 0


def test_pickled_and_copied_calculators():
    atoms, periodic = distorted(molecule("CH3OH")), frames(periodic=True, n=2)[1]
    for calculator in (
        PhiCalculator(model_of({})),
        PhiCalculator(mace_host()),
        PhiCalculator([model_of({}), model_of({})]),
    ):
        expected = [values(calculator, one) for one in (atoms, periodic)]
        for made in (pickle.loads(pickle.dumps(calculator)), copy.deepcopy(calculator)):
            assert_same([values(made, one) for one in (atoms, periodic)], expected, tolerance=1e-12)
        atoms.calc = calculator  # atoms carry their calculator into pickles
        assert_same([values(pickle.loads(pickle.dumps(atoms)).calc, atoms)], expected[:1], tolerance=1e-12)


def test_a_torch_sim_model_in_a_file():
    torch_sim = pytest.importorskip("torch_sim", reason="torch-sim is not installed")
    from phi_equivariant.engines.torch_sim import PhiTorchSimModel

    made = PhiTorchSimModel(model_of({}))
    state = torch_sim.initialize_state([distorted(molecule("CH3OH"))], torch.device("cpu"), torch.float64)
    expected = made(state)
    buffer = io.BytesIO()
    torch.save(made, buffer)
    buffer.seek(0)
    for other in (torch.load(buffer, weights_only=False), pickle.loads(pickle.dumps(made)), copy.deepcopy(made)):
        out = other(state)
        assert all(torch.allclose(out[name], expected[name], atol=1e-12) for name in ("energy", "forces", "charges"))


def energy_of(atoms):
    """In another process."""
    torch.set_num_threads(1)
    return atoms.get_potential_energy(), atoms.get_forces()


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_pools_of_processes(start):
    model, structures = model_of({}), frames(periodic=False, n=4)
    for atoms in structures:
        atoms.calc = PhiCalculator(model)
    expected = [values(PhiCalculator(model), atoms) for atoms in structures]
    with multiprocessing.get_context(start).Pool(2 if start == "fork" else 1) as pool:  # a new process imports all
        found = pool.map(energy_of, structures)
    assert_same(found, expected, tolerance=1e-9)


def test_results_of_a_shared_calculator_stay_with_their_atoms():
    """ase freezes results for atoms that leave a calculator: they are copies, not views of what comes next."""
    calculator = PhiCalculator(model_of({}))
    first, second = frames(periodic=False, n=2)
    first.calc = calculator
    energy, forces = first.get_potential_energy(), first.get_forces()
    frozen = SinglePointCalculator(first, **{name: calculator.results[name] for name in ("energy", "forces")})
    kept = forces.copy()
    values(calculator, second)
    assert frozen.results["energy"] == energy
    np.testing.assert_array_equal(forces, kept)
    np.testing.assert_array_equal(frozen.results["forces"], kept)
    assert isinstance(first, Atoms)
