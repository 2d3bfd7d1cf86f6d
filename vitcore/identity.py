"""The names of products: digests that say whether two requests ask for the same thing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode


def canonical_json(value: Any) -> str:
    """One spelling of a JSON value: sorted keys, no spaces."""
    return _encode(value)


def digest(value: Any) -> str:
    """First 16 hex digits of the SHA-256 of the value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


def identity(stage: str, version: int, parts: Mapping[str, Any], inputs: Mapping[str, str | None]) -> str:
    """Name of what a stage would produce: equal names, equal products.

    Args:
        stage: its verb, such as ``"train"``.
        version: number of the stage's code, raised when its product changes for the same request.
        parts: the sub-recipes it depends on, as JSON values.
        inputs: digests of what it reads (dataset version, weights).
    """
    return f"{stage}-{digest({'version': version, 'parts': dict(parts), 'inputs': dict(inputs)})}"
