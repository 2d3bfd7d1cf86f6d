"""The base of every configuration, and what is done with one: parsing, overriding by dotted field, flattening."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from vitcore.errors import RequestError


class Config(BaseModel):
    """Base of every configuration: frozen, no unknown field, attribute docstrings are the help texts."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


C = TypeVar("C", bound=Config)


def apply_overrides(config: C, overrides: Mapping[str, Any]) -> C:
    """A copy of `config` with dotted fields replaced: ``{"train.duration": "3 epochs"}``.

    Raises:
        RequestError: an unknown field (with the nearest known one), or a value that does not validate.
    """
    tree: dict[str, Any] = config.model_dump(mode="json")
    for dotted, value in overrides.items():
        *parents, leaf = dotted.split(".")
        node: Any = tree
        for depth, name in enumerate([*parents, leaf]):
            if not isinstance(node, dict) or name not in node:
                raise RequestError(_unknown_field(dotted, parents[:depth], node))
            if depth < len(parents):
                node = node[name]
        node[leaf] = value
    return parse(type(config), tree)


def flatten(config: Config) -> dict[str, Any]:
    """Dotted field → JSON value, leaves only."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, node: Any) -> None:
        if isinstance(node, dict):
            for name, value in node.items():
                walk(f"{prefix}.{name}" if prefix else name, value)
        else:
            flat[prefix] = node

    walk("", config.model_dump(mode="json"))
    return flat


def parse(kind: type[C], tree: Any) -> C:
    """Validate a JSON value as a configuration; a misspelt or wrong field becomes one clear sentence."""
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        what = first["msg"].removeprefix("Value error, ")
        field = ".".join(_written(tree, first["loc"]))
        raise RequestError(f"{field}: {what}" if field else what) from None


def _written(tree: Any, location: tuple[int | str, ...]) -> list[str]:
    """A validation error's location as the fields are written: without the tags that choose a union's member."""
    parts: list[str] = []
    node = tree
    for part in location:
        if isinstance(node, Mapping) and part not in node and node.get("kind") == part:
            continue
        parts.append(str(part))
        inside = (isinstance(node, Mapping) and part in node) or (isinstance(node, list) and isinstance(part, int))
        node = node[part] if inside else None
    return parts


def _unknown_field(dotted: str, parents: list[str], node: Any) -> str:
    known = list(node) if isinstance(node, dict) else []
    near = difflib.get_close_matches(dotted.split(".")[len(parents)], known, n=1)
    where = f" in {'.'.join(parents)}" if parents else ""
    hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}" if known else ""
    return f"there is no field {dotted!r}{where}{hint}"
