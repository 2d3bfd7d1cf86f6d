"""Which version of a model is in use: the alias `champion`, and its history so that it can really be rolled back.

The history is a tag of the registered model: what was promoted and what was rolled back, oldest first. Read as a stack
it says which version served before, also after several roll-backs.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

from tasks.on_mlflow.client import connect
from tasks.on_mlflow.registry import CHAMPION, ModelVersion, resolve, versions
from vitcore.errors import RequestError

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

HISTORY = "vit.champion_history"
"""Tag of the registered model."""
_KEPT = 40  # changes; the tag stays below the 5,000 characters that every database holds


class Change(BaseModel):
    """The alias moved to `version`."""

    model_config = ConfigDict(frozen=True)

    version: int
    at: datetime
    action: Literal["promoted", "rolled back"] = "promoted"


def champion(tracking_uri: str, name: str) -> ModelVersion | None:
    """The version in use; none when no version of `name` has been promoted."""
    return next((version for version in versions(tracking_uri, name) if CHAMPION in version.aliases), None)


def set_champion(tracking_uri: str, name: str, version: int) -> ModelVersion:
    """Move the alias to `version`, on record; nothing happens when it is there.

    Raises:
        RequestError: no such model or version.
    """
    chosen = resolve(tracking_uri, f"models:/{name}/{version}")
    current = champion(tracking_uri, name)
    if current is not None and current.version == version:
        return current
    changes = list(history(tracking_uri, name))
    if current is not None and _stack(changes)[-1:] != [current.version]:  # the alias was moved by another hand
        changes.append(Change(version=current.version, at=datetime.now(UTC)))
    changes.append(Change(version=version, at=datetime.now(UTC)))
    return _move(connect(tracking_uri), chosen, changes)


def previous_champion(tracking_uri: str, name: str) -> ModelVersion | None:
    """The version that `rollback_champion` would bring back: the last one in use before, if it still exists."""
    current = champion(tracking_uri, name)
    known = {version.version: version for version in versions(tracking_uri, name)}
    stack = _stack(history(tracking_uri, name))
    if current is not None and current.version in stack:
        stack = stack[: len(stack) - 1 - stack[::-1].index(current.version)]
    return next((known[number] for number in reversed(stack) if number in known and known[number] != current), None)


def rollback_champion(tracking_uri: str, name: str) -> ModelVersion:
    """Give the alias back to the version that had it before, on record.

    Raises:
        RequestError: there is none to go back to.
    """
    target = previous_champion(tracking_uri, name)
    if target is None:
        raise RequestError(f"model {name!r} has no earlier champion to go back to: promote a version by its number")
    change = Change(version=target.version, at=datetime.now(UTC), action="rolled back")
    return _move(connect(tracking_uri), target, [*history(tracking_uri, name), change])


def history(tracking_uri: str, name: str) -> tuple[Change, ...]:
    """How the alias moved, oldest first; the newest forty changes."""
    found = connect(tracking_uri).search_registered_models(f"name = '{name}'")
    text = found[0].tags.get(HISTORY, "[]") if found else "[]"
    return tuple(Change.model_validate(entry) for entry in json.loads(text))


def _stack(changes: tuple[Change, ...] | list[Change]) -> list[int]:
    """The versions under the present one: a promotion goes on top, a roll-back returns to where its version was."""
    stack: list[int] = []
    for change in changes:
        if change.action == "rolled back" and change.version in stack:
            while stack[-1] != change.version:
                stack.pop()
        else:
            stack.append(change.version)
    return stack


def _move(mlflow: MlflowClient, version: ModelVersion, changes: list[Change]) -> ModelVersion:
    """The record first: a kill between the two leaves an alias that `previous_champion` still understands."""
    text = json.dumps([change.model_dump(mode="json") for change in changes[-_KEPT:]])
    mlflow.set_registered_model_tag(version.name, HISTORY, text)
    mlflow.set_registered_model_alias(version.name, CHAMPION, str(version.version))
    return version.model_copy(update={"aliases": tuple(sorted({*version.aliases, CHAMPION}))})
