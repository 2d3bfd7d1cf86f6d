"""Columns of a split, whole or shard by shard: the same answers, in bounded memory where a split is large."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from vitcore.data.dataset import index as index_module
from vitcore.data.dataset.index import SCHEMA, Index

SIZES = [3, 0, 4, 2]


def table(shard: int) -> pa.Table:
    first = sum(SIZES[:shard])
    rows = [
        {"key": f"k{n}", "offset": 512 * n, "size": 100 + n, "label": n % 3, "captions": [f"c{n}"] * (n % 2)}
        | {"hash": bytes([n]) * 32, "width": n, "height": n}
        for n in range(first, first + SIZES[shard])
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


class Files:
    def __init__(self) -> None:
        self.asked: list[tuple[int, tuple[str, ...]]] = []
        self.whole = 0

    def load(self, columns: Sequence[str]) -> pa.Table:
        self.whole += 1
        return pa.concat_tables([table(shard) for shard in range(len(SIZES))]).select(list(columns))

    def load_shard(self, shard: int, columns: Sequence[str]) -> pa.Table:
        self.asked.append((shard, tuple(columns)))
        return table(shard).select(list(columns))


@pytest.fixture(params=["by shard", "whole"])
def index(request: pytest.FixtureRequest) -> Index:
    files = Files()
    return Index(files.load, SIZES, files.load_shard if request.param == "by shard" else None)


def test_a_shard_says_what_the_columns_say(index: Index) -> None:
    assert len(index) == 9
    for sample in range(9):
        shard = index.find(sample)
        assert shard == index.shard_of[sample]
        rows = index.shard(shard)
        row = sample - rows.first
        assert (rows.offsets[row], rows.sizes[row]) == (index.offsets[sample], index.sizes[sample])
        assert rows.labels[row] == index.labels[sample] == index.label(sample) == sample % 3
        assert rows.hashes[row].tobytes() == index.hashes[sample].tobytes() == bytes([sample]) * 32
        assert index.key(sample) == index.keys[sample] == f"k{sample}"
        assert index.captions(sample) == (f"c{sample}",) * (sample % 2)
    assert len(index.shard(1).sizes) == 0


def test_nothing_is_read_before_it_is_asked_for_and_nothing_twice() -> None:
    files = Files()
    index = Index(files.load, SIZES, files.load_shard)
    assert not files.asked and not files.whole
    for _ in range(2):
        index.label(8), index.label(7), index.captions(8)
        assert [shard for shard, _ in files.asked] == [3, 3]
        assert not files.whole
    assert index.labels is index.labels and index.widths.tolist() == list(range(9))
    assert files.whole == 1


def test_a_large_split_keeps_the_shards_that_were_read_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "LARGE", 8)
    monkeypatch.setattr(index_module, "KEPT_BYTES", 6 * (8 + 8 + 8 + 32))
    files = Files()
    index = Index(files.load, SIZES, files.load_shard)
    for sample in (0, 7, 1, 8):
        index.label(sample)
    assert [shard for shard, _ in files.asked] == [0, 3]
    index.label(4)  # shards 2 and 3 fit, 0 does not any more
    index.label(8), index.label(0)
    assert [shard for shard, _ in files.asked] == [0, 3, 2, 0]
    assert list(index._shards._values) == list(index._shards._sizes) == [0]


def test_of_a_dataset(make_dataset: Callable[..., object], tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, [3, 2])
    index = dataset.index("train")  # type: ignore[attr-defined]
    assert np.concatenate([index.shard(s).sizes for s in (0, 1)]).tolist() == index.sizes.tolist()
    assert [index.label(sample) for sample in range(5)] == [0, 1, 2, 3, 4]
