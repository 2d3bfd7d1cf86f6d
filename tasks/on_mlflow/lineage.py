"""Where a registered model comes from, read from tags: parents, teachers, theirs, and the data of each."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from tasks.on_mlflow.registry import DATASET, PARENT, TEACHER, ModelVersion, resolve
from vitcore.errors import RequestError


class Ancestor(BaseModel):
    """A node of a lineage: a registered version, or a public reference such as ``timm:NAME``, and what it came from."""

    model_config = ConfigDict(frozen=True)

    role: Literal["self", "parent", "teacher"]
    ref: str
    version: ModelVersion | None
    """None for a public reference, a file, or a version deleted since."""
    dataset: str | None
    ancestors: tuple[Ancestor, ...] = ()


def lineage(tracking_uri: str, ref: str) -> Ancestor:
    """Where a version comes from: its parents and teachers, theirs, and the data each was trained on.

    Raises:
        RequestError: `ref` names no registered version.
    """
    return _ancestor(tracking_uri, "self", resolve(tracking_uri, ref).uri, frozenset())


def _ancestor(
    tracking_uri: str, role: Literal["self", "parent", "teacher"], ref: str, below: frozenset[str]
) -> Ancestor:
    try:
        version = resolve(tracking_uri, ref) if ref.startswith("models:/") else None
    except RequestError:  # deleted since
        version = None
    if version is None or version.uri in below:
        return Ancestor(role=role, ref=ref, version=version, dataset=None)
    seen = below | {version.uri}
    ancestors = []
    if parent := version.tags.get(PARENT):
        ancestors.append(_ancestor(tracking_uri, "parent", parent, seen))
    if teacher := version.tags.get(TEACHER):
        ancestors.append(_ancestor(tracking_uri, "teacher", teacher, seen))
    dataset = version.tags.get(DATASET)
    return Ancestor(role=role, ref=version.uri, version=version, dataset=dataset, ancestors=tuple(ancestors))
