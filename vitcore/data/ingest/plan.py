"""What an ingest will do: which photograph is new, which changed, which goes where. Nothing is written here.

Which split a photograph falls into depends on its group alone (its content, unless the corpus names groups), so that it
never changes sides; the order in the shards depends on content and seed, so that every shard is a fair sample.

Against the version that is there already: what is there stays where it lies; what the corpus says otherwise (label,
captions, group, split) is edited in the index; what is new is written; and what is gone is left out, unless the corpus
is to be appended.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vitcore.data.audit.dedup import exact_copies
from vitcore.data.corpus.listing import Corpus, Reject
from vitcore.data.dataset import excluded
from vitcore.data.dataset.manifest import Dataset
from vitcore.data.dataset.revision import Revision, Said, class_names, revise
from vitcore.data.dataset.rows import ROWS, Rows
from vitcore.data.ingest.convert import Form
from vitcore.data.ingest.examine import Glance
from vitcore.data.ingest.shards import LAYOUT_VERSION, SAMPLES, ShardJob, samples_digest
from vitcore.data.ingest_config import IngestConfig, SplitFractions
from vitcore.errors import RequestError
from vitcore.identity import canonical_json, digest, identity

_TAR_BYTES = 2816  # what a sample takes besides its image: three headers, class, metadata, padding
_SAID = ("source", "class", "captions", "group", "split", "extra")  # what a corpus says of a photograph
_STORED = ("resize", "quality", "max_pixels", "verify", "splits")  # settings that samples of one dataset share
_CUT = ("shard_mb", "seed")  # … and those that a corpus ingested as a whole shares
_SILENT = frozenset(  # settings that change no sample but by the listing
    {"error_budget", "license", "table", "tar", "tars", "labels", "captions", "scratch"}
)


@dataclass(frozen=True)
class Plan:
    """Which photograph goes where: a function of corpus, settings and the version there is, of nothing else."""

    url: str
    source: str
    config: IngestConfig
    fields: tuple[str, ...]
    parent: Dataset | None
    """The version there was."""
    revision: Revision = field(repr=False)
    """What stays of it."""
    jobs: tuple[ShardJob, ...] = field(repr=False)
    """The shards of new photographs."""
    rejects: tuple[Reject, ...]
    """Left out for their faults, before anything was decoded."""
    left_out: tuple[Reject, ...]
    """Left out on purpose: withdrawn before, or copies of others."""
    identity: str
    """Name of what this makes: equal identities, equal samples."""

    @property
    def new(self) -> int:
        """Photographs to be stored."""
        return sum(len(job.samples) for job in self.jobs)

    @property
    def gone(self) -> int:
        """Samples of the version there was that the new one has not."""
        had = sum(info.samples for info in self.parent.manifest.splits.values()) if self.parent else 0
        return had - len(self.revision.kept)

    @property
    def idle(self) -> bool:
        """Whether the version that is there is what is asked for."""
        return self.parent is not None and not (self.jobs or self.gone or self.revision.edited)


def lay_out(
    url: str,
    corpus: Corpus,
    glances: Sequence[Glance],
    config: IngestConfig,
    parent: Dataset | None,
    *,
    append: bool = False,
    fresh: bool = False,
) -> Plan:
    """Compare a corpus that was read with the version at `url`; give each new photograph its split, shard and key.

    Args:
        url: of the dataset.
        corpus: as listed.
        glances: what reading each photograph showed.
        config: the settings.
        parent: the version there is.
        append: keep what the corpus does not name.
        fresh: keep nothing of the parent's shards.

    Raises:
        RequestError: nothing can be read, or the corpus does not fit the version it is to be appended to.
    """
    if append and parent is not None:
        _refuse_mismatch(corpus, config, parent)
    alike = parent is not None and _same_settings(parent, corpus, config, append=append)
    rows = Rows.of(parent) if parent is not None and alike and not fresh else None
    own = ROWS.empty_table() if rows is None else rows.table
    wanted, rejects = _wanted(corpus, glances, config)
    wanted, withdrawn = _without_excluded(wanted, None if fresh else parent)
    wanted_of = _match(own, wanted)  # for each row of the parent: the wanted photograph that it is, or -1
    stays = np.ones(len(own), bool) if append else wanted_of >= 0
    copies: list[Reject] = []
    if config.dedup != "none":
        wanted, stays, copies = _without_copies(own, stays, wanted, wanted_of)
        wanted_of = _match(own, wanted)
    old_classes = parent.manifest.classes if parent is not None and rows is not None else ()
    revision = revise(
        rows,
        old_classes,
        _merge(own, old_classes, wanted, wanted_of),
        stays,
        new_classes=(name for name in wanted.column("class").unique().to_pylist() if name is not None),
        keep_classes=append,
    )
    new = wanted.filter(pa.array(_unmatched(len(wanted), wanted_of)))
    keyed = _keyed(new, revision.kept.column("key").to_pylist())
    return Plan(
        url=url,
        source=corpus.source,
        config=config,
        fields=corpus.fields,
        parent=parent,
        revision=revision,
        jobs=tuple(_jobs(url, keyed, revision.classes, config)),
        rejects=tuple(rejects),
        left_out=(*withdrawn, *copies),
        identity=_identity(wanted, corpus, config, parent if append else None),
    )


def assign(group: str, splits: SplitFractions) -> str:
    """The split of a group: by its hash alone, test first, so that a larger val takes from train and not from test."""
    place = int.from_bytes(hashlib.sha256(f"split:{group}".encode()).digest()[:8], "big") / 2**64
    if place < splits.test:
        return "test"
    return "val" if place < splits.test + splits.val else "train"


def _wanted(corpus: Corpus, glances: Sequence[Glance], config: IngestConfig) -> tuple[pa.Table, list[Reject]]:
    """The photographs that can be read, each with hash, group and split; the others with the reason."""
    read = [glance.origin is not None for glance in glances]
    sources = corpus.listing.column("source").to_pylist()
    rejects = [*corpus.rejects]
    rejects += [
        Reject(source, glance.reason or "cannot be read")
        for source, glance in zip(sources, glances, strict=True)
        if glance.origin is None
    ]
    if not any(read):
        raise RequestError(f"none of the {len(read)} photographs that {corpus.source} names can be read; check paths")
    table = corpus.listing if all(read) else corpus.listing.filter(pa.array(read))
    origins = [glance.origin for glance in glances if glance.origin is not None]
    groups = [given or origin.hex() for given, origin in zip(table.column("group").to_pylist(), origins, strict=True)]
    splits = [
        given or assign(group, config.splits)
        for given, group in zip(table.column("split").to_pylist(), groups, strict=True)
    ]
    columns = {name: table.column(name) for name in ("url", "start", "stop", "column", "source", "captions", "extra")}
    columns |= {"class": table.column("label"), "group": pa.array(groups), "split": pa.array(splits)}
    columns["origin"] = pa.array(origins, pa.binary(32))
    columns["stored"] = pa.array([glance.stored for glance in glances if glance.origin is not None])
    return pa.table(columns), rejects


def _without_excluded(wanted: pa.Table, parent: Dataset | None) -> tuple[pa.Table, list[Reject]]:
    """Leave out what a version before left out on purpose."""
    why = excluded.reasons(parent)
    if not why:
        return wanted, []
    reasons = [why.get(origin) for origin in wanted.column("origin").to_pylist()]
    sources = wanted.column("source").to_pylist()
    gone = [Reject(source, reason) for source, reason in zip(sources, reasons, strict=True) if reason is not None]
    return wanted.filter(pa.array([reason is None for reason in reasons])), gone


def _without_copies(
    own: pa.Table, stays: NDArray[np.bool_], wanted: pa.Table, wanted_of: NDArray[np.int64]
) -> tuple[pa.Table, NDArray[np.bool_], list[Reject]]:
    """Leave out photographs of equal content, of the corpus and of the rows that stay beside it."""
    beside = np.flatnonzero(stays & (wanted_of < 0))
    both = {
        name: [*own.column(name).take(pa.array(beside)).to_pylist(), *wanted.column(name).to_pylist()]
        for name in ("origin", "split", "source")
    }
    settled = np.ones(len(beside) + len(wanted), bool)
    settled[len(beside) :] = ~_unmatched(len(wanted), wanted_of)
    found = exact_copies(both["origin"], both["split"], both["source"], settled.tolist())
    reasons = found.reasons(both["source"])
    copies = [Reject(both["source"][row], reason) for row, reason in reasons.items() if row >= len(beside)]
    keep = found.keep[len(beside) :]
    stays = stays & ((wanted_of < 0) | keep[wanted_of])
    stays[beside[~found.keep[: len(beside)]]] = False
    return wanted.filter(pa.array(keep)), stays, copies


def _refuse_mismatch(corpus: Corpus, config: IngestConfig, parent: Dataset) -> None:
    have = parent.manifest
    if set(corpus.fields) != set(have.fields):
        raise RequestError(
            f"{corpus.source} has {', '.join(corpus.fields)}, but {parent.url} has {', '.join(have.fields)}; "
            "append a corpus with the same, or ingest into another URL"
        )
    given = config.model_dump(mode="json")
    for name in _STORED:
        if name in have.settings and have.settings[name] != given.get(name):
            raise RequestError(
                f"{parent.url} was made with {name} {have.settings[name]}, not {given.get(name)}; append with the same"
            )


def _same_settings(parent: Dataset, corpus: Corpus, config: IngestConfig, *, append: bool) -> bool:
    given, had = config.model_dump(mode="json"), parent.manifest.settings
    names = _STORED if append else (*_STORED, *_CUT)
    return set(parent.manifest.fields) == set(corpus.fields) and all(had.get(name) == given.get(name) for name in names)


def _match(own: pa.Table, wanted: pa.Table) -> NDArray[np.int64]:
    """For each row, the photograph that it is: of the same content and name, or else of the same content; or -1."""
    match = np.full(len(own), -1, np.int64)
    if not len(own):
        return match
    found = pc.index_in(_content_and_name(own), value_set=_content_and_name(wanted))
    match[:] = pc.fill_null(found, -1).to_numpy()
    lost, free = np.flatnonzero(match < 0), np.flatnonzero(_unmatched(len(wanted), match))
    renamed = dict(zip(wanted.column("origin").take(pa.array(free)).to_pylist(), free.tolist(), strict=True))
    for row, origin in zip(lost.tolist(), own.column("origin").take(pa.array(lost)).to_pylist(), strict=True):
        match[row] = renamed.pop(origin, -1)
    return match


def _content_and_name(table: pa.Table) -> pa.Array:
    parts = [table.column("origin").cast(pa.binary()), table.column("source").cast(pa.binary())]
    return pc.binary_join_element_wise(*parts, b"").combine_chunks()


def _unmatched(count: int, wanted_of: NDArray[np.int64]) -> NDArray[np.bool_]:
    free = np.ones(count, bool)
    free[wanted_of[wanted_of >= 0]] = False
    return free


def _merge(own: pa.Table, classes: Sequence[str], wanted: pa.Table, wanted_of: NDArray[np.int64]) -> Said:
    """What the corpus says of the rows that it names; what was said before of the others."""
    named = wanted_of >= 0
    if not named.any():
        return {}
    merged: Said = {}
    for name in _SAID:
        now = wanted.column(name).take(pa.array(wanted_of, mask=~named))
        had = class_names(own, classes) if name == "class" else own.column(name)
        if named.all() or now.equals(had):
            merged[name] = now
        else:
            pairs = zip(named.tolist(), now.to_pylist(), had.to_pylist(), strict=True)
            merged[name] = pa.chunked_array([pa.array([new if one else old for one, new, old in pairs], had.type)])
    return merged


def _keyed(new: pa.Table, taken: Iterable[str]) -> pa.Table:
    """Photographs in order of content, with keys made from it; copies of one are told apart by a number."""
    used = set(taken)
    origins, sources = new.column("origin").to_pylist(), new.column("source").to_pylist()
    order = sorted(range(len(new)), key=lambda row: (origins[row], sources[row]))
    keys = []
    for row in order:
        stem = key = origins[row].hex()[:16]
        copy = 0
        while key in used:
            copy += 1
            key = f"{stem}-{copy}"
        used.add(key)
        keys.append(key)
    return new.take(pa.array(order, pa.int64())).append_column("key", pa.array(keys, pa.string()))


def _jobs(url: str, new: pa.Table, classes: Sequence[str], config: IngestConfig) -> Iterable[ShardJob]:
    if not len(new):
        return
    number = {name: label for label, name in enumerate(classes)}
    labels = [-1 if name is None else number[name] for name in new.column("class").to_pylist()]
    new = new.append_column("label", pa.array(labels, pa.int64()))
    form = Form(config.resize, config.quality, config.max_pixels, config.verify)
    batch = digest([asdict(form), len(classes), config.seed, config.shard_mb, samples_digest(new)])[:8]
    splits = np.asarray(new.column("split").to_pylist())
    for split in sorted(set(splits.tolist())):
        part = new.filter(pa.array(splits == split))
        for count, rows in enumerate(_cut(part, config)):
            samples = part.take(rows).select(SAMPLES.names).cast(SAMPLES)
            yield ShardJob(url, split, batch, count, samples, form, len(classes))


def _cut(samples: pa.Table, config: IngestConfig) -> Iterable[pa.Array]:
    """Shuffle by content and seed, and cut into shards of about the target size and an even number of samples."""
    keys = samples.column("key").to_pylist()
    order = sorted(range(len(keys)), key=lambda row: hashlib.sha256(f"{config.seed}:{keys[row]}".encode()).digest())
    total = int(samples.column("stored").to_numpy().sum()) + _TAR_BYTES * len(keys)
    shards = min(len(keys), max(1, math.ceil(total / (config.shard_mb * 10**6))))
    edges = [number * len(keys) // shards for number in range(shards + 1)]
    return (pa.array(order[start:stop], pa.int64()) for start, stop in pairwise(edges))


def _identity(wanted: pa.Table, corpus: Corpus, config: IngestConfig, appended_to: Dataset | None) -> str:
    listing = hashlib.sha256(b"".join(wanted.column("origin").to_pylist()))
    for name in _SAID:
        listing.update(canonical_json([name, wanted.column(name).to_pylist()]).encode())
    parts = config.model_dump(mode="json", exclude=set(_SILENT)) | {"fields": corpus.fields}
    inputs = {"source": listing.hexdigest(), "parent": appended_to.digest if appended_to else None}
    return identity("ingest", LAYOUT_VERSION, parts, inputs)
