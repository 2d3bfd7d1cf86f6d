"""Listing raw corpora: folders, splits, tables."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from vitcore.data.corpus import Corpus, class_order
from vitcore.data.ingest_config import TableConfig
from vitcore.data.sources import read_corpus
from vitcore.errors import RequestError


def touch(root: Path, *paths: str) -> Path:
    for path in paths:
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(b"pixels")
    return root


def labels(corpus: Corpus) -> dict[str, str | None]:
    return {item.source: item.label for item in corpus.items}


def test_class_folders(tmp_path: Path) -> None:
    touch(tmp_path, "dog/b.jpg", "cat/a.jpg", "cat/deep/c d.PNG", "cat/é.webp", "dog/notes.txt", ".hidden/x.jpg")
    corpus = read_corpus(str(tmp_path))
    assert corpus.fields == ("image", "label")
    assert corpus.classes == ("cat", "dog")
    assert labels(corpus) == {"cat/a.jpg": "cat", "cat/deep/c d.PNG": "cat", "cat/é.webp": "cat", "dog/b.jpg": "dog"}
    assert all(item.split is None for item in corpus.items)


def test_split_folders(tmp_path: Path) -> None:
    touch(tmp_path, "train/cat/a.jpg", "train/dog/b.jpg", "valid/cat/c.jpg", "test/dog/d.jpg")
    corpus = read_corpus(str(tmp_path))
    assert corpus.classes == ("cat", "dog")
    assert [item.split for item in corpus.items] == ["test", "train", "train", "val"]


def test_unlabelled_folders(tmp_path: Path) -> None:
    flat = read_corpus(str(touch(tmp_path / "flat", "a.jpg", "b.jpg")))
    assert (flat.fields, flat.classes, len(flat.items)) == (("image",), (), 2)
    split = read_corpus(str(touch(tmp_path / "split", "train/a.jpg", "test/b.jpg")))
    assert split.fields == ("image",)
    assert [item.split for item in split.items] == ["test", "train"]


def test_a_folder_linked_into_itself_ends(tmp_path: Path) -> None:
    touch(tmp_path, "cat/a.jpg")
    (tmp_path / "cat" / "again").symlink_to(tmp_path, target_is_directory=True)
    assert [item.source for item in read_corpus(str(tmp_path)).items] == ["cat/a.jpg"]


def test_a_name_that_is_no_text_is_rejected(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b\udcff.jpg")
    corpus = read_corpus(str(tmp_path))
    assert [item.source for item in corpus.items] == ["a.jpg"]
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
    assert corpus.classes == ("007", "10")
    first, second = corpus.items
    assert first.captions == ("one, two", "three")
    assert (first.split, first.group, first.label) == ("train", "p1", "007")
    assert (second.split, second.group, second.captions) == ("val", None, ("four\nfive",))
    assert first.url == str(tmp_path / "a.jpg")
    assert [(reject.source, reject.reason) for reject in corpus.rejects] == [("c.jpg", "no caption")]


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
    corpus = read_corpus(str(path), TableConfig(image="file", label="kind", caption="words"))
    assert corpus.classes == ("3", "11")
    assert [item.captions for item in corpus.items] == [("x",), ("y",)]
    assert [item.url for item in corpus.items] == [str(tmp_path / "a.jpg"), "/abs/b.jpg"]
    assert [item.source for item in corpus.items] == ["a.jpg", "b.jpg"], "an absolute path is not kept"


def test_rows_that_disagree_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("image,label\na.jpg,cat\na.jpg,dog\nb.jpg,\nhttp://x/c.jpg,cat\nd.jpg,cat\n")
    corpus = read_corpus(str(path))
    assert [item.source for item in corpus.items] == ["d.jpg"]
    assert {reject.source: reject.reason for reject in corpus.rejects} == {
        "a.jpg": "its rows disagree about label, group or split",
        "b.jpg": "no label",
        "http://x/c.jpg": "its path is a URL",
    }


@pytest.mark.parametrize(
    ("name", "text", "config", "message"),
    [
        ("t.csv", "path,label\na,b\n", TableConfig(), "no column 'image'; it has: path, label"),
        ("t.csv", "image,label\na,b\n", TableConfig(label="class"), "no column 'class'"),
        ("t.csv", "", TableConfig(), "cannot be read"),
        ("t.jsonl", "{\n", TableConfig(), "cannot be read"),
        ("t.jsonl", "[1]\n", TableConfig(), "cannot be read"),
        ("t.parquet", "no", TableConfig(), "cannot be read"),
        ("t.csv", "image,split\na,../x\n", TableConfig(), "names a split"),
        ("t.csv", "image,label\n", TableConfig(), "holds no images"),
    ],
)
def test_wrong_tables_get_one_sentence(tmp_path: Path, name: str, text: str, config: TableConfig, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(RequestError, match=message):
        read_corpus(str(tmp_path / name), config)


def test_a_remote_table_names_only_what_lies_below_it() -> None:
    store = MemoryFileSystem()
    store.pipe("/tables/t.csv", b"image\na.jpg\n../secret.jpg\n/etc/passwd\n")
    corpus = read_corpus("memory://tables/t.csv")
    assert [item.url for item in corpus.items] == ["memory://tables/a.jpg"]
    assert {reject.reason for reject in corpus.rejects} == {"its path leaves the table's folder"}


def test_a_remote_folder() -> None:
    store = MemoryFileSystem()
    for name in ("cat/a.jpg", "dog/b.jpg", "dog/c.txt"):
        store.pipe(f"/animals/{name}", b"pixels")
    assert labels(read_corpus("memory://animals")) == {"cat/a.jpg": "cat", "dog/b.jpg": "dog"}


def test_class_order() -> None:
    assert class_order(["10", "9", "10"]) == ("9", "10")
    assert class_order(["b", "10", "9"]) == ("10", "9", "b")
