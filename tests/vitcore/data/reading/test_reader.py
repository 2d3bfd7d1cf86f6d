"""Bytes of samples, local and remote, and what is said of those that are not there."""

from __future__ import annotations

import errno
import hashlib
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest

from vitcore import storage
from vitcore.data.dataset.index import decode, encode
from vitcore.data.dataset.manifest import Dataset
from vitcore.data.reading import reader as reader_module
from vitcore.data.reading.decode import BadSampleError
from vitcore.data.reading.reader import Reader
from vitcore.errors import WorkError


def digests(reader: Reader) -> list[bytes]:
    return [hashlib.sha256(reader.read(sample)).digest() for sample in range(len(reader.index))]


@pytest.fixture
def remote(make_dataset: Callable[..., Dataset], tmp_path: Path) -> Iterator[Dataset]:
    make_dataset(tmp_path, [5, 2])
    store = fsspec.filesystem("memory")
    store.put(f"{tmp_path}/", "/reader", recursive=True)
    yield Dataset.open("memory://reader")
    store.rm("/reader", recursive=True)


def test_every_sample_is_what_was_indexed_with_few_files_open(uneven: Dataset) -> None:
    with Reader(uneven, "train", open_files=2) as reader:
        expected = [row.tobytes() for row in reader.index.hashes]
        assert digests(reader) == expected
        assert len(reader._places) == 2


def test_threads_share_a_reader_that_keeps_one_file_open(uneven: Dataset) -> None:
    wrong: list[int] = []
    with warnings.catch_warnings(), Reader(uneven, "train", open_files=1) as reader:
        warnings.simplefilter("error")
        expected = [row.tobytes() for row in reader.index.hashes]

        def work(first: int) -> None:
            for sample in range(first, 203, 4):
                pair = (sample, 202 - sample)
                wrong.extend(n for n in pair if hashlib.sha256(reader.read(n)).digest() != expected[n])

        threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_a_shard_that_is_gone_or_cut_short_gives_bad_samples(
    make_dataset: Callable[..., Dataset], tmp_path: Path
) -> None:
    dataset = make_dataset(tmp_path, [4, 4, 4])
    (tmp_path / "train" / "00000.tar").unlink()
    cut = tmp_path / "train" / "00001.tar"
    index = dataset.index("train")
    cut.write_bytes(cut.read_bytes()[: int(index.offsets[6]) + 10])
    with Reader(dataset, "train") as reader:
        with pytest.raises(BadSampleError, match="missing"):
            reader.read(0)
        assert len(reader.read(5)) == index.sizes[5]
        with pytest.raises(BadSampleError, match="ends before"):
            reader.read(6)
        with pytest.raises(BadSampleError, match="ends before"):
            reader.read(7)
        assert len(reader.read(8)) == index.sizes[8]


def test_remote_shards_are_read_by_range(remote: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    real = storage.read_range

    def read_range(url: str, start: int, stop: int) -> bytes:
        asked.append(stop - start)
        return real(url, start, stop)

    monkeypatch.setattr(storage, "read_range", read_range)
    with Reader(remote, "train") as reader:
        assert digests(reader) == [row.tobytes() for row in reader.index.hashes]
        assert asked == reader.index.sizes.tolist()


def test_remote_bytes_are_verified(remote: Dataset) -> None:
    store = fsspec.filesystem("memory")
    path = "/reader/train/00000.tar"
    index = remote.index("train")
    data = bytearray(store.cat_file(path))
    data[int(index.offsets[3]) + 30] ^= 1
    store.pipe_file(path, bytes(data))
    with Reader(remote, "train") as reader:
        reader.read(2)
        with pytest.raises(BadSampleError, match="not those that were indexed"):
            reader.read(3)


def test_a_store_that_is_down_fails_the_work(remote: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(url: str, start: int, stop: int) -> bytes:
        raise OSError("503")

    with Reader(remote, "train") as reader:
        monkeypatch.setattr(storage, "read_range", refuse)
        with pytest.raises(WorkError, match=r"00000\.tar could not be fetched: 503"):
            reader.read(0)


def test_a_store_that_ignores_ranges_is_named(remote: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "read_range", lambda url, start, stop: storage.read(url))
    with Reader(remote, "train") as reader, pytest.raises(WorkError, match="whole files"):
        reader.read(0)


@pytest.mark.parametrize("complains", [False, True])
def test_a_remote_shard_that_was_cut_short_gives_bad_samples(
    remote: Dataset, monkeypatch: pytest.MonkeyPatch, complains: bool
) -> None:
    """Some stores answer a range beyond the end with fewer bytes, some with an error."""
    store, path, index = fsspec.filesystem("memory"), "/reader/train/00000.tar", remote.index("train")
    store.pipe_file(path, store.cat_file(path)[: int(index.offsets[3]) + 10])
    real = storage.read_range

    def read_range(url: str, start: int, stop: int) -> bytes:
        if complains and start >= storage.size(url):
            raise OSError(errno.EINVAL, "InvalidRange")
        return real(url, start, stop)

    monkeypatch.setattr(storage, "read_range", read_range)
    with Reader(remote, "train") as reader:
        assert len(reader.read(2)) == index.sizes[2]
        for sample in (3, 4):
            with pytest.raises(BadSampleError, match="ends before"):
                reader.read(sample)
        assert [len(data) for _, data in reader.scan()] == [*index.sizes[:3], 0, 0, *index.sizes[5:]]


def test_local_bytes_are_verified_where_that_is_asked_for(make_dataset: Callable[..., Dataset], tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, [4])
    shard = tmp_path / "train" / "00000.tar"
    data = bytearray(shard.read_bytes())
    data[int(dataset.index("train").offsets[2]) + 30] ^= 1
    shard.write_bytes(data)
    with Reader(dataset, "train") as trusting, Reader(dataset, "train", verify="all") as strict:
        assert trusting.read(2) and strict.read(1)
        with pytest.raises(BadSampleError, match="not those that were indexed"):
            strict.read(2)
        assert [bool(data) for _, data in trusting.scan()] == [True] * 4
        assert [bool(data) for _, data in strict.scan()] == [True, True, False, True]


def test_an_index_that_lies_about_places_gives_bad_samples(
    make_dataset: Callable[..., Dataset], tmp_path: Path
) -> None:
    dataset = make_dataset(tmp_path, [4])
    path = tmp_path / "train" / "00000.index.parquet"
    table = decode(path.read_bytes())
    sizes = pa.array([1 << 60, -5, 100, 100])
    path.write_bytes(encode(table.set_column(2, "size", sizes)))
    with Reader(dataset, "train") as reader:
        for sample in (0, 1):
            with pytest.raises(BadSampleError, match="shorter than the index says"):
                reader.read(sample)
        assert len(reader.read(2)) == 100
        assert [len(data) for _, data in reader.scan()][:2] == [0, 0]


@pytest.mark.parametrize("place", ["local", "remote"])
def test_a_scan_gives_what_reading_gives(
    uneven: Dataset, remote: Dataset, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setattr(reader_module, "_SCAN", 4000)
    with Reader(uneven if place == "local" else remote, "train") as reader:
        expected = list(enumerate(reader.read(sample) for sample in range(len(reader.index))))
        assert list(reader.scan()) == expected
        assert list(reader.scan(2, 6)) == expected[2:6]
        assert list(reader.scan(6, 6)) == []


def test_a_scan_passes_over_a_shard_that_is_gone(make_dataset: Callable[..., Dataset], tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, [2, 3, 2])
    (tmp_path / "train" / "00001.tar").unlink()
    with Reader(dataset, "train") as reader:
        assert [(row, bool(data)) for row, data in reader.scan()] == [(row, row not in (2, 3, 4)) for row in range(7)]


def test_a_remote_shard_that_is_gone_gives_bad_samples_at_once(remote: Dataset) -> None:
    fsspec.filesystem("memory").rm("/reader/train/00001.tar")
    with Reader(remote, "train") as reader, pytest.raises(BadSampleError, match="missing"):
        reader.read(6)


def test_a_dataset_that_moved_is_read_where_it_is(make_dataset: Callable[..., Dataset], tmp_path: Path) -> None:
    make_dataset(tmp_path / "here", [3])
    shutil.move(tmp_path / "here", tmp_path / "there")
    with Reader(Dataset.open(str(tmp_path / "there")), "train") as reader:
        assert digests(reader) == [row.tobytes() for row in reader.index.hashes]
