"""The model registry: versions registered once and found by reference.

A version says in its tags what it is: `vit.identity` (what produced it), `vit.digest` (its weights), `vit.parent` and
`vit.teacher` (references of the models it was made from), `vit.dataset` (digest of its training data).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from tasks.on_mlflow.client import connect, is_server
from tasks.on_mlflow.runs import IDENTITY, cut
from vitcore.errors import RequestError

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

CHAMPION = "champion"
"""Alias of the version in use."""
DIGEST = "vit.digest"
"""Tag with the digest of a version's weights."""
PARENT = "vit.parent"
"""Tag with the reference of the model a version was continued from."""
TEACHER = "vit.teacher"
"""Tag with the reference of the model a version was distilled from."""
DATASET = "vit.dataset"
"""Tag with the digest of the dataset version a version was trained on."""
DESCRIPTION_CHARACTERS = 5000
"""What a version's description holds on every database; SQLite would not complain, PostgreSQL does."""

_REFERENCE = re.compile(r"models:/(?P<name>[^/@]+)(?:/(?P<version>[^/@]+)|@(?P<alias>[^/@]+))")


class ModelVersion(BaseModel):
    """A registered version of a model."""

    model_config = ConfigDict(frozen=True)

    name: str
    version: int
    identity: str
    """What produced it; empty for a version that this project did not register."""
    run_id: str
    digest: str
    """Digest of its weights."""
    tags: dict[str, str]
    aliases: tuple[str, ...]
    created: datetime
    description: str

    @property
    def uri(self) -> str:
        """Its reference, the same for ever: ``models:/name/3``."""
        return f"models:/{self.name}/{self.version}"


class Model(BaseModel):
    """A registered model with its versions, newest first."""

    model_config = ConfigDict(frozen=True)

    name: str
    versions: tuple[ModelVersion, ...]

    @property
    def champion(self) -> ModelVersion | None:
        """The version in use."""
        return next((version for version in self.versions if CHAMPION in version.aliases), None)


def register(
    tracking_uri: str,
    *,
    name: str,
    identity: str,
    run_id: str,
    model_uri: str,
    tags: Mapping[str, str],
    description: str,
    fresh: bool = False,
) -> ModelVersion:
    """The version of `name` with this identity: the existing one, else a new one.

    Two that register the same identity at once get the same version: numbers are given out in order, so the higher one
    sees the lower and withdraws.

    Args:
        tracking_uri: MLflow server or SQLite file.
        name: registered model; made when there is none.
        identity: what produced the version.
        run_id: the run it belongs to.
        model_uri: what `tasks.on_mlflow.models.log_model` returned.
        tags: see the module's header.
        description: Markdown, cut at 5,000 characters.
        fresh: an existing version counts only if it is of the same run (a repeated run has new weights).
    """
    mlflow = connect(tracking_uri)
    _require_name(name)
    _ensure_model(mlflow, name)
    same = _with_identity(mlflow, name, identity, run_id if fresh else None)
    if same:
        return same[0]
    source, model_id = _source(mlflow, tracking_uri, model_uri)
    mine = mlflow.create_model_version(
        name,
        source,
        run_id,
        model_id=model_id,
        tags={**tags, IDENTITY: identity},
        description=cut(description, DESCRIPTION_CHARACTERS),
    )
    first = _with_identity(mlflow, name, identity, run_id if fresh else None)[0]
    if first.version != int(mine.version):
        mlflow.delete_model_version(name, mine.version)
    return first


def resolve(tracking_uri: str, ref: str) -> ModelVersion:
    """The version a reference names: ``models:/name/3``, ``models:/name/latest`` or ``models:/name@champion``.

    Raises:
        RequestError: not such a reference, or no such model, version or alias; says what there is.
    """
    match = _REFERENCE.fullmatch(ref)
    if match is None:
        raise RequestError(
            f"{ref!r} does not name a registered model: write models:/NAME/VERSION or models:/NAME@ALIAS"
        )
    name, number, alias = match["name"], match["version"], match["alias"]
    known = versions(tracking_uri, name)
    if not known:
        raise RequestError(_no_model(tracking_uri, name))
    if number == "latest":
        return known[0]
    for version in known:
        if str(version.version) == number or alias in version.aliases:
            return version
    if alias is not None:
        aliases = [f"{other} (version {version.version})" for version in known for other in version.aliases]
        raise RequestError(f"model {name!r} has no alias {alias!r}: {_one_of(aliases, 'it has no alias at all')}")
    numbers = _ranges(sorted(version.version for version in known))
    raise RequestError(f"model {name!r} has no version {number!r}: there is {numbers}")


def list_models(tracking_uri: str) -> tuple[Model, ...]:
    """Every model with a version of this project's making, by name."""
    mlflow = connect(tracking_uri)
    found: dict[str, list[ModelVersion]] = {}
    for version in _search(mlflow, None):
        if version.identity:
            found.setdefault(version.name, []).append(version)
    return tuple(Model(name=name, versions=tuple(found[name])) for name in sorted(found))


def versions(tracking_uri: str, name: str) -> tuple[ModelVersion, ...]:
    """All versions of a model, newest first; empty when there is no such model."""
    return tuple(_search(connect(tracking_uri), name))


def find(tracking_uri: str, name: str, identity: str, run_id: str | None = None) -> ModelVersion | None:
    """The newest version of `name` that this identity produced, in the run `run_id` where one is given."""
    same = _with_identity(connect(tracking_uri), name, identity, run_id)
    return same[-1] if same else None


def describe_version(tracking_uri: str, version: ModelVersion, description: str) -> None:
    """Replace a version's description (Markdown, cut at 5,000 characters)."""
    mlflow = connect(tracking_uri)
    mlflow.update_model_version(version.name, str(version.version), cut(description, DESCRIPTION_CHARACTERS))


def tag_version(tracking_uri: str, version: ModelVersion, tags: Mapping[str, str]) -> ModelVersion:
    """Set or replace tags of a version."""
    mlflow = connect(tracking_uri)
    for key, value in tags.items():
        mlflow.set_model_version_tag(version.name, str(version.version), key, value)
    return version.model_copy(update={"tags": {**version.tags, **tags}})


def _search(mlflow: MlflowClient, name: str | None, condition: str = "") -> list[ModelVersion]:
    """All versions of a model (none: of all models) that meet `condition`, newest first.

    A search for versions leaves their aliases out (on database stores), so they are asked for by model.
    """
    by_name = "" if name is None else f"name = '{_quoted(name)}'"
    aliases: dict[tuple[str, int], list[str]] = {}
    for model in _pages(mlflow.search_registered_models, by_name):
        for alias, number in model.aliases.items():
            aliases.setdefault((model.name, int(number)), []).append(alias)
    entities = _pages(mlflow.search_model_versions, " and ".join(part for part in (by_name, condition) if part))
    found = [_version(entity, aliases.get((entity.name, int(entity.version)), [])) for entity in entities]
    return sorted(found, key=lambda version: (version.name, -version.version))


def _pages(search: Callable[..., Any], condition: str) -> Iterator[Any]:
    token = None
    while True:
        page = search(condition or None, max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _with_identity(mlflow: MlflowClient, name: str, identity: str, run_id: str | None) -> list[ModelVersion]:
    """Lowest number first."""
    same = _search(mlflow, name, f"tags.`{IDENTITY}` = '{_quoted(identity)}'")
    return [version for version in reversed(same) if run_id is None or version.run_id == run_id]


def _version(entity: Any, aliases: Sequence[str]) -> ModelVersion:
    tags = dict(entity.tags)
    return ModelVersion(
        name=entity.name,
        version=int(entity.version),
        identity=tags.get(IDENTITY, ""),
        run_id=entity.run_id or "",
        digest=tags.get(DIGEST, ""),
        tags=tags,
        aliases=tuple(sorted(aliases)),
        created=datetime.fromtimestamp(entity.creation_timestamp / 1000, UTC),
        description=entity.description or "",
    )


def _ensure_model(mlflow: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    if mlflow.search_registered_models(f"name = '{_quoted(name)}'"):
        return
    try:
        mlflow.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":  # made by another process since we looked
            raise


def _source(mlflow: MlflowClient, tracking_uri: str, model_uri: str) -> tuple[str, str | None]:
    """What the version points at, and the id of the logged model where the server wants to check it.

    A server resolves ``models:/<id>`` itself. A database store would do so with the process-wide default URI, which is
    another store, so it is given the place of the files.
    """
    model_id = model_uri.removeprefix("models:/")
    if model_id == model_uri:
        return model_uri, None
    if is_server(tracking_uri):
        return model_uri, model_id
    return str(mlflow.get_logged_model(model_id).artifact_location), None


def _require_name(name: str) -> None:
    if not re.fullmatch(r"[\w. -]+", name):
        raise RequestError(f"{name!r} cannot name a model: use letters, digits, dots, dashes and underscores")


def _no_model(tracking_uri: str, name: str) -> str:
    names = [model.name for model in list_models(tracking_uri)]
    near = difflib.get_close_matches(name, names, n=3)
    if near:
        return f"there is no model {name!r} in the registry; did you mean {' or '.join(map(repr, near))}?"
    return f"there is no model {name!r} in the registry: {_one_of(names, 'nothing is registered yet')}"


def _one_of(names: Sequence[str], none: str) -> str:
    most = 10
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"there is {', '.join(names[:most])}{more}" if names else none


def _ranges(numbers: Sequence[int]) -> str:
    """``1, 3-7`` for 1, 3, 4, 5, 6, 7."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][-1] == number - 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ", ".join("-".join(map(str, part)) for part in parts)


def _quoted(text: str) -> str:
    """`text` inside a quoted string of MLflow's search language, which has no escape for the quote itself."""
    if "'" in text:
        raise RequestError(f"{text!r} has a quote in it; names have none")
    return text
