"""From photographs to shards: a conversion against other libraries', a whole ingest against scripts as one writes them.

Contestants take turns in several rounds; a ratio is that of one round, and its median counts. The scripts write what a
WebDataset needs and the SHA-256 of each file; the ingest also shuffles by content, checks that no file changed, hashes
each shard, and writes index, statistics and manifest.
"""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import shutil
import statistics
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from webdataset import ShardWriter

from vitcore.data.dataset.manifest import Dataset
from vitcore.data.ingest.convert import Form, convert
from vitcore.data.ingest.ingest import ingest
from vitcore.data.ingest.parallel import threads
from vitcore.data.ingest_config import IngestConfig

SHORT, QUALITY = 256, 92
OVER_PILLOW, OVER_OPENCV, OVER_WRITER = 1.3, 1.0, 1.5
ROUNDS = 5
COPIES = 8  # of each photograph, told apart by bytes behind the end marker
TINY = 20_000  # photographs of CIFAR-10
CORES = 2  # threads of the ingest, processes of each script

Shrink = Callable[[bytes], bytes]
Report = Callable[[str], None]


def ours(data: bytes) -> bytes:
    return convert(data, Form(SHORT, QUALITY, 1 << 26)).data


def lanczos(data: bytes) -> bytes:
    return pillow(data, Image.Resampling.LANCZOS)


def bicubic(data: bytes) -> bytes:
    return pillow(data, Image.Resampling.BICUBIC)


def pillow(data: bytes, method: Image.Resampling) -> bytes:
    with Image.open(io.BytesIO(data)) as image:
        rgb = image.convert("RGB")
        buffer = io.BytesIO()
        rgb.resize(target(*rgb.size), method).save(buffer, "JPEG", quality=QUALITY)
        return buffer.getvalue()


def opencv(data: bytes) -> bytes:
    """The steps of img2dataset's resizer for ``keep_ratio``."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    height, width, _ = image.shape
    smaller = cv2.resize(image, target(width, height), interpolation=cv2.INTER_AREA)
    encoded = cv2.imencode(".jpg", smaller, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1]
    return encoded.tobytes()


def target(width: int, height: int) -> tuple[int, int]:
    scale = SHORT / min(width, height)
    return round(width * scale), round(height * scale)


def is_larger(data: bytes) -> bool:
    with Image.open(io.BytesIO(data)) as image:
        return min(image.size) > SHORT


@dataclass
class Times:
    """A number a round."""

    wall: list[float] = field(default_factory=list)
    """Seconds."""
    cpu: list[float] = field(default_factory=list)
    """Seconds of all threads and processes."""


def compare(contestants: dict[str, Callable[[], float]]) -> dict[str, Times]:
    """What each contestant took in each round, turn about; each answers with its CPU seconds."""
    times = {name: Times() for name in contestants}
    for _ in range(ROUNDS):
        for name, run in contestants.items():
            began = time.perf_counter()
            times[name].cpu.append(run())
            times[name].wall.append(time.perf_counter() - began)
    return times


def ratio(times: dict[str, Times], name: str) -> tuple[float, str]:
    """How many times as long `name` takes as ours, and the sentence about it."""
    rounds = [other / own for own, other in zip(times["ours"].wall, times[name].wall, strict=True)]
    middle = statistics.median(rounds)
    return middle, f"{middle:.2f} x {name} (rounds {min(rounds):.2f} to {max(rounds):.2f})"


@pytest.fixture(scope="module")
def photographs(real_data: Path) -> list[bytes]:
    with tarfile.open(real_data / "photos.tar") as tar:
        files = (tar.extractfile(member) for member in tar if member.isreg())
        return [file.read() for file in files if file is not None]


def test_one_conversion(photographs: list[bytes], report: Report) -> None:
    """Decode, resize, encode; ours also hashes the picture and counts its channels."""
    cv2.setNumThreads(1)
    larger = [data for data in photographs if is_larger(data)]

    def each(shrink: Shrink) -> Callable[[], float]:
        def run() -> float:
            began = time.process_time()
            for data in larger:
                shrink(data)
            return time.process_time() - began

        return run

    contestants = {"ours": ours, "Pillow LANCZOS": lanczos, "Pillow BICUBIC": bicubic, "OpenCV INTER_AREA": opencv}
    for shrink in contestants.values():
        shrink(larger[0])
    times = compare({name: each(shrink) for name, shrink in contestants.items()})
    each_ms = ", ".join(f"{name} {1000 * min(taken.wall) / len(larger):.2f}" for name, taken in times.items())
    report(f"a photograph brought to {SHORT}, best of {ROUNDS} rounds, one thread, ms: {each_ms}")
    ratios = {name: ratio(times, name) for name in contestants if name != "ours"}
    report("conversion: " + "; ".join(said for _, said in ratios.values()))
    assert min(ratios["Pillow LANCZOS"][0], ratios["Pillow BICUBIC"][0]) >= OVER_PILLOW
    assert ratios["OpenCV INTER_AREA"][0] >= OVER_OPENCV


Task = tuple[list[tuple[str, int]], str, str]


def write_plainly(task: Task) -> float:
    """A script around `webdataset.ShardWriter`: files, pattern of the shards, name of the function that shrinks."""
    began = time.process_time()
    cv2.setNumThreads(1)
    files, pattern, shrink = task
    with ShardWriter(pattern, maxsize=64e6, verbose=0) as writer:
        for number, (path, label) in enumerate(files):
            data = Path(path).read_bytes()
            about = {"source": path, "sha256": hashlib.sha256(data).hexdigest()}
            if shrink:
                data = globals()[shrink](data) if is_larger(data) else data
            writer.write({"__key__": f"{number:08d}", "jpg": data, "cls": label, "json": json.dumps(about)})
    return time.process_time() - began


class Script:
    """The script in as many processes as asked for, started beforehand."""

    def __init__(self, folder: Path, out: Path, shrink: str = "", processes: int = 1) -> None:
        classes = sorted(path.name for path in folder.iterdir())
        listed = [(path, classes.index(path.parent.name)) for path in sorted(folder.glob("*/*"))]
        order = np.random.default_rng(0).permutation(len(listed))
        files = [(str(listed[place][0]), listed[place][1]) for place in order]
        self._out = out
        self._tasks = [(files[part::processes], str(out / f"{part}-%05d.tar"), shrink) for part in range(processes)]
        self._pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("fork"))
        list(self._pool.map(abs, range(processes)))

    def __call__(self) -> float:
        shutil.rmtree(self._out, ignore_errors=True)
        self._out.mkdir(parents=True)
        return sum(self._pool.map(write_plainly, self._tasks))


class Ingest:
    """Ours, from nothing to the published dataset."""

    def __init__(self, folder: Path, out: Path, cores: int, **settings: object) -> None:
        self._folder, self._out, self._cores = folder, out, cores
        # A shard is one core's work. So small a corpus, cut into shards of the usual size, would leave one core idle.
        self._config = IngestConfig.model_validate({"shard_mb": 8, **settings})

    def __call__(self) -> float:
        shutil.rmtree(self._out, ignore_errors=True)
        began = time.process_time()
        ingest(str(self._folder), str(self._out), self._config, mapper=threads(self._cores))
        return time.process_time() - began

    def samples(self) -> int:
        return sum(split.samples for split in Dataset.open(str(self._out)).manifest.splits.values())


@pytest.fixture(scope="module")
def tiny(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20,000 JPEGs of 32 by 32 pixels in class folders."""
    root = tmp_path_factory.mktemp("tiny")
    count = 0
    with tarfile.open(real_data / "cifar10.tar.gz") as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file is None or "/train/" not in member.name:
                continue
            _, _, label, name = member.name.split("/")
            (root / label).mkdir(exist_ok=True)
            (root / label / name).write_bytes(file.read())
            count += 1
            if count == TINY:
                break
    return root


@pytest.fixture(scope="module")
def large(photographs: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """2,000 photographs in four folders."""
    root = tmp_path_factory.mktemp("large")
    for number in range(COPIES * len(photographs)):
        folder = root / f"class{number % 4}"
        folder.mkdir(exist_ok=True)
        copy, place = divmod(number, len(photographs))
        (folder / f"{number:05d}.jpg").write_bytes(photographs[place] + bytes(copy))
    yield root
    shutil.rmtree(root)


def photographs_in(folder: Path) -> int:
    return sum(1 for _ in folder.glob("*/*"))


def say(report: Report, what: str, count: int, times: dict[str, Times], others: Sequence[str]) -> dict[str, float]:
    rates = ", ".join(
        f"{name} {count / min(taken.wall):,.0f} ({1000 * min(taken.cpu) / count:.2f} CPU ms each)"
        for name, taken in times.items()
    )
    report(f"{what}, photographs a second, best of {ROUNDS} rounds: {rates}")
    ratios = {name: ratio(times, name) for name in others}
    report(f"{what}: " + "; ".join(said for _, said in ratios.values()))
    return {name: value for name, (value, _) in ratios.items()}


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("verify", ["header", "decode"])
@pytest.mark.parametrize("corpus", ["tiny", "large"])
@pytest.mark.xfail(
    reason="0.9 × (large) to 1.4 × (tiny) of a script that reads once and never asks the disk to keep it"
)
def test_folder_to_dataset(
    corpus: str, verify: str, tmp_path: Path, report: Report, request: pytest.FixtureRequest
) -> None:
    """Without resizing, against one process of the script, as such a script is."""
    folder: Path = request.getfixturevalue(corpus)
    run = Ingest(folder, tmp_path / "ours", CORES, resize=None, verify=verify)
    times = compare({"ours": run, "ShardWriter": Script(folder, tmp_path / "theirs")})
    count = photographs_in(folder)
    assert run.samples() == count
    found = say(report, f"{count} {corpus} photographs into shards, verify={verify}", count, times, ["ShardWriter"])
    if verify == "header":
        assert found["ShardWriter"] >= OVER_WRITER


@pytest.mark.timeout(1800)
def test_folder_to_dataset_with_resize(large: Path, tmp_path: Path, report: Report) -> None:
    """On the same cores: as many processes of each script as threads of the ingest."""
    run = Ingest(large, tmp_path / "ours", CORES, resize=SHORT, quality=QUALITY)
    scripts = {name: Script(large, tmp_path / name, name, CORES) for name in ("lanczos", "bicubic", "opencv")}
    times = compare({"ours": run, **scripts})
    count = photographs_in(large)
    assert run.samples() == count
    found = say(report, f"{count} photographs brought to {SHORT} into shards, {CORES} cores", count, times, [*scripts])
    assert min(found["lanczos"], found["bicubic"]) >= OVER_PILLOW
    assert found["opencv"] >= OVER_OPENCV
