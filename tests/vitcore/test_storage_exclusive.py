"""Replacing a file that others replace at the same time: on a disk, by conditional puts, under a lease."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.s3 import S3
from vitcore import storage
from vitcore.errors import WorkError
from vitcore.storage import conditions, exclusive, lease, retry
from vitcore.storage.s3 import Place

WRITERS, TURNS = 8, 20

# Each writer adds one to the number in the file, time and again until nobody else was first.
COUNT = """
import os
from vitcore import storage
from vitcore.storage import exclusive

def count(url, replace, writers, turns):
    if storage.scheme(url) == "s3":
        exclusive.are_honoured(url)  # once, and all children know
    children = []
    for _ in range(writers):
        child = os.fork()
        if not child:
            status = 1
            try:
                for _ in range(turns):
                    done = False
                    while not done:
                        tag = storage.tag(url)
                        done = replace(url, str(int(storage.read(url)) + 1).encode(), tag)
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    for child in children:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


def count_up(url: str, way: str, writers: int = WRITERS, turns: int = TURNS, **environ: str) -> None:
    storage.write(url, b"0")
    code = f"{COUNT}\ncount({url!r}, exclusive.{way}, {writers}, {turns})"
    process = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environ}, capture_output=True, text=True, timeout=200
    )
    assert process.returncode == 0, process.stderr
    assert storage.read(url) == str(writers * turns).encode()


@pytest.fixture(params=["path", "memory", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        server: S3 = request.getfixturevalue("s3")
        return server.fresh()
    return str(tmp_path) if request.param == "path" else f"memory:/{tmp_path}"


def test_only_the_file_that_was_seen_is_replaced(root: str) -> None:
    url = storage.join(root, "folder", "pointer")
    assert storage.tag(url) is None
    assert not storage.replace(url, b"x", "wrong")
    assert not storage.exists(url)
    assert storage.replace(url, b"one", None)
    assert not storage.replace(url, b"two", None)
    first = storage.tag(url)
    assert first is not None
    assert storage.replace(url, b"two", first)
    assert not storage.replace(url, b"three", first)
    assert not storage.replace(url, b"three", "wrong")
    assert storage.read(url) == b"two"
    assert storage.tag(url) not in (None, first)
    storage.write(url, b"one")
    assert storage.tag(url) == first, "a tag is the content's"
    assert [entry.path for entry in storage.walk(root)] == ["folder/pointer"], "no lock, claim or probe remains"
    storage.remove(url)
    assert not storage.replace(url, b"three", first)
    assert storage.replace(url, b"three", None)


def test_no_update_of_a_local_file_is_lost(tmp_path: Path) -> None:
    count_up(str(tmp_path / "counter"), "replace")
    assert os.listdir(tmp_path) == ["counter"]  # noqa: PTH208 hidden files too


def test_no_update_is_lost_by_conditional_puts(s3: S3) -> None:
    url = storage.join(s3.fresh(), "counter")
    assert conditions.are_honoured(url)
    count_up(url, "replace")


def test_no_update_is_lost_or_made_twice_where_a_tenth_of_the_requests_fail(flaky_s3: S3) -> None:
    count_up(storage.join(flaky_s3.fresh(), "counter"), "replace_conditionally", turns=10)


def test_no_update_is_lost_under_leases(s3: S3) -> None:
    root = s3.fresh()
    count_up(storage.join(root, "counter"), "replace_under_lease", turns=10)
    assert [entry.path for entry in storage.walk(root)] == ["counter"]


def test_leases_hold_where_a_tenth_of_the_requests_fail(flaky_s3: S3) -> None:
    count_up(storage.join(flaky_s3.fresh(), "counter"), "replace_under_lease", writers=3, turns=5)


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    url = str(tmp_path / "file")
    code = f"""
import os
from pathlib import Path
from vitcore.storage import exclusive
with exclusive._locked(Path({url!r})):
    os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert storage.replace(url, b"x", None)
    assert os.listdir(tmp_path) == ["file"]  # noqa: PTH208 hidden files too


def test_the_probe_leaves_nothing_and_stands_a_stumbling_store(flaky_s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditions, "_found", {})
    root = flaky_s3.fresh()
    assert conditions.are_honoured(storage.join(root, "x"))
    assert list(storage.walk(root)) == []
    before = dict(flaky_s3.requests.requests)
    assert conditions.are_honoured(storage.join(root, "y"))
    assert flaky_s3.requests.requests["PUT"] == before["PUT"], "asked once a process"


@pytest.mark.parametrize("fault", ["ignores", "checks before", "does not know"])
def test_a_store_without_true_conditions_is_found_out(s3: S3, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    def put(place: Place, data: bytes, metadata: dict[str, str], expected: str | None) -> bool:
        if fault == "does not know":
            error = OSError(22, "not implemented")
            error.response = {"ResponseMetadata": {"HTTPStatusCode": 501}}  # type: ignore[attr-defined]
            raise error
        if fault == "checks before":
            head = place.head()
            if (head.etag if head else None) != expected:
                return False
            time.sleep(0.05)
        place.fs.call_s3("put_object", Bucket=place.bucket, Key=place.key, Body=data)
        return True

    monkeypatch.setattr(conditions, "_found", {})
    monkeypatch.setattr(Place, "put", put)
    url = storage.join(s3.fresh(), "file")
    assert not conditions.are_honoured(url)
    assert storage.replace(url, b"x", None), "under a lease then"
    assert storage.read(url) == b"x"


@pytest.mark.parametrize("overtaken", [False, True])
def test_a_put_whose_answer_was_lost_counts_once(s3: S3, monkeypatch: pytest.MonkeyPatch, overtaken: bool) -> None:
    url = storage.join(s3.fresh(), "file")
    assert storage.replace(url, b"one", None)
    tag = storage.tag(url)
    real, lost = Place.put, []

    def put(place: Place, data: bytes, metadata: dict[str, str], expected: str | None) -> bool:
        won = real(place, data, metadata, expected)
        if not lost:
            lost.append(won)
            if overtaken:
                assert storage.replace(url, b"three", storage.tag(url))
            raise ConnectionResetError("reset")
        return won

    monkeypatch.setattr(Place, "put", put)
    monkeypatch.setattr(retry, "_FIRST_PAUSE", 0.0)
    assert storage.replace(url, b"two", tag)
    assert lost == [True]
    assert storage.read(url) == (b"three" if overtaken else b"two")


def test_the_claim_of_a_killed_process_is_dead_after_its_life(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "_LIFE", 2.0)
    root = s3.fresh()
    storage.write(storage.join(root, "file.claims", "0"), b"killed")
    began = time.monotonic()
    assert exclusive.replace_under_lease(storage.join(root, "file"), b"x", None)
    assert time.monotonic() - began > 2.0
    assert [entry.path for entry in storage.walk(root)] == ["file"]


def test_a_lease_that_others_hold_is_waited_for_so_long(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "_WAIT", 0.5)
    root = s3.fresh()
    storage.write(storage.join(root, "file.claims", "0"), b"alive")
    with pytest.raises(WorkError, match=r"was held by others .* see s3://bucket/.*/file.claims"):
        exclusive.replace_under_lease(storage.join(root, "file"), b"x", None)
    assert [entry.path for entry in storage.walk(root)] == ["file.claims/0"]


@pytest.mark.parametrize("how", ["deleted", "too old"])
def test_who_lost_its_claim_writes_nothing(s3: S3, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    root = s3.fresh()
    real = storage.tag

    def slow(url: str) -> Any:
        if how == "deleted":
            storage.remove(url + ".claims")
        else:
            monkeypatch.setattr(lease, "_LIFE", 0.0)
        return real(url)

    monkeypatch.setattr(exclusive, "tag", slow)
    with pytest.raises(WorkError, match="lost its claim"):
        exclusive.replace_under_lease(storage.join(root, "file"), b"x", None)
    assert list(storage.walk(root)) == []
