"""What every node of a cluster sees: files that have to be the same everywhere, and our code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import vitcore
from vitcore import storage
from vitcore.errors import RequestError


@dataclass(frozen=True, slots=True)
class Seen:
    """What one node answers."""

    code: str
    """Where it has `vitcore` from."""
    missing: tuple[str, ...]
    """Files that it does not see."""


def require_everywhere(places: dict[str, str]) -> dict[str, str]:
    """Make sure that every node sees some files; says where each node has our code from, by address.

    Args:
        places: URL of a file → what it is, and what to do where a node does not see it.
    Raises:
        RequestError: some node does not see one of them.
    """
    answers = {}
    look: Any = ray.remote(num_cpus=0, max_retries=2)(_look)
    known: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in known if node["Alive"]}
    asked = {
        address: look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(list(places))
        for node, address in nodes.items()
    }
    for address, reference in asked.items():
        seen: Seen = ray.get(reference)
        for url in seen.missing:
            raise RequestError(f"node {address} of the cluster does not see {places[url]}")
        answers[address] = seen.code
    return answers


def _look(urls: Sequence[str]) -> Seen:
    """Runs on a node."""
    missing = []
    for url in urls:
        try:
            there = storage.exists(url)
        except OSError:
            there = False
        if not there:
            missing.append(url)
    return Seen(code=str(vitcore.__file__), missing=tuple(missing))
