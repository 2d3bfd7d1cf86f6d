"""Corpora that Hugging Face's datasets wrote, read without it."""

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tests.vitcore.data.tars import picture
from vitcore.data.corpus import huggingface, places, spool
from vitcore.data.corpus.listing import Corpus
from vitcore.data.corpus.places import Place, fetch
from vitcore.data.corpus.sources import read_corpus
from vitcore.data.ingest_config import IngestConfig, TableConfig
from vitcore.errors import RequestError, WorkError

FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=["cat", "dog"]),
        "captions": datasets.List(datasets.Value("string")),
        "score": datasets.Value("float64"),
        "vector": datasets.List(datasets.Value("float32")),
    }
)


@pytest.fixture(autouse=True)
def quiet() -> None:
    datasets.disable_progress_bars()


def dataset(numbers: range, **columns: list[Any]) -> datasets.Dataset:
    rows = {
        "image": [{"bytes": picture(n), "path": f"{n}.jpg"} for n in numbers],
        "label": [n % 2 for n in numbers],
        "captions": [[f"words of {n}", " "] for n in numbers],
        "score": [n / 2 for n in numbers],
        "vector": [[0.5] * 4 for _ in numbers],
    }
    return datasets.Dataset.from_dict(rows | columns, features=FEATURES)


def photographs(corpus: Corpus) -> list[bytes]:
    columns = [corpus.listing.column(name).to_pylist() for name in ("url", "start", "stop", "column")]
    return [fetch(Place(*row)) for row in zip(*columns, strict=True)]


def column(corpus: Corpus, name: str) -> list[Any]:
    return corpus.listing.column(name).to_pylist()


def test_a_saved_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface, "_ROWS", 3)
    dataset(range(7)).save_to_disk(str(tmp_path / "saved"), num_shards=2)
    corpus = read_corpus(str(tmp_path / "saved"))
    assert corpus.fields == ("image", "label", "captions")
    assert photographs(corpus) == [picture(n) for n in range(7)]
    assert column(corpus, "label") == ["cat", "dog", "cat", "dog", "cat", "dog", "cat"]
    assert column(corpus, "captions") == [[f"words of {n}"] for n in range(7)]
    assert [json.loads(extra) for extra in column(corpus, "extra")] == [{"score": n / 2} for n in range(7)]
    assert column(corpus, "source")[0] == "data-00000-of-00002.arrow/0"
    assert len(set(column(corpus, "source"))) == 7
    assert column(corpus, "size") == [len(picture(n)) for n in range(7)]
    assert None not in column(corpus, "stamp")


def test_a_saved_dict_gives_the_splits(tmp_path: Path) -> None:
    parts = {"train": dataset(range(4)), "validation": dataset(range(4, 6)), "extra": dataset(range(6, 7))}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    corpus = read_corpus(str(tmp_path / "saved"))
    assert column(corpus, "split") == ["train"] * 4 + ["val"] * 2 + ["extra"]
    assert photographs(corpus) == [picture(n) for n in range(7)]


def test_images_that_are_named_and_not_held(tmp_path: Path) -> None:
    (tmp_path / "one.jpg").write_bytes(picture(1))
    images = [
        {"bytes": None, "path": str(tmp_path / "one.jpg")},
        {"bytes": None, "path": "gone.jpg"},
        {"bytes": None, "path": "pipe:cat /etc/passwd"},
        None,
        {"bytes": picture(4), "path": None},
    ]
    root = tmp_path / "saved"
    dataset(range(5)).save_to_disk(str(root))
    with pa.OSFile(str(root / "data-00000-of-00001.arrow"), "rb") as file:
        table = pa.ipc.open_stream(file).read_all()
    place = table.schema.get_field_index("image")
    table = table.set_column(place, table.schema.field(place), pa.array(images, table.schema.field(place).type))
    with pa.ipc.new_stream(str(root / "data-00000-of-00001.arrow"), table.schema) as sink:
        sink.write_table(table)
    corpus = read_corpus(str(root))
    assert photographs(corpus) == [picture(1), picture(4)]
    assert [reject.reason for reject in corpus.rejects] == [
        "no such file",
        "its bytes are not in the dataset",
        "no image",
    ]


def test_labels_and_captions_that_say_nothing(tmp_path: Path) -> None:
    dataset(range(3), label=[-1, 0, 1], captions=[["a"], [], ["b"]]).save_to_disk(str(tmp_path / "saved"))
    corpus = read_corpus(str(tmp_path / "saved"))
    assert column(corpus, "label") == ["dog"]
    assert [reject.reason for reject in corpus.rejects] == ["no label", "no caption"]
    assert len(read_corpus(str(tmp_path / "saved"), IngestConfig(labels="none", captions="none"))) == 3


def test_columns_of_other_names(tmp_path: Path) -> None:
    renamed = {"image": "img", "label": "fine", "captions": "said"}
    dataset(range(3)).rename_columns(renamed).save_to_disk(str(tmp_path / "saved"))
    corpus = read_corpus(str(tmp_path / "saved"), IngestConfig(table=TableConfig(caption="said", extra=())))
    assert corpus.fields == ("image", "label", "captions"), "the one image and the one class are found by their kind"
    assert column(corpus, "extra") == [None] * 3
    with pytest.raises(RequestError, match=r"'score'.* holds no images.*img"):
        read_corpus(str(tmp_path / "saved"), IngestConfig(table=TableConfig(image="score")))


def test_a_snapshot_of_parquet_files(tmp_path: Path) -> None:
    (tmp_path / "repo" / "data").mkdir(parents=True)
    (tmp_path / "repo" / "README.md").write_text("words")
    for part in range(2):
        path = tmp_path / "repo" / "data" / f"train-{part:05d}-of-00002.parquet"
        dataset(range(3 * part, 3 * part + 3)).to_parquet(str(path))
    dataset(range(6, 8)).to_parquet(str(tmp_path / "repo" / "data" / "test-00000-of-00001.parquet"))
    config = IngestConfig(scratch=str(tmp_path / "scratch"))
    corpus = read_corpus(str(tmp_path / "repo"), config)
    assert column(corpus, "split") == ["test"] * 2 + ["train"] * 6
    assert photographs(corpus) == [picture(n) for n in (6, 7, 0, 1, 2, 3, 4, 5)]
    assert column(corpus, "label")[:2] == ["cat", "dog"]
    spooled = {path: path.stat().st_mtime_ns for path in (tmp_path / "scratch").iterdir()}
    assert len(spooled) == 3
    read_corpus(str(tmp_path / "repo"), config)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "scratch").iterdir()} == spooled, "spooled once"
    one = read_corpus(str(tmp_path / "repo" / "data" / "train-00001-of-00002.parquet"), config)
    assert photographs(one) == [picture(n) for n in (3, 4, 5)]
    assert column(one, "split") == ["train"] * 3
    assert len(list((tmp_path / "repo" / "data").iterdir())) == 3


def test_plain_parquet_with_bytes(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1, 2], "image": [picture(0), picture(1)]}), tmp_path / "table.parquet")
    corpus = read_corpus(str(tmp_path / "table.parquet"), IngestConfig(scratch=str(tmp_path / "scratch")))
    assert photographs(corpus) == [picture(0), picture(1)]
    assert column(corpus, "extra") == ['{"id":1}', '{"id":2}']


def test_a_store_is_spooled(tmp_path: Path) -> None:
    dataset(range(3)).save_to_disk(str(tmp_path / "saved"))
    dataset(range(3)).to_parquet(str(tmp_path / "t.parquet"))
    store = MemoryFileSystem()
    for path in (tmp_path / "saved").iterdir():
        store.pipe(f"/hub/{path.name}", path.read_bytes())
    store.pipe("/rows/train.parquet", (tmp_path / "t.parquet").read_bytes())
    config = IngestConfig(scratch=str(tmp_path / "scratch"))
    for source in ("memory://hub", "memory://rows", "memory://rows/train.parquet"):
        assert photographs(read_corpus(source, config)) == [picture(n) for n in range(3)]


def test_what_is_damaged_gets_one_sentence(tmp_path: Path) -> None:
    root = tmp_path / "saved"
    dataset(range(3)).save_to_disk(str(root))
    state = json.loads((root / "state.json").read_text())
    for name, message in (("../other.arrow", "does not list Arrow files"), ("gone.arrow", "has lost its file")):
        (root / "state.json").write_text(json.dumps(state | {"_data_files": [{"filename": name}]}))
        with pytest.raises(RequestError, match=message):
            read_corpus(str(root))
    (root / "state.json").write_text("{")
    with pytest.raises(RequestError, match="cannot be read"):
        read_corpus(str(root))
    (root / "state.json").write_text(json.dumps(state))
    (root / "data-00000-of-00001.arrow").write_bytes(b"rubbish" * 100)
    with pytest.raises(RequestError, match="no Arrow file"):
        read_corpus(str(root))
    (tmp_path / "t.parquet").write_bytes(b"rubbish" * 100)
    with pytest.raises(RequestError, match="cannot be read"):
        read_corpus(str(tmp_path / "t.parquet"))


def test_a_cut_arrow_file(tmp_path: Path) -> None:
    root = tmp_path / "saved"
    dataset(range(40)).save_to_disk(str(root))
    path = root / "data-00000-of-00001.arrow"
    path.write_bytes(path.read_bytes()[:-20_000])
    with pytest.raises(RequestError, match="no Arrow file"):
        read_corpus(str(root))


def test_a_spool_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset(range(3)).to_parquet(str(tmp_path / "train.parquet"))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(spool, "_convert", full)
    with pytest.raises(WorkError, match="No space left on device; name a roomier --scratch"):
        read_corpus(str(tmp_path / "train.parquet"), IngestConfig(scratch=str(tmp_path / "scratch")))
    assert not list((tmp_path / "scratch").iterdir())


def test_nothing_here_needs_datasets() -> None:
    for module in (huggingface, places, spool):
        assert "import datasets" not in Path(module.__file__ or "").read_text()
