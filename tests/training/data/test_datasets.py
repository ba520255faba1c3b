"""Data sets by name: the registry, downloads from a local server, damaged files, MD22's units, the shipped format."""

import hashlib
import io
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import tracemalloc
from dataclasses import replace
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import units
from ase.formula import Formula
from local_server import LocalServer

from phi_equivariant.errors import InputError
from training.data.named import find_dataset
from training.data.named_files import DATASETS, load_dataset, preset
from training.data.npz import NpzFrames
from training.data.published import fetch
from training.options import command_line
from zoo.store import download

DATA = Path(__file__).parents[4] / "shared" / "data"
KCAL = 4184 / 96485.33212  # kcal/mol in eV: joules per calorie over Faraday's constant
WATER = "md22_water.npz"
SPLITS = ("train", "valid", "test")


def published(name):
    path = DATA / name
    if not path.exists():
        pytest.skip(f"the published file {name} is not in ../shared/data")
    return path


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def water(frames=40, **changes):
    rng = np.random.default_rng(0)
    arrays = {
        "E": rng.normal(-48000, 1, (frames, 1)),
        "F": rng.normal(size=(frames, 3, 3)),
        "R": rng.normal(size=(frames, 3, 3)),
        "z": np.array([8, 1, 1], dtype=np.uint8),
        "name": np.array("water"),
        "e_unit": np.array("kcal/mol"),
    }
    arrays |= changes
    return {key: value for key, value in arrays.items() if value is not None}


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A server that is MD22's, an empty cache, and a small data set "md22_water" of 40 frames."""
    server = LocalServer()
    monkeypatch.setenv("PHI_MD22_URL", server.url)
    monkeypatch.setenv("PHI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "PAUSE", 0.01)
    small = replace(DATASETS["md22_dha"], name="md22_water", formula="H2O", frames=40, train_size=20, file=WATER)
    monkeypatch.setitem(DATASETS, "md22_water", small)
    yield server
    server.stop()


def refuses(match, *args, **kwargs):
    with pytest.raises(InputError, match=match) as caught:
        load_dataset(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# The registry


def test_formulas_are_those_of_published_geometries():
    files = {
        "md22_ac_ala3_nhme": "ac_ala3_nhme_5frames_kcal.xyz",
        "md22_dha": "dha_geometry.xyz",
        "md22_at_at": "at_at_geometry.xyz",
        "md22_buckyball": "buckyball_catcher_geometry.xyz",
    }
    for name, file in files.items():
        symbols = ase.io.read(published(f"md22/{file}"), 0).symbols
        assert Formula(DATASETS[name].formula).count() == symbols.formula.count()


def test_all_names_have_a_preset_that_the_command_understands():
    assert len([name for name in DATASETS if name.startswith("md22_")]) == 7
    for name in DATASETS:
        parsed = command_line.parse(["--dataset", name]).values()
        assert {option: parsed[option] for option in preset(name)} == preset(name)


def test_names():
    assert find_dataset("md22_buckyball-catcher") is DATASETS["md22_buckyball"]
    assert find_dataset("MD22_Ac-Ala3-NHMe") is DATASETS["md22_ac_ala3_nhme"]
    message = refuses("no data set 'md22_stachiose'. Did you mean md22_stachyose", "md22_stachiose")
    assert "ala3_gfn2" in message and "md22_nanotube" in message
    refuses("There is no data set 'qqq'. The data sets are", "qqq")


# Downloads


def test_a_published_size_is_downloaded_once_split_and_converted(server, tmp_path):
    rng = np.random.default_rng(1)
    arrays = {
        "E": rng.normal(-2.87e6, 1, (6102, 1)),
        "F": rng.normal(size=(6102, 148, 3)).astype(np.float32),
        "R": rng.normal(size=(6102, 148, 3)).astype(np.float32),
        "z": np.array([6] * 120 + [1] * 28, dtype=np.uint8),
    }
    content = npz(**arrays)
    server.files["md22_buckyball-catcher.npz"] = content
    data = load_dataset("md22_buckyball", seed=3)
    assert [len(getattr(data, split)) for split in SPLITS] == [570, 30, 5502]
    assert data.e0s is None and data.reports["train"].counts["forces"] == 570

    split = data.provenance["split"]
    used = split["train_indices"] + split["valid_indices"]
    assert len(set(used)) == 600 and min(used) >= 0 and max(used) < 6102
    for sequence, indices in ((data.train, split["train_indices"]), (data.valid, split["valid_indices"])):
        for atoms, index in zip(sequence[:5], indices[:5], strict=True):
            np.testing.assert_array_equal(atoms.positions, arrays["R"][index])
            assert atoms.info["REF_energy"] == pytest.approx(arrays["E"][index, 0] * KCAL, rel=1e-8)
            np.testing.assert_allclose(atoms.arrays["REF_forces"], arrays["F"][index] * KCAL, rtol=1e-6)
            assert atoms.info["total_charge"] == 0.0 and not atoms.pbc.any()
    energies = {atoms.info["REF_energy"] for part in (data.train, data.valid, data.test) for atoms in part}
    assert len(energies) == 6102  # every frame in exactly one split

    digest = hashlib.sha256(content).hexdigest()
    assert json.loads(json.dumps(data.provenance))["files"] == {"md22_buckyball-catcher.npz": digest}
    folder = tmp_path / "cache" / "md22"
    subprocess.run(["sha256sum", "--check", "--status", "md22_buckyball-catcher.npz.sha256"], cwd=folder, check=True)
    assert not list(folder.glob("*.part"))

    server.stop()
    again, other = load_dataset("md22_buckyball", seed=3), load_dataset("md22_buckyball", seed=4)
    assert again.provenance == data.provenance
    assert other.provenance["split"]["train_indices"] != split["train_indices"]
    assert server.requests == ["md22_buckyball-catcher.npz"]


def test_a_limited_test_set_is_said_so(server):
    server.files[WATER] = npz(**water())
    data, whole = load_dataset("md22_water", max_test=7), load_dataset("md22_water")
    assert len(data.test) == 7 and data.reports["test"].frames == 7
    assert data.provenance["split"]["test_left_out"] == 13 and data.notes == [
        "test: 7 of 20 structures, drawn by the seed"
    ]
    assert "test_left_out" not in whole.provenance["split"] and not whole.notes
    refuses("max_test is 0", "md22_water", max_test=0)
    part = load_dataset("md22_water", max_train=6)
    energies = {atoms.info["REF_energy"] for atoms in part.train}
    assert len(energies) == 6 and energies < {atoms.info["REF_energy"] for atoms in whole.train}
    arrays, split = water(), part.provenance["split"]
    assert energies == {float(arrays["E"][i, 0]) * (units.kcal / units.mol) for i in split["train_indices"]}
    assert len(part.valid) == 1 and len(part.test) == 20 and split["train_left_out"] == 13


@pytest.mark.parametrize(
    ("reason", "match"),
    [
        ("absent", "the server answered 404"),
        ("down", "no connection"),
        ("truncated", "the connection broke before the file was complete"),
        ("page", "Could not download.*web page"),
        ("empty", "Could not download.*is empty"),
        ("cut", "Could not download.*not a complete npz file"),
        ("keys", "lacks the arrays F, z; it has E, R"),
        ("frames", r"E has shape \(39, 1\); expected \(40,\)"),
        ("shape", r"F has shape \(40, 9\); expected \(40, 3, 3\)"),
        ("flat", r"R has shape \(120, 3\); expected \(40, 3, 3\)"),
        ("nan", "R holds values that are not finite"),
        ("pickle", "not an npz file of plain numbers"),
        ("molecule", "holds HNO; expected H2O"),
        ("unit", "energy unit is eV; expected kcal/mol"),
    ],
)
def test_a_download_that_fails_leaves_nothing(server, tmp_path, reason, match):
    complete = npz(**water())
    bad = {
        "truncated": lambda: complete,
        "page": lambda: b"<!DOCTYPE html><html><body>Moved</body></html>",
        "empty": lambda: b"",
        "cut": lambda: complete[:-100],
        "keys": lambda: npz(**water(F=None, z=None, name=None, e_unit=None)),
        "frames": lambda: npz(**water(39)),
        "shape": lambda: npz(**water(F=np.zeros((40, 9)))),
        "flat": lambda: npz(**water(R=np.zeros((120, 3)))),
        "nan": lambda: npz(**water(R=np.full((40, 3, 3), np.nan))),
        "pickle": lambda: npz(**water(E=np.array([{}] * 40, dtype=object))),
        "molecule": lambda: npz(**water(z=np.array([7, 8, 1]))),
        "unit": lambda: npz(**water(e_unit=np.array("eV"))),
    }
    if reason in bad:
        server.files[WATER] = bad[reason]()
    if reason == "truncated":
        server.truncate.add(WATER)
    if reason == "down":
        server.stop()
    message = refuses(match, "md22_water")
    assert server.url + WATER in message and "othing was kept" in message
    assert "--data_dir FOLDER" in message and "urllib3" not in message and "Pool" not in message
    left = [path.name for path in (tmp_path / "cache" / "md22").iterdir()]
    assert left in ([], [WATER + ".lock"])
    if reason != "down":
        server.truncate.clear()
        server.files[WATER] = complete
        assert len(load_dataset("md22_water").train) == 19


def test_a_changed_file_is_refused(server, tmp_path):
    server.files[WATER] = npz(**water())
    load_dataset("md22_water")
    path = tmp_path / "cache" / "md22" / WATER
    path.write_bytes(npz(**water(E=np.zeros((40, 1)))))
    message = refuses("has changed: its sha256 is", "md22_water")
    assert f"Delete {path} and {path}.sha256" in message
    path.unlink()
    path.with_name(WATER + ".sha256").unlink()
    assert len(load_dataset("md22_water").test) == 20


def test_a_file_without_a_record_is_checked_first(server, tmp_path):
    path = tmp_path / "cache" / "md22" / WATER
    path.parent.mkdir(parents=True)
    path.write_bytes(npz(**water(39)))
    refuses("E has shape", "md22_water")
    path.write_bytes(npz(**water()))
    load_dataset("md22_water")
    assert path.with_name(WATER + ".sha256").exists() and server.requests == []


def test_a_killed_download_is_not_used_and_another_process_waits_for_it(server, tmp_path, caplog):
    server.files[WATER] = npz(**water())
    server.pause.add(WATER)
    path = tmp_path / "cache" / "md22" / WATER
    script = (
        "import sys, pathlib; from training.data.published import fetch\n"
        "fetch(sys.argv[1], pathlib.Path(sys.argv[2]), print)"
    )
    process = subprocess.Popen([sys.executable, "-c", script, server.url + WATER, str(path)])
    assert server.paused.wait(60)
    results = []
    waiting = threading.Thread(target=lambda: results.append(load_dataset("md22_water")))
    with caplog.at_level("INFO", "zoo.store"):
        waiting.start()
        waiting.join(1.0)
    assert waiting.is_alive() and server.requests == [WATER] and "waiting for it" in caplog.text
    assert path.with_name(WATER + ".part").exists() and not path.exists()
    server.pause.clear()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    waiting.join(20)
    assert server.requests == [WATER, WATER]
    assert path.read_bytes() == server.files[WATER] and len(results[0].train) == 19
    assert not path.with_name(WATER + ".part").exists()


def test_processes_that_start_together_download_once(server, tmp_path):
    server.files[WATER] = npz(**water())
    server.pause.add(WATER)
    digests = []
    path = tmp_path / WATER
    threads = [
        threading.Thread(target=lambda: digests.append(fetch(server.url + WATER, path, lambda _: None)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    assert server.paused.wait(20)
    server.resume.set()
    for thread in threads:
        thread.join(20)
    assert digests == [hashlib.sha256(server.files[WATER]).hexdigest()] * 3
    assert server.requests == [WATER]


def test_a_cache_that_cannot_be_written(server, tmp_path, monkeypatch):
    server.files[WATER] = npz(**water())
    (tmp_path / "file").touch()
    assert "PHI_CACHE" in refuses("Could not write", "md22_water", cache=tmp_path / "file" / "cache")
    # A limit on the size of files is what a full disk looks like to a process.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        refuses("Could not write .*Free some space", "md22_water")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (tmp_path / "cache" / "md22" / WATER).exists()
    assert len(load_dataset("md22_water").train) == 19


def test_the_cache_folder(monkeypatch, tmp_path):
    from zoo.store.download import cache_folder

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("PHI_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "phi_equivariant"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder() == Path("/x/phi_equivariant")
    monkeypatch.setenv("PHI_CACHE", "~/phi")
    assert cache_folder() == tmp_path / "phi"


# Without a network


@pytest.mark.honours("data_dir")
def test_data_dir_needs_no_network_and_writes_nothing(server, tmp_path):
    server.stop()
    folder = tmp_path / "data"
    message = refuses("data_dir is .*not a folder", "md22_water", data_dir=folder)
    folder.mkdir()
    message = refuses(f"There is no {WATER} in {folder}", "md22_water", data_dir=folder)
    assert f"http://www.quantum-machine.org/gdml/repo/datasets/{WATER}" in message
    (folder / WATER).write_bytes(npz(**water()))
    data = load_dataset("md22_water", data_dir=folder)
    assert len(data.valid) == 1 and data.provenance["source"] == str(folder / WATER)
    assert [path.name for path in folder.iterdir()] == [WATER] and server.requests == []
    (folder / WATER).write_bytes(npz(**water())[:-50])
    refuses("not a complete npz file", "md22_water", data_dir=folder)


def test_units_on_published_frames(tmp_path, monkeypatch):
    frames = ase.io.read(published("md22/ac_ala3_nhme_5frames_kcal.xyz"), ":")
    arrays = {
        "E": np.array([atoms.info["Energy"] for atoms in frames]),
        "F": np.array([atoms.get_forces() for atoms in frames]),
        "R": np.array([atoms.positions for atoms in frames]),
        "z": frames[0].numbers,
    }
    info = replace(DATASETS["md22_ac_ala3_nhme"], frames=5, train_size=3)
    monkeypatch.setitem(DATASETS, "md22_ac_ala3_nhme", info)
    (tmp_path / info.file).write_bytes(npz(**arrays))
    data = load_dataset("md22_ac_ala3_nhme", data_dir=tmp_path)
    # Atomic energies of the same functional (or, for nitrogen, another: they differ by a few eV) come in eV from
    # elsewhere. What binds a peptide is 4 to 6.5 eV per atom, whatever the level of theory: it fixes the unit.
    isolated = {1: -13.568, 6: -1026.854, 7: -1484.981, 8: -2037.797}
    for atoms in [*data.train, *data.valid, *data.test]:
        binding = sum(isolated[number] for number in atoms.numbers) - atoms.info["REF_energy"]
        assert 4.0 < binding / len(atoms) < 6.5
    # Equipartition: the mean square force is k·kT along a bond of force constant k = 30 eV/Å², less across, at 500 K.
    hydrogen = np.concatenate([atoms.arrays["REF_forces"][atoms.numbers == 1] for atoms in data.train])
    assert 0.05 < np.mean(hydrogen**2) < 3.0
    original = frames[data.provenance["split"]["train_indices"][0]]
    np.testing.assert_array_equal(data.train[0].positions, original.positions)
    np.testing.assert_allclose(data.train[0].arrays["REF_forces"], original.get_forces() * KCAL, rtol=1e-7)
    assert data.train[0].info["REF_energy"] == pytest.approx(original.info["Energy"] * KCAL, rel=1e-8)


def test_many_frames_cost_no_memory():
    n_frames, n_atoms = 85109, 42
    arrays = {
        "E": np.broadcast_to(np.float64(-1.0), n_frames),
        "F": np.broadcast_to(np.float32(0.5), (n_frames, n_atoms, 3)),
        "R": np.broadcast_to(np.float32(0.0), (n_frames, n_atoms, 3)),
        "z": np.ones(n_atoms, dtype=np.uint8),
    }
    tracemalloc.start()
    frames = NpzFrames(arrays)
    total = sum(frames[index].info["REF_energy"] for index in range(0, n_frames, 50))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == -len(range(0, n_frames, 50)) and peak < 5e6
    part = frames[10:20]
    assert len(part) == 10 and len(part[2:4]) == 2 and part[-1].arrays["REF_forces"].dtype == np.float64
    with pytest.raises(IndexError):
        part[10]


# The data set that comes with the project


def shipped_format(frames, trajectory, **changes):
    rng = np.random.default_rng(frames)
    charges = rng.normal(size=(frames, 42)).astype(np.float32)
    arrays = {
        "E": rng.normal(-1780, 1, frames),
        "F": rng.normal(size=(frames, 42, 3)).astype(np.float32),
        "R": rng.normal(size=(frames, 42, 3)).astype(np.float32),
        "z": np.repeat([6, 1, 7, 8], [12, 22, 4, 4]),
        "charges": charges,
        "dipole": rng.normal(size=(frames, 3)).astype(np.float32),
        "trajectory": np.full(frames, trajectory),
        "atom_numbers": np.array([1, 6, 7, 8]),
        "atom_energies": np.array([-10.7, -48.8, -71.0, -102.6]),
    }
    return npz(**(arrays | changes))


def test_the_shipped_format(tmp_path):
    for number, (split, frames) in enumerate({"train": 10, "valid": 4, "test": 6}.items()):
        (tmp_path / f"{split}.npz").write_bytes(shipped_format(frames, number))
    data = load_dataset("ala3_gfn2", data_dir=tmp_path)
    assert [len(data.train), len(data.valid), len(data.test)] == [10, 4, 6]
    assert data.e0s == {1: -10.7, 6: -48.8, 7: -71.0, 8: -102.6}
    assert data.reports["valid"].counts == dict.fromkeys(("energy", "forces", "charges", "dipole", "total_charge"), 4)
    written = np.load(tmp_path / "test.npz")
    atoms = data.test[3]
    assert atoms.info["REF_energy"] == written["E"][3]
    np.testing.assert_array_equal(atoms.arrays["REF_charges"], written["charges"][3])
    np.testing.assert_array_equal(atoms.info["REF_dipole"], written["dipole"][3])
    (tmp_path / "valid.npz").write_bytes(shipped_format(4, 1, charges=np.zeros((4, 41))))
    refuses(r"charges has shape \(4, 41\); expected \(4, 42\)", "ala3_gfn2", data_dir=tmp_path)
    (tmp_path / "valid.npz").write_bytes(shipped_format(4, 1, atom_numbers=np.array([1, 6, 7, 9])))
    refuses("no isolated-atom energy for every element", "ala3_gfn2", data_dir=tmp_path)
    other = np.array([-10.7, -48.8, -71.0, -102.5])
    (tmp_path / "valid.npz").write_bytes(shipped_format(4, 1, atom_energies=other))
    refuses("differ from those in the other files", "ala3_gfn2", data_dir=tmp_path)
    (tmp_path / "valid.npz").unlink()
    refuses("There is no valid.npz", "ala3_gfn2", data_dir=tmp_path)


def test_the_shipped_data_is_physical():
    import training.shipped.ala3_gfn2 as shipped

    folder = Path(shipped.__file__).parent
    if not (folder / "test.npz").exists():
        pytest.skip("the shipped data set has not been generated in this checkout (training/shipped/ala3_gfn2)")
    data = load_dataset("ala3_gfn2")
    assert [len(data.train), len(data.valid), len(data.test)] == [1000, 200, 500]
    trajectories = [set(np.load(folder / f"{split}.npz")["trajectory"].tolist()) for split in SPLITS]
    assert not (
        trajectories[0] & trajectories[1] or trajectories[0] & trajectories[2] or trajectories[1] & trajectories[2]
    )
    for atoms in data.test[::25]:
        charges, dipole = atoms.arrays["REF_charges"], atoms.info["REF_dipole"]
        assert charges.sum() == pytest.approx(0.0, abs=1e-5)
        # Net force and torque vanish for a molecule in free space.
        assert np.abs(atoms.arrays["REF_forces"].sum(axis=0)).max() < 1e-4
        assert np.abs(np.cross(atoms.positions, atoms.arrays["REF_forces"]).sum(axis=0)).max() < 1e-4
        # Mulliken charges give most of GFN2's dipole; the rest are atomic dipoles.
        assert np.linalg.norm(charges @ atoms.positions - dipole) < 1.0
        assert sum(data.e0s[number] for number in atoms.numbers) > atoms.info["REF_energy"]
