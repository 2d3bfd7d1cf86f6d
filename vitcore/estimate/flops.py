"""FLOPs of whatever runs inside, counted operator by operator: two for each multiplication with its addition.

Counted are matrix products, convolutions and attention; element-wise work is not. torch's own counter leaves out the
attention kernel of the CPU and counts the weight gradient of a grouped convolution once too often for each group: both
are put right here. A fused attention computes its scores again on the way back, so that its backward pass has five
products where the forward pass has two; causal attention counts as if nothing were masked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

_Shape = Sequence[int]


def counter() -> FlopCounterMode:
    """A context that counts; `get_total_flops` tells."""
    aten = torch.ops.aten
    formulas: dict[Any, Callable[..., int]] = {
        aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
        aten.convolution_backward: _convolution_backward,
    }
    return FlopCounterMode(display=False, custom_mapping=formulas)


def _attention(query: _Shape, key: _Shape, value: _Shape, *_: Any, **__: Any) -> int:
    """Queries (B, A, N, E), keys (B, A, M, E) and values (B, A, M, V): the scores, and what they mix."""
    return 2 * math.prod(query[:3]) * key[2] * (query[3] + value[3])


def _attention_backward(gradient: _Shape, query: _Shape, key: _Shape, value: _Shape, *_: Any, **__: Any) -> int:
    """The scores again; the gradients of scores and values; those of queries and keys."""
    return 2 * math.prod(query[:3]) * key[2] * (3 * query[3] + 2 * value[3])


def _convolution_backward(
    gradient: _Shape,
    image: _Shape,
    weight: _Shape,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    wanted: Sequence[bool],
    **_: Any,
) -> int:
    """As much as the forward pass for each of the two gradients that is wanted: every weight meets every value that
    comes out of it (of a transposed convolution: that goes into it) once for each.
    """
    places = image if transposed else gradient
    forward = 2 * math.prod(places) * math.prod(weight[1:])
    return forward * (bool(wanted[0]) + bool(wanted[1]))
