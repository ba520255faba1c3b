import json
import os
import pickle

import pytest
import torch
from systems import batch_of, ethanol, mace_host, potential

from phi_equivariant import PhiPotential
from phi_equivariant.errors import InputError
from phi_equivariant.files import write_atomically
from phi_equivariant.weights import load_model, save_model

pytestmark = pytest.mark.usefixtures("double")


@pytest.mark.parametrize(
    "config",
    [{}, {"operator": "graph", "poisson": "learned", "num_modes": 4}, {"channels": 3, "charge_constraint": "penalty"}],
)
def test_a_loaded_potential_is_the_saved_one(tmp_path, config):
    model = potential(**config)
    save_model(model, tmp_path / "run", notes={"data": "none"})
    loaded = load_model(tmp_path / "run")
    assert isinstance(loaded, PhiPotential) and loaded.phi.config == model.phi.config and not loaded.training
    a, b = model(batch_of(ethanol())), loaded(batch_of(ethanol()))
    assert torch.equal(a["energy"], b["energy"]) and torch.equal(a["forces"], b["forces"])
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["notes"] == {"data": "none"} and saved["versions"]["e3nn"] == "0.4.4"
    assert not list((tmp_path / "run").glob("*.part"))


@pytest.mark.parametrize(
    "arguments",
    [
        dict(scale_shift=False),
        dict(hidden_irreps="4x0e+4x1o+4x2e", num_interactions=3),
        dict(hidden_irreps="8x0e", num_interactions=1),
        dict(heads=["low", "high"]),
    ],
)
def test_bare_hosts_of_every_architecture(tmp_path, arguments):
    host = mace_host(**arguments)
    save_model(host, tmp_path)
    loaded = load_model(tmp_path)
    batch = batch_of(ethanol(), heads=tuple(host.heads))
    assert type(loaded) is type(host) and torch.equal(loaded(batch)["forces"], host(batch)["forces"])


def test_precision_is_kept_and_can_be_chosen(tmp_path):
    save_model(potential().float(), tmp_path)
    assert next(load_model(tmp_path).parameters()).dtype == torch.float32
    assert next(load_model(tmp_path, dtype="float64").parameters()).dtype == torch.float64
    assert torch.get_default_dtype() == torch.float64


def test_layers_of_different_correlation(tmp_path):
    host = mace_host(correlation=[1, 3])
    save_model(host, tmp_path)
    assert torch.equal(load_model(tmp_path)(batch_of(ethanol()))["forces"], host(batch_of(ethanol()))["forces"])


def test_what_cannot_be_saved_writes_nothing(tmp_path):
    with pytest.raises(InputError, match="without readout"):
        save_model(mace_host(num_interactions=1, use_last_readout_only=True), tmp_path / "none")
    with pytest.raises(TypeError):
        save_model(mace_host(), tmp_path / "notes", notes={"value": torch.ones(1)})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("dtype", "config"), [(torch.float64, {}), (torch.float32, {"operator": "graph", "num_modes": 4})]
)
def test_parameters_alone_are_enough(tmp_path, dtype, config):
    """The constructor makes the buffers again, also those that depend on the data."""
    model = potential(host=mace_host(correlation=3), **config).to(dtype)
    with torch.no_grad():
        model.host.scale_shift.scale.fill_(0.7)
        model.host.scale_shift.shift.fill_(-0.3)
    save_model(model, tmp_path, parameters_only=True)
    n_parameters = sum(p.numel() for p in model.parameters())
    assert (tmp_path / "model.safetensors").stat().st_size < n_parameters * dtype.itemsize + 8000
    loaded = load_model(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))
    a, b = (m.double()(batch_of(ethanol())) for m in (model, loaded))
    assert abs(a["energy"] - b["energy"]).item() < (1e-12 if dtype == torch.float64 else 1e-6)
    assert (a["forces"] - b["forces"]).abs().max() < (1e-12 if dtype == torch.float64 else 1e-6)


def test_a_file_of_the_first_format_is_read(tmp_path):
    model = potential()
    save_model(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["tensors"]
    (tmp_path / "config.json").write_text(json.dumps({**config, "format_version": 1}))
    assert torch.equal(load_model(tmp_path)(batch_of(ethanol()))["energy"], model(batch_of(ethanol()))["energy"])


def test_weights_that_are_not_finite_are_refused(tmp_path):
    model = potential()
    with torch.no_grad():
        model.phi.alpha_net.heads[0].mix.weight[0, 0] = float("nan")
    save_model(model, tmp_path)
    with pytest.raises(InputError, match="not finite .*phi.alpha_net.heads.0.mix.weight"):
        load_model(tmp_path)


def edit(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    config.update(changes)
    (folder / "config.json").write_text(json.dumps(config))


def test_files_that_do_not_fit(tmp_path):
    save_model(potential(), tmp_path)
    good = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(InputError, match="not a safetensors file"):
        load_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(good[: len(good) // 2])
    with pytest.raises(InputError, match="not a safetensors file"):
        load_model(tmp_path)
    save_model(mace_host(), tmp_path / "host")
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "host" / "model.safetensors").read_bytes())
    with pytest.raises(InputError, match="does not fit its config.json.*tensors differ"):
        load_model(tmp_path)
    edit(tmp_path, format_version=99)
    with pytest.raises(InputError, match="format version 99"):
        load_model(tmp_path)
    edit(tmp_path, format_version=1, host={"type": "os.system", "arguments": {}})
    with pytest.raises(InputError, match="'os.system' is not installed; installed: mace"):
        load_model(tmp_path)
    edit(tmp_path, host={"type": "mace", "arguments": {"class": "MACE"}})
    with pytest.raises(InputError, match="does not describe a model that can be built"):
        load_model(tmp_path)
    with pytest.raises(InputError, match="dtype is 'half'"):
        load_model(tmp_path, dtype="half")
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(InputError, match="not a configuration of a model"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="not a configuration of a model.*JSONDecodeError"):
        load_model(tmp_path)
    with pytest.raises(InputError, match="has no config.json"):
        load_model(tmp_path / "nowhere")


def test_models_of_no_known_type_are_refused(tmp_path):
    with pytest.raises(InputError, match="Linear does not belong to an installed host type"):
        save_model(torch.nn.Linear(2, 2), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_file_that_cannot_be_written_is_named_as_it_was_asked_for(tmp_path):
    """Not by the temporary file beside it, and nothing is left of that."""
    with pytest.raises(FileNotFoundError) as caught:
        write_atomically(tmp_path / "none" / "page.html", lambda path: path.write_text("page"))
    assert caught.value.filename == str(tmp_path / "none" / "page.html")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="folder is not a file, and is not replaced by one"):
        write_atomically(tmp_path / "folder", lambda path: path.write_text("page"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder"]


def test_what_stands_at_a_path_is_kept_or_written_through(tmp_path):
    """A pipe, as a device, is not replaced by a file; a link is not replaced either."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe is not a file"):
        write_atomically(tmp_path / "pipe", lambda path: path.write_text("page"))
    assert (tmp_path / "pipe").is_fifo()
    (tmp_path / "inner").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "inner" / "page")
    for text in ("first", "second"):
        write_atomically(tmp_path / "link", lambda path, text=text: path.write_text(text))
        assert (tmp_path / "link").is_symlink() and (tmp_path / "inner" / "page").read_text() == text
