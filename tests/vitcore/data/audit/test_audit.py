"""Copies and near copies are found, all of them and nothing else; what leaks into a test is kept and found again."""

from __future__ import annotations

import hashlib
import io
import shutil
import tarfile
from collections.abc import Callable, Iterable
from itertools import permutations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageEnhance

from vitcore.data.audit import audit, hamming, overlap
from vitcore.data.audit.audit import AuditConfig, duplicates
from vitcore.data.audit.components import Components
from vitcore.data.audit.dedup import copies, exact_copies
from vitcore.data.audit.overlap import leakage
from vitcore.data.audit.thumbnails import correlation, thumbnail
from vitcore.data.dataset.index import SCHEMA, encode, rows_digest
from vitcore.data.dataset.manifest import Dataset, Manifest, SplitInfo, publish
from vitcore.data.dataset.shard import Shard
from vitcore.data.ingest.ingest import ingest
from vitcore.data.ingest_config import IngestConfig
from vitcore.errors import RequestError, WorkError

# The search


def hashes_with_neighbours(seed: int, count: int = 400) -> np.ndarray:
    """Distinct hashes, some at every distance up to 12 of others, many that share most bits."""
    rng = np.random.default_rng(seed)
    far = rng.integers(0, 2**64, count, dtype=np.uint64)
    flips = [sum(1 << int(bit) for bit in rng.choice(64, distance, replace=False)) for distance in (*range(13),) * 20]
    near = far[: len(flips)] ^ np.array(flips, np.uint64)
    bland = rng.integers(0, 2**12, count // 2, dtype=np.uint64)
    return np.unique(np.concatenate([far, near, bland]))


def as_set(parts: Iterable[hamming.Pairs], *, ordered: bool) -> set[tuple[int, int, int]]:
    found = [
        (int(one), int(other), int(distance))
        for part in parts
        for one, other, distance in zip(part.left, part.right, part.distance, strict=True)
    ]
    if not ordered:
        found = [(min(one, other), max(one, other), distance) for one, other, distance in found]
    assert len(set(found)) == len(found), "a pair was found twice"
    return set(found)


def brute(left: np.ndarray, right: np.ndarray, radius: int) -> set[tuple[int, int, int]]:
    distance = np.bitwise_count(left[:, None] ^ right[None])
    rows, columns = np.nonzero(distance <= radius)
    return {(int(a), int(b), int(distance[a, b])) for a, b in zip(rows, columns, strict=True)}


@pytest.mark.parametrize("radius", range(hamming.MAX_RADIUS + 1))
@pytest.mark.parametrize("more", [1, 2, 4])
def test_the_search_equals_comparing_all_pairs(radius: int, more: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hamming, "_block_count", lambda *_: radius + more)
    monkeypatch.setattr(hamming, "_SLICE", 100)  # so that partners stand in other slices too
    left, right = hashes_with_neighbours(1), hashes_with_neighbours(1)[::3] ^ np.uint64(5 << 40)
    expected = {pair for pair in brute(left, left, radius) if pair[0] < pair[1]}
    assert as_set(hamming.within(left, radius), ordered=False) == expected
    assert as_set(hamming.between(left, right, radius), ordered=True) == brute(left, right, radius)
    assert radius < 2 or expected


def test_nothing_is_near_nothing_and_the_radius_is_bounded() -> None:
    none = np.empty(0, np.uint64)
    assert not list(hamming.within(none, 4))
    assert not list(hamming.between(none, hashes_with_neighbours(2), 4))
    with pytest.raises(ValueError, match="from 0 to 8"):
        list(hamming.within(none, 9))


def test_components_are_named_by_their_smallest_node() -> None:
    rng = np.random.default_rng(0)
    left, right = rng.integers(0, 300, (2, 200))
    found = Components(300)
    for part in np.array_split(np.arange(200), 7):
        found.join(left[part], right[part])
    names = np.arange(300)
    for _ in range(300):  # the slow way: names spread along edges until nothing changes
        for one, other in zip(left, right, strict=True):
            names[one] = names[other] = min(names[one], names[other])
    assert np.array_equal(found.names(), names)


# Photographs


def scene(number: int) -> Image.Image:
    """A picture that is unlike that of any other number."""
    coarse = np.random.default_rng(number).integers(0, 256, (8, 9, 3), np.uint8)
    return Image.fromarray(coarse).resize((180, 144), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, quality: int = 92) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


CHANGES: dict[str, Callable[[Image.Image], bytes]] = {
    "recompressed": lambda image: jpeg(image, 40),
    "smaller": lambda image: jpeg(image.resize((90, 72))),
    "larger": lambda image: jpeg(image.resize((251, 200))),
    "grey": lambda image: jpeg(image.convert("L")),
    "brighter": lambda image: jpeg(ImageEnhance.Brightness(image).enhance(1.2)),
}


def ingested(root: Path, files: dict[str, bytes], **settings: object) -> Dataset:
    """A dataset of photographs by their names, such as ``train/0.jpg``."""
    for name, data in files.items():
        path = root / "raw" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return Dataset.open(ingest(str(root / "raw"), str(root / "dataset"), IngestConfig(shard_mb=0.1, **settings)))


def sources(dataset: Dataset, split: str) -> list[str]:
    return [str(source) for source in dataset.index(split).sources]


@pytest.fixture(scope="module")
def leaky(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """40 scenes to train on, 30 others to test on, of which 8 are known: 3 as they are, 5 changed."""
    files = {f"train/a/{number}.jpg": jpeg(scene(number)) for number in range(40)}
    files |= {f"test/a/{number}.jpg": jpeg(scene(number)) for number in range(100, 130)}
    files |= {f"test/a/same{number}.jpg": jpeg(scene(number)) for number in (3, 4, 5)}
    files |= {f"test/a/{name}.jpg": change(scene(10 + n)) for n, (name, change) in enumerate(CHANGES.items())}
    files |= {"train/a/again.jpg": jpeg(scene(7)), "train/a/anew.jpg": jpeg(scene(8), 60)}
    return ingested(tmp_path_factory.mktemp("leaky"), files)


def test_all_leaks_and_nothing_else_is_found(leaky: Dataset) -> None:
    found = leakage(leaky, "test", leaky)
    assert (found.summary.samples, found.summary.exact, found.summary.near) == (38, 3, 5)
    tested, trained = sources(leaky, "test"), sources(leaky, "train")
    pairs = {(tested[row["row"]], trained[row["other_row"]], row["exact"]) for row in found.copies.to_pylist()}
    same = {(f"test/a/same{number}.jpg", f"train/a/{number}.jpg", True) for number in (3, 4, 5)}
    near = {(f"test/a/{name}.jpg", f"train/a/{10 + n}.jpg", False) for n, name in enumerate(CHANGES)}
    assert pairs == same | near
    for row in found.copies.to_pylist():
        assert row["key"] == leaky.index("test").keys[row["row"]]
        assert row["other_key"] == leaky.index("train").keys[row["other_row"]]
        assert (row["distance"], row["similarity"]) == (0, 1) if row["exact"] else row["similarity"] >= 0.9
    assert found.rows.tolist() == sorted(found.rows.tolist())


def test_copies_within_a_dataset_are_counted_and_grouped(leaky: Dataset) -> None:
    found = duplicates(leaky)
    assert (found.exact, found.near) == (4, 6)
    assert found.sizes.tolist() == [2] * 10
    assert len(found.nearest.left) == 6
    assert (found.nearest.left < found.nearest.right).all()
    assert len(duplicates(leaky, most=2).nearest.left) == 2


def test_another_dataset_may_hold_the_same_file_as_other_bytes(leaky: Dataset, tmp_path: Path) -> None:
    files = {f"train/a/{number}.jpg": jpeg(scene(number)) for number in range(30, 50)}
    other = ingested(tmp_path, files, resize=64)
    found = leakage(leaky, "train", other)
    assert found.summary.exact == 10
    tested = sources(leaky, "train")
    assert {tested[row] for row in found.rows} == {f"train/a/{number}.jpg" for number in range(30, 40)}
    assert (leakage(leaky, "test", other).summary.copies) == 0


def test_a_split_is_not_compared_with_itself(leaky: Dataset) -> None:
    with pytest.raises(RequestError, match="cannot be compared with itself"):
        leakage(leaky, "train", leaky)
    with pytest.raises(RequestError, match="has no split 'dev'"):
        leakage(leaky, "dev", leaky)


def ramp(bend: float) -> Image.Image:
    """Grey levels that rise from left to right, all with the difference hash 0: evenly, or late and steeply."""
    levels = 255 * np.linspace(0, 1, 144) ** bend
    return Image.fromarray(np.tile(levels.astype(np.uint8), (128, 1)))


def test_pictures_whose_hashes_are_equal_by_chance_are_told_apart(tmp_path: Path) -> None:
    flat = {f"train/a/grey{level}.png": Image.new("L", (64, 64), level) for level in (20, 90, 91, 200)}
    bent = {"train/a/even.png": ramp(1), "train/a/late.png": ramp(40)}
    files = {}
    for name, image in (flat | bent).items():
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        files[name] = buffer.getvalue()
    dataset = ingested(tmp_path, files)
    assert duplicates(dataset, AuditConfig(confirm=False)).near == 5
    found = duplicates(dataset)
    names = sources(dataset, "train")
    assert found.near == 1
    assert {names[found.nearest.left[0]], names[found.nearest.right[0]]} == {"train/a/grey90.png", "train/a/grey91.png"}


def test_a_photograph_that_cannot_be_read_confirms_nothing(leaky: Dataset, tmp_path: Path) -> None:
    shutil.copytree(leaky.url, tmp_path / "spoilt")
    spoilt = Dataset.open(str(tmp_path / "spoilt"))
    for shard in spoilt.shards("test"):
        path = Path(spoilt.shard_url(shard))
        path.write_bytes(bytes(path.stat().st_size))
    assert (leakage(spoilt, "test", spoilt).summary.near, leakage(spoilt, "test", spoilt).summary.exact) == (0, 3)
    assert leakage(spoilt, "test", spoilt, config=AuditConfig(confirm=False)).summary.near == 5


def test_correlation_knows_pictures_without_contrast() -> None:
    one, bright = np.full((1, 1024), 90, np.uint8), np.full((1, 1024), 200, np.uint8)
    textured = thumbnail(jpeg(scene(1)))[None]
    assert correlation(one, one) == 1
    assert correlation(one, bright) == 0
    assert correlation(one, textured) == 0
    assert correlation(textured, textured) == pytest.approx(1)
    assert correlation(textured, 255 - textured) == pytest.approx(-1)


def test_real_photographs_are_found_again(real_data: Path, tmp_path: Path) -> None:
    files: dict[str, bytes] = {}
    with tarfile.open(real_data / "flickr8k-128.tar") as tar:
        for member in tar:
            file = tar.extractfile(member) if member.name.endswith(".jpg") else None
            if file is not None:
                files[f"train/{len(files)}.jpg"] = file.read()
            if len(files) == 1200:
                break
    for number in range(0, 600, 10):
        with Image.open(io.BytesIO(files[f"train/{number}.jpg"])) as image:
            files[f"test/{number}.jpg"] = jpeg(image.resize((80, 80), Image.Resampling.BICUBIC), 70)
    for number in range(1100, 1200):
        files[f"test/{number}.jpg"] = files.pop(f"train/{number}.jpg")
    dataset = ingested(tmp_path, files, labels="none")
    found = leakage(dataset, "test", dataset)
    tested, trained = sources(dataset, "test"), sources(dataset, "train")
    pairs = [(Path(tested[row["row"]]).name, Path(trained[row["other_row"]]).name) for row in found.copies.to_pylist()]
    assert all(one == other for one, other in pairs)  # nothing but the copies
    assert len(pairs) >= 57  # of 60


# Hashes by hand: what no pixels are needed for


def by_hand(root: Path, splits: dict[str, list[int | None]]) -> Dataset:
    """A dataset of photographs that have these perceptual hashes, and no pixels."""
    lists, number = {}, 0
    for split, hashes in splits.items():
        rows = []
        for phash in hashes:
            content = hashlib.sha256(str(number).encode()).digest()
            rows.append(
                {"key": f"{number:04d}", "offset": 0, "size": 1, "extension": "jpg", "label": -1, "captions": []}
                | {"width": 1, "height": 1, "hash": content, "phash": phash, "group": "", "source": f"{number:04d}"}
                | {"origin": None}
            )
            number += 1
        table = pa.Table.from_pylist(rows, schema=SCHEMA)
        (root / split).mkdir(parents=True)
        (root / split / "0.parquet").write_bytes(encode(table))
        shard = Shard(
            name=f"{split}/0.tar",
            samples=len(rows),
            bytes=1,
            checksum=split,
            index=f"{split}/0.parquet",
            index_digest=rows_digest(table),
        )
        lists[split] = [shard]
    info = {split: SplitInfo(samples=listed[0].samples, shards=1, bytes=1) for split, listed in lists.items()}
    grey = (0.5, 0.5, 0.5)
    version = Manifest(fields=("image",), splits=info, mean=grey, std=grey, source="made by hand", settings={})
    return Dataset.open(publish(str(root), version, lists, expected=None))


TRUSTING = AuditConfig(confirm=False)


def test_a_chain_hangs_together_but_takes_nothing_along(tmp_path: Path) -> None:
    chain = by_hand(tmp_path, {"train": [0b111111, 0b111, 0]})  # each 3 bits from the next, the ends 6
    assert duplicates(chain, TRUSTING).sizes.tolist() == [3]
    found = copies(chain, TRUSTING)
    assert found.keep.tolist() == [True, False, True]
    assert found.reasons(["a", "b", "c"]) == {1: "near copy of a"}


def test_photographs_without_a_telling_hash_are_set_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "CROWD", 3)
    dataset = by_hand(tmp_path, {"train": [0, 0, 0, 0, 255 << 40, None], "test": [0, 255 << 40, None, None]})
    assert duplicates(dataset, TRUSTING).left_out == 5 + 3
    found = leakage(dataset, "test", dataset, config=TRUSTING)
    assert found.rows.tolist() == [1]
    assert found.summary.left_out == 4 + 1 + 2


def test_of_many_training_photographs_the_nearest_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "_CHUNK", 2)  # so that what is nearest comes in parts
    dataset = by_hand(tmp_path, {"train": [0b1111, 0b11, 0b1, 0b1, 0b111], "test": [0, 0b1110, 255 << 50]})
    found = leakage(dataset, "test", dataset, config=TRUSTING).copies.to_pylist()
    assert [(row["key"], row["other_key"], row["distance"]) for row in found] == [
        ("0005", "0002", 1),  # and not the equally near 0003: the first one
        ("0006", "0000", 1),
    ]
    assert all(row["similarity"] is None for row in found)


def test_more_pairs_than_can_be_held_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "MOST_PAIRS", 2)
    with pytest.raises(WorkError, match="ask for a smaller radius"):
        copies(by_hand(tmp_path, {"train": [0, 0, 0]}), TRUSTING)


# What stays


def test_of_copies_the_same_one_stays_in_any_order() -> None:
    rows = [(b"x", "train", "a"), (b"x", "test", "z"), (b"x", "val", "b"), (b"y", "train", "d"), (b"y", "train", "c")]
    for order in permutations(rows):
        contents, splits, names = zip(*order, strict=True)
        found = exact_copies(contents, splits, names)
        kept = {name for name, stays in zip(names, found.keep, strict=True) if stays}
        assert kept == {"z", "c"}  # what is tested on, not what is trained on; then the first name
        assert set(found.reasons(names).values()) == {"copy of z", "copy of c"}


def test_what_is_in_the_dataset_stays_before_what_is_new() -> None:
    found = exact_copies(
        [b"x", b"x", b"", b""], ["train"] * 4, ["a", "b", "c", "d"], settled=[False, True, False, False]
    )
    assert found.keep.tolist() == [False, True, True, True]
    assert exact_copies([], [], []).keep.tolist() == []


def test_no_training_photograph_is_left_that_is_tested_on(leaky: Dataset) -> None:
    found = copies(leaky, AuditConfig())
    names = [source for split in leaky.manifest.splits for source in sources(leaky, split)]
    gone = {Path(names[row]).name: reason for row, reason in found.reasons(names).items()}
    assert all(names[row].startswith("train/") for row in np.flatnonzero(~found.keep))
    assert len(gone) == 3 + 5 + 2
    assert gone["3.jpg"] == "copy of test/a/same3.jpg"
    assert gone["10.jpg"] == "near copy of test/a/recompressed.jpg"
    assert gone["again.jpg"] == "copy of train/a/7.jpg"
    assert gone["anew.jpg"] == "near copy of train/a/8.jpg"
    assert len(copies(leaky).reasons(names)) == 4  # exact ones only
    assert found.keep[found.original].all()


# Kept with the version


def test_an_overlap_is_found_again_by_what_it_is_of(leaky: Dataset) -> None:
    found = leakage(leaky, "test", leaky)
    assert overlap.find(leaky, "test", leaky.digest) is None
    overlap.keep(found, leaky)
    again = overlap.find(leaky, "test", leaky.digest)
    assert again is not None
    assert again.summary == found.summary
    assert again.copies.equals(found.copies)
    assert overlap.find(leaky, "train", leaky.digest) is None
    assert overlap.find(leaky, "test", "0" * 16) is None
    assert overlap.find(leaky, "test", leaky.digest, ("train", "val")) is None
    assert Dataset.open(leaky.url).digest == leaky.digest  # no version among the versions


def test_the_most_thorough_overlap_is_taken_and_a_damaged_one_is_none(leaky: Dataset) -> None:
    for config in (AuditConfig(radius=1), AuditConfig(radius=8, confirm=False), AuditConfig(radius=6)):
        overlap.keep(leakage(leaky, "test", leaky, config=config), leaky)
    found = overlap.find(leaky, "test", leaky.digest)
    assert found is not None
    assert found.summary.config == AuditConfig(radius=6)
    kept = list(Path(leaky.url, "_vit").glob("*.overlap.*.parquet"))
    for path in kept:
        path.write_bytes(b"torn")
    assert overlap.find(leaky, "test", leaky.digest) is None
    for path in kept:
        path.with_suffix(".json").write_bytes(b"{")
    assert overlap.find(leaky, "test", leaky.digest) is None


def test_a_place_that_cannot_be_written_to_is_said(leaky: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(url: str, data: bytes) -> None:
        raise PermissionError("read only")

    monkeypatch.setattr(overlap.storage, "write", refuse)
    with pytest.raises(WorkError, match="cannot be kept"):
        overlap.keep(leakage(leaky, "test", leaky), leaky)
