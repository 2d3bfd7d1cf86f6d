"""Models by reference: pinned to a version when a flow begins, turned into a folder where they are needed.

Imported by Ray workers too, so it knows no Prefect.
"""

from __future__ import annotations

from pathlib import Path

from tasks.on_mlflow import models as logged
from tasks.on_mlflow import registry
from tasks.on_mlflow.registry import ModelVersion
from tasks.settings import Settings
from vitcore.models.references import absolute, load_reference
from vitcore.recipe import Config


class ModelRef(Config):
    """A model that cannot change any more: a registered version, public weights, or a folder at one content."""

    ref: str
    """``models:/name/3``, ``timm:NAME`` and the like, or an absolute path or URL."""
    digest: str
    """Digest of the weights."""


def resolve(ref: str, settings: Settings) -> ModelRef:
    """Pin a reference. Aliases become versions here, once, so that a flow sees one model however long it runs.

    Raises:
        RequestError: it names no model; the sentence says what there is.
    """
    if ref.startswith("models:"):
        return pinned(registry.resolve(settings.tracking_uri, ref))
    place = absolute(ref)
    return ModelRef(ref=place, digest=load_reference(place).digest)


def pinned(version: ModelVersion) -> ModelRef:
    """The reference of a registered version."""
    return ModelRef(ref=version.uri, digest=version.digest)


def localize(tracking_uri: str, cache: Path, ref: str) -> str:
    """What `load_reference` can read on this machine: a registered version is fetched into `cache`, once a machine."""
    return str(logged.fetch(tracking_uri, ref, cache)) if ref.startswith("models:") else ref
