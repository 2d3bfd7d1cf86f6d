"""What another library needs to rebuild one of our models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor


class Foreign(NamedTuple):
    """A model in another library's words."""

    config: Mapping[str, Any]
    """What goes into the ``config.json`` beside the weights."""
    state: dict[str, Tensor]
    """Its state dict."""
