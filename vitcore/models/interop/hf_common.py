"""What the towers of transformers' models have in common: options read with their defaults, packed projections."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from vitcore.errors import RequestError
from vitcore.recipe.model import Activation

_COLOURS = 3
_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
}
_THEIR_ACTIVATION: dict[Activation, str] = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "quick_gelu": "quick_gelu",
}


def activation_in(config: Mapping[str, Any], default: str) -> Activation:
    """Our name of ``hidden_act``.

    Raises:
        RequestError: a non-linearity ours has not.
    """
    name = config.get("hidden_act", default)
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        raise RequestError(
            f"transformers' hidden_act {name!r} has no counterpart here; known: {', '.join(_ACTIVATIONS)}"
        )
    return _ACTIVATIONS[name]


def activation_out(activation: Activation) -> str:
    """Their name of our non-linearity."""
    return _THEIR_ACTIVATION[activation]


def number(config: Mapping[str, Any], name: str, default: int) -> int:
    """A positive whole number of a ``config.json``; of a pair of sides the one, if they are equal.

    Raises:
        RequestError: it is none, or a pair of different sides.
    """
    value = config.get(name, default)
    if isinstance(value, list | tuple) and len(set(value)) == 1:
        value = value[0]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise RequestError(f"transformers' {name} is {value!r}; a positive whole number is needed")
    return value


def epsilon(config: Mapping[str, Any], default: float) -> float:
    """``layer_norm_eps``.

    Raises:
        RequestError: it is no number above 0.
    """
    value = config.get("layer_norm_eps", default)
    if not isinstance(value, float | int) or isinstance(value, bool) or not 0 < value < 1:
        raise RequestError(f"transformers' layer_norm_eps is {value!r}; a number between 0 and 1 is needed")
    return float(value)


def check_colours(config: Mapping[str, Any]) -> None:
    """Refuse images that are not of three colours."""
    channels = number(config, "num_channels", _COLOURS)
    if channels != _COLOURS:
        raise RequestError(f"transformers' num_channels is {channels}; only images of {_COLOURS} colours are supported")


def take(state: dict[str, Tensor], name: str) -> Tensor:
    """Remove a tensor from `state` and return it.

    Raises:
        RequestError: there is none of that name.
    """
    if name not in state:
        raise RequestError(f"the weights are not those their config.json describes: missing {name}")
    return state.pop(name)


def pack(state: dict[str, Tensor], names: Iterable[str]) -> Tensor:
    """Queries, keys and values stacked into one projection, as our attention has them."""
    parts = [take(state, name) for name in names]
    if len({part.shape for part in parts}) > 1:
        raise RequestError("queries, keys and values are projected to different shapes, which has no counterpart here")
    return torch.cat(parts)


def unpack(packed: Tensor) -> list[Tensor]:
    """The three projections that `pack` stacked, each owning its memory."""
    return [part.clone() for part in packed.chunk(3)]


def nothing_left(state: Mapping[str, Tensor]) -> None:
    """Refuse a state dict of which something has not been read.

    Raises:
        RequestError: names what is left.
    """
    if state:
        first = sorted(state)[:6]
        more = f" and {len(state) - len(first)} more" if len(state) > len(first) else ""
        raise RequestError(f"the weights hold parameters that have no counterpart here: {', '.join(first)}{more}")
