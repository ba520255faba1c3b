"""Reading structures: labels land in their places, and everything unusable is refused with a reason."""

import copy
import dataclasses
import json
from pathlib import Path

import ase.db
import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms

from phi_equivariant.errors import InputError
from training.data.placing import Accepted
from training.data.reading import read_structures

DATA = Path(__file__).parents[4] / "shared" / "data"
ASE_KEYS = {"energy_key": "energy", "forces_key": "forces"}


def published(name):
    path = DATA / name
    if not path.exists():
        pytest.skip(f"the published file {name} is not in ../shared/data")
    return path


def water(**info):
    rng = np.random.default_rng(len(info))
    atoms = Atoms("OH2", positions=[[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    atoms.info = {"REF_energy": -2081.1, **info}
    atoms.arrays["REF_forces"] = rng.normal(size=(3, 3))
    return atoms


def write(folder, frames, name="frames.xyz"):
    ase.io.write(folder / name, frames)
    return folder / name


def refuses(match, *args, **kwargs):
    with pytest.raises(InputError, match=match) as caught:
        read_structures(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_labels_are_what_mace_reads(tmp_path):
    from mace.data import KeySpecification, load_from_xyz

    frames = ase.io.read(published("acac/train_300K.xyz"), ":20")
    for number, energy in ((1, -13.5), (6, -1026.9), (8, -2037.8)):
        atom = Atoms([number], info={"config_type": "IsolatedAtom"})
        atom.calc = SinglePointCalculator(atom, energy=energy, forces=np.zeros((1, 3)))
        frames.insert(number, atom)
    path = write(tmp_path, frames)
    keys = KeySpecification.from_defaults()
    keys.update({"energy": "energy"}, {"forces": "forces"})
    _, configurations = load_from_xyz(str(path), keys)

    ours = read_structures(path, ASE_KEYS)
    assert ours.e0s == {1: -13.5, 6: -1026.9, 8: -2037.8}
    assert len(ours.frames) == len(configurations) - 3 == 20
    theirs = [c for c in configurations if c.config_type != "IsolatedAtom"]
    for atoms, configuration in zip(ours.frames, theirs, strict=True):
        assert atoms.info["REF_energy"] == configuration.properties["energy"]
        np.testing.assert_array_equal(atoms.arrays["REF_forces"], configuration.properties["forces"])
        assert atoms.info["config_type"] == configuration.config_type == "300K_MD"
    assert len(read_structures(path, ASE_KEYS, keep_isolated_atoms=True).frames) == 23


def test_charges_dipoles_and_total_charges_of_published_files():
    keys = {"energy_key": "energy", "forces_key": "force", "charges_key": "mbi_charges"}
    peptides = read_structures(published("spice_dipeptides/train.xyz"), keys)
    assert peptides.report.counts == {"energy": 495, "forces": 495, "charges": 495, "dipole": 495}
    for atoms in peptides.frames[::50]:
        # Point charges give most of a molecule's dipole: the two labels belong together, in e and e·Å.
        from_charges = atoms.arrays["REF_charges"] @ atoms.positions
        assert atoms.info["REF_dipole"].shape == (3,)
        assert np.linalg.norm(from_charges - atoms.info["REF_dipole"]) < 0.6
    silver = read_structures(published("ag3/ag3_2200.extxyz"), ASE_KEYS | {"dipole_key": "dipole_ref"})
    assert silver.report.counts["dipole"] == silver.report.counts["total_charge"] == 2200
    assert {atoms.info["total_charge"] for atoms in silver.frames} == {-1.0, 1.0}
    carbon = read_structures(
        published("carbon_chain/carbon_chain_4g_128.extxyz"), ASE_KEYS | {"charges": "ref_charges"}
    )
    for atoms in carbon.frames:
        assert atoms.arrays["REF_charges"].sum() == pytest.approx(atoms.info["total_charge"], abs=1e-4)


def test_shapes_are_made_canonical_and_other_entries_kept(tmp_path):
    atoms = water(
        dipole=np.array([[0.1, 0.2, 0.3]]),
        REF_stress=np.arange(6.0),
        charge=1,
        config_type="liquid",
        config_weight=2.0,
        config_energy_weight=0.5,
        head="dft",
    )
    atoms.arrays["REF_charges"] = np.array([-0.8, 0.9, 0.9])
    result = read_structures(write(tmp_path, [atoms]))
    read = result.frames[0]
    np.testing.assert_array_equal(read.info["REF_dipole"], [0.1, 0.2, 0.3])
    np.testing.assert_array_equal(read.info["REF_stress"], [[0, 5, 4], [5, 1, 3], [4, 3, 2]])  # Voigt's order
    np.testing.assert_allclose(read.arrays["REF_charges"], [-0.8, 0.9, 0.9])
    np.testing.assert_allclose(read.arrays["REF_forces"], atoms.arrays["REF_forces"], atol=1e-7)
    assert read.info["total_charge"] == 1.0 and read.calc is None
    kept = {key: read.info[key] for key in ("config_type", "config_weight", "config_energy_weight", "head")}
    assert kept == {"config_type": "liquid", "config_weight": 2.0, "config_energy_weight": 0.5, "head": "dft"}
    assert "stress" in "\n".join(result.report.lines())


def test_mace_takes_the_labels_from_their_canonical_places(tmp_path):
    from mace.data import AtomicData, KeySpecification, config_from_atoms
    from mace.tools import AtomicNumberTable

    atoms = water(dipole=np.array([[0.1, 0.2, 0.3]]), REF_stress=np.arange(6.0), total_charge=-1)
    atoms.arrays["REF_charges"] = np.array([[-0.8], [-0.1], [-0.1]])
    read = read_structures(write(tmp_path, atoms)).frames[0]
    canonical = {"energy": "REF_energy", "dipole": "REF_dipole", "stress": "REF_stress", "total_charge": "total_charge"}
    keys = KeySpecification(canonical, {"forces": "REF_forces", "charges": "REF_charges"})
    data = AtomicData.from_config(config_from_atoms(read, keys), AtomicNumberTable([1, 8]), cutoff=3.0)
    assert data.total_charge.item() == -1.0 and data.energy.item() == pytest.approx(-2081.1)
    np.testing.assert_allclose(data.charges, [-0.8, -0.1, -0.1], rtol=1e-6)
    np.testing.assert_allclose(data.dipole, [[0.1, 0.2, 0.3]], rtol=1e-6)
    np.testing.assert_allclose(data.forces, atoms.arrays["REF_forces"], atol=1e-6)
    np.testing.assert_allclose(data.stress, [[[0, 5, 4], [5, 1, 3], [4, 3, 2]]])
    weights = (data.energy_weight, data.forces_weight, data.charges_weight, data.dipole_weight, data.stress_weight)
    assert [weight.max().item() for weight in weights] == [1.0] * 5


def test_an_unchosen_entry_under_the_canonical_name_is_not_a_label(tmp_path):
    first, second = water(better=-2000.0), water()
    path = write(tmp_path, [first, second])
    frames = read_structures(path, {"energy_key": "better"}).frames
    assert frames[0].info["REF_energy"] == -2000.0
    assert "REF_energy" not in frames[1].info


def test_forces_of_constrained_atoms_are_the_labels(tmp_path):
    atoms = water()
    forces = atoms.arrays.pop("REF_forces")
    atoms.set_constraint(FixAtoms([0]))
    atoms.calc = SinglePointCalculator(atoms, energy=-1.0, forces=forces)
    ase.io.write(tmp_path / "fixed.traj", atoms)
    read = read_structures(tmp_path / "fixed.traj", ASE_KEYS).frames[0]
    np.testing.assert_array_equal(read.arrays["REF_forces"], forces)


def test_labels_among_the_data_of_a_database(tmp_path):
    """What ase's databases do not take as key-value pairs; water has as many atoms as a vector has components."""
    rng, path = np.random.default_rng(0), tmp_path / "frames.json"
    forces, charges, dipole = rng.normal(size=(3, 3)), [0.2, -0.1, -0.1], [0.1, 0.2, 0.3]
    data = {"REF_forces": forces, "REF_charges": charges, "dipole": dipole, "external_field": [0, 0, 0.1]}
    with ase.db.connect(path) as database:
        database.write(Atoms("OH2", water().positions), key_value_pairs={"REF_energy": -2.5}, data=data)
    read = read_structures(path)
    (atoms,), report = read.frames, read.report
    assert atoms.info["REF_energy"] == -2.5 and report.as_dict()["labels"]["forces"]["count"] == 1
    np.testing.assert_array_equal(atoms.arrays["REF_forces"], forces)
    np.testing.assert_array_equal(atoms.arrays["REF_charges"], charges)
    np.testing.assert_array_equal(atoms.info["REF_dipole"], dipole)
    np.testing.assert_array_equal(atoms.info["external_field"], [0, 0, 0.1])


def test_a_label_in_the_wrong_place_is_refused(tmp_path):
    """Not left out without a word."""
    atoms = water()
    atoms.arrays["dipole"] = np.ones((3, 3))
    refuses("the dipole label has shape", write(tmp_path, [atoms]))


def test_report_counts_labels_per_file_and_is_json(tmp_path):
    charged = water(total_charge=1)
    paths = [write(tmp_path, [water(), charged], "a.xyz"), write(tmp_path, water(), "b.xyz")]
    report = read_structures(paths, split="valid").report
    assert report.frames == 3
    assert report.counts == {"energy": 3, "forces": 3, "total_charge": 1}
    lines = report.lines()
    assert lines[0].startswith("valid: 3 structures") and "a.xyz" in lines[0] and "b.xyz" in lines[0]
    assert any(line.split() == ["energies", "3", "energy_key:", "REF_energy"] for line in lines)
    assert any(line.split() == ["charges", "0", "charges_key:", "REF_charges"] for line in lines)
    assert json.loads(json.dumps(report.as_dict()))["labels"]["total_charge"] == {"key": "total_charge", "count": 1}


def test_frames_without_labels_are_counted(tmp_path):
    """Any label may be missing from any frame: the report says how many have it, how many weigh, and which train."""
    partly = [water() for _ in range(15)]
    for index in range(1, 15):
        del partly[index].arrays["REF_forces"]
    partly[3].info["config_energy_weight"] = partly[4].info["config_weight"] = 0.0
    partly[5].info["config_type"] = "left_out"
    # ase writes every frame with the columns that it has, so each frame stands for itself.
    path = tmp_path / "partly.xyz"
    for atoms in partly:
        ase.io.write(path, atoms, append=True)
    read = read_structures(path)
    assert read.report.counts == {"energy": 15, "forces": 1} and "forces" in read.first_keys
    assert read.report.unweighted == {"energy": 2}
    report = dataclasses.replace(read.report, trained=["forces"]).count(read.frames, {"left_out": 0.0})
    lines = [line.split(maxsplit=1) for line in report.lines()]
    assert ["energies", "15   energy_key: REF_energy, 3 of weight 0, not in the loss"] in lines
    assert ["forces", "1 of 15   forces_key: REF_forces"] in lines


def test_calculator_keys_are_named_when_the_default_key_finds_nothing():
    read = read_structures(published("acac/train_300K.xyz"))
    assert read.report.counts == {}
    assert "calculator results: forces, energy" in read.first_keys or "results: energy, forces" in read.first_keys


@pytest.mark.parametrize("reason", ["missing", "folder", "empty", "unreadable", "cut"])
def test_unusable_files(tmp_path, reason):
    path = tmp_path / "frames.xyz"
    match = {
        "missing": "no file",
        "folder": "is a folder",
        "empty": "is empty",
        "unreadable": "cannot read",
        "cut": "frame 1 of .* cannot be read: the file ends after 2 of its 3 atoms",
    }
    if reason == "folder":
        path.mkdir()
    elif reason == "empty":
        path.touch()
    elif reason == "unreadable":
        path.write_bytes(bytes(range(256)))
    elif reason == "cut":
        write(tmp_path, [water(), water()])
        path.write_text("\n".join(path.read_text().splitlines()[:-1]))
    assert "frames.xyz" in refuses(match[reason], path)


def spoil(atoms, what):
    if what == "positions":
        atoms.positions[1, 2] = np.nan
    elif what == "forces":
        atoms.arrays["REF_forces"][0, 0] = np.inf
    elif what == "energy":
        atoms.info["REF_energy"] = float("nan")
    elif what == "element":
        atoms.numbers[0] = 16
    elif what == "dummy":
        atoms.numbers[0] = 0
    elif what == "wire":
        atoms.cell, atoms.pbc = np.eye(3) * 20, [True, False, False]
    elif what == "no cell":
        atoms.pbc = True
    elif what == "shape of dipole":
        atoms.info["dipole"] = [1.0, 2.0]
    elif what == "shape of charges":
        atoms.arrays["REF_charges"] = np.zeros((3, 2))
    elif what == "text":
        atoms.info["total_charge"] = "plus"
    elif what == "logical":
        atoms.info["charge"] = True
    elif what == "nan charge":
        atoms.info["total_charge"] = float("nan")
    elif what == "flat cell":
        atoms.cell, atoms.pbc = np.diag([20.0, 20.0, 0.0]), True
    elif what == "coincide":
        atoms.positions[2] = atoms.positions[1]
    elif what.startswith("config_"):
        atoms.info[what] = {"config_weight": "high", "config_energy_weight": -1.0}.get(what, np.ones(3))
    elif what == "conflict":
        atoms.info |= {"total_charge": 1, "charge": -1}


@pytest.mark.parametrize(
    ("what", "match"),
    [
        ("positions", "positions that are not finite"),
        ("forces", "forces label is not finite"),
        ("energy", "energy label is not finite"),
        ("element", "holds S, which the model does not know: its elements are H, O"),
        ("dummy", r"holds X, which|without an element \(X\)"),
        ("wire", "pbc T F F.*operator treats only molecules, slabs, crystals"),
        ("no cell", "cell of frame 2 .*singular.*pbc T T T"),
        ("shape of dipole", r"dipole label has shape \(2,\); expected \(3,\)"),
        ("shape of charges", r"charges label has shape \(3, 2\); expected \(3,\)"),
        ("text", "'plus'; the total charge must be a finite number"),
        ("logical", "True.*; the total charge must be a finite number"),
        ("nan charge", "nan.*; the total charge must be a finite number"),
        ("conflict", "total charge is given twice and differs"),
        ("coincide", "has atoms that coincide"),
        ("config_weight", "config_weight is 'high'; expected a number, zero or more"),
        ("config_energy_weight", r"config_energy_weight is .*-1.*; expected a number"),
        ("config_forces_weight", r"config_forces_weight is array.*; expected a number"),
    ],
)
def test_unusable_frames_are_named(tmp_path, what, match):
    bad = water()
    spoil(bad, what)
    path = write(tmp_path, [water(), water(), bad])
    message = refuses(match, path, accepted=Accepted([1, 8], {0, 2, 3}))
    assert "frame 2 of " in message and "frames.xyz" in message
    good = read_structures(write(tmp_path, [water()], "good.xyz"), accepted=Accepted([1, 8]))
    assert len(good.frames) == 1


def test_periodic_frames_are_read():
    result = read_structures(
        published("dimers/charge_charge.xyz"), ASE_KEYS, accepted=Accepted(periodicities={0, 2, 3})
    )
    assert len(result.frames) == 130 and result.frames[0].pbc.all()


def test_cells_that_mace_can_and_cannot_take(tmp_path):
    """A slab's third vector may be missing, because mace puts one there; a missing periodic one becomes 1 Å in mace."""
    for cell, pbc, accepted in (
        ([20, 20, 0], [True, True, False], True),
        ([0, 0, 0], [False, False, False], True),
        ([20, 20, 0], True, False),
        ([0, 0, 0], True, False),
        ([[20, 0, 0], [0, 0, 20], [0, 0, 0]], [True, True, False], False),
    ):
        atoms = water()
        atoms.set_cell(cell)
        atoms.pbc = pbc
        path = write(tmp_path, atoms, "cell.traj")
        atoms.info["config_dipole_weight"] = [1.0, 1.0, 0.0]  # mace takes one per component
        if accepted:
            assert len(read_structures(path).frames) == 1
        else:
            refuses("singular|point where mace puts", path)


def test_isolated_atoms(tmp_path):
    atom = Atoms("H", info={"config_type": "IsolatedAtom", "REF_energy": -13.6})
    path = write(tmp_path, [atom], "atoms.xyz")
    refuses("only isolated atoms", path)
    result = read_structures([path, write(tmp_path, [water()])])
    assert result.e0s == {1: -13.6} and result.report.isolated_atoms == 1 and len(result.frames) == 1
    second = copy.deepcopy(atom)
    second.info["REF_energy"] = -13.0
    refuses("second isolated H atom", write(tmp_path, [atom, second]))
    del second.info["REF_energy"]
    refuses("isolated atom and has no energy under the key 'REF_energy'", write(tmp_path, [second, atom]))


def test_a_label_under_its_key_in_other_letters(tmp_path):
    """``Energy`` beside ``energy`` in other frames: weight 0 there would be a loss in silence."""
    path = write(tmp_path, [water(), water(ref_ENERGY=-2081.0)])
    text = path.read_text().splitlines(keepends=True)
    text[6] = text[6].replace(" REF_energy=-2081.1", "")
    path.write_text("".join(text))
    refuses("frame 1 of .* has 'ref_ENERGY', but the energies are read from 'REF_energy'", path)


def test_unknown_label_names():
    refuses("'force_key' does not name a label.*forces_key", "x.xyz", {"force_key": "forces"})
    refuses("energy_key is 3", "x.xyz", {"energy_key": 3})
