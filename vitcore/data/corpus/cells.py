"""What a corpus says of a photograph, made fit to keep: class, captions, split and metadata out of anybody's cells."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import date, time
from decimal import Decimal
from typing import Any

from vitcore.data.corpus.listing import SPLITS

CAPTION_LIMIT = 16_384
"""Characters of the longest caption; what is longer is a document and no caption."""
LABEL_LIMIT = 512
"""Characters of the longest class name."""
EXTRA_LIMIT = 65_536
"""Characters of a photograph's metadata as JSON."""
_SPLIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_DEPTH = 16  # of nested metadata; what lies deeper is left out
_SCALARS = (str, bool, int)
_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode


class BrokenCellError(ValueError):
    """A cell that says nothing usable; the message is the reason, worded so that equal reasons count together."""


def text(value: Any) -> str | None:
    """A cell as text: 3.0 is the class 3, blanks and NaN are nothing.

    Raises:
        BrokenCellError: it is not UTF-8.
    """
    if value is None:
        return None
    if isinstance(value, float):
        if not math.isfinite(value):  # NaN marks a missing number
            return None
        value = int(value) if value.is_integer() else value
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            raise BrokenCellError("is not UTF-8") from None
    found = str(value).strip()
    if not found.isascii():
        try:
            found.encode()  # JSON may hold half of a surrogate pair
        except UnicodeEncodeError:
            raise BrokenCellError("is not UTF-8") from None
    return found or None


def label(value: Any, what: str = "label") -> str | None:
    """The class that a cell names, or None.

    Args:
        value: of the cell.
        what: it is called in reasons, where it names something else.

    Raises:
        BrokenCellError: it is no name.
    """
    if isinstance(value, (list, dict, tuple)):
        raise BrokenCellError(f"its {what} is not one value")
    try:
        found = text(value)
    except BrokenCellError as error:
        raise BrokenCellError(f"its {what} {error}") from None
    if found is not None and len(found) > LABEL_LIMIT:
        raise BrokenCellError(f"its {what} has more than {LABEL_LIMIT} characters")
    return found


def captions(value: Any) -> list[str]:
    """The usable captions of a cell or a list of cells, each once.

    Raises:
        BrokenCellError: there are some, and none is usable.
    """
    found: dict[str, None] = {}
    problem = None
    for one in value if isinstance(value, (list, tuple)) else (value,):
        try:
            words = _caption(one)
        except BrokenCellError as error:
            problem = problem or str(error)
        else:
            if words is not None:
                found[words] = None
    if problem and not found:
        raise BrokenCellError(problem)
    return list(found)


def _caption(value: Any) -> str | None:
    try:
        found = text(value)
    except BrokenCellError as error:
        raise BrokenCellError(f"its caption {error}") from None
    if found is None or found.lower() == "nan":  # what a missing number becomes as text
        return None
    if len(found) > CAPTION_LIMIT:
        raise BrokenCellError(f"its caption has more than {CAPTION_LIMIT} characters")
    if not found.isprintable() and all(unicodedata.category(sign)[0] in "CZ" for sign in found):
        return None  # nothing but control characters and blanks
    return found


def split(value: Any) -> str | None:
    """The split that a cell names, by its name here; None where it names none.

    Raises:
        BrokenCellError: it cannot be the name of a folder.
    """
    found = text(value)
    if found is None:
        return None
    found = SPLITS.get(found.lower(), found)
    if not _SPLIT_NAME.fullmatch(found):
        raise BrokenCellError("its split is not a name of letters, digits, - and _")
    return found


def metadata(values: Mapping[str, Any]) -> str | None:
    """Metadata as a JSON object, one spelling of it; None when nothing can be kept. Bytes and NaN are left out.

    Raises:
        BrokenCellError: there is too much of it.
    """
    kept = {name: safe for name, value in values.items() if (safe := json_safe(value)) is not None}
    if not kept:
        return None
    written = _encode(kept)
    if len(written) > EXTRA_LIMIT:
        raise BrokenCellError(f"its metadata has more than {EXTRA_LIMIT} characters")
    return written


def json_safe(value: Any, depth: int = 0) -> Any:
    """A value as JSON can hold it; None for what it cannot."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    if isinstance(value, _SCALARS):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (date, time)):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    if depth == _DEPTH:
        return None
    if isinstance(value, Mapping):
        return {json_safe(str(name)): json_safe(one, depth + 1) for name, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return [json_safe(one, depth + 1) for one in value]
    return None
