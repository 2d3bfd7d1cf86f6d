"""What lies in a raw corpus: its photographs with labels, captions, groups and given splits, before any is read.

A source is a folder of photographs, a table, a Hugging Face folder, a set of tars or a dataset of ours, on a local path
or in any store that `vitcore.storage` reads. Which of them it is, is seen from what is there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from vitcore import storage
from vitcore.data.corpus import folders, huggingface, resharding, tarsets
from vitcore.data.corpus.files import Files, below
from vitcore.data.corpus.listing import Corpus
from vitcore.data.corpus.tables import TABLES, read_table
from vitcore.data.corpus.tarsets import TarSet
from vitcore.data.dataset.manifest import FOLDER, POINTER
from vitcore.data.ingest_config import IngestConfig
from vitcore.errors import RequestError

_NO_FILES = Files([], [], [], [])
Kind = Literal["folder", "table", "saved", "parquet", "tars", "dataset"]


@dataclass(frozen=True)
class Source:
    """A source and what it is."""

    kind: Kind
    """``saved``: by Hugging Face's `save_to_disk`; ``parquet``: files with the images inside."""
    url: str
    """Absolute path, URL or pattern."""
    files: Files = field(default=_NO_FILES, repr=False)
    """The files of a folder."""
    tars: TarSet | None = field(default=None, repr=False)


def read_corpus(source: str | Source, config: IngestConfig | None = None) -> Corpus:
    """List a corpus.

    Args:
        source: path, URL or pattern, or what `recognise` made of it.
        config: the settings.

    Raises:
        RequestError: nothing is there, no photographs, an empty class, or a table without the columns asked for.
    """
    config = config or IngestConfig()
    found = recognise(source, config) if isinstance(source, str) else source
    corpus = _read(found, config)
    if not len(corpus) and not corpus.rejects:
        raise RequestError(f"the source {found.url} holds no images; give a folder or table that does")
    return corpus


def _read(found: Source, config: IngestConfig) -> Corpus:
    match found.kind:
        case "table":
            return read_table(found.url, config)
        case "saved":
            return huggingface.read_saved(found.url, found.files, config)
        case "parquet":
            return huggingface.read_parquet(found.url, found.files, config)
        case "dataset":
            return resharding.read_dataset(found.url, config)
        case "tars":
            assert found.tars is not None
            return resharding.read_tars(found.tars, config)
        case "folder":
            return folders.read_folder(found.url, found.files, config)


def recognise(source: str, config: IngestConfig | None = None) -> Source:
    """What a source is.

    Raises:
        RequestError: nothing is there, or it is of no known kind, or of two.
    """
    if tarsets.is_pattern(source):
        found = tarsets.matching(source)
        return Source("tars", found.source, tars=found)
    url = storage.absolute(source)
    if not storage.exists(url):
        raise RequestError(f"the source {source} does not exist; give a folder of images or a .csv, .parquet or .jsonl")
    suffix = PurePosixPath(url).suffix.lower()
    if suffix == ".parquet" and storage.is_file(url) and _holds_images(url, config or IngestConfig()):
        folder, name = url.rsplit("/", 1)
        entry = storage.entry(url)
        return Source("parquet", folder, Files([name], [entry.size], [entry.stamp], [suffix]))
    if suffix in TABLES:
        return Source("table", url)
    if tarsets.is_tar(url) and storage.is_file(url):
        return Source("tars", url, tars=tarsets.one(url))
    if storage.is_file(url):
        known = ", ".join([*TABLES, tarsets.PLAIN])
        raise RequestError(
            f"the source {source} is a file of an unknown kind; give a folder, a table or a tar ({known})"
        )
    return _recognise_folder(url, below(url), config or IngestConfig())


def _recognise_folder(url: str, files: Files, config: IngestConfig) -> Source:
    if not huggingface.MARKS.isdisjoint(files.paths):
        return Source("saved", url, files)
    parquet = files.only(lambda extension: extension == ".parquet")
    if POINTER in files.paths and any(_is_our_index(path) for path in parquet.paths):
        return Source("dataset", url)
    images = {f".{extension.lower()}" for extension in config.tar.image}
    picture = next(iter(files.only(images.__contains__).paths), None)
    tars = tarsets.in_folder(url, files)
    tar = next((one.name for one in tars.tars if not one.compressed), None)
    if tar is not None and picture is not None:
        raise RequestError(
            f"the source {url} holds tars ({tar}) and photographs beside them ({picture}); "
            f"give a pattern for the tars ({url}/*.tar), or move them away"
        )
    if tars.tars and picture is None:
        return Source("tars", url, tars=tars)
    if parquet.paths and picture is None:
        return Source("parquet", url, parquet)
    return Source("folder", url, files)


def _is_our_index(path: str) -> bool:
    """Whether a file is the index of a tar that we wrote, and not of one that we adopted."""
    return path.endswith(".index.parquet") and not path.startswith(f"{FOLDER}/")


def _holds_images(url: str, config: IngestConfig) -> bool:
    """Whether a Parquet file holds the images themselves, and not their paths."""
    try:
        with storage.stream(url) as file:
            schema = pq.read_schema(file)
    except (OSError, pa.ArrowInvalid):
        return False  # said when it is read as a table
    images = huggingface.image_columns(schema)
    return config.table.image in images or (bool(images) and config.table.image not in schema.names)
