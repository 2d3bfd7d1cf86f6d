"""Listing raw corpora: folders, splits, tables."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from vitcore.data.corpus import tables
from vitcore.data.corpus.listing import Corpus, class_order
from vitcore.data.corpus.sources import read_corpus
from vitcore.data.ingest_config import IngestConfig, TableConfig
from vitcore.errors import RequestError


def touch(root: Path, *paths: str) -> Path:
    for path in paths:
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(b"pixels")
    return root


def labels(corpus: Corpus) -> dict[str, str | None]:
    return dict(zip(column(corpus, "source"), column(corpus, "label"), strict=True))


def column(corpus: Corpus, name: str) -> list[Any]:
    return corpus.listing.column(name).to_pylist()


def reasons(corpus: Corpus) -> dict[str, str]:
    return {reject.source: reject.reason for reject in corpus.rejects}


def by(**table: Any) -> IngestConfig:
    return IngestConfig(table=TableConfig(**table))


def test_class_folders(tmp_path: Path) -> None:
    touch(tmp_path, "dog/b.jpg", "cat/a.jpg", "cat/deep/c d.PNG", "cat/é.webp", "dog/notes.txt", ".hidden/x.jpg")
    corpus = read_corpus(str(tmp_path))
    assert corpus.fields == ("image", "label")
    assert labels(corpus) == {"cat/a.jpg": "cat", "cat/deep/c d.PNG": "cat", "cat/é.webp": "cat", "dog/b.jpg": "dog"}
    assert column(corpus, "split") == [None] * 4
    status = (tmp_path / "dog" / "b.jpg").stat()
    assert column(corpus, "size")[-1] == status.st_size
    assert column(corpus, "stamp")[-1] == str(status.st_mtime_ns)


def test_split_folders(tmp_path: Path) -> None:
    touch(tmp_path, "train/cat/a.jpg", "train/dog/b.jpg", "valid/cat/c.jpg", "test/dog/d.jpg")
    corpus = read_corpus(str(tmp_path))
    assert labels(corpus)["valid/cat/c.jpg"] == "cat"
    assert column(corpus, "split") == ["test", "train", "train", "val"]


def test_unlabelled_folders(tmp_path: Path) -> None:
    flat = read_corpus(str(touch(tmp_path / "flat", "a.jpg", "b.jpg")))
    assert (flat.fields, len(flat)) == (("image",), 2)
    split = read_corpus(str(touch(tmp_path / "split", "train/a.jpg", "test/b.jpg")))
    assert split.fields == ("image",)
    assert column(split, "split") == ["test", "train"]


def test_a_folder_linked_into_itself_ends(tmp_path: Path) -> None:
    touch(tmp_path, "cat/a.jpg")
    (tmp_path / "cat" / "again").symlink_to(tmp_path, target_is_directory=True)
    assert column(read_corpus(str(tmp_path)), "source") == ["cat/a.jpg"]


def test_a_name_that_is_no_text_is_rejected(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b\udcff.jpg")
    corpus = read_corpus(str(tmp_path))
    assert column(corpus, "source") == ["a.jpg"]
    assert [reject.reason for reject in corpus.rejects] == ["its name is not UTF-8"]


@pytest.mark.parametrize(
    ("paths", "folder", "message"),
    [
        ([], None, "does not exist"),
        ([], "", "holds no images"),
        (["readme.txt"], "", "holds no images"),
        (["cat/a.jpg"], "dog", "class folder .*dog holds no images"),
        (["cat/a.jpg", "loose.jpg"], "", "loose.jpg is in none of them"),
    ],
)
def test_wrong_folders_get_one_sentence(tmp_path: Path, paths: list[str], folder: str | None, message: str) -> None:
    root = tmp_path / "corpus"
    if folder is not None:
        (root / folder).mkdir(parents=True)
    touch(root, *paths)
    with pytest.raises(RequestError, match=message):
        read_corpus(str(root))


def test_a_file_of_an_unknown_kind(tmp_path: Path) -> None:
    touch(tmp_path, "corpus.zip")
    with pytest.raises(RequestError, match="unknown kind"):
        read_corpus(str(tmp_path / "corpus.zip"))


def test_csv_keeps_labels_as_text_and_joins_captions(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text(
        "image,label,caption,split,group\n"
        'a.jpg,007,"one, two",train,p1\na.jpg,007,three,train,p1\nb.jpg,10,"four\nfive",validation,\nc.jpg,10,,,\n'
    )
    corpus = read_corpus(str(table))
    assert corpus.fields == ("image", "label", "captions")
    first, second = corpus.listing.to_pylist()
    assert first["captions"] == ["one, two", "three"]
    assert (first["split"], first["group"], first["label"]) == ("train", "p1", "007")
    assert (second["split"], second["group"], second["captions"]) == ("val", None, ["four\nfive"])
    assert first["url"] == str(tmp_path / "a.jpg")
    assert reasons(corpus) == {"c.jpg": "no caption"}


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "tsv"])
def test_other_tables_say_the_same(tmp_path: Path, kind: str) -> None:
    rows = [{"file": "a.jpg", "kind": 3, "words": ["x", " "]}, {"file": "/abs/b.jpg", "kind": 11, "words": ["y"]}]
    path = tmp_path / f"table.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows))
    else:
        path.write_text("file\tkind\twords\na.jpg\t3\tx\n/abs/b.jpg\t11\ty\n")
    corpus = read_corpus(str(path), by(image="file", label="kind", caption="words"))
    assert column(corpus, "label") == ["3", "11"]
    assert column(corpus, "captions") == [["x"], ["y"]]
    assert column(corpus, "url") == [str(tmp_path / "a.jpg"), "/abs/b.jpg"]
    first, second = column(corpus, "source")
    assert first == "a.jpg"
    assert second.endswith("/b.jpg"), "told apart from other b.jpg"
    assert "abs" not in second, "an absolute path is not kept"


def test_rows_that_disagree_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("image,label\na.jpg,cat\n./a.jpg,dog\nb.jpg,\nhttp://x/c.jpg,cat\npipe:cat x,cat\nd.jpg,cat\n")
    corpus = read_corpus(str(path))
    assert column(corpus, "source") == ["d.jpg"]
    assert reasons(corpus) == {
        "a.jpg": "its rows disagree about label, group or split",
        "b.jpg": "no label",
        "http://x/c.jpg": "its path is a URL outside the table's folder",
        "pipe:cat x": "its path is a URL outside the table's folder",
    }


@pytest.mark.parametrize(
    ("name", "text", "config", "message"),
    [
        ("t.csv", "path,label\na,b\n", IngestConfig(), "no column 'image'; it has: path, label"),
        ("t.csv", "image,label\na,b\n", by(label="class"), "no column 'class'"),
        ("t.csv", "", IngestConfig(), "cannot be read"),
        ("t.jsonl", "{\n", IngestConfig(), "cannot be read"),
        ("t.jsonl", "[1]\n", IngestConfig(), "cannot be read"),
        ("t.parquet", "no", IngestConfig(), "cannot be read"),
        ("t.csv", "image,split\na,../x\n", IngestConfig(), "names a split"),
        ("t.csv", "image,label\n", IngestConfig(), "holds no images"),
    ],
)
def test_wrong_tables_get_one_sentence(
    tmp_path: Path, name: str, text: str, config: IngestConfig, message: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(RequestError, match=message):
        read_corpus(str(tmp_path / name), config)


def test_a_remote_table_names_only_what_lies_below_it() -> None:
    store = MemoryFileSystem()
    store.pipe("/tables/t.csv", b"image\na.jpg\n../secret.jpg\n/etc/passwd\nmemory://tables/b.jpg\nx/../a.jpg\n")
    corpus = read_corpus("memory://tables/t.csv")
    assert column(corpus, "url") == ["memory://tables/a.jpg", "memory://tables/b.jpg"]
    assert column(corpus, "source") == ["a.jpg", "b.jpg"]
    assert {reject.reason for reject in corpus.rejects} == {"its path leaves the table's folder"}


def test_a_remote_folder() -> None:
    store = MemoryFileSystem()
    for name in ("cat/a.jpg", "dog/b.jpg", "dog/c.txt"):
        store.pipe(f"/animals/{name}", b"pixels")
    assert labels(read_corpus("memory://animals")) == {"cat/a.jpg": "cat", "dog/b.jpg": "dog"}


def test_folders_may_be_nested_at_will_without_labels(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "2024/b.jpg", "2024/may/c.jpg", "2025/.hidden/d.jpg")
    (tmp_path / "empty").mkdir()
    corpus = read_corpus(str(tmp_path), IngestConfig(labels="none"))
    assert corpus.fields == ("image",)
    assert column(corpus, "source") == ["2024/b.jpg", "2024/may/c.jpg", "a.jpg"]


def test_further_columns_are_kept_as_metadata(tmp_path: Path) -> None:
    path = tmp_path / "table.jsonl"
    rows = [
        {"image": "a.jpg", "label": "x", "when": "2024", "score": 0.5, "tags": ["p", None], "box": {"x": 1}},
        {"image": "b.jpg", "label": "y", "score": float("nan")},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    kept = column(read_corpus(str(path)), "extra")
    assert json.loads(kept[0]) == {"when": "2024", "score": 0.5, "tags": ["p", None], "box": {"x": 1}}
    assert kept[1] is None
    assert column(read_corpus(str(path), by(extra=("when",))), "extra") == ['{"when":"2024"}', None]
    assert column(read_corpus(str(path), by(extra=())), "extra") == [None, None]
    with pytest.raises(RequestError, match=r"no column 'who'.*--table.extra"):
        read_corpus(str(path), by(extra=("who",)))


def test_parquet_metadata_is_json_safe(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    columns = {
        "image": ["a.jpg"],
        "when": pa.array([0], pa.timestamp("s")),
        "price": pa.array(["1.50"]).cast(pa.decimal128(5, 2)),
        "raw": pa.array([b"x"], pa.binary()),
        "vector": [[0.5, 1.5]],
        "box": [[1, 2]],
    }
    pq.write_table(pa.table(columns), path)
    said = json.loads(column(read_corpus(str(path)), "extra")[0])
    assert said == {"when": "1970-01-01T00:00:00", "price": "1.50", "box": [1, 2]}, "no bytes, no embeddings"
    assert "vector" in json.loads(column(read_corpus(str(path), by(extra=("vector",))), "extra")[0])


def test_broken_captions_are_rejected_only_where_none_is_left(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    rows = [
        b"a.jpg,good",
        b"a.jpg,\xff\xfe",
        b"b.jpg,\xff\xfe",
        b"c.jpg, \x00\x07",
        b"d.jpg,NaN",
        b"e.jpg," + b"x" * 20_000,
    ]
    path.write_bytes(b"image,caption\n" + b"\n".join(rows) + "\nf.jpg,é\n".encode())
    corpus = read_corpus(str(path))
    assert dict(zip(column(corpus, "source"), column(corpus, "captions"), strict=True)) == {
        "a.jpg": ["good"],
        "f.jpg": ["é"],
    }
    assert reasons(corpus) == {
        "b.jpg": "its caption is not UTF-8",
        "c.jpg": "no caption",
        "d.jpg": "no caption",
        "e.jpg": "its caption has more than 16384 characters",
    }
    assert read_corpus(str(path), IngestConfig(captions="none")).fields == ("image",)


def test_json_lines_that_are_not_utf8_spoil_no_others(tmp_path: Path) -> None:
    path = tmp_path / "table.jsonl"
    path.write_bytes(
        b'{"image":"a.jpg","caption":"\xff"}\n{"image":"b.jpg","caption":"\\ud800"}\n{"image":"c.jpg","caption":"x"}'
    )
    corpus = read_corpus(str(path))
    assert column(corpus, "source") == ["c.jpg"]
    assert set(reasons(corpus).values()) == {"its caption is not UTF-8"}


def test_several_caption_columns(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    pq.write_table(pa.table({"image": ["a.jpg", "b.jpg"], "alt": ["x", None], "blip": [["y", "x"], ["z"]]}), path)
    corpus = read_corpus(str(path), by(caption=("alt", "blip")))
    assert column(corpus, "captions") == [["x", "y"], ["z"]]


def test_tables_know_their_files_by_size_and_time(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    (tmp_path / "t.csv").write_text("image\na.jpg\nb.jpg\n")
    corpus = read_corpus(str(tmp_path / "t.csv"))
    assert column(corpus, "size") == [6, None]
    assert column(corpus, "stamp") == [str((tmp_path / "a.jpg").stat().st_mtime_ns), None]


def test_remote_tables_know_their_files_by_one_listing(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryFileSystem()
    store.pipe("/many/t.csv", b"image\nx/a.jpg\nx/b.jpg\n")
    store.pipe("/many/x/a.jpg", b"pixels")
    assert column(read_corpus("memory://many/t.csv"), "size") == [None, None]
    monkeypatch.setattr(tables, "_FEW", 1)
    assert column(read_corpus("memory://many/t.csv"), "size") == [6, None]


def test_ten_thousand_files_are_listed_in_a_blink(tmp_path: Path) -> None:
    for label in range(20):
        (tmp_path / f"{label:02d}").mkdir()
        for number in range(500):
            os.close(os.open(tmp_path / f"{label:02d}" / f"{number}.jpg", os.O_CREAT))
    best = min(timed(lambda: read_corpus(str(tmp_path))) for _ in range(5))
    assert best < 0.5, "sixty thousand take half a second on an idle machine; this one may be busy"


def timed(function: Any) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def test_class_order() -> None:
    assert class_order(["10", "9", "10"]) == ("9", "10")
    assert class_order(["b", "10", "9"]) == ("10", "9", "b")
