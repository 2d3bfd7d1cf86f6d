"""Tokens-to-Token ViT: "Tokens-to-Token ViT: Training Vision Transformers from Scratch on ImageNet" (Yuan et al. 2021,
2101.11986).

This is T2T-ViT_t, whose tokens-to-token module has transformer layers (section 3.1), not the Performers of T2T-ViT
without the suffix. With the default configuration, 1000 classes and any image size it is T2T-ViT_t-14 with 21,465,422
trained parameters (the paper says 21.5 M).

Legend of the shape suffixes: B images, C channels of a map, H and W pixels, Y and X rows and columns of a map,
N tokens, I channels of a token that enters the tokens-to-token module's attention, T of one that leaves it,
D embedding width of the backbone, K classes.

Parameters carry the names of the paper's code.
"""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitcore.models.block import Block, Mlp
from vitcore.models.classifier import Classifier, check_parameter, check_size, make_head, zero_head
from vitcore.models.positions import resize_position_embedding
from vitcore.models.vit import INIT_STD, grid_of
from vitcore.recipe import T2tConfig

NORM_EPS = 1e-5
PIXELS = 16  # side of the square that a token of the backbone stands for: the product of the three strides
_FIRST = 7  # side of the first split's windows, at stride 4
_LATER = 3  # of the second's and the third's, at stride 2
_SLOWEST = 10_000.0


class TokenAttention(nn.Module):
    """Single-head attention from I to T channels. For want of a residual of T channels, the values are added.

    Scores are divided by √I, by the width of what enters, as in the paper's code.
    """

    def __init__(self, entering: int, width: int) -> None:
        super().__init__()
        self.scale = entering**-0.5
        self.qkv = nn.Linear(entering, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens_BNI: Tensor) -> Tensor:
        """(B, N, I) to (B, N, T)."""
        q_B1NT, k_B1NT, v_B1NT = self.qkv(tokens_BNI).unsqueeze(1).chunk(3, dim=3)  # one head: what fast kernels want
        mixed_B1NT = F.scaled_dot_product_attention(q_B1NT, k_B1NT, v_B1NT, scale=self.scale)
        out_B1NT: Tensor = v_B1NT + self.proj(mixed_B1NT)
        return out_B1NT.squeeze(1)


class TokenTransformer(nn.Module):
    """Pre-norm transformer layer from I to T channels, with an MLP as wide as its tokens (eq. 1)."""

    def __init__(self, entering: int, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(entering, eps=NORM_EPS)
        self.attn = TokenAttention(entering, width)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width, width)

    def forward(self, tokens_BNI: Tensor) -> Tensor:
        """(B, N, I) to (B, N, T)."""
        tokens_BNT: Tensor = self.attn(self.norm1(tokens_BNI))
        refined_BNT: Tensor = self.mlp(self.norm2(tokens_BNT))
        return tokens_BNT + refined_BNT


class TokensToToken(nn.Module):
    """Gathers neighbouring tokens into one, thrice, and lets them attend to each other in between (section 3.1).

    An image of 224 pixels becomes 56 · 56 tokens of 7 · 7 pixels, then 28 · 28 and 14 · 14 of 3 · 3 tokens each.
    """

    def __init__(self, token_width: int, width: int) -> None:
        super().__init__()
        self.attention1 = TokenTransformer(3 * _FIRST**2, token_width)
        self.attention2 = TokenTransformer(token_width * _LATER**2, token_width)
        self.project = nn.Linear(token_width * _LATER**2, width)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Tokens (B, H · W / 16², D), row by row."""
        height, width = images_BCHW.shape[-2:]
        tokens_BNT = self.attention1(soft_split(images_BCHW, _FIRST, stride=4, padding=2))
        map_BTYX = tokens_BNT.transpose(1, 2).unflatten(2, (height // 4, width // 4))
        tokens_BNT = self.attention2(soft_split(map_BTYX, _LATER, stride=2, padding=1))
        map_BTYX = tokens_BNT.transpose(1, 2).unflatten(2, (height // 8, width // 8))
        tokens_BND: Tensor = self.project(soft_split(map_BTYX, _LATER, stride=2, padding=1))
        return tokens_BND


class T2tVit(Classifier):
    """T2T-ViT_t: a tokens-to-token module, then a deep and narrow ViT with a class token (sections 3.2, 3.3).

    Positions are fixed sines and cosines of a token's number (a buffer: never trained). They are computed for the size
    that the model is made for, and interpolated to others as learned ones are, so that a token keeps its place.

    Args:
        config: the architecture.
        num_classes: K.
        image_size: pixels; a multiple of 16.
    Raises:
        RequestError: the image size is no multiple of 16.
    """

    config: T2tConfig
    pos_embed: Tensor

    def __init__(self, config: T2tConfig, num_classes: int, image_size: int) -> None:
        super().__init__()
        self.config, self.num_classes, self.image_size = config, num_classes, image_size
        self.width = config.width
        self.num_layers = config.depth + 1
        self._any_size = False
        self.tokens_to_token = TokensToToken(config.token_width, config.width)
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.register_buffer("pos_embed", sinusoids(1 + grid_of(image_size, PIXELS) ** 2, config.width))
        self.pos_drop = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(self._block(depth) for depth in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.head = make_head(config.width, num_classes)
        self._initialise()

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits (B, K); features (B, D) without a head. Only the class token, which is all the head reads, leaves the
        last block.
        """
        tokens_BND = self.embed(images_BCHW)
        for block in self.blocks[:-1]:
            tokens_BND = block(tokens_BND)
        read_B1D: Tensor = self.norm(self.blocks[-1](tokens_BND, 1))
        logits_BK: Tensor = self.head(read_B1D[:, 0])
        return logits_BK

    def embed(self, images_BCHW: Tensor) -> Tensor:
        """What enters the first block (B, N, D): the class token and the gathered tokens, with their positions."""
        positions_1ND = self._positions_for(*images_BCHW.shape[-2:])
        tokens_BND = self.tokens_to_token(images_BCHW)
        tokens_BND = torch.cat([self.cls_token.expand(tokens_BND.shape[0], -1, -1), tokens_BND], dim=1)
        entering_BND: Tensor = self.pos_drop(tokens_BND + positions_1ND)
        return entering_BND

    def layer_of(self, name: str) -> int:
        """0 for the tokens-to-token module and the class token, i + 1 for block i, depth + 1 for the final norm and the
        head.
        """
        check_parameter(self, name)
        block = re.match(r"blocks\.(\d+)\.", name)
        if block:
            return int(block[1]) + 1
        return self.num_layers if name.startswith(("norm.", "head.")) else 0

    def undecayed(self) -> set[str]:
        """The class token."""
        return {"cls_token"}

    def state_for(self, image_size: int) -> dict[str, Tensor]:
        """The state dict with positions interpolated to the grid of another image size."""
        state = super().state_for(image_size)
        state["pos_embed"] = resize_position_embedding(self.pos_embed, grid_of(image_size, PIXELS), prefix=1)
        return state

    def allow_any_size(self) -> None:
        """Positions are interpolated to the grid of each batch of square images."""
        self._any_size = True

    def head_parameters(self) -> tuple[str, ...]:
        """Weight and bias of the head."""
        return ("head.weight", "head.bias") if self.num_classes else ()

    def reset_head(self, num_classes: int) -> None:
        """Replace the head in place by a zero-initialised one."""
        self.head = zero_head(self.width, num_classes, self.cls_token)
        self.num_classes = num_classes

    def _positions_for(self, height: int, width: int) -> Tensor:
        if self._any_size and height == width:
            return resize_position_embedding(self.pos_embed, grid_of(height, PIXELS), prefix=1)
        check_size(self, height, width)
        return self.pos_embed

    def _block(self, depth: int) -> Block:
        config = self.config
        return Block(
            config.width,
            config.heads,
            mlp_ratio=config.mlp_ratio,
            dropout=config.dropout,
            drop_path=config.drop_path / max(config.depth - 1, 1) * depth,
            norm_eps=NORM_EPS,
            qkv_bias=False,
        )

    def _initialise(self) -> None:
        """Truncated normal for linear layers and the class token, as in the paper's code. Biases are zero."""
        nn.init.trunc_normal_(self.cls_token, std=INIT_STD)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=INIT_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def soft_split(map_BCYX: Tensor, side: int, *, stride: int, padding: int) -> Tensor:
    """Overlapping square windows of a map, each one token (B, N, C · side²), row by row (eq. 3). Beyond the border are
    zeros.
    """
    return F.unfold(map_BCYX, side, stride=stride, padding=padding).transpose(1, 2)


def sinusoids(count: int, width: int) -> Tensor:
    """Fixed position embeddings (1, count, D) of tokens numbered from 0 (1706.03762, section 3.5).

    Channels 2i and 2i + 1 of token n are the sine and the cosine of n / 10000^(2i / D).
    """
    pairs = torch.arange(0, width, 2, dtype=torch.float64)
    angles_NF = torch.arange(count, dtype=torch.float64)[:, None] * _SLOWEST ** (-pairs / width)
    return torch.stack([angles_NF.sin(), angles_NF.cos()], dim=2).flatten(1)[None, :, :width].float()
