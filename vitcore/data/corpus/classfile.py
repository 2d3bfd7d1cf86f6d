"""A file that names classes which labels only number: a name a line, or JSON."""

from __future__ import annotations

import json
from typing import Any

from vitcore import storage
from vitcore.errors import RequestError


def read_classes(url: str) -> tuple[str, ...]:
    """Names of the classes, by number.

    Args:
        url: of a text file with a name a line, or of a ``.json`` with a list of names, an object from numbers to names,
            or one from names to numbers.

    Raises:
        RequestError: it is not there or says something else.
    """
    try:
        text = storage.read(storage.absolute(url)).decode()
        names = _from_json(json.loads(text)) if url.endswith(".json") else text.splitlines()
    except (OSError, ValueError, RecursionError) as error:
        raise RequestError(f"the classes {url} cannot be read: {error}") from None
    names = [name.strip() for name in names]
    while names and not names[-1]:
        names.pop()
    if not names or "" in names or len(set(names)) != len(names):
        raise RequestError(f"the classes {url} must be names, none empty and none twice; correct the file")
    return tuple(names)


def name_of(label: str, names: tuple[str, ...]) -> str | None:
    """The class that a label means, by its number or its name; None where it means none of them."""
    if label.isascii() and label.isdigit():
        return names[int(label)] if int(label) < len(names) else None
    return label if label in names else None


def _from_json(value: Any) -> list[str]:
    if isinstance(value, dict):
        numbered = all(isinstance(name, str) for name in value.values())
        pairs = (
            [(int(number), name) for number, name in value.items()]
            if numbered
            else [(number, name) for name, number in value.items()]
        )
        pairs.sort()
        if [number for number, _ in pairs] != list(range(len(pairs))):
            raise ValueError("its numbers do not count from 0")
        value = [name for _, name in pairs]
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError("it is no list of names")
    return value
