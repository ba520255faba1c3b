"""Labels that only some structures have, weights of zero, and weights that nothing can follow."""

import ase.io
import numpy as np
import pytest
import torch
from ase.build import bulk, fcc111, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from mace.tools.fairchem_dataset.lmdb_dataset_tools import LMDBDatabase
from training_runs import (  # noqa: F401
    keep_default_dtype,
    mace_epochs,
    mace_prepare_data,
    metrics,
    parsed,
    refused,
    run,
    words,
    write_molecules,
)

from phi_equivariant.errors import InputError
from phi_equivariant.inputs.graphs import collate
from phi_equivariant.weights import save_model
from training import build as building
from training import quantities
from training.data.labelled_graphs import GraphMaker
from training.fit.predict import predict
from training.fit.terms import squares
from training.options import command_line
from training.report.error_sums import ErrorSums

ENERGIES = {1: -1.5, 6: -4.0, 8: -3.0}


@pytest.fixture(scope="module")
def partly(tmp_path_factory):
    """Molecules of which some lack an energy, forces or charges, and one each of weight zero with placeholders."""
    path = write_molecules(tmp_path_factory.mktemp("partly") / "train.xyz", count=20, charges=True)
    frames = ase.io.read(path, ":")
    for index, atoms in enumerate(frames):
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        atoms.calc = None
        atoms.info["REF_energy"], atoms.arrays["REF_forces"] = energy, forces
        if index % 4 == 1:
            del atoms.info["REF_energy"]
        if index % 5 == 2:
            del atoms.arrays["REF_forces"]
        if index % 3:
            del atoms.arrays["q"]
    frames[4].info |= {"REF_energy": 0.0, "config_energy_weight": 0.0}
    frames[8].info |= {"REF_energy": 0.0, "config_weight": 0.0}
    frames[12].info |= {"REF_energy": 0.0, "config_type": "left_out"}
    path.unlink()
    for atoms in frames:  # one at a time: ase writes the columns of a file's first structure
        ase.io.write(path, atoms, format="extxyz", append=True)
    return path


KEYS = {"energy_key": "REF_energy", "forces_key": "REF_forces"}
LEFT_OUT = {"config_type_weights": "{'left_out': 0.0}"}


def prepared(folder, **given):
    return building.load(parsed(folder, **{"name": "run", "E0s": str(ENERGIES), **KEYS, **given}))


def weighed(frames):
    """The structures whose energies weigh, found without the trainer."""
    return [
        atoms
        for atoms in frames
        if "REF_energy" in atoms.info
        and atoms.info.get("config_energy_weight", 1.0) * atoms.info.get("config_weight", 1.0) > 0
        and atoms.info.get("config_type") != "left_out"
    ]


def fitted(frames, energies):
    counts = np.array([[np.count_nonzero(atoms.numbers == number) for number in ENERGIES] for atoms in frames])
    return np.linalg.lstsq(counts, energies, rcond=None)[0]


@pytest.mark.slow
@pytest.mark.parametrize("stage_two", [{}, {"swa": True, "start_swa": 1, "swa_energy_weight": 20}])
def test_structures_without_labels_train_as_with_mace_run_train(partly, tmp_path, stage_two):
    """Losses of every step and of validation, and its errors, to 1e-9: mace gives an absent label the weight 0.

    mace's energy per atom, unlike its energy, has structures without one in its errors.
    """
    given = {"train_file": partly, "max_num_epochs": 2, "E0s": str(ENERGIES), "seed": 5, "model": "MACE"}
    given |= {**KEYS, **LEFT_OUT, **stage_two}
    folder = run(tmp_path, name="ours", plot=False, **given)
    for mine, (train_loss, heads) in zip(metrics(folder), mace_epochs(tmp_path, **given), strict=True):
        assert mine["train_loss"] == pytest.approx(train_loss, rel=1e-9)
        assert mine["valid_loss_mace"] == pytest.approx(heads["Default"]["loss"], rel=1e-9)
        for ours, theirs in (("energy", "e"), ("forces", "f")):
            assert mine[f"valid_rmse_{ours}"] == pytest.approx(1e3 * heads["Default"][f"rmse_{theirs}"], rel=1e-9)


def containers(partly, folder):
    """The same structures as extended XYZ, as HDF5 of mace_prepare_data, and as an LMDB database of ase's results."""
    mace_prepare_data(folder, num_process=1, train_file=partly, valid_file=partly, E0s=str(ENERGIES), **KEYS)
    database = LMDBDatabase(folder / "train.aselmdb")
    for atoms in ase.io.read(partly, ":"):
        given = {"energy": atoms.info.get("REF_energy"), "forces": atoms.arrays.get("REF_forces")}
        atoms.calc = SinglePointCalculator(atoms, **{key: value for key, value in given.items() if value is not None})
        database.write(atoms, data={key: value for key, value in atoms.info.items() if key.startswith("config")})
    database.close()
    return {"xyz": (partly, KEYS), "hdf5": (folder / "train", KEYS), "lmdb": (folder / "train.aselmdb", NO_KEYS)}


NO_KEYS = {"energy_key": None, "forces_key": None}


@pytest.fixture(scope="module")
def contained(partly, tmp_path_factory):
    return containers(partly, tmp_path_factory.mktemp("containers"))


def test_all_containers_give_the_same_labels_and_weights(contained, tmp_path, double):
    """Structure by structure, known by their positions: what is absent has weight 0 in each."""
    found = {}
    for kind, (path, keys) in contained.items():
        given = {"train_file": path, "valid_file": path, "atomic_numbers": "[1, 6, 8]", "default_dtype": "float64"}
        _, run_data = prepared(tmp_path, **given, **keys)
        graphs = [run_data.train[index] for index in range(len(run_data.train))]
        names = ("weight", "energy", "energy_weight", "forces_weight")
        found[kind] = {
            round(float(graph["positions"].square().sum()), 6): [float(graph[name]) for name in names]
            for graph in graphs
        }
    assert len(found["xyz"]) == 20
    assert found["xyz"] == found["hdf5"] == found["lmdb"]
    absent = [weights for weights in found["xyz"].values() if weights[2] == 0]
    assert len(absent) == 6 and all(weights[1] == 0 for weights in absent)  # five, and one of weight zero


@pytest.mark.parametrize(
    ("phi", "kinds"),
    [(None, ["xyz", "hdf5", "lmdb"]), (["operator=coulomb"], ["xyz", "hdf5", "lmdb"]), (["operator=graph"], ["xyz"])],
)
def test_all_containers_train_without_some_labels(contained, tmp_path, phi, kinds, capsys):
    """Without and with Φ, which learns charges and dipoles too, in two stages."""
    own = {"charges_key": "q", "charges_weight": 2.0, "dipole_key": "mu", "dipole_weight": 1.0} if phi else {}
    for kind in kinds:
        path, keys = contained[kind]
        given = {"train_file": path, "valid_file": path, "max_num_epochs": 2, "swa": True, "start_swa": 1}
        given |= {"plot": "False", "atomic_numbers": "[1, 6, 8]", "E0s": str(ENERGIES), **keys}
        rows = metrics(run(tmp_path, name=kind, phi=phi, **given, **(own if kind == "xyz" else {})))
        text = capsys.readouterr().out
        assert "15 of 20" in text and "16 of 20" in text  # energies, forces
        assert [row["stage"] for row in rows] == [1, 2]
        for row in rows:
            assert all(np.isfinite(value) for value in row.values()) and row["train_term_forces"] > 0
            assert not (own and kind == "xyz") or min(row["train_term_charges"], row["train_term_dipole"]) > 0


def test_heads_without_some_labels(partly, tmp_path):
    """One head has energies only where the other has forces only: each is trained on what it has."""
    frames = ase.io.read(partly, ":")
    for name, key in (("a", "REF_energy"), ("b", "REF_forces")):
        part = [atoms.copy() for atoms in frames]
        for atoms in part[1:]:
            (atoms.info if key == "REF_energy" else atoms.arrays).pop(key, None)
        (tmp_path / f"{name}.xyz").unlink(missing_ok=True)
        for atoms in part:
            ase.io.write(tmp_path / f"{name}.xyz", atoms, format="extxyz", append=True)
    heads = {name: {"train_file": str(tmp_path / f"{name}.xyz"), "valid_file": str(partly)} for name in "ab"}
    given = {"heads": str(heads), "E0s": str(ENERGIES), "max_num_epochs": 1, "plot": "True", **KEYS}
    (row,) = metrics(run(tmp_path, name="heads", phi=["operator=coulomb"], **given))
    assert row["train_term_energy"] > 0 and row["train_term_forces"] > 0
    (tmp_path / "none.xyz").write_text((tmp_path / "a.xyz").read_text().replace("REF_energy", "other"))
    heads["a"]["train_file"] = str(tmp_path / "none.xyz")
    with pytest.raises(InputError, match="none of the 20 training structures of head 'a' has energy .*other"):
        prepared(tmp_path, **{**given, "heads": str(heads), "name": "none"})
    frames = ase.io.read(tmp_path / "none.xyz", ":")
    for atoms in frames:
        atoms.info["config_energy_weight"] = 0.0
        ase.io.write(tmp_path / "meant.xyz", atoms, format="extxyz", append=True)
    heads["a"]["train_file"] = str(tmp_path / "meant.xyz")
    _, run_data = prepared(tmp_path, **{**given, "heads": str(heads), "name": "none"})
    assert any(line.startswith("energy: not trained of head 'a'") for line in run_data.lines)


@pytest.mark.parametrize("stored", [False, True])
def test_average_energies_are_of_structures_that_weigh(partly, tmp_path, stored):
    """Against numpy: placeholders of 0 eV and structures without an energy stay out; the log says how many."""
    given = {"train_file": partly, "valid_file": partly, "E0s": "average", **LEFT_OUT}
    if stored:
        mace_prepare_data(tmp_path, num_process=1, train_file=partly, valid_file=partly, E0s=str(ENERGIES), **KEYS)
        given |= {"train_file": tmp_path / "train", "valid_file": tmp_path / "val", "atomic_numbers": "[1, 6, 8]"}
    _, run_data = prepared(tmp_path, **given)
    kept = weighed(ase.io.read(partly, ":"))
    assert len(kept) == 12
    want = fitted(kept, [atoms.info["REF_energy"] for atoms in kept])
    assert list(run_data.e0s["Default"].values()) == pytest.approx(want, rel=1e-9)
    assert "E0s: average over 12 of 20 training structures: others weigh nothing" in run_data.lines


def test_estimated_energies_are_of_structures_that_weigh(partly, tmp_path):
    """Against numpy and the model's own energies."""
    chosen, run_data = prepared(tmp_path, train_file=partly, valid_file=partly)
    model = building.build(chosen, run_data).model
    save_model(model, tmp_path / "trained")
    names = ("hidden_irreps", "r_max", "max_ell", "correlation", "num_radial_basis", "radial_MLP", "MLP_irreps")
    given = {**dict.fromkeys(names), **LEFT_OUT, "foundation_model": tmp_path / "trained", "E0s": "estimated"}
    _, again = prepared(tmp_path, train_file=partly, valid_file=partly, **given)
    frames = ase.io.read(partly, ":")
    kept, errors = weighed(frames), []
    for index, atoms in enumerate(frames):
        if any(atoms is one for one in kept):
            batch = collate([run_data.train[index]])
            output = predict(model.eval(), batch, {"forces": False, "stress": False, "virials": False})
            errors.append(atoms.info["REF_energy"] - float(output["energy"]))
    want = np.array(list(ENERGIES.values())) + fitted(kept, errors)
    assert list(again.e0s["Default"].values()) == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("scaling", ["rms_forces_scaling", "std_scaling"])
def test_the_shift_is_of_structures_that_weigh(partly, tmp_path, scaling):
    """The mean of the energies per atom, less isolated atoms, against numpy; std_scaling has their deviation."""
    given = {"train_file": partly, "valid_file": partly, "model": "ScaleShiftMACE", "scaling": scaling}
    chosen, run_data = prepared(tmp_path, batch_size=4, **given, **LEFT_OUT)
    model = building.build(chosen, run_data).model
    values = [
        (atoms.info["REF_energy"] - sum(ENERGIES[number] for number in atoms.numbers)) / len(atoms)
        for atoms in weighed(ase.io.read(partly, ":"))
    ]
    assert float(model.scale_shift.shift) == pytest.approx(np.mean(values), rel=1e-9)
    if scaling == "std_scaling":
        assert float(model.scale_shift.scale) == pytest.approx(np.std(values, ddof=1), rel=1e-9)


def write(path, frames):
    path.unlink(missing_ok=True)
    for atoms in frames:
        ase.io.write(path, atoms, format="extxyz", append=True)
    return path


def emt(atoms, seed, **info):
    """A shaken structure with EMT's labels; its stress under the key s where it has a volume."""
    atoms.rattle(0.05, seed=seed)
    atoms.calc = EMT()
    atoms.info |= {"REF_energy": atoms.get_potential_energy(), **info}
    atoms.arrays["REF_forces"] = atoms.get_forces()
    if atoms.cell.rank == 3:
        atoms.info["s"] = atoms.get_stress(voigt=False)
    atoms.calc = None
    return atoms


def crystal(seed, **info):
    return emt(bulk("Cu", cubic=True), seed, **info)


def slab(seed):
    """Two layers of copper that are periodic in their plane; the cell has a vacuum."""
    return emt(fcc111("Cu", (2, 2, 2), vacuum=5.0, periodic=False), seed)


COPPER = {"E0s": "{29: 0.0}", "valid_fraction": 0.3, "batch_size": 2}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Files of crystals, of crystals of which one has a stress, of slabs, and of crystals and slabs."""
    folder = tmp_path_factory.mktemp("mixed")
    crystals, slabs = [crystal(seed) for seed in range(8)], [slab(seed) for seed in range(8)]
    without = [atoms.copy() for atoms in crystals]
    for atoms in without:
        del atoms.info["s"]
    dimers = [emt(molecule("H2O"), seed) for seed in range(8)]
    return {
        "crystals": write(folder / "crystals.xyz", crystals),
        "without": write(folder / "without.xyz", without),
        "slabs": write(folder / "slabs.xyz", slabs),
        "both": write(folder / "both.xyz", [*crystals[:4], *slabs[:4]]),
        "molecules": write(folder / "molecules.xyz", dimers),
    }


GRAPH = ["operator=graph"]
REFUSED = {
    "huber, key absent": ("crystals", {"loss": "huber", "stress_key": "stress"}, ["--stress_key", "'stress'", "s"]),
    "universal, key absent": (
        "crystals",
        {"loss": "universal", "stress_key": "stress"},
        [
            "--stress_weight",
            "none of the 6 training structures has stress under the key 'stress'",
            "or --stress_weight",
        ],
    ),
    "universal, crystals without stress": ("without", {"loss": "universal"}, ["'REF_stress'"]),
    "virials": ("crystals", {"loss": "virials"}, ["--virials_weight", "--virials_key"]),
    "stage two": (
        "crystals",
        {"loss": "stress", "stress_weight": 0, "swa": True, "max_num_epochs": 4, "start_swa": 2},
        ["--swa_stress_weight: stress weighs"],
    ),
    "forces": ("crystals", {"forces_key": "f"}, ["--forces_weight", "'f'", "per atom: REF_forces"]),
    "molecules, universal with a key": (
        "molecules",
        {"loss": "universal", "stress_key": "s"},
        ["3 periodic directions"],
    ),
    "slabs": ("slabs", {"loss": "stress", "stress_key": "s"}, ["needs 3 periodic directions", "--stress_weight to 0"]),
    "slabs with Φ": ("slabs", {"loss": "universal", "stress_key": "s", "phi": GRAPH}, ["needs 3 periodic directions"]),
    "dipoles of crystals": (
        "crystals",
        {"dipole_key": "d", "dipole_weight": 1.0, "phi": GRAPH},
        ["--dipole_weight: dipole weighs"],
    ),
    "nothing": ("crystals", {"energy_weight": 0, "forces_weight": 0}, ["--energy_weight, --forces_weight"]),
    "energies for E0s": ("crystals", {"loss": "forces_only", "energy_key": "E", "E0s": "average"}, ["--E0s: average"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_label_that_weighs_and_that_nothing_has_is_refused(mixed, tmp_path, capsys, case):
    """Before anything is written, with the label, the key, the option, the keys that are there and what to do."""
    name, given, parts = REFUSED[case]
    common = {"name": "none", "train_file": mixed[name], **COPPER, **KEYS, "E0s": "{1: 0.0, 8: 0.0, 29: 0.0}"}
    text = refused(capsys, words(tmp_path, **common | given))
    assert all(part in text for part in parts), text
    assert not (tmp_path / "none").exists()


def test_weights_that_leave_nothing_are_refused(mixed, tmp_path):
    frames = ase.io.read(mixed["crystals"], ":")
    for atoms in frames:
        atoms.info["config_forces_weight"] = 0.0
    path = write(tmp_path / "weightless.xyz", frames)
    with pytest.raises(InputError, match="--forces_weight: .* config_forces_weight .* leave it none"):
        prepared(tmp_path, train_file=path, **COPPER)
    _, run_data = prepared(tmp_path, train_file=path, forces_weight=0, **COPPER)
    assert run_data.size("train") == 6


def test_labels_that_fell_into_the_validation_set(mixed, tmp_path):
    """The one stress of a file is in the part that was split off: the message says so."""
    frames = ase.io.read(mixed["without"], ":")
    _, run_data = prepared(tmp_path, train_file=mixed["without"], **COPPER)
    (index, *_) = run_data.provenance["split"]["valid_indices"]
    frames[index].info["s"] = ase.io.read(mixed["crystals"], index).info["s"]
    path = write(tmp_path / "one.xyz", frames)
    with pytest.raises(InputError, match="all that have it are in the validation set.*--seed"):
        prepared(tmp_path, train_file=path, loss="stress", stress_key="s", **COPPER)


def test_validation_and_test_sets_without_labels(mixed, tmp_path):
    """A set that lacks some labels is named; one that lacks all cannot be validated or tested."""
    frames = ase.io.read(mixed["crystals"], ":")
    for atoms in frames:
        del atoms.info["REF_energy"]
    some = write(tmp_path / "some.xyz", frames)
    for atoms in frames:
        del atoms.arrays["REF_forces"], atoms.info["s"]
    none = write(tmp_path / "none.xyz", frames)
    _, run_data = prepared(tmp_path, train_file=mixed["crystals"], valid_file=some, test_file=some, **COPPER)
    assert "energy: no validation structure has it: not in that loss" in run_data.lines
    assert any(line.startswith("energy: no structure of") and "not tested" in line for line in run_data.lines)
    for name, message in (
        ("valid_file", "no validation structure has energy or forces"),
        ("test_file", "no structure"),
    ):
        with pytest.raises(InputError, match=f"--{name}: {message}"):
            prepared(tmp_path, train_file=mixed["crystals"], **COPPER, **{name: none})
    given = {
        "train_file": mixed["crystals"],
        "valid_file": some,
        "max_num_epochs": 1,
        "plot": "False",
        **COPPER,
        **KEYS,
    }
    (row,) = metrics(run(tmp_path, name="run", **given))
    assert row["valid_term_energy"] == 0.0 and row["valid_term_forces"] > 0 and "valid_rmse_energy" not in row


def test_weights_that_do_not_act_are_named(mixed, tmp_path):
    """What mace ignores as well is a line of the log, with the option."""
    frames = ase.io.read(mixed["crystals"], ":")
    frames[0].info["config_weight"] = frames[1].info["config_weight"] = 3.0
    path = write(tmp_path / "weights.xyz", frames)
    given = {"train_file": path, "stress_key": "s", **COPPER}
    _, run_data = prepared(tmp_path, loss="weighted", stress_weight=100, swa_forces_weight=7, **given)
    assert "--stress_weight does not act: --loss weighted has no stresses, as in mace" in run_data.lines
    assert "--swa_forces_weight does not act: there is no stage two without --swa" in run_data.lines
    assert any(
        line.split() == ["stresses", "8", "stress_key:", "s,", "not", "in", "the", "loss"] for line in run_data.lines
    )
    assert not any(line.startswith("config_weight") for line in run_data.lines)
    _, run_data = prepared(tmp_path, loss="universal", **given)
    assert any(line.startswith("config_weight: --loss universal does not multiply by it") for line in run_data.lines)
    two = {"loss": "huber", "swa": True, "start_swa": 2, "max_num_epochs": 4, "swa_stress_weight": 3}
    _, run_data = prepared(tmp_path, **two, **given)
    assert "--swa_stress_weight does not act: --loss huber has no stresses in stage two, as in mace" in run_data.lines
    molecules = {"train_file": mixed["molecules"], "loss": "universal", "E0s": "{1: 0.0, 8: 0.0}"}
    _, run_data = prepared(tmp_path, **{**COPPER, **molecules})  # mace's defaults: nobody has asked for a stress
    assert any(line.startswith("stress: not trained: no training structure has it") for line in run_data.lines)
    named = ["--dataset", "ala3_gfn2", "--max_train", "10", "--max_test", "5", "--work_dir", str(tmp_path)]
    _, run_data = building.load(command_line.parse([*named, "--loss", "universal"]))
    assert any(line.startswith("stress: not trained: no training structure has it") for line in run_data.lines)
    with pytest.raises(InputError, match="--stress_weight: the data set ala3_gfn2 has no stress"):
        building.load(command_line.parse([*named, "--loss", "universal", "--stress_weight", "5"]))


@pytest.mark.parametrize("phi", [None, GRAPH])
@pytest.mark.parametrize("loss", ["stress", "huber", "universal"])
def test_stresses_of_slabs_do_not_train(mixed, tmp_path, loss, phi):
    """The loss is that of the crystals' stresses, and the log says how many do not count."""
    given = {"train_file": mixed["both"], "valid_file": mixed["both"], "loss": loss, "stress_key": "s", "phi": phi}
    given |= {"energy_weight": 0, "forces_weight": 0, "E0s": "{29: 0.0}"}
    chosen, run_data = prepared(tmp_path, batch_size=8, **given)
    assert any("8   stress_key: s, 4 do not count: stress needs 3 periodic" in line for line in run_data.lines)
    built = building.build(chosen, run_data)
    built.order.set_epoch(0)
    gradients = []
    for label in (None, 17.0):  # slabs with other labels make no difference
        (batch,) = run_data.train_loader(built.order)
        slabs = ~batch["pbc"].all(1)
        assert int(slabs.sum()) == 4 and float(batch["stress"][slabs].abs().max()) > 0
        if label is not None:
            batch["stress"][slabs] = label
        output = predict(built.model, batch, built.outputs, training=True)
        built.model.zero_grad()
        built.objective(output, batch)[0].backward()
        gradients.append([p.grad.clone() for p in built.model.parameters() if p.grad is not None])
    for before, after in zip(*gradients, strict=True):
        torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert max(float(gradient.abs().max()) for gradient in gradients[0]) > 0


def test_a_label_that_mace_does_not_know_reaches_the_batch(mixed, tmp_path, monkeypatch, double):
    """A new entry of the list of labels is read, weighed, trained and reported, whatever its shape."""
    measure = quantities.Measure("octupole", "e·Å³", "Ω", ".3f", title="octupole", plotted="e·Å³")
    label = quantities.Label(
        "octupole", "REF_octupole", "oct", False, (3, 3, 3), "octupoles", "squares", (measure,), periodic=(0,)
    )
    monkeypatch.setitem(quantities.LABELS, "octupole", label)
    monkeypatch.setitem(quantities.TARGETS, "octupole", label)
    rng = np.random.default_rng(0)
    frames = [molecule("H2O") for _ in range(3)]
    for atoms in frames[:2]:
        atoms.info["REF_octupole"] = rng.normal(size=(3, 3, 3))
    frames[1].info["config_octupole_weight"] = 0.5
    batch = collate(list(map(GraphMaker([1, 8], 3.0), frames)))
    assert batch["octupole"].shape == (3, 3, 3, 3) and batch["octupole_weight"][:, 0, 0, 0].tolist() == [1.0, 0.5, 0.0]
    output = {"octupole": torch.zeros(3, 3, 3, 3)}
    values = np.array([atoms.info["REF_octupole"] for atoms in frames[:2]])
    want = (np.array([1.0, 0.5])[:, None, None, None] * values**2).mean()
    assert float(squares(label, output, batch)) == pytest.approx(want)
    errors = ErrorSums()
    errors.update(output, batch)
    assert errors.table()["octupole"]["rmse"] == pytest.approx(np.sqrt((values**2).mean()))
