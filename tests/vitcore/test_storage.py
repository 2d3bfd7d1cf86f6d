"""Files by URL, on a disk and in a store that is none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vitcore import storage
from vitcore.errors import RequestError


@pytest.fixture(params=["path", "file", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return {"path": str(tmp_path), "file": f"file://{tmp_path}", "memory": f"memory:/{tmp_path}"}[request.param]


def test_what_is_written_is_read(root: str) -> None:
    url = storage.join(root, "a", "b", "c.bin")
    assert not storage.exists(url)
    storage.write(url, b"0123456789")
    assert storage.exists(url)
    assert storage.exists(storage.join(root, "a"))
    assert storage.read(url) == b"0123456789"
    assert storage.size(url) == 10
    assert storage.read_range(url, 2, 5) == b"234"
    assert storage.read_range(url, 8, 99) == b"89"
    storage.write(url, b"new")
    assert storage.read(url) == b"new"


def test_a_missing_file_is_not_found(root: str) -> None:
    with pytest.raises(FileNotFoundError):
        storage.read(storage.join(root, "nothing"))
    assert storage.names(storage.join(root, "nothing")) == []


def test_names_below_a_folder_are_sorted_and_see_what_was_just_written(root: str) -> None:
    for name in ("b", "a", "c/d"):
        storage.write(storage.join(root, "folder", name), b"")
        storage.names(storage.join(root, "folder"))
    assert storage.names(storage.join(root, "folder")) == ["a", "b", "c"]
    assert storage.names(storage.join(root, "folder/")) == ["a", "b", "c"]


def test_remove_takes_files_folders_and_nothing(root: str) -> None:
    for name in ("folder/a", "folder/deep/b", "file"):
        storage.write(storage.join(root, name), b"x")
    storage.remove(storage.join(root, "folder"))
    storage.remove(storage.join(root, "nothing"))
    assert storage.names(root) == ["file"]
    storage.remove(storage.join(root, "file"))
    assert storage.names(root) == []


def test_removing_a_link_to_a_folder_leaves_the_folder(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    storage.remove(str(tmp_path / "link"))
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "a").exists()


def test_put_publishes_a_finished_file_and_takes_it_away(root: str, tmp_path: Path) -> None:
    local = tmp_path / "scratch.tar"
    local.write_bytes(b"data")
    storage.put(local, storage.join(root, "shards", "0.tar"))
    assert storage.read(storage.join(root, "shards", "0.tar")) == b"data"
    assert storage.names(storage.join(root, "shards")) == ["0.tar"]
    assert not local.exists()


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = str(tmp_path / "file")
    storage.write(url, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        storage.write(url, b"new")
    assert storage.names(str(tmp_path)) == ["file"]
    assert storage.read(url) == b"old"


def test_a_reader_never_sees_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = str(tmp_path / "file")
    storage.write(url, b"old")
    seen = []
    real = os.fsync

    def look(descriptor: int) -> None:
        seen.append(storage.read(url))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    storage.write(url, b"new" * 100_000)
    assert seen == [b"old", b"new" * 100_000], "once for the file, once for the folder that names it"


def test_sweeping_deletes_what_a_killed_writer_left_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = str(tmp_path / "file")
    with monkeypatch.context() as killed:
        killed.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        killed.setattr(Path, "unlink", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            storage.write(url, b"half")
    for name in (".hidden", "a.tmp", "b"):
        (tmp_path / name).write_bytes(b"x")
    assert len(storage.names(str(tmp_path))) == 4
    storage.sweep(str(tmp_path))
    assert storage.names(str(tmp_path)) == [".hidden", "a.tmp", "b"]
    storage.sweep(str(tmp_path / "nothing"))
    storage.sweep("memory://nothing")


@pytest.mark.parametrize("url", ["pipe:cat /etc/passwd", "ssh://host/x", "models:/name/3"])
def test_only_stores_are_read(url: str) -> None:
    with pytest.raises(RequestError, match="URLs are not read"):
        storage.read(url)


def test_a_password_in_a_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(RequestError, match="must not carry a password") as refused:
        storage.filesystem("s3://key:hunter2@bucket/x")
    assert "hunter2" not in str(refused.value)


def test_local_and_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert storage.absolute("a/b") == str(tmp_path / "a/b")
    assert storage.absolute("~/b") == str(tmp_path / "home/b")
    assert storage.absolute("s3://bucket/x/") == "s3://bucket/x"
    assert storage.is_local("file:///x")
    assert not storage.is_local("S3://bucket")
    assert storage.local_path("file:///x/y") == Path("/x/y")
    with pytest.raises(RequestError, match="not a local path"):
        storage.local_path("s3://bucket/x")


def test_joining() -> None:
    assert storage.join("s3://bucket/data/", "train", "0.tar") == "s3://bucket/data/train/0.tar"
    assert storage.join("/data", "s3://other/0.tar") == "s3://other/0.tar"
    assert storage.join("s3://bucket", "/data/0.tar") == "/data/0.tar"
