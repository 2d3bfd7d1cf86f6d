"""Whether a store honours the conditions of a put, found out by trying, under concurrency.

S3's `If-None-Match` and `If-Match` are headers that a store without them may ignore, or check before the put and not
with it. Trusting such a store would lose updates, so each bucket is tried once a process.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from vitcore.storage.retry import patiently, status_of
from vitcore.storage.s3 import Place

_CREATORS, _REPLACERS = 8, 4  # at once; a store may make contenders wait for each other

_found: dict[tuple[str, str], bool] = {}  # by endpoint and bucket


def are_honoured(url: str) -> bool:
    """Whether of simultaneous conditional puts one wins, in this URL's bucket. Tries it at the first call.

    Only a put that should have been refused and was not, or the store's word that it knows no conditions, speak
    against a store: whoever shares it must come to the same answer while it stumbles.
    """
    place = patiently(url, "looked up", lambda: Place.of(url))
    store = (place.store, place.bucket)
    if store not in _found:

        def settle(contest: Callable[[Place], bool]) -> bool:
            return patiently(url, "tried", lambda: _on_a_probe(place, contest))

        with ThreadPoolExecutor(2) as pool:
            _found[store] = all(list(pool.map(settle, (_creation, _replacement))))
    return _found[store]


def _on_a_probe(near: Place, contest: Callable[[Place], bool]) -> bool:
    probe = Place(near.fs, near.bucket, f"{near.key}.probe-{secrets.token_hex(8)}")
    try:
        return contest(probe)
    finally:
        with suppress(OSError):  # what went wrong before is the news
            patiently(f"s3://{probe.bucket}/{probe.key}", "removed", probe.delete)


def _creation(probe: Place) -> bool:
    honest = _one_wins(probe, None, _CREATORS)
    if honest:
        _tag(probe)
    return honest


def _replacement(probe: Place) -> bool:
    _put(probe, b"first", None)
    wrong = _put(probe, b"refused", '"00000000000000000000000000000000"')
    return not wrong and _one_wins(probe, _tag(probe), _REPLACERS)


def _one_wins(probe: Place, expected: str | None, contenders: int) -> bool:
    # Contents that differ from each other and from what is there: a tag may be no more than the content's hash.
    contents = [f"{expected} {number}".encode() for number in range(contenders)]
    with ThreadPoolExecutor(contenders) as pool:
        won = list(pool.map(lambda data: _put(probe, data, expected), contents))
    return won.count(True) <= 1  # none where the answer to the winner was lost


def _tag(probe: Place) -> str:
    head = probe.head()
    if head is None:
        raise OSError("none of several puts came through")
    return head.etag


def _put(probe: Place, data: bytes, expected: str | None) -> bool | None:
    """Whether a put was accepted; None where the store stumbled. A store that knows no conditions accepts all."""
    try:
        return probe.put(data, {}, expected)
    except PermissionError:
        raise
    except OSError as error:
        return True if status_of(error) in (400, 501) else None
