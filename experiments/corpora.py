"""The photographs of the experiments: CIFAR-10 and parts of it, and Flickr8k, as datasets that are made once."""

from __future__ import annotations

import csv
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path

from vitcore.data.dataset.manifest import DatasetRef
from vitcore.data.ingest.ingest import ingest
from vitcore.data.ingest_config import IngestConfig
from vitcore.errors import RequestError

PLAIN = IngestConfig(resize=None, shard_mb=8)


@dataclass(frozen=True)
class Corpora:
    """Where the photographs lie, and where what is made of them goes."""

    cifar10: Path
    """``{train,test}/CLASS/*.jpg``, or a tar of it."""
    flickr8k: Path
    """A folder with ``captions.csv`` (image, split, caption) and the photographs, at any depth; or a tar of it."""
    folder: Path

    def photographs(
        self, name: str, classes: tuple[str, ...] | None = None, per_class: int | None = None
    ) -> DatasetRef:
        """Some classes of CIFAR-10, and of each the first training photographs; all test photographs of theirs."""
        corpus = unpacked(self.cifar10, self.folder)
        return ingest(
            str(_part(corpus, self.folder / name, classes, per_class)), str(self.folder / f"data-{name}"), PLAIN
        )

    def captioned(self) -> DatasetRef:
        """Flickr8k, from a table of its photographs' places."""
        corpus = unpacked(self.flickr8k, self.folder).absolute()
        places = {path.name: str(path) for path in corpus.rglob("*.jpg")}
        table = self.folder / "flickr8k.csv"
        with (
            (corpus / "captions.csv").open(newline="", encoding="utf-8") as source,
            table.open("w", newline="", encoding="utf-8") as target,
        ):
            rows = csv.DictReader(source)
            writer = csv.DictWriter(target, rows.fieldnames or ())
            writer.writeheader()
            writer.writerows({**row, "image": places.get(row["image"], row["image"])} for row in rows)
        return ingest(str(table), str(self.folder / "data-flickr8k"), PLAIN)


def unpacked(source: Path, folder: Path) -> Path:
    """The folder of a corpus, which may be given as a tar; unpacked once.

    Raises:
        RequestError: there is no such corpus.
    """
    if source.is_dir():
        return source
    if not source.is_file():
        raise RequestError(f"there is no {source}; give the folder of the photographs, or a tar of it")
    target = folder / source.name.partition(".")[0]
    if not target.exists():
        scratch = target.with_name(target.name + ".part")
        shutil.rmtree(scratch, ignore_errors=True)
        with tarfile.open(source) as tar:
            tar.extractall(scratch, filter="data")
        inside = list(scratch.iterdir())
        (inside[0] if len(inside) == 1 else scratch).rename(target)
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _part(corpus: Path, folder: Path, classes: tuple[str, ...] | None, per_class: int | None) -> Path:
    if folder.exists():
        return folder
    names = classes or tuple(sorted(path.name for path in (corpus / "train").iterdir()))
    scratch = folder.with_name(folder.name + ".part")
    shutil.rmtree(scratch, ignore_errors=True)
    for split, most in (("train", per_class), ("test", None)):
        for name in names:
            (scratch / split / name).mkdir(parents=True)
            for photograph in sorted((corpus / split / name).iterdir())[:most]:
                shutil.copyfile(photograph, scratch / split / name / photograph.name)
    scratch.rename(folder)
    return folder
