import copy
import json
import pickle

import ase.units
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.fd import calculate_numerical_forces
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.md.verlet import VelocityVerlet
from mace.calculators import MACECalculator
from systems import batch_of, ethanol, mace_host, nequip_host, potential

from phi_equivariant import PhiCalculator
from phi_equivariant.errors import InputError
from phi_equivariant.inputs.state import StateReader, set_reader
from phi_equivariant.weights import save_model
from zoo import load_pretrained

pytestmark = pytest.mark.usefixtures("double")


def test_results_are_the_potentials():
    model, atoms = potential(), ethanol()
    atoms.info["charge"] = -1
    atoms.calc = PhiCalculator(model)
    labelled = atoms.copy()
    labelled.info["total_charge"] = -1
    want = {k: v.detach().numpy() for k, v in model(batch_of(labelled)).items() if torch.is_tensor(v)}
    assert atoms.get_potential_energy() == pytest.approx(want["energy"][0], rel=1e-12)
    assert atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()
    np.testing.assert_allclose(atoms.get_forces(), want["forces"], atol=1e-10)
    np.testing.assert_allclose(atoms.get_charges(), want["charges"], atol=1e-12)
    np.testing.assert_allclose(atoms.get_dipole_moment(), want["dipole"][0], atol=1e-10)
    np.testing.assert_allclose(atoms.get_potential_energies(), want["node_energy"], atol=1e-10)
    parts = atoms.calc.phi_results
    assert parts["host_energy"] + parts["phi_energy"] == pytest.approx(atoms.calc.results["energy"], rel=1e-14)
    np.testing.assert_allclose(parts["potential"], want["potential"], atol=1e-12)
    assert set(atoms.calc.export_properties()) >= {"energy", "forces", "charges", "dipole"}
    assert atoms.get_charges().sum() == pytest.approx(-1, abs=1e-12)


def test_forces_equal_ases_finite_differences():
    atoms = Atoms("CO", [[0, 0, 0], [0.1, 0.2, 1.2]])
    atoms.calc = PhiCalculator(potential())
    np.testing.assert_allclose(atoms.get_forces(), calculate_numerical_forces(atoms, eps=1e-4), atol=1e-6)


def test_changing_the_charge_recalculates():
    atoms = ethanol()
    atoms.calc = PhiCalculator(potential())
    neutral = atoms.get_potential_energy()
    atoms.info["total_charge"] = 1
    assert atoms.get_potential_energy() != neutral
    assert atoms.get_charges().sum() == pytest.approx(1, abs=1e-12)


def test_a_kept_neighbour_list_gives_the_energies_of_a_fresh_one():
    model, atoms = potential(), molecule("CH3CONH2") + Atoms("O", [[3.9, 0, 0]])
    atoms.calc = PhiCalculator(model, skin=0.5)
    rng = np.random.default_rng(0)
    builds = []
    for _ in range(12):
        atoms.positions += 0.04 * rng.normal(size=atoms.positions.shape)
        energy = atoms.get_potential_energy()
        builds.append(id(atoms.calc.input.lists[0].built_at))
        fresh = atoms.copy()
        fresh.calc = PhiCalculator(model, skin=0.0)
        assert energy == pytest.approx(fresh.get_potential_energy(), rel=1e-13)
    assert 1 < len(set(builds)) < 12


def test_energy_is_conserved():
    atoms = molecule("CH3OH")
    model = potential(host=mace_host("8x0e"))
    with torch.no_grad():  # an untrained host pushes atoms apart: keep its forces small beside Φ's
        model.host.scale_shift.scale.mul_(0.05)
    atoms.calc = PhiCalculator(model)
    MaxwellBoltzmannDistribution(atoms, temperature_K=100, rng=np.random.default_rng(0))
    energies = {}
    for step in (0.5, 0.25):
        copy = atoms.copy()
        copy.calc = atoms.calc
        dynamics = VelocityVerlet(copy, step * ase.units.fs)
        track = []
        dynamics.attach(lambda c=copy, t=track: t.append(c.get_total_energy()))
        dynamics.run(int(10 / step))
        energies[step] = np.ptp(track)
    # The error of velocity Verlet falls as the square of the step if, and only if, forces are the energy's derivative.
    assert energies[0.25] < 0.4 * energies[0.5]


def test_saved_folder(tmp_path):
    model, atoms = potential(), ethanol()
    save_model(model, tmp_path)
    atoms.calc = PhiCalculator(tmp_path, dtype="float64")
    assert atoms.get_potential_energy() == pytest.approx(model(batch_of(atoms))["energy"].item(), rel=1e-14)


def test_bare_host():
    atoms = ethanol()
    atoms.calc = PhiCalculator(mace_host())
    assert atoms.get_potential_energy() == pytest.approx(mace_host()(batch_of(atoms))["energy"].item(), rel=1e-13)
    assert "charges" not in atoms.calc.implemented_properties


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.positions.__setitem__((0, 0), np.nan), "positions are not finite"),
        (lambda a: a.numbers.__setitem__(0, 79), r"does not know atomic numbers \[79\]"),
        (lambda a: a.info.update(total_charge="plus one"), "total_charge.*'plus one'.*finite number"),
        (lambda a: a.info.update(total_charge=1, charge=0), "given twice and differs"),
        (lambda a: a.info.update(total_charge=np.True_), "finite number"),
        (lambda a: a.__delitem__(slice(None)), "no atoms"),
        (lambda a: a.set_pbc([True, False, False]), "pbc T F F.*three periodic directions or none"),
        (lambda a: a.set_pbc(True) or a.set_cell([20, 20, 0]), "singular.*pbc T T T"),
        (lambda a: a.set_pbc(True) or a.set_cell([[9, 0, 0], [0, 9, 0], [9, 9, 0]]), "singular"),
        (lambda a: a.set_pbc(True) or a.set_cell([9, 9, 0.2]), "too small.*0.2 Å apart.*at least 0.5"),
        (lambda a: a.set_pbc(True) or a.set_cell([9, 9, np.nan]), "cell of structure 0 is not finite"),
    ],
)
def test_bad_input(change, message):
    atoms = ethanol()
    atoms.set_cell([20, 20, 20])
    change(atoms)
    atoms.calc = PhiCalculator(potential())
    with pytest.raises(InputError, match=message):
        atoms.get_potential_energy()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(dtype="single"), "dtype is 'single'.*'float32', 'float64'"),
        (dict(default_dtype="single"), "dtype is 'single'"),
        (dict(dtype="float32", default_dtype="float64"), "default_dtype 'float64'; leave one out"),
        (dict(skin=-1), "skin is -1"),
        (dict(heads="a"), "'heads' is not an argument of this calculator. Did you mean head"),
        (dict(magic=1), "'magic' is not an argument of this calculator"),
        (dict(model_type="DipoleMACE"), "model_type is 'DipoleMACE', which is MACECalculator's and does nothing here"),
        (dict(enable_cueq=True), "enable_cueq is True"),
        (dict(energy_units_to_eV=27.2), "energy_units_to_eV is 27.2"),
        (dict(info_keys={"external": "x"}), "info_keys names 'external'"),
        (dict(device="gpu"), "device is 'gpu'"),
        (dict(models=[1]), "given twice, the second time as models"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    for made in (PhiCalculator, pytest.importorskip("phi_equivariant.engines.torch_sim").PhiTorchSimModel):
        with pytest.raises(InputError, match=message):
            made(nequip_host("2x0e", num_interactions=1), **settings)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there():
    with pytest.raises(InputError, match="device is 'cuda', but torch finds no such device here"):
        PhiCalculator(nequip_host(), device="cuda")


def test_maces_names(tmp_path):
    """What MACECalculator's arguments say is heard; those that ask for nothing are taken."""
    model, atoms = potential(host=nequip_host()), ethanol()
    save_model(model, tmp_path / "run")
    expected = PhiCalculator(model).get_potential_energy(atoms)
    neutral = dict(enable_cueq=False, compile_mode=None, model_type="MACE", label="x", directory=str(tmp_path))
    for named in (dict(models=model), dict(models=[model]), dict(model_paths=tmp_path / "run")):
        assert PhiCalculator(**named, **neutral).get_potential_energy(atoms) == pytest.approx(expected, rel=1e-14)
    single = PhiCalculator(model_paths=[str(tmp_path / "run")], default_dtype="float32")
    assert next(single.model.parameters()).dtype == torch.float32
    assert PhiCalculator(model=tmp_path / "run", dtype=torch.float32).model.r_max.dtype == torch.float32
    with pytest.raises(InputError, match="no model is given"):
        PhiCalculator(device="cpu")
    with pytest.raises(InputError, match="dtype cannot be changed"):
        single.set(dtype="float64")
    ion = ethanol()
    ion.info["Q"] = -1
    assert PhiCalculator(model, info_keys={"total_charge": "Q"}).get_charges(ion).sum() == pytest.approx(-1, abs=1e-9)


def test_names_of_models(tmp_path, monkeypatch):
    """A run's folder with and without a slash, a file in it, a name of the zoo; what is none says what to do."""
    model, atoms = potential(host=nequip_host()), molecule("CH4")
    expected = PhiCalculator(model).get_potential_energy(atoms)
    save_model(model, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    for name in ("run", "./run", "run/", "run/model.safetensors", tmp_path / "run"):
        assert PhiCalculator(name).get_potential_energy(atoms) == pytest.approx(expected, rel=1e-14)
    assert load_pretrained("run").phi.config == model.phi.config
    name, water = "phi-mace-small.acac", molecule("H2O")
    direct = PhiCalculator(load_pretrained(name, dtype="float64")).get_potential_energy(water)
    assert PhiCalculator(name, dtype="float64").get_potential_energy(water) == direct
    (tmp_path / "x.model").write_bytes(b"")
    for name, message in {
        "x.model": "zoo.mace_host.read_model",
        "phi-mace-smal.acac": "is not a folder. There is no trained model.*Did you mean phi-mace-small.acac",
        "run_*": "does not name one",
        tmp_path: "has no config.json",
    }.items():
        with pytest.raises(InputError, match=message):
            PhiCalculator(name)
    with pytest.raises(InputError, match="the model is 3"):
        PhiCalculator(3)


def test_a_committee_is_maces(tmp_path):
    """Means, what each says and the variance equal MACECalculator's for the same models, with and without Φ."""
    cell = molecule("CH3OH")
    cell.set_cell([6.0, 6.5, 7.0])
    cell.pbc = True
    for with_phi in (False, True):
        models = [mace_host("4x0e", seed=seed) for seed in range(3)]
        models = [potential(host=host) for host in models] if with_phi else models
        ours = PhiCalculator([copy.deepcopy(model) for model in models])
        theirs = MACECalculator(models=models, device="cpu", default_dtype="float64")
        for atoms in (ethanol(), cell):
            ours.calculate(atoms)
            theirs.calculate(atoms)
            names = ["energy", "forces", "energies", *(["stress"] if atoms.pbc.any() else [])]
            names += [f"{name}_{kind}" for name in ("energy", "forces") for kind in ("comm", "var")]
            for name in names:
                np.testing.assert_allclose(ours.results[name], theirs.results[name], rtol=1e-9, atol=1e-9, err_msg=name)
            assert ours.results["energy_std"] == np.std(ours.results["energy_comm"]) > 0
            np.testing.assert_allclose(ours.results["forces_std"], ours.results["forces_comm"].std(0), atol=1e-12)
            assert ours.get_property("energy_std", atoms) == ours.results["energy_std"]
            if atoms.pbc.any():
                assert ours.results["stress_comm"].shape == (3, 6) and ours.results["stress_std"].shape == (6,)
            if with_phi:
                alone = [PhiCalculator(model).get_charges(atoms) for model in models]
                np.testing.assert_allclose(ours.results["charges"], np.mean(alone, axis=0), atol=1e-12)


def test_a_committee_of_a_pattern_of_folders(tmp_path):
    hosts = [nequip_host("4x0e", seed=seed) for seed in range(2)]
    for seed, host in enumerate(hosts):
        save_model(host, tmp_path / f"run_{seed}")
    atoms = ethanol()
    alone = [PhiCalculator(host).get_potential_energy(atoms) for host in hosts]
    for given in (
        str(tmp_path / "run_*"),
        [tmp_path / "run_0", tmp_path / "run_1"],
        hosts,
        (hosts[0], tmp_path / "run_1"),
    ):
        calculator = PhiCalculator(given)
        assert calculator.get_potential_energy(atoms) == pytest.approx(np.mean(alone), rel=1e-14)
        np.testing.assert_allclose(calculator.results["energy_comm"], alone, rtol=1e-14)


def test_a_wrong_charge_is_forgotten_when_it_is_corrected():
    """ase keeps the atoms of a calculation that failed; what they said must not come back."""
    atoms = ethanol()
    atoms.calc = PhiCalculator(potential(host=nequip_host()))
    for wrong in ("1", None):
        atoms.info["total_charge"] = "1"
        with pytest.raises(InputError, match="the total charge must be a finite number"):
            atoms.get_potential_energy()
        atoms.info["total_charge"] = 1 if wrong else -1
        assert atoms.get_charges().sum() == pytest.approx(atoms.info["total_charge"], abs=1e-12)


def test_charges_that_cannot_be_or_were_not_trained_on(tmp_path):
    model, methane = potential(host=nequip_host()), molecule("CH4")
    methane.info["charge"] = 40
    methane.calc = PhiCalculator(model)
    with pytest.raises(InputError, match=r"total_charge is \+40 e, but CH4 has 10 electrons"):
        methane.get_potential_energy()
    set_reader(model, StateReader({"total_charge": "Q"}, {"total_charge": (-1.0, 1.0)}))
    save_model(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["inputs"] == {"total_charge": {"key": "Q", "seen": [-1.0, 1.0]}} and config["format_version"] == 3
    methane.info = {"Q": 2}
    for calculator in (PhiCalculator(tmp_path), pickle.loads(pickle.dumps(PhiCalculator(model)))):
        with pytest.warns(UserWarning, match=r"total_charge is 2, but the model was trained on −1…\+1"):
            assert calculator.get_charges(methane).sum() == pytest.approx(2, abs=1e-12)


@pytest.mark.parametrize("key", ["total_spin", "spin", "multiplicity"])
def test_the_multiplicity_that_a_host_embeds(key):
    """Whatever name it has; for MACECalculator it is ``spin``."""
    specs = {"total_spin": {"type": "categorical", "per": "graph", "num_classes": 4, "emb_dim": 4}}
    host, atoms = mace_host("4x0e", embedding_specs=specs, use_embedding_readout=True), ethanol()
    theirs = MACECalculator(models=[host], device="cpu", default_dtype="float64")
    atoms.calc = PhiCalculator(host)
    energies = []
    for spin in (None, 1, 2, 3):
        atoms.info = {} if spin is None else {key: spin}
        energies.append(atoms.get_potential_energy())
        other = ethanol()
        other.info = {} if spin is None else {"spin": spin}
        assert energies[-1] == pytest.approx(theirs.get_potential_energy(other), rel=1e-12)
    assert energies[0] == energies[1] and len(set(energies)) == 3


def test_other_embeddings_are_read_from_info_and_arrays():
    specs = {
        "level": {"type": "categorical", "per": "graph", "num_classes": 3, "emb_dim": 4, "key": "method"},
        "pull": {"type": "continuous", "per": "atom", "in_dim": 1, "emb_dim": 4},
    }
    host, atoms = mace_host("4x0e", embedding_specs=specs, use_embedding_readout=True), ethanol()
    calculator = PhiCalculator(host)
    with pytest.raises(InputError, match="has no entry 'method' per structure, which level reads"):
        calculator.get_potential_energy(atoms)
    atoms.info["method"], atoms.arrays["pull"] = 1, np.linspace(0, 1, len(atoms))
    theirs = MACECalculator(
        models=[host],
        device="cpu",
        default_dtype="float64",
        info_keys={"level": "method"},
        arrays_keys={"pull": "pull"},
    )
    first = calculator.get_potential_energy(atoms)
    assert first == pytest.approx(theirs.get_potential_energy(atoms), rel=1e-12)
    atoms.arrays["pull"][0] = 2.0
    assert calculator.get_potential_energy(atoms) != first
    atoms.info["method"] = 3
    with pytest.raises(InputError, match="whole numbers from 0 to 2"):
        calculator.get_potential_energy(atoms)


def test_a_charge_as_files_give_it():
    atoms = ethanol()
    atoms.info["charge"] = np.array([1.0])
    atoms.calc = PhiCalculator(potential())
    assert atoms.get_charges().sum() == pytest.approx(1, abs=1e-12)


def test_unknown_head():
    with pytest.raises(InputError, match="head is 'top'.*low, high"):
        PhiCalculator(mace_host(heads=["low", "high"]), head="top")
    with pytest.raises(InputError, match="name one"):
        PhiCalculator(mace_host(heads=["low", "high"]))
