"""Potentials in OpenMM: energies and forces of PhiCalculator, pressures of OpenMM's own, and classical surroundings."""

import copy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule
from systems import distorted, gentle_potential, mace_host, nequip_host

from phi_equivariant import PhiCalculator, PhiConfig, attach_phi
from phi_equivariant.errors import InputError
from phi_equivariant.weights import save_model

openmm = pytest.importorskip("openmm", reason="OpenMM is not installed: pip install 'phi-equivariant[openmm]'")
pytest.importorskip("openmmml", reason="OpenMM-ML is not installed: pip install 'phi-equivariant[openmm]'")
from openmm import app, unit  # noqa: E402
from openmmml import MLPotential  # noqa: E402

pytestmark = pytest.mark.usefixtures("double")
EXAMPLES = Path(__file__).parents[3] / "examples" / "openmm"
KILOJOULE = units.kJ / units.mol
CELL = [[9.3, 0, 0], [1.0, 9.5, 0], [-0.8, 1.2, 9.9]]


@pytest.fixture(scope="module")
def model():
    """As ``gentle_potential``."""
    return gentle_potential()


def topology_of(atoms):
    """Water molecules, or one residue of all, with the box of periodic structures."""
    topology = app.Topology()
    chain, water = topology.addChain(), atoms.symbols.formula.reduce()[0].format("hill") == "H2O"
    for i, symbol in enumerate(atoms.symbols):
        if i == 0 or (water and i % 3 == 0):
            residue = topology.addResidue("HOH" if water else "MOL", chain)
        name = ("O", "H1", "H2")[i % 3] if water else f"{symbol}{i}"
        topology.addAtom(name, app.Element.getBySymbol(symbol), residue)
    topology.createStandardBonds()
    if atoms.pbc.all():
        topology.setPeriodicBoxVectors(atoms.cell.array * unit.angstrom)
    return topology


def water(edge=2, spacing=3.2, seed=0, cell=None):
    """Water molecules on a grid, turned at random, in a periodic cell."""
    places = spacing * np.stack(np.meshgrid(*[np.arange(edge)] * 3, indexing="ij"), -1).reshape(-1, 3)
    turns = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(places), 3, 3)))[0]
    one = molecule("H2O").positions - molecule("H2O").get_center_of_mass()
    atoms = Atoms("OHH" * len(places), (places[:, None] + one @ turns).reshape(-1, 3), pbc=True)
    atoms.cell = [edge * spacing] * 3 if cell is None else cell
    return atoms


def context_of(system, atoms, platform="Reference", integrator=None):
    integrator = integrator or openmm.VerletIntegrator(0.5 * unit.femtosecond)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatform(platform))
    if atoms.pbc.any():
        context.setPeriodicBoxVectors(*atoms.cell.array * unit.angstrom)
    context.setPositions(atoms.positions * unit.angstrom)
    return context


def found_by(context, groups=-1):
    """Energy in eV and forces in eV/Å."""
    state = context.getState(energy=True, forces=True, groups=groups)
    energy = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole) * KILOJOULE
    forces = state.getForces(asNumpy=True).value_in_unit(unit.kilojoule_per_mole / unit.angstrom) * KILOJOULE
    return energy, forces


def by_calculator(model, atoms, **info):
    """The same by ase."""
    atoms = atoms.copy()
    atoms.info.update(info)
    atoms.calc = PhiCalculator(model)
    return atoms.get_potential_energy(), atoms.get_forces()


def assert_same(found, expected, tolerance=1e-10):
    assert found[0] == pytest.approx(expected[0], rel=1e-12)
    np.testing.assert_allclose(found[1], expected[1], atol=tolerance)


@pytest.mark.parametrize("platform", ["Reference", "CPU"])
def test_an_open_ion(model, tmp_path, platform):
    ion = distorted(molecule("OH"))
    save_model(model, tmp_path / "run")
    system = MLPotential("phi", modelPath=str(tmp_path / "run")).createSystem(topology_of(ion), charge=-1)
    assert_same(found_by(context_of(system, ion, platform)), by_calculator(model, ion, total_charge=-1))


@pytest.mark.parametrize(
    "arguments, info",
    [({"multiplicity": 2}, {}), ({"external_field": (0.1, 0, 0.2)}, {"external_field": (0.1, 0, 0.2)})],
)
def test_what_a_system_is_told(model, arguments, info):
    atoms = distorted(molecule("OH"))
    system = MLPotential("phi", model=model).createSystem(topology_of(atoms), **arguments)
    expected = by_calculator(model, atoms, **info)
    assert_same(found_by(context_of(system, atoms)), expected)
    assert abs(expected[0] - by_calculator(model, atoms, total_charge=-1)[0]) > 1e-3


@pytest.mark.parametrize("host", ["with Φ", "bare", "float32"])
def test_a_skewed_box_with_atoms_outside(model, host):
    atoms = distorted(water(cell=CELL))
    atoms.positions[:5] += atoms.cell[0] - 2 * atoms.cell[2]
    which = nequip_host() if host == "bare" else model
    calculator = {"dtype": "float32"} if host == "float32" else {}
    system = MLPotential("phi", model=copy.deepcopy(which), precision="single" if calculator else None).createSystem(
        topology_of(atoms)
    )
    atoms.calc = PhiCalculator(copy.deepcopy(which), **calculator)
    energy, forces = found_by(context_of(system, atoms))
    assert energy == pytest.approx(atoms.get_potential_energy(), rel=1e-7 if calculator else 1e-12)
    np.testing.assert_allclose(forces, atoms.get_forces(), atol=1e-4 if calculator else 1e-9)
    if not calculator:
        return
    assert by_calculator(model, atoms)[0] != atoms.get_potential_energy()


def test_pressure_by_openmm_is_that_of_the_stress(model):
    """OpenMM's own finite difference of the energy in the volume, atoms at rest."""
    atoms = distorted(water())
    system = MLPotential("phi", model=model).createSystem(topology_of(atoms))
    barostat = openmm.MonteCarloBarostat(1 * unit.bar, 300 * unit.kelvin, 1)
    barostat.setScaleMoleculesAsRigid(False)
    system.addForce(barostat)
    found = barostat.computeCurrentPressure(context_of(system, atoms)).value_in_unit(unit.bar)
    atoms.calc = PhiCalculator(model)
    pressure = -np.trace(atoms.get_stress(voigt=False)) / 3
    assert found * 1e5 * units.Pascal == pytest.approx(pressure, rel=1e-5)


def test_a_barostat_changes_the_box(model):
    atoms = distorted(water())
    system = MLPotential("phi", model=model).createSystem(topology_of(atoms))
    system.addForce(openmm.MonteCarloBarostat(1 * unit.bar, 300 * unit.kelvin, 1))
    context = context_of(system, atoms, integrator=openmm.LangevinMiddleIntegrator(300, 1, 0.0005))
    context.setVelocitiesToTemperature(300 * unit.kelvin, 1)
    context.getIntegrator().step(12)
    state = context.getState(positions=True, enforcePeriodicBox=True)
    last = atoms.copy()
    last.cell = state.getPeriodicBoxVectors(asNumpy=True).value_in_unit(unit.angstrom)
    last.positions = state.getPositions(asNumpy=True).value_in_unit(unit.angstrom)
    assert abs(last.get_volume() / atoms.get_volume() - 1) > 1e-4
    assert_same(found_by(context), by_calculator(model, last), 1e-9)


def classical(atoms, periodic):
    """TIP3P, rigid, with tight PME."""
    method = {"nonbondedMethod": app.PME, "nonbondedCutoff": 0.45, "ewaldErrorTolerance": 1e-6} if periodic else {}
    system = app.ForceField("amber14/tip3p.xml").createSystem(topology_of(atoms), **method)
    for force in system.getForces():
        if isinstance(force, openmm.NonbondedForce):
            force.setUseDispersionCorrection(False)  # of all pairs of the box, also of those that are taken out
    return system


@pytest.mark.parametrize("periodic", [False, True])
def test_a_molecule_in_classical_surroundings(model, periodic):
    """Mechanical embedding: the classical energy of all, less that of the molecule alone, plus the model's."""
    atoms = water(edge=3, spacing=3.2)
    topology = topology_of(atoms)  # has a box although the classical forces may do without one
    solute = [12, 13, 14]
    mixed = MLPotential("phi", model=model).createMixedSystem(
        topology, classical(atoms, periodic), solute, forceGroup=1, charge=0
    )
    assert mixed.getNumConstraints() == 3 * (len(atoms) // 3 - 1)
    atoms.pbc = periodic
    alone = atoms[solute]
    by_model = by_calculator(model, alone)
    context = context_of(mixed, atoms)
    energy, forces = found_by(context, groups={1})
    assert_same((energy, forces[solute]), by_model)
    assert not np.delete(forces, solute, axis=0).any()
    whole = found_by(context_of(classical(atoms, periodic), atoms))
    alone.pbc = atoms.pbc
    part = found_by(context_of(classical(alone, periodic), alone))
    energy, forces = found_by(context)
    assert energy == pytest.approx(whole[0] - part[0] + by_model[0], abs=2e-5)
    expected = whole[1]
    expected[solute] += by_model[1] - part[1]
    np.testing.assert_allclose(forces, expected, atol=2e-5)


def test_from_classical_to_mixed(model):
    atoms = water(edge=3, spacing=3.2)
    solute, embedded = [12, 13, 14], MLPotential("phi", model=model)
    between = embedded.createMixedSystem(topology_of(atoms), classical(atoms, True), solute, interpolate=True)
    context, mixed = (
        context_of(between, atoms),
        embedded.createMixedSystem(topology_of(atoms), classical(atoms, True), solute),
    )
    for value, system in ((1.0, mixed), (0.0, classical(atoms, True))):
        context.setParameter("lambda_interpolate", value)
        energy, forces = found_by(context)
        expected = found_by(context_of(system, atoms))
        assert energy == pytest.approx(expected[0], abs=1e-5)
        np.testing.assert_allclose(forces, expected[1], atol=1e-5)


def test_bonds_that_are_cut_are_capped(model):
    """The middle residue of a peptide: hydrogens stand for its neighbours, and pass the forces on to real atoms."""
    pdb = app.PDBFile(str(EXAMPLES / "peptide.pdb"))
    whole = app.ForceField("amber14-all.xml").createSystem(pdb.topology)
    residue = [atom.index for atom in list(pdb.topology.residues())[2].atoms()]
    mixed = MLPotential("phi", model=model).createMixedSystem(pdb.topology, whole, residue, forceGroup=1)
    assert mixed.getNumParticles() == pdb.topology.getNumAtoms() + 2
    context = openmm.Context(mixed, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatform("Reference"))
    positions = np.zeros((mixed.getNumParticles(), 3))
    positions[:-2] = np.array(pdb.positions.value_in_unit(unit.angstrom))

    def found():
        context.setPositions(positions * unit.angstrom)
        context.computeVirtualSites()
        return found_by(context, groups={1})

    energy, forces = found()
    there = context.getState(positions=True).getPositions(asNumpy=True).value_in_unit(unit.angstrom)
    capped = [*residue, *range(pdb.topology.getNumAtoms(), mixed.getNumParticles())]
    symbols = [atom.element.symbol for atom in list(pdb.topology.atoms())]
    atoms = Atoms([*(symbols[i] for i in residue), "H", "H"], there[capped])
    assert energy == pytest.approx(by_calculator(model, atoms)[0], rel=1e-12)
    outside = next(  # an atom bonded to the residue, on which only a cap can act
        a.index
        for bond in pdb.topology.bonds()
        for a, b in (bond, bond[::-1])
        if a.index not in residue and b.index in residue
    )
    for index in (residue[0], outside):
        ends = []
        for step in (1e-4, -1e-4):
            positions[index, 0] += step
            ends.append(found()[0])
            positions[index, 0] -= step
        assert forces[index, 0] == pytest.approx(-(ends[0] - ends[1]) / 2e-4, rel=1e-5, abs=1e-7)
        assert abs(forces[index, 0]) > 1e-4


def test_what_acts_on_far_images(model):
    """Which interactions mechanical embedding takes over from the classical charges."""
    graph = attach_phi(mace_host("8x0e"), PhiConfig(operator="graph"))
    found = [MLPotential("phi", model=one)._impl.getMLLongRange() for one in (model, graph, graph.detach())]
    assert found == [True, False, False]


def test_systems_go_through_xml(model):
    atoms = distorted(water())
    system = MLPotential("phi", model=model).createSystem(topology_of(atoms))
    read = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(system))
    assert_same(found_by(context_of(read, atoms)), found_by(context_of(system, atoms)))


def argon():
    """With an element that the model does not know."""
    topology = topology_of(molecule("H2O"))
    topology.addAtom("AR", app.Element.getBySymbol("Ar"), next(topology.residues()))
    return topology


def with_site():
    """With a site that is not an atom."""
    topology = topology_of(molecule("H2O"))
    topology.addAtom("M", None, next(topology.residues()))
    return topology


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, "no model is given"),
        ({"modelPath": "runs/nothing"}, "runs/nothing is not a folder"),
        ({"modelPath": "a", "model": "b"}, "the model is given twice"),
        ({"modelPth": "a", "model": "b"}, "'modelPth' is not an argument of this calculator. Did you mean modelPath"),
        ({"model": "b", "charge": -1}, "charge belongs to a system: give it to createSystem"),
        ({"head": "pbe"}, "head is 'pbe'; the model has the heads Default"),
        ({"precision": "half"}, "'half'"),
        ({"device": "gpu"}, "device is 'gpu'"),
    ],
)
def test_wrong_potentials(model, arguments, message):
    given = {"model": model, **arguments} if {"head", "precision", "device"} & set(arguments) else arguments
    with pytest.raises(InputError, match=message):
        MLPotential("phi", **given)


@pytest.mark.parametrize(
    "topology, arguments, message",
    [
        (argon, {}, r"does not know atomic numbers \[18\]"),
        (with_site, {}, "atom 3 of the topology .M of residue HOH 1. has no element"),
        (None, {"charg": -1}, r"'charg' is not an argument of createSystem with 'phi'. Did you mean charge\?"),
        (None, {"total_charge": -1}, "Did you mean charge"),
        (None, {"charge": "-"}, "total_charge"),
        (None, {"charge": 11}, "such an ion does not exist"),
        (None, {"pbc": (True, True, False)}, "Use ase or LAMMPS for slabs"),
        (None, {"precision": "single"}, r"precision belongs to the potential: give it to MLPotential\('phi'"),
        (None, {"external_field": (0, 1)}, "external_field"),
    ],
)
def test_wrong_systems(model, topology, arguments, message):
    with pytest.raises(InputError, match=message):
        MLPotential("phi", model=model).createSystem(
            (topology or (lambda: topology_of(molecule("H2O"))))(), **arguments
        )


def test_an_error_in_a_step_is_told(model):
    atoms = molecule("H2O")
    context = context_of(MLPotential("phi", model=model).createSystem(topology_of(atoms)), atoms)
    context.setPositions(np.full((3, 3), np.nan))
    with pytest.raises(openmm.OpenMMException, match="positions are not finite"):
        context.getState(energy=True)


def test_openmm_that_is_missing_is_named(monkeypatch):
    place = "phi_equivariant.engines.openmm.ml_potential"
    monkeypatch.delitem(sys.modules, place, raising=False)
    monkeypatch.setitem(sys.modules, "openmmml.mlpotential", None)
    with pytest.raises(ImportError, match=r"pip install 'phi-equivariant\[openmm\]'"):
        __import__(place)


@pytest.mark.slow
def test_a_mixed_peptide_in_water_conserves_energy():
    """Ac-Ala3-NHMe by a trained model in TIP3P water: 1 ps without a thermostat."""
    pdb = app.PDBFile(str(EXAMPLES / "peptide.pdb"))
    field = app.ForceField("amber14-all.xml", "amber14/tip3p.xml")
    modeller = app.Modeller(pdb.topology, pdb.positions)
    modeller.addSolvent(field, model="tip3p", padding=0.5 * unit.nanometer)
    settings = {"nonbondedMethod": app.PME, "nonbondedCutoff": 0.9, "ewaldErrorTolerance": 1e-5}
    frozen = field.createSystem(modeller.topology, **settings)
    peptide = [atom.index for atom in modeller.topology.atoms() if atom.residue.name != "HOH"]
    mixed = MLPotential("phi", modelPath="phi-mace-small.ala3_gfn2").createMixedSystem(
        modeller.topology, frozen, peptide
    )
    for index in peptide:  # the water alone makes room
        frozen.setParticleMass(index, 0)
    one_thread = openmm.Platform.getPlatform("CPU"), {"Threads": "1"}
    relaxed = openmm.Context(frozen, openmm.VerletIntegrator(0.001), *one_thread)
    relaxed.setPositions(modeller.positions)
    openmm.LocalEnergyMinimizer.minimize(relaxed, maxIterations=200)
    integrator = openmm.VerletIntegrator(0.001)
    integrator.setConstraintTolerance(1e-8)
    context = openmm.Context(mixed, integrator, *one_thread)
    context.setState(relaxed.getState(positions=True))
    context.setVelocitiesToTemperature(300 * unit.kelvin, 1)
    integrator.step(10)  # off the constraints that velocities were drawn without
    total, kinetic = [], []
    for _ in range(100):
        integrator.step(10)
        state = context.getState(energy=True)
        kinetic.append(state.getKineticEnergy().value_in_unit(unit.kilojoule_per_mole))
        total.append(state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole) + kinetic[-1])
    drift = np.polyfit(np.linspace(0, 1, 100), total, 1)[0]
    print("drift", drift, "std", np.std(total), "kinetic", np.mean(kinetic), np.std(kinetic))
    assert np.std(total) < 0.05 * np.std(kinetic)
    assert abs(drift) < 2e-3 * np.mean(kinetic)  # kJ/mol in the whole picosecond


@pytest.mark.slow
def test_the_example_runs(tmp_path):
    words = [sys.executable, str(EXAMPLES / "peptide.py"), "--steps", "20"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = np.genfromtxt(tmp_path / "peptide.csv", delimiter=",", names=True)
    assert len(rows) == 2 and np.isfinite(rows["Potential_Energy_kJmole"]).all()
