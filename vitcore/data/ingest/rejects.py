"""Photographs that were left out: listed in a file, counted by reason, and bounded by the error budget."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from vitcore import storage
from vitcore.data.corpus.listing import Reject
from vitcore.data.dataset.manifest import FOLDER
from vitcore.errors import WorkError


def list_rejects(url: str, identity: str, rejects: Sequence[Reject], left_out: Sequence[Reject] = ()) -> str | None:
    """Write the list of an ingest's rejects, one JSON object a line; returns its name, relative to the dataset's URL.

    Args:
        url: of the dataset.
        identity: of the ingest.
        rejects: left out for their faults.
        left_out: left out on purpose.
    """
    lines = [json.dumps(asdict(reject), ensure_ascii=False) + "\n" for reject in [*rejects, *left_out]]
    if not lines:
        return None
    name = f"{FOLDER}/{identity}.rejects.jsonl"
    storage.write(storage.join(url, name), "".join(lines).encode())
    return name


def check_budget(url: str, rejects: Sequence[Reject], total: int, budget: float, listed: str | None) -> None:
    """Fail where more photographs are rejected than allowed.

    Raises:
        WorkError: with the reasons, and the file that lists the photographs.
    """
    if len(rejects) < total and len(rejects) <= budget * total:
        return
    reasons = ", ".join(f"{count} {reason}" for reason, count in Counter(r.reason for r in rejects).most_common())
    raise WorkError(
        f"{len(rejects)} of {total} photographs were rejected ({reasons}), more than the error budget of {budget:.2%}; "
        f"{storage.join(url, listed or FOLDER)} lists them: repair or remove them, or raise the error budget"
    )
