"""Downloads of files whose size and sha256 are known, from a server that does everything wrong."""

import hashlib
import multiprocessing
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import pytest
from local_server import LocalServer

from phi_equivariant.errors import InputError
from zoo.store import download
from zoo.store.download import FileInfo, fetch

NAME = "model.safetensors"
CONTENT = bytes(range(256)) * 2000
INFO = FileInfo(hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))
FORK = multiprocessing.get_context("fork")  # children have everything imported already


@pytest.fixture
def server(monkeypatch):
    server = LocalServer()
    server.files[NAME] = CONTENT
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "PAUSE", 0.01)
    monkeypatch.setattr(download, "WAIT", (5, 0.5))
    yield server
    server.stop()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "zoo" / NAME


def refuses(match, *args, **kwargs):
    with pytest.raises(InputError, match=match) as caught:
        fetch(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def parts(path):
    return sorted(p.name for p in path.parent.iterdir() if not p.name.endswith(".lock"))


def test_a_file_is_fetched_once_and_checked_at_every_use(server, path):
    fetch(path, INFO, server.url + NAME)
    assert path.read_bytes() == CONTENT
    assert parts(path) == [NAME] and server.headers[0]["Accept-Encoding"] == "identity"
    fetch(path, INFO, server.url + NAME)
    assert len(server.requests) == 1
    path.write_bytes(CONTENT[:-1] + b"x")  # of the right size
    fetch(path, INFO, server.url + NAME)
    assert path.read_bytes() == CONTENT and len(server.requests) == 2
    path.write_bytes(b"")
    server.stop()
    refuses("no connection", path, INFO, server.url + NAME)


@pytest.mark.parametrize(
    ("fault", "match", "tries"),
    [
        ("truncates", "connection broke before the file was complete", download.ATTEMPTS),
        ("stalls", "did not answer in time", download.ATTEMPTS),
        ("corrupts", "its sha256 is [0-9a-f]{64}, not", 1),
        ("page", "not the registered file", 1),
        ("portal", "not the registered file", 1),
        ("endless", "sent more than the 512000 bytes", 1),
        ("longer", "announced 512001 bytes", 1),
        ("404", "the server answered 404", 1),
        ("403", "the server answered 403", 1),
        ("503", "the server answered 503", download.ATTEMPTS),
        ("loop", "Exceeded 30 redirects", 31),
    ],
)
def test_a_bad_server_leaves_one_clear_error_and_a_good_one_helps(server, path, fault, match, tries):
    if fault == "truncates":
        server.truncate.add(NAME)
    elif fault == "stalls":
        server.pause.add(NAME)
    elif fault.isdecimal():
        server.answers[NAME] = [int(fault)] * tries
    elif fault == "loop":
        server.redirect[NAME] = server.url + NAME
    else:
        page = b"<html>Please log in, or else</html>"[:30]
        longer = {"longer": CONTENT + b"x", "endless": CONTENT * 100}
        server.files[NAME] = {"corrupts": CONTENT[::-1], **longer}.get(fault, page)
        server.kinds[NAME] = "text/html; charset=utf-8" if fault in ("page", "portal") else "application/octet-stream"
        server.unannounced = {NAME} if fault in ("portal", "endless") else set()
    message = refuses(match, path, INFO, server.url + NAME)
    assert server.url + NAME in message and len(server.requests) == tries
    assert not path.exists()

    good = LocalServer()
    try:
        good.files["other"] = CONTENT
        fetch(path, INFO, good.url + "other")
    finally:
        good.stop()
    assert path.read_bytes() == CONTENT and parts(path) == [NAME]


def test_faults_that_pass(server, path):
    server.answers[NAME] = [500, 503]
    server.redirect["moved"] = server.url + NAME
    server.truncate_once.add(NAME)
    fetch(path, INFO, server.url + "moved")
    assert path.read_bytes() == CONTENT and server.requests.count(NAME) == 4 and parts(path) == [NAME]


@pytest.mark.parametrize(
    "left", [b"something else", CONTENT[:-1], CONTENT + b"x", b""], ids=["other", "end", "long", "0"]
)
def test_what_a_killed_process_left_is_never_used(server, path, left):
    path.parent.mkdir()
    path.with_name(f"{NAME}.part").write_bytes(left)
    fetch(path, INFO, server.url + NAME)
    assert path.read_bytes() == CONTENT and parts(path) == [NAME] and server.requests == [NAME]


def test_killed_half_way(server, path):
    server.pause.add(NAME)
    process = FORK.Process(target=fetch, args=(path, INFO, server.url + NAME))
    process.start()
    assert server.paused.wait(20)
    partial = path.with_name(f"{NAME}.part")
    begin = time.monotonic()
    while (not partial.exists() or partial.stat().st_size == 0) and time.monotonic() < begin + 10:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert 0 < partial.stat().st_size < len(CONTENT) and not path.exists()
    server.pause.clear()
    fetch(path, INFO, server.url + NAME)
    assert path.read_bytes() == CONTENT and parts(path) == [NAME]


def _serve_half(urls):
    server = LocalServer()
    server.files[NAME] = CONTENT
    server.pause.add(NAME)
    urls.put(server.url)
    server.paused.wait(20)
    os.kill(os.getpid(), signal.SIGKILL)


def test_the_server_is_killed_half_way(server, path):
    urls = FORK.Queue()
    process = FORK.Process(target=_serve_half, args=(urls,))
    process.start()
    dying = urls.get(timeout=20) + NAME
    refuses("no connection|connection broke", path, INFO, dying)
    process.join()
    assert not path.exists() and parts(path) == []
    fetch(path, INFO, server.url + NAME)
    assert path.read_bytes() == CONTENT and parts(path) == [NAME]


def _fetch_and_report(path, url, results):
    try:
        fetch(path, INFO, url)
        results.put(hashlib.sha256(path.read_bytes()).hexdigest())
    except BaseException as error:
        results.put(repr(error))


def test_twenty_processes_download_once(server, path):
    results = FORK.Queue()
    processes = [FORK.Process(target=_fetch_and_report, args=(path, server.url + NAME, results)) for _ in range(20)]
    for process in processes:
        process.start()
    assert [results.get(timeout=60) for _ in processes] == [INFO.sha256] * 20
    for process in processes:
        process.join()
    assert server.requests == [NAME] and parts(path) == [NAME]


def test_a_terminal_shows_progress(server, path, monkeypatch):
    master, slave = os.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "150")
    shown = []
    with open(slave, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        fetch(path, INFO, server.url + NAME)
        while select.select([master], [], [], 0.1)[0]:
            shown.append(os.read(master, 4096))
    os.close(master)
    text = b"".join(shown).decode()
    assert NAME in text and "100%" in text


@pytest.fixture
def open_folder():
    """A folder that other users can enter."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


def test_a_read_only_cache_is_used_and_not_written(server, open_folder):
    path = open_folder / NAME
    path.write_bytes(CONTENT)
    open_folder.chmod(0o555)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root may write anywhere
    try:
        fetch(path, INFO, server.url + NAME)
        refuses("Could not write .*PHI_CACHE", open_folder / "other", INFO, server.url + NAME)
        refuses("Could not write .*PHI_CACHE", open_folder / "new" / NAME, INFO, server.url + NAME)
    finally:
        os.seteuid(user)
    assert server.requests == [] and [p.name for p in open_folder.iterdir()] == [NAME]


def test_a_full_disk(server, path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        refuses("Could not write .*Free some space", path, INFO, server.url + NAME)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not path.exists()
    fetch(path, INFO, server.url + NAME)
    assert path.read_bytes() == CONTENT
