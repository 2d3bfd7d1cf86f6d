"""FLOPs of an operator: two for each multiplication with its addition.

Counted are matrix products, convolutions and attention; element-wise work is not. torch's own formulas have none for
the attention kernel of the CPU, and count the weight gradient of a grouped convolution once too often for each group:
both are put right here. A fused attention computes its scores again on the way back, so that its backward pass has
five products where the forward pass has two; causal attention counts as if nothing were masked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

_ATEN = torch.ops.aten


def flops_of(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> int:
    """FLOPs of one call of an operator; 0 of what is not counted.

    Args:
        func: as a dispatch mode meets it.
        args: what it was called with.
        kwargs: what it was called with, by name.
        result: what it returned.
    """
    formula = _OURS.get(func.overloadpacket) or flop_registry.get(func.overloadpacket)
    return 0 if formula is None else int(formula(*args, **kwargs, out_val=result))


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    """Queries (B, A, N, E), keys (B, A, M, E) and values (B, A, M, V): the scores, and what they mix."""
    return 2 * math.prod(query.shape[:3]) * key.shape[2] * (query.shape[3] + value.shape[3])


def _attention_backward(gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    """The scores again; the gradients of scores and values; those of queries and keys."""
    return 2 * math.prod(query.shape[:3]) * key.shape[2] * (3 * query.shape[3] + 2 * value.shape[3])


def _convolution_backward(
    gradient: Tensor,
    images: Tensor,
    weight: Tensor,
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
    """As much as the forward pass for each of the two gradients that is wanted: every value that comes out (of a
    transposed convolution: that goes in) meets all weights of its channel in both.
    """
    forward = 2 * (images if transposed else gradient).numel() * math.prod(weight.shape[1:])
    return forward * (bool(wanted[0]) + bool(wanted[1]))


_OURS: dict[Any, Callable[..., int]] = {
    _ATEN._scaled_dot_product_flash_attention_for_cpu: _attention,
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    _ATEN.convolution_backward: _convolution_backward,
}
