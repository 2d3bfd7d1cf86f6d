"""A dataset that changes night after night: what is new is written, what is said otherwise edited, the rest stays."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitcore.data.corpus.places import Place
from vitcore.data.dataset.edit import edit
from vitcore.data.dataset.manifest import Dataset, versions
from vitcore.data.dataset.rows import Rows
from vitcore.data.ingest import examine, shards
from vitcore.data.ingest.ingest import finish, ingest, plan
from vitcore.data.ingest.mode import Mode
from vitcore.data.ingest.parallel import threads
from vitcore.data.ingest_config import IngestConfig, SplitFractions
from vitcore.data.reading.reader import Reader
from vitcore.errors import RequestError, WorkError

CONFIG = IngestConfig(shard_mb=0.02, splits=SplitFractions(train=0.6, val=0.2, test=0.2))


def save(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    Image.fromarray(coarse).resize((40, 32), Image.Resampling.BICUBIC).save(path, quality=95)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    for number, name in enumerate(("bee", "dog")):
        for item in range(20):
            save(tmp_path / "raw" / name / f"{item}.jpg", 100 * number + item)
    return tmp_path / "raw"


def labels(dataset: Dataset) -> dict[str, str]:
    """Source → class, over all splits; the bytes of every sample are read, and must be the indexed ones."""
    found = {}
    for split in dataset.manifest.splits:
        index = dataset.index(split)
        with Reader(dataset, split, index=index) as reader:
            for row in range(len(index)):
                reader.read(row)
                found[str(index.sources[row])] = dataset.manifest.classes[index.labels[row]]
    counts = [sum(info.class_counts) for info in dataset.manifest.splits.values()]
    assert counts == [info.samples for info in dataset.manifest.splits.values()]
    return found


def files(root: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in root.rglob("*.tar")}


def count_reads(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    reads: list[str] = []
    for module in (examine, shards):

        def counted(place: Place, original: Callable[[Place], bytes] = module.fetch) -> bytes:
            reads.append(place.url)
            return original(place)

        monkeypatch.setattr(module, "fetch", counted)
    return lambda: len(reads)


def test_new_photographs_are_read_and_written_alone(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = str(tmp_path / "out")
    first = Dataset.open(ingest(str(corpus), url, CONFIG))
    before = files(tmp_path / "out")
    save(corpus / "bee/new.jpg", 999)
    reads = count_reads(monkeypatch)
    second = Dataset.open(ingest(str(corpus), url, CONFIG))
    assert reads() == 2, "the new photograph, once for its hash and once to be stored"
    assert second.manifest.parent == first.digest
    assert second.manifest.change == "1 added, 0 edited, 0 left out"
    assert labels(second) == {**labels(first), "bee/new.jpg": "bee"}
    after = files(tmp_path / "out")
    assert before.items() <= after.items()
    assert len(after) == len(before) + 1
    assert len(labels(Dataset.open(first.ref))) == 40, "the older version stays readable"
    assert reads() == 2
    assert ingest(str(corpus), url, CONFIG) == second.ref


def test_a_photograph_that_moves_to_another_class_is_relabelled(corpus: Path, tmp_path: Path) -> None:
    url = str(tmp_path / "out")
    first = Dataset.open(ingest(str(corpus), url, CONFIG))
    before = files(tmp_path / "out")
    shutil.move(corpus / "bee/3.jpg", corpus / "dog/was bee.jpg")
    second = Dataset.open(ingest(str(corpus), url, CONFIG))
    assert second.manifest.change == "0 added, 1 edited, 0 left out"
    assert files(tmp_path / "out") == before
    expected = labels(first)
    del expected["bee/3.jpg"]
    assert labels(second) == {**expected, "dog/was bee.jpg": "dog"}
    assert second.digest != first.digest


def test_what_is_gone_is_left_out_and_comes_back(corpus: Path, tmp_path: Path) -> None:
    url = str(tmp_path / "out")
    first = ingest(str(corpus), url, CONFIG)
    (corpus / "dog/7.jpg").rename(tmp_path / "kept.jpg")
    second = Dataset.open(ingest(str(corpus), url, CONFIG))
    assert second.manifest.change == "0 added, 0 edited, 1 left out"
    assert "dog/7.jpg" not in labels(second)
    assert len(labels(second)) == 39
    (tmp_path / "kept.jpg").rename(corpus / "dog/7.jpg")
    assert ingest(str(corpus), url, CONFIG) == first, "a state that was there is found again"
    assert Dataset.open(url).digest == first.digest


def test_append_keeps_what_the_corpus_does_not_name(corpus: Path, tmp_path: Path) -> None:
    url = str(tmp_path / "out")
    first = Dataset.open(ingest(str(corpus), url, CONFIG))
    for item in range(5):
        save(tmp_path / f"more/ant/{item}.jpg", 500 + item)
    save(tmp_path / "more/dog/0.jpg", 100)  # the very photograph dog/0.jpg
    second = Dataset.open(ingest(str(tmp_path / "more"), url, CONFIG, mode=Mode(append=True)))
    assert second.manifest.change == "5 added, 0 edited, 0 left out"
    assert second.manifest.classes == ("bee", "dog", "ant"), "labels that there were keep their meaning"
    assert labels(second) == {**labels(first), **{f"ant/{item}.jpg": "ant" for item in range(5)}}
    assert ingest(str(tmp_path / "more"), url, CONFIG, mode=Mode(append=True)) == second.ref
    keys = Rows.of(second).table.column("key").to_pylist()
    assert len(set(keys)) == len(keys)


def test_append_wants_the_same_fields_and_settings(corpus: Path, tmp_path: Path) -> None:
    url = str(tmp_path / "out")
    ingest(str(corpus), url, CONFIG)
    with pytest.raises(RequestError, match="made with resize 256, not 32"):
        ingest(str(corpus), url, CONFIG.model_copy(update={"resize": 32}), mode=Mode(append=True))
    save(tmp_path / "loose/a.jpg", 1)
    with pytest.raises(RequestError, match=r"has image, but .* has image, label"):
        ingest(str(tmp_path / "loose"), url, CONFIG, mode=Mode(append=True))


def test_a_class_that_vanishes_takes_its_number_along(corpus: Path, tmp_path: Path) -> None:
    url = str(tmp_path / "out")
    ingest(str(corpus), url, CONFIG)
    shutil.rmtree(corpus / "bee")
    save(corpus / "ant/0.jpg", 321)
    dataset = Dataset.open(ingest(str(corpus), url, CONFIG))
    assert dataset.manifest.classes == ("dog", "ant")
    assert set(labels(dataset).values()) == {"dog", "ant"}
    assert sum(sum(info.class_counts[:1]) for info in dataset.manifest.splits.values()) == 20


def test_other_settings_write_everything_anew(corpus: Path, tmp_path: Path) -> None:
    url = str(tmp_path / "out")
    ingest(str(corpus), url, CONFIG)
    small = Dataset.open(ingest(str(corpus), url, CONFIG.model_copy(update={"resize": 16})))
    assert small.manifest.change == "40 added, 0 edited, 40 left out"
    assert set(small.index("train").heights.tolist()) == {16}


def test_labels_and_deletions_by_table(corpus: Path, tmp_path: Path) -> None:
    url = str(tmp_path / "out")
    first = Dataset.open(ingest(str(corpus), url, CONFIG))
    before = files(tmp_path / "out")
    (tmp_path / "right.csv").write_text("source,label\nbee/1.jpg,wasp\nbee/2.jpg,\n")
    second = Dataset.open(edit(url, str(tmp_path / "right.csv")))
    assert labels(second) == {**labels(first), "bee/1.jpg": "wasp"}
    index = second.index("train")
    row = int(np.flatnonzero([source not in ("bee/1.jpg", "bee/2.jpg") for source in index.sources])[0])
    key, source = str(index.keys[row]), str(index.sources[row])
    (tmp_path / "gone.jsonl").write_text(f'{{"key": "{key}"}}\n')
    third = Dataset.open(edit(url, str(tmp_path / "gone.jsonl"), delete=True))
    assert labels(second).keys() - labels(third).keys() == {source}
    assert edit(url, str(tmp_path / "gone.jsonl"), delete=True) == third.ref
    assert files(tmp_path / "out") == before
    assert len(versions(url)) == 3
    assert edit(url, str(tmp_path / "right.csv")) == third.ref, "nothing to change, nothing published"


def test_a_split_can_be_given_by_table(corpus: Path, tmp_path: Path) -> None:
    url = str(tmp_path / "out")
    first = Dataset.open(ingest(str(corpus), url, CONFIG))
    source = str(first.index("train").sources[0])
    (tmp_path / "move.csv").write_text(f"source,split\n{source},test\n")
    moved = Dataset.open(edit(url, str(tmp_path / "move.csv")))
    assert source in moved.index("test").sources.tolist()
    assert source not in moved.index("train").sources.tolist()
    assert labels(moved) == labels(first)


def test_wrong_edits_change_nothing(corpus: Path, tmp_path: Path) -> None:
    url = str(tmp_path / "out")
    first = ingest(str(corpus), url, CONFIG)
    tables = {
        "source,label\nnobody.jpg,bee\n": "1 names .* are not in",
        "label\nbee\n": "no column key or source",
        "source,colour\nbee/1.jpg,red\n": "says nothing new",
    }
    for text, message in tables.items():
        (tmp_path / "t.csv").write_text(text)
        with pytest.raises(RequestError, match=message):
            edit(url, str(tmp_path / "t.csv"))
    everything = "\n".join(["source", *labels(Dataset.open(url))])
    (tmp_path / "t.csv").write_text(everything + "\n")
    with pytest.raises(RequestError, match="no photograph would be left"):
        edit(url, str(tmp_path / "t.csv"), delete=True)
    with pytest.raises(RequestError, match="no table that can be read"):
        edit(url, str(tmp_path / "t.txt"))
    assert Dataset.open(url).ref == first


def test_two_at_once_cannot_mix(corpus: Path, tmp_path: Path) -> None:
    url = str(tmp_path / "out")
    first = ingest(str(corpus), url, CONFIG)
    save(corpus / "bee/x.jpg", 777)
    one = plan(str(corpus), url, CONFIG)
    save(corpus / "bee/y.jpg", 778)
    other = plan(str(corpus), url, CONFIG)
    published = finish(other, mapper=threads(1))
    with pytest.raises(WorkError, match="somebody else published"):
        finish(one, mapper=threads(1))
    assert Dataset.open(url).ref == published
    assert Dataset.open(published).manifest.parent == first.digest
    assert len(labels(Dataset.open(url))) == 42


def test_what_was_withdrawn_stays_out(corpus: Path, tmp_path: Path) -> None:
    url = str(tmp_path / "out")
    ingest(str(corpus), url, CONFIG)
    (tmp_path / "gone.csv").write_text("source\nbee/4.jpg\n")
    withdrawn = edit(url, str(tmp_path / "gone.csv"), delete=True)
    assert ingest(str(corpus), url, CONFIG) == withdrawn
    save(corpus / "bee/new.jpg", 999)
    later = Dataset.open(ingest(str(corpus), url, CONFIG))
    assert "bee/4.jpg" not in labels(later)
    assert len(labels(later)) == 40
    assert later.manifest.rejects_file is not None
    assert '"withdrawn"' in (tmp_path / "out" / later.manifest.rejects_file).read_text()
    assert "bee/4.jpg" in labels(Dataset.open(ingest(str(corpus), url, CONFIG, mode=Mode(fresh=True))))


def test_of_equal_photographs_one_stays(corpus: Path, tmp_path: Path) -> None:
    url, config = str(tmp_path / "out"), CONFIG.model_copy(update={"dedup": "exact"})
    shutil.copy(corpus / "bee/1.jpg", corpus / "dog/copy of bee.jpg")
    first = Dataset.open(ingest(str(corpus), url, config))
    assert len(labels(first)) == 40
    assert "dog/copy of bee.jpg" not in labels(first)
    assert first.manifest.rejects == {}, "left out on purpose, not for a fault"
    assert ingest(str(corpus), url, config) == first.ref
    shutil.copy(corpus / "bee/2.jpg", corpus / "bee/0 copy.jpg")
    assert ingest(str(corpus), url, config) == first.ref, "what is there stays in the stead of a new copy"
    shutil.copytree(corpus, tmp_path / "more")
    save(tmp_path / "more/dog/fresh.jpg", 4321)
    appended = Dataset.open(ingest(str(tmp_path / "more"), url, config, mode=Mode(append=True)))
    assert labels(appended) == {**labels(first), "dog/fresh.jpg": "dog"}


def test_of_photographs_that_look_the_same_one_stays(corpus: Path, tmp_path: Path) -> None:
    url, config = str(tmp_path / "out"), CONFIG.model_copy(update={"dedup": "near"})
    with Image.open(corpus / "bee/1.jpg") as image:
        image.save(corpus / "bee/1 recompressed.jpg", quality=80)
    first = Dataset.open(ingest(str(corpus), url, config))
    assert len({"bee/1.jpg", "bee/1 recompressed.jpg"} & labels(first).keys()) == 1
    assert ingest(str(corpus), url, config) == first.ref, "the near copy does not come back every night"
