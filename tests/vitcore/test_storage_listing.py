"""Listing folders: what is in them, what is left out, and names that are hard."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vitcore import storage


def paths(url: object) -> list[str]:
    return [entry.path for entry in storage.walk(str(url))]


@pytest.mark.parametrize("kind", ["path", "file", "memory"])
def test_files_at_any_depth_with_size_and_stamp(tmp_path: Path, kind: str) -> None:
    root = {"path": str(tmp_path), "file": f"file://{tmp_path}", "memory": f"memory:/{tmp_path}"}[kind]
    for name in ("b/c/x.jpg", "a.jpg", ".hidden", ".git/x", "b/.x", "b/z.jpg"):
        storage.write(storage.join(root, name), name.encode())
    found = {entry.path: entry for entry in storage.walk(root)}
    assert sorted(found) == ["a.jpg", "b/c/x.jpg", "b/z.jpg"]
    assert all(entry.size == len(path) and entry.stamp and entry.utf8 for path, entry in found.items())
    assert storage.entry(storage.join(root, "a.jpg")) == found["a.jpg"]._replace(path="")
    time.sleep(0.01)
    storage.write(storage.join(root, "a.jpg"), b"A.jpg")
    again = {entry.path: entry for entry in storage.walk(root + "/")}
    assert again.pop("a.jpg") != found.pop("a.jpg")
    assert again == found
    assert sorted(storage.folders(root)) == ([] if kind == "memory" else ["b", "b/c"])


def test_empty_folders_are_told(tmp_path: Path) -> None:
    (tmp_path / "cat" / "deep").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "dög").mkdir()
    assert list(storage.folders(str(tmp_path))) == ["cat", "dög", "cat/deep"]
    assert paths(tmp_path) == []


def test_links_are_followed_but_not_into_themselves(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    (root / "a" / "x").write_bytes(b"123")
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "self").symlink_to(root / "a")
    (root / "twin").symlink_to(root / "a")
    (root / "y").symlink_to(root / "a" / "x")
    (root / "lost").symlink_to(root / "nothing")
    (tmp_path / "link").symlink_to(root)
    for start in (root, tmp_path / "link"):
        found = {entry.path: entry.size for entry in storage.walk(str(start))}
        assert found == {"lost": 0, "y": 3, "a/x": 3, "twin/x": 3}
    assert list(storage.folders(str(root))) == ["a", "twin", "a/self", "a/up", "twin/self", "twin/up"]


def test_what_is_no_file_is_left_out(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        (tmp_path / "x").write_bytes(b"")
        assert paths(tmp_path) == ["x"]


def test_names_that_are_not_utf8_are_shown_and_flagged(tmp_path: Path) -> None:
    folder = os.path.join(os.fsencode(tmp_path), b"caf\xe9")  # noqa: PTH118 bytes
    os.mkdir(folder)  # noqa: PTH102
    Path(os.fsdecode(folder), "x.jpg").write_bytes(b"1")
    Path(tmp_path, "é.jpg").write_bytes(b"1")
    found = list(storage.walk(str(tmp_path)))
    assert [(entry.path, entry.utf8) for entry in found] == [("é.jpg", True), ("caf\\udce9/x.jpg", False)]
    assert list(storage.folders(str(tmp_path))) == ["caf\\udce9"]
    "".join(entry.path for entry in found).encode()


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        paths(tmp_path / "nothing")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotADirectoryError):
        paths(tmp_path / "file")
    assert paths("memory://nothing-at-all") == []


def test_listing_is_lazy_and_costs_little_more_than_the_system_asks(tmp_path: Path) -> None:
    for folder in range(10):
        (tmp_path / str(folder)).mkdir()
        for number in range(200):
            (tmp_path / str(folder) / f"{number}.jpg").touch()
    assert next(storage.walk(str(tmp_path))).path == "0/0.jpg"

    def bare() -> int:
        return sum(len([file.stat() for file in os.scandir(folder)]) for folder in os.scandir(tmp_path))

    def seconds(listing: Callable[[], int]) -> float:
        began = time.process_time()
        assert listing() == 2000
        return time.process_time() - began

    measured = [(seconds(bare), seconds(lambda: len(paths(tmp_path)))) for _ in range(9)]
    assert min(ours for _, ours in measured) < 4 * min(theirs for theirs, _ in measured)


def test_a_stream_reads_from_anywhere(tmp_path: Path) -> None:
    for root in (str(tmp_path), f"memory:/{tmp_path}"):
        url = storage.join(root, "file")
        storage.write(url, bytes(range(256)))
        with storage.stream(url, piece=16) as file:
            assert file.read(3) == b"\0\1\2"
            file.seek(250)
            assert file.read() == bytes(range(250, 256))
            assert file.read() == b""
            file.seek(-1, os.SEEK_END)
            assert file.read(9) == b"\xff"
        with pytest.raises(FileNotFoundError):
            storage.stream(url + "-")
