"""What happened to a run, as tags: visible on the run's page, searchable, and safe to write from several processes.

One tag an event, ``vit.event.<UTC time>.<kind>`` → ``step 1200: detail``, so that the UI lists them in order. An event
sent twice (after a lost answer) overwrites itself. Routine kinds keep their newest occurrence only: a long training
has hundreds of checkpoints.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict

PREFIX = "vit.event."
ROUTINE = frozenset({"checkpoint"})
_DETAIL_CHARACTERS = 2000
_STAMP = "%Y%m%dT%H%M%S"
_VALUE = re.compile(r"(?:(?P<stamp>\S+Z) )?step (?P<step>-?\d+)(?:: (?P<detail>.*))?", re.DOTALL)


class Event(BaseModel):
    """Something that happened."""

    model_config = ConfigDict(frozen=True)

    time: datetime
    step: int
    kind: str
    detail: str


def event_tag(time_ms: int, step: int, kind: str, detail: str) -> tuple[str, str]:
    """Key and value of the tag that keeps an event.

    Args:
        time_ms: when, in milliseconds since the epoch.
        step: training step it belongs to.
        kind: one word, such as ``resumed``.
        detail: a line; cut at 2,000 characters.
    """
    word = re.sub(r"[^\w-]", "_", kind) or "event"
    stamp = f"{datetime.fromtimestamp(time_ms / 1000, UTC).strftime(_STAMP)}.{time_ms % 1000:03d}Z"
    text = f"step {step}: {detail[:_DETAIL_CHARACTERS]}"
    if word in ROUTINE:
        return f"{PREFIX}{word}", f"{stamp} {text}"
    return f"{PREFIX}{stamp}.{word}", text


def read_events(tags: Mapping[str, str]) -> tuple[Event, ...]:
    """The events among a run's tags, oldest first."""
    found = []
    for key, value in tags.items():
        match = _VALUE.fullmatch(value) if key.startswith(PREFIX) else None
        if match is None:
            continue
        *stamp, kind = key.removeprefix(PREFIX).rsplit(".", 1)
        moment = stamp[0] if stamp else match["stamp"]
        if moment is not None:
            found.append(Event(time=_parse(moment), step=int(match["step"]), kind=kind, detail=match["detail"] or ""))
    return tuple(sorted(found, key=lambda event: (event.time, event.step)))


def _parse(stamp: str) -> datetime:
    seconds, milliseconds = stamp.removesuffix("Z").split(".")
    moment = datetime.strptime(seconds, _STAMP).replace(tzinfo=UTC)
    return moment.replace(microsecond=int(milliseconds) * 1000)
