"""The options every verb shares, read before a verb imports anything heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vitcore.errors import RequestError

if TYPE_CHECKING:
    from tasks.settings import Settings

_VALUED = {
    "--tracking": "an MLflow server, such as http://host:5000",
    "--api": "a Prefect API, such as http://host:4200/api",
}


@dataclass(frozen=True, slots=True)
class Session:
    """What was asked for beside the verb's own arguments."""

    verbose: bool = False
    tracking: str | None = None
    api: str | None = None

    def start(self) -> Settings:
        """Point Prefect, Ray and MLflow at the places asked for; to be called before a verb imports a flow."""
        from tasks.orphans import stop_orphaned_servers
        from tasks.settings import prepare

        settings = prepare(tracking=self.tracking, api=self.api, verbose=self.verbose)
        stop_orphaned_servers(settings)
        return settings


def split(argv: list[str]) -> tuple[Session, list[str]]:
    """The session that `argv` asks for, wherever its options stand, and the arguments that are left.

    Raises:
        RequestError: an option without its value.
    """
    verbose = False
    values: dict[str, str] = {}
    rest: list[str] = []
    tokens = iter(argv)
    for token in tokens:
        name, equals, value = token.partition("=")
        if token in ("-v", "--verbose"):
            verbose = True
        elif name in _VALUED:
            given = value if equals else next(tokens, "")
            if not given or given.startswith("-"):
                raise RequestError(f"{name} needs a value: {_VALUED[name]}")
            values[name] = given
        else:
            rest.append(token)
    return Session(verbose, values.get("--tracking"), values.get("--api")), rest
