"""Models on the Hugging Face Hub: huggingface_hub against a local server that answers as the hub does."""

import json
import sys

import pytest
from local_server import LocalServer

from phi_equivariant.errors import InputError
from zoo.store.download import FileInfo
from zoo.store.find import files_of, find, folder_here
from zoo.store.places import place
from zoo.store.registry import FILE_LIMITS, Entry

NAME = "phi-mace-small.x"
BASE = "group/zoo/resolve/v1/"
CONTENT = {name: name.encode() * 50 for name in FILE_LIMITS}


@pytest.fixture
def server(monkeypatch, tmp_path):
    """The hub, on this machine, with one model; and an empty cache."""
    constants = pytest.importorskip("huggingface_hub.constants")
    server = LocalServer()
    server.commit = "a" * 40
    for name, content in CONTENT.items():
        server.files[f"{BASE}{NAME}/{name}"] = content
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT + "/", server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", server.url.rstrip("/"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("PHI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield server
    server.stop()


@pytest.fixture
def entry(tmp_path):
    """The model as a registry has it."""
    files = {}
    for name, content in CONTENT.items():
        (tmp_path / name).write_bytes(content)
        files[name] = FileInfo.of(tmp_path / name)
    return Entry(NAME, "", files, (place(f"hf://group/zoo@v1/{NAME}"),))


def test_a_model_is_fetched_once_with_the_users_token(server, entry, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert folder_here(entry) is None
    folder = files_of(entry)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == CONTENT
    for name, headers in zip(server.requests, server.headers, strict=True):
        if "/resolve/" in name:
            assert {key.lower(): value for key, value in headers.items()}["authorization"] == "Bearer hf_secret"
    server.stop()
    assert files_of(entry) == files_of(entry, offline=True) == folder_here(entry) == folder


def test_what_is_not_the_registered_file_is_not_used(server, entry):
    with pytest.raises(InputError, match="--offline"):
        files_of(entry, offline=True)
    server.files[f"{BASE}{NAME}/config.json"] = CONTENT["config.json"][::-1]
    with pytest.raises(InputError, match="not the registered files"):
        files_of(entry)
    server.files[f"{BASE}{NAME}/config.json"] = CONTENT["config.json"] + b"x"
    server.commit = "b" * 40
    with pytest.raises(InputError, match="config.json has 551 bytes; at most 550"):
        files_of(entry)
    server.files[f"{BASE}{NAME}/config.json"] = CONTENT["config.json"]
    server.commit = "c" * 40
    folder = files_of(entry)
    (folder / "config.json").resolve().write_bytes(b"damaged")
    assert folder_here(entry) is None and (files_of(entry) / "config.json").read_bytes() == CONTENT["config.json"]


def test_the_next_address_is_tried(server, entry):
    server.files = {f"elsewhere/{name}": content for name, content in CONTENT.items()}
    places = (*entry.places, place(f"{server.url}elsewhere"))
    with pytest.raises(InputError, match=f"hf://group/zoo@v1/{NAME}/model.safetensors cannot be had"):
        files_of(entry)
    assert files_of(Entry(NAME, "", entry.files, places)).parent.parent.name == "cache"


def test_a_registry_on_the_hub(server, entry):
    files = {name: {"sha256": info.sha256, "size": info.size} for name, info in entry.files.items()}
    registry = {"format_version": 1, "models": {NAME: {"description": "", "files": files, "urls": []}}}
    server.files[f"{BASE}registry.json"] = json.dumps(registry).encode()
    address = f"hf://group/zoo@v1/{NAME}"
    with pytest.raises(InputError, match="never read before"):
        find(address, offline=True)
    assert find(address).files == entry.files
    server.stop()
    assert find(address, offline=True).urls == [address]


def test_addresses_and_the_hub_without_its_library(entry, monkeypatch):
    for bad in ("hf://owner", "hf://owner/..", "hf://owner/repo/../../x", "hf://o/r@v/a b"):
        with pytest.raises(InputError, match="hf://owner/repository"):
            place(bad).get({"card.yaml": FileInfo("0" * 64, 1)})
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert entry.places[0].kept(FILE_LIMITS) is None
    with pytest.raises(InputError, match=r"pip install 'phi-equivariant\[hub\]'"):
        files_of(entry)
