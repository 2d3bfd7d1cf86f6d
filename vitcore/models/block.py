"""The transformer block and its parts, shared by every architecture that is built of them.

Legend of the shape suffixes: B images or texts, N tokens, D embedding width, A attention heads, E = D / A channels of a
head, M hidden width of the MLP.

Parameters carry the names timm gives them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitcore.recipe.model import Activation

_RATIO_SLACK = 1e-6


class DropPath(nn.Module):
    """Stochastic depth (1603.09382): drops a residual branch per image, and scales the kept ones to the same mean."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch_BND: Tensor) -> Tensor:
        """The branch with each image's rows kept with probability 1 − rate; untouched in evaluation."""
        if not self.training or self.rate == 0:
            return branch_BND
        kept = 1 - self.rate
        mask_B11 = branch_BND.new_empty(len(branch_BND), 1, 1).bernoulli_(kept).div_(kept)
        return branch_BND * mask_B11

    def extra_repr(self) -> str:
        """The rate, in the model's printout."""
        return f"rate={self.rate:g}"


class LayerScale(nn.Module):
    """A learned factor for each channel of a residual branch (2103.17239, section 2, eq. 4)."""

    def __init__(self, width: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), initial))

    def forward(self, branch_BND: Tensor) -> Tensor:
        """The branch times the factors."""
        return branch_BND * self.gamma


class Attention(nn.Module):
    """Multi-head self-attention (2010.11929, appendix A, eq. 5 to 8) with one packed projection for queries, keys and
    values.

    Args:
        width: D.
        heads: A.
        dropout: rate after the output projection.
        qk_norm: whether the queries and keys of each head are normalised (2302.05442, section 2).
        norm_eps: epsilon of those norms.
        causal: whether a token attends only to itself and those before it.
        qkv_bias: whether queries, keys and values have biases.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        dropout: float = 0.0,
        qk_norm: bool = False,
        norm_eps: float = 1e-6,
        causal: bool = False,
        qkv_bias: bool = True,
    ) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.q_norm = nn.LayerNorm(width // heads, eps=norm_eps) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(width // heads, eps=norm_eps) if qk_norm else nn.Identity()
        self.proj = nn.Linear(width, width)
        self.drop = nn.Dropout(dropout)

    def split(self, tokens_BND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys (both normalised where that is asked for) and values, each (B, A, N, E)."""
        B, N, D = tokens_BND.shape
        packed: Tensor = self.qkv(tokens_BND)
        q_BNAE, k_BNAE, v_BNAE = packed.view(B, N, 3, self.heads, D // self.heads).unbind(2)
        q_BANE, k_BANE = self.q_norm(q_BNAE).transpose(1, 2), self.k_norm(k_BNAE).transpose(1, 2)
        return q_BANE, k_BANE, v_BNAE.transpose(1, 2)

    def forward(self, tokens_BND: Tensor, first: int | None = None) -> Tensor:
        """What the first `first` tokens (default: all) gather from all tokens."""
        q_BANE, k_BANE, v_BANE = self.split(tokens_BND)
        mixed_BANE = F.scaled_dot_product_attention(q_BANE[:, :, :first], k_BANE, v_BANE, is_causal=self.causal)
        out_BND: Tensor = self.drop(self.proj(mixed_BANE.transpose(1, 2).flatten(2)))
        return out_BND

    def weights(self, tokens_BND: Tensor) -> Tensor:
        """The softmax weights (B, A, N, N) that `forward` mixes the values with; each row sums to one."""
        q_BANE, k_BANE, _ = self.split(tokens_BND)
        scores_BANN: Tensor = q_BANE @ k_BANE.transpose(-2, -1) * q_BANE.shape[-1] ** -0.5
        if self.causal:
            later_NN = torch.ones(scores_BANN.shape[-2:], dtype=torch.bool, device=scores_BANN.device).triu(1)
            scores_BANN = scores_BANN.masked_fill(later_NN, float("-inf"))
        return scores_BANN.softmax(dim=-1)


def quick_gelu(hidden: Tensor) -> Tensor:
    """x · sigmoid(1.702 x), the approximation that OpenAI's CLIP was trained with (1606.08415, section 2)."""
    return hidden * torch.sigmoid(1.702 * hidden)


def activation_of(name: Activation) -> Callable[[Tensor], Tensor]:
    """The function that an activation's name stands for."""
    named: dict[Activation, Callable[[Tensor], Tensor]] = {
        "gelu": F.gelu,
        "gelu_tanh": partial(F.gelu, approximate="tanh"),
        "quick_gelu": quick_gelu,
    }
    return named[name]


class Mlp(nn.Module):
    """Two linear layers with a non-linearity between them."""

    def __init__(self, width: int, hidden: int, *, dropout: float = 0.0, activation: Activation = "gelu") -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.activate = activation_of(activation)
        self.fc2 = nn.Linear(hidden, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        """(B, N, D) to (B, N, D) by way of (B, N, M)."""
        hidden_BNM: Tensor = self.drop(self.activate(self.fc1(tokens_BND)))
        out_BND: Tensor = self.drop(self.fc2(hidden_BNM))
        return out_BND


def hidden_width(width: int, mlp_ratio: float) -> int:
    """Hidden width M of an MLP: `mlp_ratio` · D, rounded down.

    A ratio that was read off as M / D gives M again, although the product may fall short of it by a rounding.
    """
    return int(width * mlp_ratio + _RATIO_SLACK)


class Block(nn.Module):
    """Pre-norm transformer block (2010.11929, eq. 2 and 3), each branch under stochastic depth.

    Args:
        width: D.
        heads: A; divides D.
        mlp_ratio: hidden width of the MLP over D.
        dropout: rate after the attention's projection and after both layers of the MLP.
        drop_path: rate of stochastic depth.
        activation: non-linearity of the MLP.
        norm_eps: epsilon of the norms.
        layer_scale: initial factor on both branches; none: no factors.
        qk_norm: whether queries and keys are normalised.
        causal: whether a token attends only to itself and those before it.
        qkv_bias: whether queries, keys and values have biases.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        activation: Activation = "gelu",
        norm_eps: float = 1e-6,
        layer_scale: float | None = None,
        qk_norm: bool = False,
        causal: bool = False,
        qkv_bias: bool = True,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.attn = Attention(
            width, heads, dropout=dropout, qk_norm=qk_norm, norm_eps=norm_eps, causal=causal, qkv_bias=qkv_bias
        )
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = Mlp(width, hidden_width(width, mlp_ratio), dropout=dropout, activation=activation)
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens_BND: Tensor, first: int | None = None) -> Tensor:
        """All tokens attend; only the first `first` (default: all) come out."""
        attended_BND: Tensor = self.drop_path(self.ls1(self.attn(self.norm1(tokens_BND), first)))
        middle_BND = tokens_BND[:, :first] + attended_BND
        refined_BND: Tensor = self.drop_path(self.ls2(self.mlp(self.norm2(middle_BND))))
        return middle_BND + refined_BND
