"""HDF5 files of mace_prepare_data and LMDB databases: read one structure at a time, and as mace reads them."""

import errno
import json
import shutil
from dataclasses import replace
from functools import partial

import ase.io
import h5py
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from mace import data as mace_data
from mace import tools as mace_tools
from mace.tools.fairchem_dataset.lmdb_dataset_tools import LMDBDatabase
from training_runs import keep_default_dtype, mace_prepare_data, refused, words, write_molecules  # noqa: F401

from phi_equivariant.errors import InputError
from training import build as building
from training.data import needs, spool
from training.data.labelled_graphs import GraphMaker
from training.data.spool import SpooledGraphs, pack, unpack
from training.data.stored import Chain, LmdbFrames, open_stored
from training.options import command_line

TABLE = mace_tools.AtomicNumberTable([1, 6, 8])
KEYS = {"energy_key": "energy", "forces_key": "forces", "charges_key": "q", "dipole_key": "mu"}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """16 and 11 labelled structures with weights, types and total charges, in two shards each, and a test set."""
    folder = tmp_path_factory.mktemp("prepared")
    for name, count in (("train", 16), ("valid", 11)):
        frames = ase.io.read(write_molecules(folder / f"{name}.xyz", count=count, charges=True), ":")
        for index, atoms in enumerate(frames):
            atoms.info |= {"config_type": "hot" if index % 3 else "cold", "config_weight": 1.0 + index % 2}
            atoms.info |= {"total_charge": float(index % 2), "total_spin": 1.0 + index % 2}
            atoms.info |= {"config_forces_weight": 0.5} if index == 4 else {}
        del frames[2].arrays["q"]
        ase.io.write(folder / f"{name}.xyz", frames, format="extxyz")
    given = {f"{name}_file": folder / f"{name}.xyz" for name in ("train", "valid")} | KEYS
    given |= {"test_file": folder / "valid.xyz", "config_type_weights": "{'hot': 3.0}"}
    default = torch.get_default_dtype()
    mace_prepare_data(folder, num_process=2, **given)
    torch.set_default_dtype(default)
    return folder


def stored_run(folder, **given):
    """Options of a run on the prepared data."""
    chosen = {"train_file": folder / "train", "valid_file": folder / "val", "E0s": None, "name": "run"}
    chosen |= {"statistics_file": folder / "statistics.json", **given}
    return command_line.parse(words(folder, **chosen))


def same(ours, theirs):
    """Every field of a graph of ours is that of a mace AtomicData."""
    assert {"positions", "edge_index", "energy", "weight", "total_charge"} <= set(ours)
    for key, value in ours.items():
        assert torch.equal(value, theirs[key]), key


@pytest.mark.honours("train_file", "valid_file")
def test_graphs_are_those_of_maces_reader(prepared, double):
    """Labels, weights of structures and labels, and neighbour lists, shard by shard."""
    _, run_data = building.load(stored_run(prepared, default_dtype="float64"))
    shards = [mace_data.HDF5Dataset(prepared / "train" / f"train_{i}.h5", 3.0, TABLE) for i in range(2)]
    theirs = [shard[i] for shard in shards for i in range(len(shard))]
    assert len(run_data.train) == len(theirs) == 16 and run_data.size("valid") == 11
    ours = [run_data.train[i] for i in range(16)]
    for graph, other in zip(ours, theirs, strict=True):
        same(graph, other)
    weights = sorted(float(graph["weight"]) for graph in ours)
    # config_weight times mace_prepare_data's config_type_weights
    assert weights == sorted((1.0 + i % 2) * (3.0 if i % 3 else 1.0) for i in range(16))
    assert sorted(float(graph["charges_weight"]) for graph in ours) == [0.0] + 15 * [1.0]
    assert sorted(float(graph["forces_weight"]) for graph in ours) == [0.5] + 15 * [1.0]
    assert any("looked at" in line or "16 structures" in line for line in run_data.lines)


@pytest.mark.honours("num_workers")
def test_neighbour_lists_are_built_once(prepared, monkeypatch):
    """The second pass reads no structure, gives the same graphs, and so do processes that load batches."""
    reads = []
    original = Chain.__getitem__
    monkeypatch.setattr(Chain, "__getitem__", lambda self, index: reads.append(index) or original(self, index))
    chosen = stored_run(prepared, num_workers=2)
    _, run_data = building.load(chosen)
    reads.clear()
    by_workers = [batch for batch in run_data.loader("train")["Default"]]
    first = [run_data.train[i] for i in range(16)]
    assert reads == []  # the workers have built them all
    again = [run_data.train[i] for i in range(16)]
    alone = list(replace(run_data, machine=chosen.changed(num_workers=0).machine).loader("train")["Default"])
    assert len(by_workers) == len(alone) == 6
    for batch, other in zip(by_workers, alone, strict=True):
        assert all(torch.equal(batch[key], other[key]) for key in batch)
    fresh = building.load(stored_run(prepared))[1].train
    for i, (one, two) in enumerate(zip(first, again, strict=True)):
        assert set(one) == set(two) == set(fresh[i])
        for key, value in fresh[i].items():
            assert torch.equal(value, one[key]) and value.dtype == one[key].dtype, key


def test_a_full_disk_only_costs_time(prepared, monkeypatch):
    """Without room for the temporary file graphs are built anew, and stay right."""
    frames = open_stored(prepared / "train")
    make = partial(_graph, heads=["Default"])
    small, large = SpooledGraphs(frames, make), SpooledGraphs(frames, make)
    small._room = 5000  # bytes
    for _ in range(2):
        for index in (3, 0, 15):
            assert torch.equal(small[index]["edge_index"], large[index]["edge_index"])
    assert int((small._places[:, 1] > 0).sum()) < int((large._places[:, 1] > 0).sum()) == 3
    monkeypatch.setattr(spool.os, "pwrite", full_disk)
    for index in (3, 5, 0):  # one that is in the file, and new ones
        assert torch.equal(large[index]["edge_index"], make(frames[index])["edge_index"])
    graph = make(frames[1])
    back = unpack(pack(graph))
    assert back["shifts"].stride(0) == 0 and len(back["shifts"]) == graph["edge_index"].shape[1]


def full_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def _graph(atoms, heads):
    return GraphMaker([1, 6, 8], 3.0, heads)(atoms)


@pytest.mark.honours("statistics_file")
def test_statistics_file_gives_elements_energies_and_scale(prepared, tmp_path):
    """The model has what mace_prepare_data has found; the training set is not read for it."""
    found = json.loads((prepared / "statistics.json").read_text())
    found |= {"mean": -0.25, "std": 2.5, "avg_num_neighbors": 7.5, "atomic_energies": "{1: -1.5, 6: -4.0, 8: -3.0}"}
    (tmp_path / "statistics.json").write_text(json.dumps(found))
    chosen = stored_run(prepared, statistics_file=tmp_path / "statistics.json", model="ScaleShiftMACE")
    _, run_data = building.load(chosen)
    built = building.build(chosen, run_data)
    assert run_data.atomic_numbers == [1, 6, 8] and run_data.e0s == {"Default": {1: -1.5, 6: -4.0, 8: -3.0}}
    assert float(built.model.scale_shift.scale) == 2.5 and float(built.model.scale_shift.shift) == -0.25
    assert built.model.interactions[0].avg_num_neighbors == 7.5
    # As numpy 2 makes mace_prepare_data write them, and mace_run_train cannot read them.
    (tmp_path / "numpy.json").write_text(json.dumps(found | {"atomic_energies": "{np.int64(1): np.float64(-1.5)}"}))
    with pytest.raises(InputError, match="no isolated-atom energy for atomic number 6, 8"):
        building.load(stored_run(prepared, statistics_file=tmp_path / "numpy.json"))


@pytest.mark.honours("test_dir", "multi_processed_test")
def test_test_sets_of_a_folder(prepared, tmp_path):
    """``*_test.h5``, files as mace_prepare_data names them, and a folder of shards per set."""
    sizes = {}
    for name, given in (("plain", {}), ("sharded", {"multi_processed_test": "True"}), ("prepared", {})):
        folder = tmp_path / name
        if name == "prepared":
            shutil.copytree(prepared / "test", folder)
        for index, split in enumerate(("train", "val")):
            if name == "plain":
                folder.mkdir(exist_ok=True)
                shutil.copy(prepared / split / f"{split}_0.h5", folder / f"{split}_test.h5")
            elif name == "sharded":
                shutil.copytree(prepared / split, folder / f"set{index}")
        _, run_data = building.load(stored_run(prepared, test_dir=folder, **given))
        sizes[name] = {test: len(structures) for test, structures in run_data.test.items()}
        rows = list(run_data.evaluated())
        assert rows == ["train", "valid", *(f"test_{test}" for test in run_data.test)]
    assert sizes["plain"] == {"train_test": 8, "val_test": 6}
    assert sizes["sharded"] == {"set0": 16, "set1": 11}
    assert sizes["prepared"] == {"cold": 4, "hot": 7}


@pytest.fixture
def database(tmp_path):
    """An LMDB database in ase's form, periodic and with a calculator's results, and one with other keys."""
    paths = {"results": tmp_path / "results.aselmdb", "keys": tmp_path / "keys.aselmdb"}
    rng = np.random.default_rng(3)
    for name, path in paths.items():
        database = LMDBDatabase(path)
        for index in range(7):
            atoms = Atoms("OH2", rng.normal(scale=0.7, size=(3, 3)), cell=np.eye(3) * 6.0, pbc=name == "results")
            energy, forces, stress = float(index), rng.normal(size=(3, 3)), rng.normal(size=6)
            if name == "results":
                atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces, stress=stress)
            else:
                atoms.info |= {"dft_energy": energy, "total_charge": index % 3}
                atoms.arrays["dft_forces"] = forces
            database.write(atoms, data={})
        database.close()
    return paths


@pytest.mark.honours("energy_key", "forces_key")
def test_lmdb_databases_are_read_as_mace_reads_them(database, tmp_path, double):
    """Results of a calculator, and with keys of the user's, which mace's reader does not take."""
    reader = mace_data.LMDBDataset(str(database["results"]), 3.0, TABLE)
    theirs = [reader[i] for i in range(len(reader))]
    del reader  # LMDB opens a file once in a process
    given = {"train_file": database["results"], "atomic_numbers": "[1, 6, 8]", "E0s": "{1: 0.0, 6: 0.0, 8: 0.0}"}
    given |= {"energy_key": None, "forces_key": None, "valid_fraction": 0.3, "statistics_file": None}
    _, run_data = building.load(stored_run(tmp_path, valid_file=None, **given))
    indices = run_data.provenance["split"]["train_indices"]
    assert len(run_data.train) == len(indices) == 5 and run_data.size("valid") == 2
    for position, index in enumerate(indices):
        same(run_data.train[position], theirs[index])
        assert float(run_data.train[position]["stress"].abs().max()) > 0
    keyed = LmdbFrames(database["keys"], {"energy_key": "dft_energy", "forces_key": "dft_forces"})
    assert [atoms.info["REF_energy"] for atoms in keyed] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert keyed[5].arrays["REF_forces"].shape == (3, 3) and keyed[5].info["total_charge"] == 2.0


def test_data_are_recognised_without_reading_all(prepared, tmp_path):
    """The digest that a continuation must share changes with the structures, not with where the files are."""
    shutil.copytree(prepared, tmp_path / "moved")
    one, two = (building.load(stored_run(folder))[1].digest for folder in (prepared, tmp_path / "moved"))
    assert one == two
    with h5py.File(tmp_path / "moved" / "val" / "val_1.h5", "a") as file:
        del file["config_batch_0/config_4"]
    assert building.load(stored_run(tmp_path / "moved"))[1].digest != one


def damaged(folder, prepared):
    """Folders of HDF5 files that cannot be used: name → what the message says."""
    whole = (prepared / "train" / "train_0.h5").read_bytes()
    (folder / "cut.h5").write_bytes(whole[: len(whole) // 2])
    (folder / "text.aselmdb").write_text("energy forces")
    (folder / "empty").mkdir()
    with h5py.File(folder / "other.h5", "w") as file:
        file["positions"] = np.zeros(3)
    for name in ("unlabelled.h5", "nan.h5", "shape.h5"):
        shutil.copy(prepared / "train" / "train_0.h5", folder / name)
    with h5py.File(folder / "unlabelled.h5", "a") as file:
        for config in file["config_batch_0"].values():
            config["properties"].pop("energy")
    with h5py.File(folder / "nan.h5", "a") as file:
        file["config_batch_0/config_3/positions"][0] = np.nan
    with h5py.File(folder / "shape.h5", "a") as file:
        file["config_batch_0/config_2/properties"].pop("forces")
        file["config_batch_0/config_2/properties/forces"] = np.zeros((2, 3))


def test_what_cannot_be_used_is_refused_before_training(prepared, tmp_path):
    """One paragraph that names the file and, where it is one, the structure."""
    damaged(tmp_path, prepared)
    messages = {
        "cut.h5": "cut.h5 cannot be read as HDF5.*Is the file complete",
        "text.aselmdb": "text.aselmdb cannot be read as LMDB",
        "empty": "holds no files ending in .h5",
        "other.h5": "is not a file of mace_prepare_data: it holds positions",
        "unlabelled.h5": "has energy under .*unlabelled.h5 have forces, charges, dipole .*energy_key",
        "nan.h5": "structure 3 of .*nan.h5 has positions that are not finite",
        "shape.h5": "structure 2 of .*shape.h5: the forces label has shape",
    }
    for name, message in messages.items():
        with pytest.raises(InputError, match=message) as caught:
            building.load(stored_run(prepared, train_file=tmp_path / name))
        assert "\n" not in str(caught.value)
    for given, message in (
        ({"statistics_file": None, "E0s": "average"}, "--atomic_numbers: the elements of HDF5"),
        ({"atomic_numbers": "[1, 8]", "statistics_file": None, "E0s": "average"}, "holds C, which the model"),
        ({"test_dir": tmp_path / "nowhere"}, "--test_dir: there is no folder"),
        ({"test_dir": tmp_path / "empty"}, "does not hold a test set"),
    ):
        with pytest.raises(InputError, match=message):
            building.load(stored_run(prepared, **given))
    for given, message in (
        ({"r_max": 4.0}, "made with r_max 3.0, and this run has 4"),
        ({"statistics_file": prepared / "train.xyz"}, "cannot be read as JSON"),
    ):
        with pytest.raises(InputError, match=message):
            stored_run(prepared, **given)


def test_a_structure_that_a_loading_process_cannot_use(prepared, tmp_path, monkeypatch, capsys):
    """What is found only while training is told as shortly as what is found before."""
    damaged(tmp_path, prepared)
    monkeypatch.setattr(needs, "SAMPLE", 1)
    given = {"train_file": tmp_path / "nan.h5", "valid_file": prepared / "val", "E0s": None, "num_workers": 1}
    given |= {"statistics_file": prepared / "statistics.json", "name": "run"}
    assert "structure 3 of" in refused(capsys, words(tmp_path, **given))
