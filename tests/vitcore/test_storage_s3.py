"""Files in a real S3 store: every operation, a store that stumbles, a process killed amid an upload, forked readers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from tests.s3 import S3, SECRET
from vitcore import storage
from vitcore.errors import RequestError
from vitcore.storage import retry
from vitcore.storage.s3 import PART

LARGE = 2 * PART + 12345  # uploaded in parts


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "_FIRST_PAUSE", 0.01)


def python(s3: S3, code: str, **environ: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, **s3.env, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_every_operation(s3: S3, tmp_path: Path) -> None:
    root = s3.fresh()
    url = storage.join(root, "a", "b", "c d+é%[1].bin")
    assert not storage.exists(url)
    assert storage.names(root) == []
    storage.write(url, b"0123456789")
    assert storage.exists(url)
    assert storage.exists(storage.join(root, "a"))
    assert storage.read(url) == b"0123456789"
    assert storage.size(url) == 10
    assert storage.read_range(url, 2, 5) == b"234"
    assert storage.read_range(url, 8, 99) == b"89"
    assert storage.read_range(url, 10, 20) == storage.read_range(url, 3, 3) == b""
    storage.write(url, b"new")
    assert storage.read(url) == b"new"
    assert storage.size(url) == 3
    (tmp_path / "0.tar").write_bytes(b"data")
    storage.put(tmp_path / "0.tar", storage.join(root, "a", "0.tar"))
    assert not (tmp_path / "0.tar").exists()
    assert storage.names(storage.join(root, "a")) == ["0.tar", "b"]
    storage.sweep(root)
    storage.remove(url)
    assert not storage.exists(url)
    storage.remove(url)
    storage.remove(root)
    assert list(storage.walk(root)) == []


def test_a_child_may_be_named_like_its_folder(s3: S3) -> None:
    root = s3.fresh()
    storage.write(storage.join(root, "train", "train"), b"x")
    assert storage.names(storage.join(root, "train")) == ["train"]


def test_what_another_process_wrote_is_seen_at_once(s3: S3) -> None:
    root = s3.fresh()
    url = storage.join(root, "file")
    assert not storage.exists(url)
    storage.write(storage.join(root, "other"), b"x")
    assert storage.names(root) == ["other"]
    other = python(s3, f"from vitcore import storage; storage.write({url!r}, b'12')")
    assert other.wait(60) == 0
    assert storage.exists(url)
    assert storage.names(root) == ["file", "other"]
    assert storage.size(url) == 2


def test_a_removed_folder_of_many_pages_is_gone(s3: S3) -> None:
    root = s3.fresh()
    place = storage.join(root, "many")
    fs, path = storage.filesystem(place)
    fs.pipe({f"{path}/{number:04}": b"" for number in range(1100)})
    storage.write(storage.join(root, "many-others"), b"x")
    assert len(list(storage.walk(place))) == 1100
    storage.remove(place)
    assert [entry.path for entry in storage.walk(root)] == ["many-others"]


def test_walking_lists_files_without_hidden_ones(s3: S3) -> None:
    root = s3.fresh()
    for name in ("b/x.jpg", "a.jpg", ".hidden", "b/.git/x", "é/z.jpg"):
        storage.write(storage.join(root, name), name.encode())
    found = list(storage.walk(root))
    assert [(entry.path, entry.size, entry.utf8) for entry in found] == [
        ("a.jpg", 5, True),
        ("b/x.jpg", 7, True),
        ("é/z.jpg", 8, True),
    ]
    assert list(storage.folders(root)) == []
    assert storage.entry(storage.join(root, "a.jpg")) == found[0]._replace(path="")
    storage.write(storage.join(root, "a.jpg"), b"other")
    again = list(storage.walk(root))
    assert again[0].stamp != found[0].stamp
    assert again[1:] == found[1:]
    assert list(storage.walk(storage.join(root, "nothing"))) == []


def test_a_large_file_goes_up_in_parts_and_comes_back_in_pieces(s3: S3, tmp_path: Path) -> None:
    data = os.urandom(LARGE)
    url = storage.join(s3.fresh(), "large")
    (tmp_path / "large").write_bytes(data)
    s3.proxy.reset()
    storage.put(tmp_path / "large", url)
    assert s3.requests.requests["PUT"] == 3
    assert storage.read(url) == data
    s3.proxy.reset()
    with storage.stream(url, piece=2**20) as file:
        assert file.read(10) == data[:10]
        file.seek(-100, os.SEEK_END)
        assert file.read() == data[-100:]
        file.seek(5 * 2**20 + 3)
        assert file.read(7) == data[5 * 2**20 + 3 :][:7]
    assert sum(s3.requests.served.values()) < 4 * 2**20
    storage.write(url, data[1:])
    assert storage.read(url) == data[1:]


def test_an_upload_killed_midway_publishes_nothing(s3: S3, tmp_path: Path) -> None:
    root = s3.fresh()
    (tmp_path / "large").write_bytes(bytes(LARGE))
    code = "import sys; from pathlib import Path; from vitcore import storage; "
    for name, does in {
        "put": f"storage.put(Path({str(tmp_path / 'large')!r}), {root!r} + '/put')",
        "write": f"storage.write({root!r} + '/write', bytes({LARGE}))",
        "small": f"storage.write({root!r} + '/small', bytes({PART}))",
    }.items():
        s3.proxy.reset()
        s3.proxy.hold_after = PART // 2
        try:
            upload = python(s3, code + does)
            until(lambda: s3.requests.uploaded >= PART // 2)
            upload.kill()
            assert upload.wait() == -signal.SIGKILL, name
        finally:
            s3.proxy.hold_after = None
    assert storage.names(root) == []
    assert (tmp_path / "large").exists()


def test_a_tenth_of_all_requests_failing_stops_nothing(flaky_s3: S3, tmp_path: Path, quick: None) -> None:
    root = flaky_s3.fresh()
    flaky_s3.proxy.reset()
    data = os.urandom(300_000)
    for number in range(25):
        url = storage.join(root, "below", str(number))
        storage.write(url, data[number:])
        assert storage.read(url) == data[number:]
        assert storage.read_range(url, 100, 250_000) == data[number:][100:250_000]
        assert storage.size(url) == len(data) - number
        assert storage.exists(url) and not storage.exists(url + "-")
    for _ in range(5):
        (tmp_path / "large").write_bytes(bytes(LARGE))
        storage.put(tmp_path / "large", storage.join(root, "large"))
    assert len(storage.names(storage.join(root, "below"))) == len(list(storage.walk(root))) - 1 == 25
    assert storage.size(storage.join(root, "large")) == LARGE
    storage.remove(root)
    assert list(storage.walk(root)) == []
    assert set(flaky_s3.requests.failed) == set(flaky_s3.proxy.FAULTS), "every kind of failure was met"


@pytest.fixture
def blunt(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A client that does not try again by itself."""
    kind = fsspec.get_filesystem_class("s3")
    kind.clear_instance_cache()
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    yield
    kind.clear_instance_cache()


def test_a_store_that_stays_down_is_given_up_in_one_sentence(
    s3: S3, monkeypatch: pytest.MonkeyPatch, quick: None, blunt: None
) -> None:
    url = storage.join(s3.fresh(), "file")
    monkeypatch.setattr(retry, "_TRIES", 2)
    with s3.proxy.faults(rate=1.0), pytest.raises(OSError, match=r"/file could not be read in 2 tries: ") as failure:
        storage.read(url)
    said(failure.value)


def test_what_is_missing_is_not_asked_for_twice(s3: S3) -> None:
    url = storage.join(s3.fresh(), "nothing")
    s3.proxy.reset()
    for call in (storage.read, storage.size, storage.stream, lambda url: storage.read_range(url, 0, 9)):
        with pytest.raises(FileNotFoundError, match=r"could not be .*: it does not exist") as failure:
            call(url)
        said(failure.value)
    assert sum(s3.requests.requests.values()) < 12
    with pytest.raises(OSError, match="could not be"):
        storage.read("s3://no-such-bucket/x")


@pytest.mark.parametrize("stranger", [False, True])
def test_a_wrong_secret_is_said_and_not_shown(s3: S3, stranger: bool) -> None:
    wrong = "a-wrong-secret-never-to-be-seen"
    root = s3.fresh()
    code = f"""
import logging, traceback
logging.basicConfig(level=logging.INFO)
from vitcore import storage
url = {root!r} + "/x"
for call in (storage.read, storage.size, storage.exists, storage.names, storage.tag, storage.remove,
             lambda url: storage.write(url, b"x"), lambda url: list(storage.walk(url)),
             lambda url: storage.replace(url, b"x", None), lambda url: storage.read_range(url, 0, 1)):
    try:
        call(url)
    except PermissionError:
        traceback.print_exc()
    else:
        raise SystemExit("accepted")
"""
    environ = {"AWS_SECRET_ACCESS_KEY": wrong} | (
        {"AWS_ACCESS_KEY_ID": "stranger-never-to-be-seen"} if stranger else {}
    )
    process = python(s3, code, **environ)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, out + err
    assert err.count("the store refused access") == 10
    for secret in (wrong, SECRET, "stranger-never-to-be-seen", "Signature="):
        assert secret not in out + err
    assert "Error: " + root in err


def test_an_endpoint_with_credentials_is_not_repeated(s3: S3) -> None:
    code = "from vitcore import storage; storage.retry._TRIES = 2; storage.read('s3://bucket/x')"
    process = python(s3, code, AWS_ENDPOINT_URL="http://somebody:hunter22@127.0.0.1:9", AWS_MAX_ATTEMPTS="1")
    _, err = process.communicate(timeout=100)
    assert "s3://bucket/x could not be read in 2 tries" in err
    assert "hunter22" not in err


def test_no_credentials_at_all(s3: S3, tmp_path: Path) -> None:
    code = "from vitcore import storage; storage.read('s3://bucket/x')"
    hidden = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "HOME": str(tmp_path)}
    _, err = python(s3, code, **hidden).communicate(timeout=100)
    assert "PermissionError: s3://bucket/x could not be read: the store refused access" in err


def test_a_store_whose_package_is_missing() -> None:
    with pytest.raises(RequestError, match="gs: URLs need another package"):
        storage.read("gs://bucket/x")


def test_a_chain_of_filesystems_is_a_plain_key(s3: S3) -> None:
    root = s3.fresh()
    storage.write(storage.join(root, "a::file:") + "/etc/passwd", b"mine")
    assert [entry.path for entry in storage.walk(root)] == ["a::file:/etc/passwd"]
    assert storage.read(storage.join(root, "a::file:") + "/etc/passwd") == b"mine"


def test_forked_processes_read_and_leave_their_parent_alone(s3: S3) -> None:
    """A client of the parent that is collected in the child must not take the parent's connections along."""
    url = storage.join(s3.fresh(), "file")
    storage.write(url, b"data")
    code = f"""
import asyncio, gc, os, threading, time
import fsspec
from vitcore import storage
url = {url!r}
assert storage.read(url) == b"data"
async def collect():
    gc.collect()
for turn in range(3):
    if turn == 2:  # a thread that reads while the process is forked
        busy = threading.Thread(target=lambda: [storage.read(url) for _ in range(100)], daemon=True)
        busy.start()
    child = os.fork()
    if not child:
        gc.disable()
        assert storage.read(url) == b"data"
        asyncio.run_coroutine_threadsafe(collect(), fsspec.asyn.get_loop()).result()
        assert storage.read(url) == b"data"
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    began = time.monotonic()
    assert storage.read(url) == b"data"
    assert time.monotonic() - began < 5, "the parent waits for an answer that the child took away"
busy.join()
"""
    process = python(s3, code)
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, out + err


def test_a_lock_held_while_forking_does_not_stop_the_child(s3: S3) -> None:
    url = storage.join(s3.fresh(), "file")
    storage.write(url, b"data")
    code = f"""
import os
import fsspec
from vitcore import storage
fsspec.asyn.get_lock().acquire()  # as if another thread were about to start the event loop
child = os.fork()
if not child:
    os._exit(storage.read({url!r}) == b"data")
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
"""
    process = python(s3, code)
    try:
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0, out + err


def until(holds: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def said(error: BaseException) -> None:
    """An error is one sentence that shows no secret, and drags no error of the store's client along."""
    text = "".join(traceback.format_exception(error))
    assert "\n" not in str(error)
    assert SECRET not in text
    assert "botocore" not in text
    assert error.__cause__ is None
    assert error.__context__ is None
