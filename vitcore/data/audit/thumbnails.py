"""A second look at photographs whose hashes are close: are they one picture?

A difference hash of 64 bits says little about a photograph; of millions of pairs some are close by chance. So both are
decoded to 32 × 32 grey pixels and correlated: one picture stays itself when it is resized, recompressed, brightened or
greyed, and two pictures of one scene part.
"""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitcore.data.audit.components import Rows
from vitcore.data.audit.fingerprints import Photographs
from vitcore.data.ingest.convert import quiet
from vitcore.data.reading.decode import SHRINKS, BadSampleError, Photograph
from vitcore.data.reading.reader import Reader

SIDE = 32
_KEPT = 1 << 17  # thumbnails kept: 130 MB
_THREADS = 8
_PAIRS = 8192  # correlated at once
_FLAT = 2.0  # standard deviation, in grey levels, below which a picture has no contrast to correlate
_EQUAL = 4.0  # grey levels apart that two pictures without contrast may be
Thumbnail = NDArray[np.uint8]


class Thumbnails:
    """Thumbnails of photographs, each decoded once while it is among those asked for last. Leave its `with`."""

    def __init__(self, photographs: Photographs) -> None:
        self._photographs = photographs
        self._known: OrderedDict[int, Thumbnail | None] = OrderedDict()
        self._open = ExitStack()
        self._readers: dict[int, Reader] = {}
        self._pool = self._open.enter_context(ThreadPoolExecutor(_THREADS))
        self._open.enter_context(quiet())

    def __enter__(self) -> Thumbnails:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def similarity(self, left: Rows, right: Rows) -> NDArray[np.float32]:
        """Correlation of the pictures of each pair, at most 1; 0 where one of them cannot be read."""
        found = np.zeros(len(left), np.float32)
        for start in range(0, len(left), _PAIRS):
            part = slice(start, start + _PAIRS)
            rows, places = np.unique(np.concatenate([left[part], right[part]]), return_inverse=True)
            pictures = self._of(rows)
            readable = np.array([picture is not None for picture in pictures])
            blank = np.zeros(SIDE * SIDE, np.uint8)
            pixels = np.stack([blank if picture is None else picture for picture in pictures])
            one, other = np.split(places, 2)
            found[part] = np.where(readable[one] & readable[other], correlation(pixels[one], pixels[other]), 0)
        return found

    def _of(self, rows: Rows) -> list[Thumbnail | None]:
        """Thumbnails [1024] of distinct rows; None for a photograph that cannot be read."""
        numbers = rows.tolist()
        new = [row for row in numbers if row not in self._known]
        self._open_readers(np.array(new, np.int64))
        self._known.update(zip(new, self._pool.map(self._read, new), strict=True))
        pictures = []
        for row in numbers:
            self._known.move_to_end(row)
            pictures.append(self._known[row])
        while len(self._known) > _KEPT:
            self._known.popitem(last=False)
        return pictures

    def _open_readers(self, rows: Rows) -> None:
        for number in np.unique(self._photographs.part_of(rows)).tolist():
            if number not in self._readers:
                part = self._photographs.parts[number]
                self._readers[number] = self._open.enter_context(Reader(part.dataset, part.split))

    def _read(self, row: int) -> Thumbnail | None:
        number = int(self._photographs.part_of(np.array(row)))
        try:
            return thumbnail(self._readers[number].read(row - self._photographs.parts[number].start))
        except BadSampleError:
            return None


def thumbnail(data: bytes) -> Thumbnail:
    """Grey pixels [1024] of an encoded photograph, upright, squeezed to a square.

    Raises:
        BadSampleError: it cannot be decoded.
    """
    photograph = Photograph(data)
    most = min(photograph.height, photograph.width) // (2 * SIDE)
    decoded = photograph.decode(max((shrink for shrink in SHRINKS if shrink <= most), default=1))
    image = Image.fromarray(decoded.image_CHW.permute(1, 2, 0).numpy())
    # Each pixel weighs a neighbourhood twice its size: a shift by a fraction of a pixel changes little.
    grey = image.convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=3.0)
    return np.asarray(grey).reshape(-1)


def correlation(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Correlation of the grey levels of pictures [n, pixels].

    Where a picture has no contrast there is nothing to correlate: 1 if neither has any and they are equally bright,
    else 0.
    """
    one, other = left.astype(np.float32), right.astype(np.float32)
    mean_one, mean_other = one.mean(axis=1), other.mean(axis=1)
    one -= mean_one[:, None]
    other -= mean_other[:, None]
    spread_one, spread_other = (np.sqrt((levels**2).mean(axis=1)) for levels in (one, other))
    flat = np.minimum(spread_one, spread_other) < _FLAT
    both_flat = np.maximum(spread_one, spread_other) < _FLAT
    correlated = (one * other).mean(axis=1) / np.where(flat, 1, spread_one * spread_other)
    equal = both_flat & (np.abs(mean_one - mean_other) < _EQUAL)
    found: NDArray[np.float32] = np.where(flat, equal, correlated).astype(np.float32)
    return found
