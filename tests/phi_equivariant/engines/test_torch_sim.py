"""Several systems in one batch of torch-sim: what ase gives for each alone."""

import ase.units
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.md.verlet import VelocityVerlet
from systems import distorted, gentle_potential, mace_host, nequip_host, potential

from phi_equivariant import PhiCalculator
from phi_equivariant.errors import InputError
from phi_equivariant.weights import save_model

torch_sim = pytest.importorskip(
    "torch_sim", reason="torch-sim is not installed: pip install 'phi-equivariant[torch-sim]'"
)
from torch_sim.models.interface import validate_model_outputs  # noqa: E402

from phi_equivariant.engines.torch_sim import PhiTorchSimModel  # noqa: E402

pytestmark = pytest.mark.usefixtures("double")
CPU = torch.device("cpu")
CHARGES = {"NH4": 1, "OH": -1, "H2O": 0}


@pytest.fixture(scope="module")
def model():
    """As ``gentle_potential``."""
    return gentle_potential()


def ions():
    """Ammonium, hydroxide and water."""
    ammonium = Atoms("NH4", np.r_[[[0, 0, 0]], 0.6 * np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])])
    systems = [distorted(atoms, seed) for seed, atoms in enumerate((ammonium, molecule("OH"), molecule("H2O")))]
    for atoms, charge in zip(systems, CHARGES.values(), strict=True):
        atoms.info["total_charge"] = charge
    return systems


def crystals():
    """A skewed cell thinner than the cut-off, a cell of one atom, and a wide one with atoms outside."""
    skewed = Atoms("CONH", [[0, 0, 0], [1.7, 0.2, 0.1], [0.3, 1.6, 1.8], [1.9, 1.7, 1.4]], pbc=True)
    skewed.set_cell([[3.6, 0, 0], [0.7, 3.4, 0.2], [-0.4, 0.3, 3.8]])
    wide = Atoms(
        "OH2CN", [[-1, 0, 0], [9.5, 0.9, 0], [-0.8, -0.4, 0.8], [3.4, 1, 7], [4.4, 1.3, 7.2]], pbc=True, cell=[9, 8, 7]
    )
    return [distorted(skewed), Atoms("C", pbc=True, cell=[2.4, 2.5, 2.6]), wide]


def state_of(systems, dtype=torch.float64):
    return torch_sim.initialize_state(systems, CPU, dtype)


def alone(model, atoms):
    """ase's results for one system."""
    atoms = atoms.copy()
    atoms.calc = PhiCalculator(model)
    atoms.get_potential_energy()
    return atoms.calc.results


def assert_equal(out, model, systems, tolerance=1e-10):
    results = [alone(model, atoms) for atoms in systems]
    np.testing.assert_allclose(out["energy"], [r["energy"] for r in results], rtol=1e-12)
    np.testing.assert_allclose(out["forces"], np.concatenate([r["forces"] for r in results]), atol=tolerance)
    if "charges" in out:
        np.testing.assert_allclose(out["charges"], np.concatenate([r["charges"] for r in results]), atol=tolerance)
    return results


def test_open_systems_with_their_charges(model):
    systems = ions()
    out = PhiTorchSimModel(model, total_charge=CHARGES)(state_of(systems))
    results = assert_equal(out, model, systems)
    np.testing.assert_allclose(out["dipole"], [r["dipole"] for r in results], atol=1e-10)
    assert out["stress"].shape == (3, 3, 3) and out["stress"].isnan().all()
    assert [float(q.sum()) for q in out["charges"].split([5, 2, 3])] == pytest.approx([1, -1, 0], abs=1e-12)
    assert not any(value.requires_grad for value in out.values())


@pytest.mark.parametrize(
    "config", [dict(operator="coulomb"), dict(operator="graph", num_modes=3)], ids=["coulomb", "graph"]
)
def test_crystals(config):
    model, systems = potential(host=mace_host("8x0e"), **config), crystals()
    results = assert_equal(out := PhiTorchSimModel(model)(state_of(systems)), model, systems)
    full = [[[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]] for xx, yy, zz, yz, xz, xy in (r["stress"] for r in results)]
    np.testing.assert_allclose(out["stress"], full, atol=1e-10)
    assert "dipole" not in out


def test_slabs(model):
    """Where the state keeps the directions (torch-sim 0.3 makes open systems of slabs): set here in either case."""
    systems = [molecule("H2O", cell=[5, 6, 9], pbc=[True, True, False]), *crystals()[:1]]
    systems[1].pbc = [True, True, False]
    state = state_of(systems)
    state.pbc = torch.tensor([True, True, False])
    out = PhiTorchSimModel(model)(state)
    results = assert_equal(out, model, systems)
    np.testing.assert_allclose(out["dipole"], [r["dipole"] for r in results], atol=1e-10)
    steps = []
    for atoms in systems:
        atoms.calc = PhiCalculator(model)
        full = atoms.get_stress(voigt=False)
        np.testing.assert_allclose(out["stress"][len(steps)], full, atol=1e-10)
        steps.append(atoms.calc.phi_results["surface_potential_step"])
    np.testing.assert_allclose(out["surface_potential_step"], steps, rtol=1e-10)


def test_bare_host_and_saved_folder(model, tmp_path):
    systems = crystals()
    host = mace_host("8x0e")
    out = PhiTorchSimModel(host, compute_stress=False)(state_of(systems))
    assert_equal(out, host, systems)
    assert set(out) == {"energy", "forces"}
    save_model(model, tmp_path)
    single = PhiTorchSimModel(tmp_path, dtype="float32", compute_forces=False, compute_stress=False)
    out = single(state_of(systems, torch.float32))
    assert out["energy"].dtype == torch.float64 and "forces" not in out  # whatever the precision of the model
    np.testing.assert_allclose(out["energy"], [alone(model, atoms)["energy"] for atoms in systems], rtol=1e-5)


def nve(model, state, timestep):
    """The first state, and a function that makes the next one, in torch-sim 0.3 and from 0.6 on."""
    if hasattr(torch_sim, "nve_step"):
        step = torch.tensor(timestep)
        first = torch_sim.nve_init(state, model, kT=torch.tensor(0.0))
        return first, lambda state: torch_sim.nve_step(state, model, dt=step)
    start, update = torch_sim.nve(model, dt=torch.tensor(timestep), kT=torch.tensor(0.0))
    return start(state), update


@pytest.mark.parametrize("make", [ions, crystals])
def test_dynamics_are_those_of_ase(model, make):
    systems, timestep = make(), 0.5 * ase.units.fs
    if make is crystals:
        systems[1] = systems[1].repeat((2, 1, 1))
    for seed, atoms in enumerate(systems):
        MaxwellBoltzmannDistribution(atoms, temperature_K=300, rng=np.random.default_rng(seed))
    batched = PhiTorchSimModel(model, total_charge=CHARGES if make is ions else None)
    state = state_of(systems)
    state.momenta = torch.tensor(np.concatenate([atoms.get_momenta() for atoms in systems]))
    state, update = nve(batched, state, timestep)
    for atoms in systems:
        atoms.calc = PhiCalculator(model)
    runs, tracks = [VelocityVerlet(atoms, timestep) for atoms in systems], []
    for _ in range(20):
        state = update(state)
        kinetic = torch_sim.calc_kinetic_energy(momenta=state.momenta, masses=state.masses, system_idx=state.system_idx)
        tracks.append(torch.stack([state.energy, state.energy + kinetic]).numpy())
        for run in runs:
            run.run(1)
        np.testing.assert_allclose(state.energy, [atoms.get_potential_energy() for atoms in systems], atol=1e-8)
    np.testing.assert_allclose(state.momenta, np.concatenate([atoms.get_momenta() for atoms in systems]), atol=1e-8)
    potential_energy, total = np.ptp(tracks, axis=0)
    assert (total < 0.01 * potential_energy).all()


def test_an_external_field_acts_on_all_systems():
    responding, field = potential(host=mace_host("8x0e"), charge_model="sqe"), (0.1, -0.2, 0.3)
    systems = ions()
    out = PhiTorchSimModel(responding, total_charge=CHARGES, external_field=field)(state_of(systems))
    calculator = PhiCalculator(responding, external_field=field)
    want = []
    for atoms in systems:
        atoms.calc = calculator
        want.append([atoms.get_potential_energy(), *atoms.get_dipole_moment()])
    np.testing.assert_allclose(torch.cat([out["energy"][:, None], out["dipole"]], dim=1).numpy(), want, atol=1e-9)
    with pytest.raises(InputError, match="along a periodic direction"):
        PhiTorchSimModel(responding, external_field=field)(state_of(crystals()))


def test_autobatching_may_sort_and_split(model):
    systems = [*ions(), distorted(molecule("H2O"), 7)]
    batched = PhiTorchSimModel(model, total_charge=CHARGES)
    batches = torch_sim.BinningAutoBatcher(batched, memory_scales_with="n_atoms", max_memory_scaler=6)
    found = torch_sim.static(systems, batched, autobatcher=batches)
    energies = [alone(model, atoms)["energy"] for atoms in systems]
    assert [float(system["potential_energy"]) for system in found] == pytest.approx(energies, abs=1e-10)


def test_the_states_own_charges(model):
    systems = ions()
    state = state_of(systems)
    charge = torch.tensor([1.0, -1.0, 0.0])
    if not hasattr(state, "system_extras"):  # torch-sim 0.3 forgets it at the first step
        state.charge = charge
        with pytest.raises(InputError, match="state has charge, which this version of torch-sim drops"):
            PhiTorchSimModel(model)(state)
        return
    state.system_extras["charge"] = charge
    assert_equal(PhiTorchSimModel(model)(state), model, systems)
    with pytest.raises(InputError, match="given by the model and by the state .charge."):
        PhiTorchSimModel(model, total_charge=CHARGES)(state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: vars(s), "state is dict; give a torch_sim.SimState"),
        (lambda s: s.to(dtype=torch.float32), "state is torch.float32 on cpu, the model torch.float64 on cpu"),
        (lambda s: s.positions.__setitem__((0, 0), torch.nan), "positions of structure 0 are not finite"),
        (lambda s: s.atomic_numbers.__setitem__(7, 79), r"atomic numbers \[79\] of structure 2"),
        (lambda s: s.system_idx.__setitem__(slice(None), 2 - s.system_idx), "system_idx must ascend"),
        (lambda s: setattr(s, "pbc", True), "cell of structure 0 is singular"),
    ],
)
def test_states_that_cannot_be_evaluated(model, change, message):
    state = state_of(ions())
    changed = change(state)
    with pytest.raises(InputError, match=message):
        PhiTorchSimModel(model)(state if changed is None else changed)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(total_charge="plus"), "total_charge.*'plus'.*finite number"),
        (dict(total_charge=[1, 0]), "finite number"),
        (dict(total_charge={"OH-": -1}), "keys .*'OH-'.*expected chemical formulas"),
        (dict(total_charge={"OH": None}), "finite number"),
        (dict(total_charge={"OH": 0, "HO": -1}), "two of them are of one composition"),
        (dict(head="top"), "head is 'top'"),
        (dict(dtype="half"), "dtype is 'half'"),
    ],
)
def test_settings_that_make_no_sense(model, settings, message):
    with pytest.raises(InputError, match=message):
        PhiTorchSimModel(model, **settings)


def test_a_composition_without_a_charge(model):
    with pytest.raises(InputError, match="no entry for HO; give one for each"):
        PhiTorchSimModel(model, total_charge={"NH4": 1})(state_of(ions()))


def test_torch_sims_own_check_of_models():
    elements = [1, 6, 12, 14, 26]
    model = potential(host=nequip_host("8x0e", 2, atomic_numbers=elements, atomic_energies=[-1.0] * 5))
    validate_model_outputs(PhiTorchSimModel(model), CPU, torch.float64)
