"""Trained models from a run to another person's machine: exported, registered, fetched, checked, loaded."""

import hashlib
import json
import pickle
import shutil
import struct

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from ase.build import molecule
from local_server import LocalServer
from training_runs import run, write_molecules

import zoo.mace_host
from phi_equivariant import PhiCalculator, PhiPotential
from phi_equivariant.errors import InputError
from phi_equivariant.weights import load_model
from zoo import list_models, load_pretrained, model_info
from zoo.cli import main
from zoo.store import card, download, export, publish, registry
from zoo.store.reference import compute
from zoo.store.registry import FILE_LIMITS, read_registry
from zoo.store.summary import summary_of

NAME = "phi-mace-tiny.emt"
STATED = {"licence": "MIT", "level_of_theory": "EMT", "not_for": "anything but tests"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A short real training with Φ, in float32."""
    root = tmp_path_factory.mktemp("run")
    before = torch.get_default_dtype()
    file = write_molecules(root / "molecules.xyz", count=16, charges=True)
    more = {"charges_key": "q", "charges_weight": 1, "default_dtype": "float32", "seed": 7}
    run(root, name="run", train_file=file, valid_fraction=0.25, max_num_epochs=2, phi=["operator=coulomb"], **more)
    torch.set_default_dtype(before)
    return root / "run"


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory):
    return export.export(finished, tmp_path_factory.mktemp("models") / NAME, **STATED)


@pytest.fixture
def folder(exported, tmp_path):
    """A copy that a test may damage."""
    shutil.copytree(exported, tmp_path / NAME)
    return tmp_path / NAME


@pytest.fixture(scope="module")
def shared(exported, tmp_path_factory):
    """A registry with the model beside it."""
    root = tmp_path_factory.mktemp("zoo")
    publish.add(exported, root)
    return root


@pytest.fixture
def server(shared, monkeypatch, tmp_path):
    """The same on a server, which PHI_ZOO_URL names, and an empty cache."""
    server = LocalServer()
    for path in shared.rglob("*"):
        if path.is_file():
            server.files[path.relative_to(shared).as_posix()] = path.read_bytes()
    monkeypatch.setenv("PHI_ZOO_URL", server.url)
    monkeypatch.setenv("PHI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "PAUSE", 0.01)
    yield server
    server.stop()


@pytest.fixture
def no_building(monkeypatch):
    """Nothing may be built."""

    def build(arguments):
        pytest.fail("a model was built")

    monkeypatch.setattr(zoo.mace_host.MaceHost, "build", staticmethod(build))


def refuses(match, function, *args, **kwargs):
    with pytest.raises(InputError, match=match) as caught:
        function(*args, **kwargs)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 900
    return str(caught.value)


# From a run to a folder


def test_the_exported_model_is_the_trained_one(finished, exported):
    assert sorted(path.name for path in exported.iterdir()) == sorted(FILE_LIMITS)
    parameters = safetensors.torch.load_file(exported / "model.safetensors")
    trained = load_model(finished)
    assert set(parameters) == {name for name, _ in trained.named_parameters()}
    loaded = load_pretrained(exported)
    assert isinstance(loaded, PhiPotential) and next(loaded.parameters()).dtype == torch.float32
    atoms = molecule("CH3OH")
    results = []
    for model in (trained, loaded):
        atoms.calc = PhiCalculator(model.double())
        results.append((atoms.get_potential_energy(), atoms.get_forces(), atoms.get_charges()))
    assert results[0][0] == pytest.approx(results[1][0], abs=1e-7)
    assert results[0][1] == pytest.approx(results[1][1], abs=1e-6)
    assert results[0][2] == pytest.approx(results[1][2], abs=1e-7)


def test_the_card_says_what_the_run_knows(finished, exported):
    content = card.read(exported / "card.yaml")
    assert content["elements"] == ["H", "C", "O"] and content["licence"] == "MIT" and content["charge_states"] == [0]
    kept, resolved = content["training"]["configuration"], yaml.safe_load((finished / "config.yaml").read_text())
    assert resolved.keys() - kept.keys() == {key for key in resolved if key.endswith("_dir")}
    assert kept["r_max"] == 3.0 and kept["phi"] == resolved["phi"] and kept["train_file"] == "molecules.xyz"
    assert str(finished.parent) not in (exported / "card.yaml").read_text()  # whose machine it was is nobody's business
    assert content["training"]["command"].startswith("phi-mace-train ") and "--seed 7" in content["training"]["command"]
    errors = json.loads((finished / "errors.json").read_text())["sets"]["valid"]
    (row,) = content["errors"]
    assert row["model"] == "phi" and row["seed"] == 7 and row["set"] == f"valid, {errors['structures']} structures"
    assert f"RMSE {errors['errors']['forces']['rmse']:.4g} meV/Å" in row["forces"]
    assert "mace-torch" in content["versions"] and "s per epoch" in content["speed"]["training"]
    assert "12 of them" not in (exported / "card.yaml").read_text()
    reference = json.loads((exported / "reference.json").read_text())
    assert sorted(reference["structure"]["numbers"]) == [1, 1, 6, 6, 8, 8]


def test_the_card_has_every_test_set_the_main_one_first(finished, tmp_path):
    """A run writes its sets in the order in which it read them, the main test set last."""
    shutil.copytree(finished, tmp_path / "run")
    written = json.loads((finished / "errors.json").read_text())
    valid = written["sets"]["valid"]
    worse = {name: of and {**of, "rmse": 2 * of["rmse"]} for name, of in valid["errors"].items()}
    written["sets"] |= {"test_large": {**valid, "structures": 9, "errors": worse}, "test_small": valid}
    (tmp_path / "run" / "errors.json").write_text(json.dumps(written))
    content = card.read(export.export(tmp_path / "run", tmp_path / NAME, **STATED) / "card.yaml")
    main_set = f"test_small, {valid['structures']} structures"
    assert [row["set"] for row in content["errors"]] == [main_set, "test_large, 9 structures"]
    about = summary_of(content)
    assert list(about.tests) == [main_set, "test_large, 9 structures"]
    forces = valid["errors"]["forces"]["rmse"]
    assert about.errors["forces"] == (pytest.approx(forces, rel=1e-3), None)
    assert about.tests["test_large, 9 structures"]["forces"] == (pytest.approx(2 * forces, rel=1e-3), None)


def test_what_cannot_be_exported(finished, exported, tmp_path):
    refuses("exists already", export.export, finished, exported)
    refuses("not a name of a trained model", export.export, finished, tmp_path / "my_model")
    (tmp_path / "run").mkdir()
    refuses(
        "not a finished run .* no config.yaml, data.json, errors.json", export.export, tmp_path / "run", tmp_path / NAME
    )
    refuses("bare: .* was trained with Φ", export.export, finished, tmp_path / NAME, bare=[finished])
    (tmp_path / "no.xyz").write_text("nothing")
    refuses("names the host 'nequip', but .* is 'mace'", export.export, finished, tmp_path / "phi-nequip-tiny.emt")
    for file, text in (("errors.json", "{"), ("config.yaml", "a: b: c"), ("data.json", "[1]")):
        shutil.copytree(finished, tmp_path / "run", dirs_exist_ok=True)
        (tmp_path / "run" / file).write_text(text)
        refuses("its files are damaged", export.export, tmp_path / "run", tmp_path / NAME)
    shutil.copytree(finished, tmp_path / "run", dirs_exist_ok=True)
    other = json.loads((finished / "config.json").read_text())
    other["host"]["arguments"]["r_max"] = 4.0
    (tmp_path / "run" / "config.json").write_text(json.dumps(other))
    refuses("more: .* its host or Φ is another", export.export, finished, tmp_path / NAME, more=[tmp_path / "run"])
    (tmp_path / "run" / "data.json").write_text(json.dumps({"train_file": "/else/where.xyz"}))
    refuses("different data cannot be compared", export.export, finished, tmp_path / NAME, more=[tmp_path / "run"])
    refuses("structure: .*cannot be read", export.export, finished, tmp_path / NAME, structure=tmp_path / "no.xyz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["no.xyz", "run"]


# Registries


def test_a_registry_beside_the_model(shared, monkeypatch, tmp_path):
    entry = read_registry(shared / "registry.json")[NAME]
    for file, info in entry.files.items():
        content = (shared / NAME / file).read_bytes()
        assert info.size == len(content) and info.sha256 == hashlib.sha256(content).hexdigest()
    monkeypatch.setenv("PHI_CACHE", str(tmp_path / "cache"))
    refuses("no trained model", load_pretrained, NAME)
    monkeypatch.setenv("PHI_ZOO_URL", str(shared))
    assert list_models(trained=True) == sorted([NAME, *registry.shipped()])
    assert list_models("*emt", trained=True) == [NAME]
    assert isinstance(load_pretrained(NAME), PhiPotential)
    assert model_info(NAME)["card"]["level_of_theory"] == "EMT" and not (tmp_path / "cache").exists()


def test_what_a_registry_does_not_take(folder, shared, tmp_path):
    text = yaml.safe_load((folder / "card.yaml").read_text())
    (folder / "card.yaml").write_text(yaml.safe_dump({**text, "licence": None}, allow_unicode=True))
    refuses("does not state licence", publish.add, folder, tmp_path / "new")
    (folder / "card.yaml").write_text(yaml.safe_dump({**text, "licence": "CC0"}, allow_unicode=True))
    before = (shared / "registry.json").read_bytes()
    refuses("another phi-mace-tiny.emt already", publish.add, folder, shared / "registry.json")
    refuses("url is 'ftp://x'", publish.add, folder, tmp_path / "new", urls=["ftp://x"])
    taken = folder.rename(folder.with_name("phi-mace-small.acac"))
    refuses("comes with the package", publish.add, taken, tmp_path / "new")
    folder = taken.rename(folder)
    (folder / "reference.json").unlink()
    refuses("has no reference.json", publish.add, folder, tmp_path / "new")
    assert (shared / "registry.json").read_bytes() == before and not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda r: r.update(format_version=2), "format version 2"),
        (lambda r: r["models"].update({"../../evil": r["models"][NAME]}), "not a name of a trained model"),
        (lambda r: r["models"].update({"phi-mace-x./etc": r["models"][NAME]}), "not a name of a trained model"),
        (lambda r: r["models"][NAME]["files"].update({"../x": {"sha256": "0" * 64, "size": 1}}), "has the files"),
        (lambda r: r["models"][NAME]["files"].pop("card.yaml"), "has the files"),
        (lambda r: r["models"][NAME]["files"]["card.yaml"].update(size=10**15), "has 1000000000000000 bytes"),
        (lambda r: r["models"][NAME]["files"]["card.yaml"].update(size=True), "has True bytes"),
        (lambda r: r["models"][NAME]["files"]["card.yaml"].update(sha256="../../x"), "expected 64 digits"),
        (lambda r: r["models"][NAME].update(urls=["file:///etc"]), "is not an address"),
        (lambda r: r.update(models=[1]), "not a registry of models"),
    ],
)
def test_hostile_registries(server, tmp_path, change, match):
    content = json.loads(server.files["registry.json"])
    change(content)
    server.files["registry.json"] = json.dumps(content).encode()
    assert server.url in refuses(match, load_pretrained, NAME)
    assert not list((tmp_path / "cache").rglob("*.json")) and not list(tmp_path.rglob("*.part"))


def test_a_registry_that_is_no_file_of_ours(server, monkeypatch):
    good = server.files["registry.json"]
    known = sorted([NAME, *registry.shipped()])
    assert list_models(trained=True) == known
    for bad in (b"<html>log in</html>", b"[" * 100_000, b'{"format_version": NaN}', good[:-20]):
        server.files["registry.json"] = bad
        refuses("registry", list_models, trained=True)
        assert list_models(trained=True, offline=True) == known  # the last good copy stays
    monkeypatch.setattr(registry, "REGISTRY_LIMIT", 10_000)
    server.files["registry.json"] = b" " * 10_001
    refuses("announced 10001 bytes.*at most 10000", list_models, trained=True)


# Fetching


def test_a_model_is_fetched_once(server, tmp_path):
    assert model_info(NAME)["place"] == "remote"
    refuses("--offline", load_pretrained, NAME, offline=True)
    model = load_pretrained(NAME, dtype="float64")
    assert next(model.parameters()).dtype == torch.float64 and not model.training
    assert len(server.requests) == 6  # the registry for info and for loading; four files, the card by info
    server.stop()
    load_pretrained(NAME)
    (entry_folder,) = (tmp_path / "cache" / "zoo").glob("phi-*")
    (entry_folder / "config.json").write_text("{}")
    refuses("Could not (read|download)", load_pretrained, NAME)
    refuses("differs from the registered one", load_pretrained, NAME, offline=True)


def test_by_address(server, monkeypatch):
    monkeypatch.delenv("PHI_ZOO_URL")
    assert isinstance(load_pretrained(server.url + NAME), PhiPotential)
    refuses(
        "no trained model 'phi-mace-tiny.emd'. Did you mean phi-mace-tiny.emt",
        load_pretrained,
        server.url + NAME[:-1] + "d",
    )
    refuses("not a name of a trained model", load_pretrained, server.url + "..")


def test_a_mirror_cannot_change_what_the_package_has(server, shared, monkeypatch):
    monkeypatch.setattr(
        "zoo.store.find.shipped", lambda: read_registry(shared / "registry.json", "https://none.invalid")
    )
    content = json.loads(server.files["registry.json"])
    content["models"][NAME]["files"]["config.json"]["sha256"] = "0" * 64
    server.files["registry.json"] = json.dumps(content).encode()
    load_pretrained(NAME)  # the mirror's files, which are the right ones
    server.files[f"{NAME}/config.json"] = b"{}"
    shutil.rmtree(download.cache_folder())
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    assert "none.invalid" in refuses("not the registered file", load_pretrained, NAME)


@pytest.mark.parametrize(
    "name", ["phi-mace-tiny.emt/../x", "..", "/etc", "phi-mace-tiny.emt\x00", "a" * 200, "", "con"]
)
def test_names_that_are_none(name):
    refuses("not a name of a trained model|is not a folder|has no config.json", load_pretrained, name)


# Hostile folders


def tensor_of(end):
    """A safetensors file that claims a tensor of 10^12 numbers in ``end`` bytes, and has four."""
    header = b'{"w":{"dtype":"F32","shape":[1000000,1000000],"data_offsets":[0,%d]}}' % end
    return struct.pack("<Q", len(header)) + header + b"0000"


@pytest.mark.parametrize(
    "weights",
    [pickle.dumps({"a": 1}), b"", struct.pack("<Q", 2**62) + b"{}", tensor_of(4 * 10**12), tensor_of(4)],
    ids=["pickle", "empty", "header", "tensor", "lying-tensor"],
)
def test_hostile_weights(folder, no_building, weights):
    (folder / "model.safetensors").write_bytes(weights)
    refuses("is not a safetensors file", load_pretrained, folder)


@pytest.mark.parametrize(
    ("where", "value", "match"),
    [
        ("host.type", "os.system", "host type 'os.system' is not one of"),
        ("host.type", {"a": 1}, "not a configuration"),
        ("host.arguments.hidden_irreps", "1000000000x0e", "at most 8192 channels"),
        ("host.arguments.hidden_irreps", "4096x0e", "hidden_irreps is .*4096 channels of a kind need more parameters"),
        ("host.arguments.hidden_irreps", "8x0e+8x99e", "l = 6 are allowed"),
        ("host.arguments.hidden_irreps", "__import__('os')", "not irreps"),
        ("host.arguments.num_interactions", 10**9, "num_interactions is 1000000000; expected at most"),
        ("host.arguments.num_interactions", True, "num_interactions is True"),
        ("host.arguments.num_interactions", [], r"num_interactions is \[\]"),
        ("host.arguments.num_polynomial_cutoff", [], r"num_polynomial_cutoff is \[\]"),
        ("host.arguments.radial_type", None, "radial_type is None; .*bessel"),
        ("host.arguments.correlation", 40, "correlation is 40"),
        ("host.arguments.correlation", [], r"correlation is \[\]"),
        ("host.arguments.max_ell", 10**6, "max_ell is 1000000"),
        ("host.arguments.radial_MLP", [8000, 8000], "radial_MLP is .*8000"),
        ("host.arguments.atomic_numbers", list(range(1, 119)) * 5, "atomic_numbers is .* at most 118"),
        ("host.arguments.num_bessel", 10**12, "not a number of moderate size"),
        ("host.arguments.r_max", -1.0, "r_max is -1.0"),
        ("host.arguments.heads", [0] * 60_000, "more than 50000 values"),
        ("host.arguments.gate", "x" * 10_000, "10000 characters"),
        ("phi.config.hidden", 10**6, "phi: hidden is 1000000; expected at most"),
        ("phi.config.channels", 10**9, "phi: channels is 1000000000; expected at most"),
        ("phi.config.operator", "magic", "operator is 'magic'"),
        ("phi.taps", {f"a{i}": "1x0e" for i in range(100)}, "at most 64"),
        ("phi.taps", {"a": {"irreps": "1000000000x0e"}}, "at most 8192 channels"),
        ("phi.taps", {"a": ["1x0e"] * 100}, "has 100 parts; at most 8"),
        ("phi.taps", {"a": ["1x0e", {"irreps": "1x0e", "element": [0]}]}, "element is"),
        ("phi", 3, "not a configuration"),
    ],
)  # fmt: skip
def test_hostile_configurations(folder, no_building, where, value, match):
    config = json.loads((folder / "config.json").read_text())
    *path, last = where.split(".")
    part = config
    for key in path:
        part = part[key]
    part[last] = value
    (folder / "config.json").write_text(json.dumps(config))
    assert "config.json" in refuses(match, load_pretrained, folder)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"host": NaN}', "\udcff", "null"], ids=["deep", "nan", "bytes", "null"]
)
def test_configurations_that_are_none(folder, no_building, text):
    (folder / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    refuses("config.json", load_pretrained, folder)


def test_class_names_come_from_a_list(folder):
    config = json.loads((folder / "config.json").read_text())
    config["host"]["arguments"]["class"] = "Popen"
    (folder / "config.json").write_text(json.dumps(config))
    refuses("class 'Popen' is not known", load_pretrained, folder)


def test_weights_that_do_not_give_the_reference(folder):
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    changed = {name: value.clone() for name, value in weights.items()}
    changed["phi.alpha_net.scale"] *= 1.01
    safetensors.torch.save_file(changed, folder / "model.safetensors")
    refuses("reference structure differ by .* install those named in config.json", load_pretrained, folder)
    changed["phi.alpha_net.scale"] *= float("nan")
    safetensors.torch.save_file(changed, folder / "model.safetensors")
    refuses("not finite", load_pretrained, folder)


def test_references_that_are_none(folder, finished):
    model = load_model(finished, dtype="float64")
    good = json.loads((folder / "reference.json").read_text())
    dense = {"numbers": [6] * 500, "positions": np.random.default_rng(0).random((500, 3)).tolist(), "total_charge": 0.0}
    dense |= {"cell": np.diag([0.5] * 3).tolist(), "pbc": [True] * 3}
    for change, match in (
        ({"structure": {}}, "not a reference of a model"),
        ({"energy": None}, "energy do not fit"),
        ({"charges": [0.0]}, "charges do not fit"),
        ({"forces": "x"}, "not a reference of a model"),
        ({"structure": {**good["structure"], "numbers": [1] * 501}}, "501 atoms"),
        ({"structure": {**good["structure"], "numbers": [79] * 6}}, "does not know atomic numbers"),
        ({"structure": dense}, "500 atoms in a periodic cell of 0.125"),
        ({"structure": {**dense, "cell": np.diag([1e4] * 3).tolist()}}, r"periodic cell of 1e\+12"),
        ({"structure": {**dense, "cell": np.zeros((3, 3)).tolist(), "pbc": [True] * 3}}, "cell"),
    ):
        (folder / "reference.json").write_text(json.dumps({**good, **change}))
        refuses(match, zoo.store.reference.check, model, folder)
    atoms = molecule("H2O")
    assert compute(model, atoms)["charges"] is not None and compute(model.detach(), atoms)["charges"] is None


def test_parameters_without_a_reference(folder, finished, no_building):
    (folder / "reference.json").unlink()
    refuses("has no reference.json", load_pretrained, folder)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a: &a [1]\nb: *a", "aliases are not read"),
        ("!!python/object/apply:os.system [ls]", "not YAML that can be read"),
        ("[" * 5000, "not YAML that can be read"),
        ("- 1", "holds list"),
        ("name: x", "lacks description"),
    ],
    ids=["aliases", "objects", "deep", "list", "sections"],
)
def test_hostile_cards(tmp_path, text, match):
    (tmp_path / "card.yaml").write_text(text)
    refuses(match, card.read, tmp_path / "card.yaml")


# The command line


def test_the_commands(server, finished, exported, folder, tmp_path, capsys):
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert "phi-mace-small" in out and NAME in out and "remote" in out
    assert main(["list", "*visnet*"]) == 0 and "trained" not in capsys.readouterr().out
    assert main(["list", "schnett"]) == 2 and "has 'schnett' in its name" in capsys.readouterr().err
    assert main(["download", NAME]) == 0 and main(["--offline", "verify"]) == 0
    assert f"{NAME}: right" in capsys.readouterr().out
    content = card.read(folder / "card.yaml")
    content["description"] = "\x1b[2J [red]so good[/red]"
    (folder / "card.yaml").write_text(card.text_of(content))
    assert main(["info", str(folder)]) == 0 and "[red]so good[/red]" in capsys.readouterr().out
    assert main(["add", str(folder), str(tmp_path / "mine")]) == 0
    server.files["registry.json"] = (tmp_path / "mine" / "registry.json").read_bytes()
    server.files[f"{NAME}/card.yaml"] = (folder / "card.yaml").read_bytes()
    capsys.readouterr()
    assert main(["info", NAME]) == 0
    out = capsys.readouterr().out
    assert "EMT" in out and "phi-mace-train --" in out and "\x1b[2J" not in out and "[red]so good[/red]" in out
    assert main(["info", "phi-mace-medium"]) == 0 and "64x0e+64x1o" in capsys.readouterr().out
    for words, message in (
        (["info", "phi-mace-smal"], "Did you mean phi-mace-small"),
        (["download", "phi-mace-small"], "is a size, not a trained model"),
        (["verify", str(tmp_path), NAME], f"1 of 2 models are not right: {tmp_path}"),
        (["info", str(tmp_path)], "has no card.yaml"),
        (["add", str(folder), str(tmp_path / "mine.json")], "others look for registry.json"),
        (["export", str(tmp_path), str(tmp_path / "x")], "not a name of a trained model"),
    ):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert error.startswith("phi-zoo: ") and error.count("\n") == 1 and message in error


# The models that come with the package


def test_the_package_has_what_its_registry_says():
    """Every folder is registered, and every model gives its stored energy, forces and charges (``load_pretrained``)."""
    known = registry.shipped()
    folders = {path.name for path in registry.SHIPPED.iterdir() if path.is_dir()}
    assert folders <= known.keys() and folders >= {name for name, entry in known.items() if not entry.urls}
    for name in folders:
        card.check_stated(card.read(registry.SHIPPED / name / "card.yaml"), registry.SHIPPED / name)
        load_pretrained(name, offline=True)
