"""The way to an MLflow server: one client a URI, imported late, with its loggers as quiet as the caller left them."""

from __future__ import annotations

import logging
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from vitcore.errors import WorkError

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

_LOGGERS = ("mlflow", "alembic", "sqlalchemy.engine")
_HEALTH_TIMEOUT_S = 5.0


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the levels of MLflow's loggers over its import, which would set them to INFO."""
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level or logging.WARNING)


def connect(tracking_uri: str) -> MlflowClient:
    """A client of the tracking server and its registry, after asking once whether the server is there.

    Raises:
        WorkError: the server does not answer, or the database cannot be opened.
    """
    _require_answer(tracking_uri)
    return client(tracking_uri)


@lru_cache(maxsize=8)
def client(tracking_uri: str) -> MlflowClient:
    """A client without asking first: for those who can wait for a server that is away.

    Raises:
        WorkError: the database of a ``sqlite:`` URI cannot be opened.
    """
    with quiet():
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient
    root = local_root(tracking_uri)
    try:
        if root is not None:
            root.mkdir(parents=True, exist_ok=True)
        return MlflowClient(tracking_uri, registry_uri=tracking_uri)
    except (OSError, MlflowException) as error:
        raise WorkError(f"the MLflow store {tracking_uri} cannot be opened: {error}") from error


def local_root(tracking_uri: str) -> Path | None:
    """Folder that holds a SQLite tracking database, and with it the artifacts; none for a server."""
    prefix = "sqlite:///"
    path = tracking_uri.removeprefix(prefix).split("?")[0]
    if not tracking_uri.startswith(prefix) or not path or path == ":memory:":
        return None
    return Path(path).expanduser().absolute().parent


def is_server(tracking_uri: str) -> bool:
    """Whether requests go over HTTP to a tracking server."""
    return tracking_uri.startswith(("http://", "https://"))


@lru_cache(maxsize=8)
def _require_answer(tracking_uri: str) -> None:
    """Fail in seconds: the client's own retries would take minutes to say the same."""
    if not is_server(tracking_uri):
        return
    request = urllib.request.Request(f"{tracking_uri.rstrip('/')}/health")  # noqa: S310  (http or https, see above)
    try:
        urllib.request.urlopen(request, timeout=_HEALTH_TIMEOUT_S).close()  # noqa: S310
    except urllib.error.HTTPError:
        return  # it answers; whether it likes us is seen with the first real request
    except OSError as error:
        why = getattr(error, "reason", error)
        raise WorkError(
            f"the MLflow server {tracking_uri} does not answer ({why}): start it, or choose another with --tracking"
        ) from error
