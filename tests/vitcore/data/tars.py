"""Tars as others write them: by webdataset's own writers, as img2dataset leaves them, and by hand."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import webdataset
from PIL import Image


def picture(number: int, kind: str = "JPEG") -> bytes:
    """An image that is unlike that of any other number."""
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
    buffer = io.BytesIO()
    coarse.resize((24 + number % 9, 20 + number % 7), Image.Resampling.BICUBIC).save(buffer, kind)
    return buffer.getvalue()


def write_webdataset(path: Path, samples: Iterable[dict[str, Any]]) -> Path:
    """A tar by `webdataset.TarWriter`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path)) as writer:
        for sample in samples:
            writer.write(sample)
    return path


def labelled(numbers: Iterable[int], classes: int = 3) -> list[dict[str, Any]]:
    """Samples as classification sets have them."""
    return [{"__key__": f"{n:06d}", "jpg": picture(n), "cls": n % classes} for n in numbers]


def write_members(path: Path, members: Sequence[tuple[Any, bytes]], format: int = tarfile.PAX_FORMAT) -> Path:
    """A tar of named members; a `TarInfo` instead of a name is taken as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_img2dataset(folder: Path, shard: int, statuses: Sequence[str], *, lost: frozenset[int] = frozenset()) -> Path:
    """A shard of img2dataset's webdataset format: tar, Parquet and stats; `lost` ones are listed and not in the tar."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, members = [], []
    for number, status in enumerate(statuses):
        key = f"{shard:05d}{number:04d}"
        image = picture(shard * 100 + number)
        stored = status == "success"
        row = {"key": key, "url": f"http://x/{key}", "caption": f"words of {key}", "status": status}
        row |= {"error_message": None if stored else "HTTP Error 404", "similarity": 0.25 + number, "width": 24}
        rows.append(row)
        if stored and number not in lost:
            members += [(f"{key}.jpg", image), (f"{key}.json", json.dumps(row).encode())]
            members.append((f"{key}.txt", row["caption"].encode()))
    pq.write_table(pa.Table.from_pylist(rows), folder / f"{shard:05d}.parquet")
    (folder / f"{shard:05d}_stats.json").write_text(json.dumps({"count": len(rows)}))
    return write_members(folder / f"{shard:05d}.tar", members)
