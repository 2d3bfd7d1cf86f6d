"""Vision transformer: "An Image is Worth 16x16 Words" (Dosovitskiy et al. 2021, 2010.11929).

Legend of the shape suffixes: B images, C colour channels, H and W pixels, P patches, T prefix tokens (class token, and
DeiT's distillation token), N = T + P tokens, D embedding width, A attention heads, E = D / A channels of a head,
M hidden width of the MLP, K classes.

Parameters carry the names timm gives them, so that a file of our weights is a file of timm weights.
"""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitcore.errors import RequestError
from vitcore.models.classifier import Classifier, make_head, zero_head
from vitcore.models.positions import resize_position_embedding
from vitcore.recipe import VitConfig

NORM_EPS = 1e-6
INIT_STD = 0.02


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


class PatchEmbed(nn.Module):
    """Cuts an image into square patches and projects each linearly (section 3.1, eq. 1)."""

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch, stride=patch)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Patch tokens (B, P, D), row by row."""
        plane_BDYX: Tensor = self.proj(images_BCHW)
        return plane_BDYX.flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention (appendix A, eq. 5 to 8) with one packed projection for queries, keys and values."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.drop = nn.Dropout(dropout)

    def split(self, tokens_BND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (B, A, N, E)."""
        B, N, D = tokens_BND.shape
        packed: Tensor = self.qkv(tokens_BND)
        q_BNAE, k_BNAE, v_BNAE = packed.view(B, N, 3, self.heads, D // self.heads).unbind(2)
        return q_BNAE.transpose(1, 2), k_BNAE.transpose(1, 2), v_BNAE.transpose(1, 2)

    def forward(self, tokens_BND: Tensor, first: int | None = None) -> Tensor:
        """What the first `first` tokens (default: all) gather from all tokens."""
        q_BANE, k_BANE, v_BANE = self.split(tokens_BND)
        mixed_BANE = F.scaled_dot_product_attention(q_BANE[:, :, :first], k_BANE, v_BANE)
        out_BND: Tensor = self.drop(self.proj(mixed_BANE.transpose(1, 2).flatten(2)))
        return out_BND

    def weights(self, tokens_BND: Tensor) -> Tensor:
        """The softmax weights (B, A, N, N) that `forward` mixes the values with; each row sums to one."""
        q_BANE, k_BANE, _ = self.split(tokens_BND)
        scores_BANN: Tensor = q_BANE @ k_BANE.transpose(-2, -1) * q_BANE.shape[-1] ** -0.5
        return scores_BANN.softmax(dim=-1)


class Mlp(nn.Module):
    """Two linear layers with an exact (erf) GELU between them."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        """(B, N, D) to (B, N, D) by way of (B, N, M)."""
        hidden_BNM: Tensor = self.drop(F.gelu(self.fc1(tokens_BND)))
        out_BND: Tensor = self.drop(self.fc2(hidden_BNM))
        return out_BND


class Block(nn.Module):
    """Pre-norm transformer block (eq. 2 and 3), each branch under stochastic depth."""

    def __init__(self, config: VitConfig, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.attn = Attention(config.width, config.heads, config.dropout)
        self.norm2 = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.mlp = Mlp(config.width, int(config.width * config.mlp_ratio), config.dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens_BND: Tensor, first: int | None = None) -> Tensor:
        """All tokens attend; only the first `first` (default: all) come out."""
        attended_BND: Tensor = self.drop_path(self.attn(self.norm1(tokens_BND), first))
        middle_BND = tokens_BND[:, :first] + attended_BND
        refined_BND: Tensor = self.drop_path(self.mlp(self.norm2(middle_BND)))
        return middle_BND + refined_BND


class VisionTransformer(Classifier):
    """ViT with a class token, or with mean pooling and none.

    Pooling ``"mean"`` is that of the plain ViT (Beyer et al. 2022, 2205.01580): no class token, and the final norm
    comes before the mean.

    Args:
        config: the architecture.
        num_classes: K.
        image_size: pixels; a multiple of the patch side.
    Raises:
        RequestError: the image size is no multiple of the patch.
    """

    config: VitConfig

    def __init__(self, config: VitConfig, num_classes: int, image_size: int) -> None:
        super().__init__()
        self.config, self.num_classes, self.image_size = config, num_classes, image_size
        self.width = config.width
        self.grid = grid_of(image_size, config.patch)
        self._any_size = False
        self.num_prefix = self._prefix_tokens()
        self.num_layers = config.depth + 1
        self.patch_embed = PatchEmbed(config.patch, config.width)
        if self.num_prefix:
            self.cls_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.empty(1, self.num_prefix + self.grid**2, config.width))
        self.pos_drop = nn.Dropout(config.dropout)
        growth = config.drop_path / max(config.depth - 1, 1)
        self.blocks = nn.ModuleList(Block(config, growth * depth) for depth in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.head = make_head(config.width, num_classes)
        self._initialise()

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits (B, K); features (B, D) without a head.

        Where the head reads prefix tokens alone, only those leave the last block: its MLP, which would change
        patch tokens that nobody reads, is most of a block's work. Logits and gradients are the same.
        """
        pooled_BD = self.pool(self._encode(images_BCHW, first=self.num_prefix or None))
        logits_BK: Tensor = self.head(pooled_BD)
        return logits_BK

    def forward_features(self, images_BCHW: Tensor) -> Tensor:
        """All tokens after the final norm (B, N, D); the first `num_prefix` are no patches."""
        return self._encode(images_BCHW)

    def pool(self, tokens_BND: Tensor) -> Tensor:
        """What the head reads (B, D): the class token, or the mean of the patch tokens."""
        return tokens_BND.mean(dim=1) if self.config.pooling == "mean" else tokens_BND[:, 0]

    def attention(self, images_BCHW: Tensor) -> list[Tensor]:
        """The softmax weights of every block, first to last, each (B, A, N, N). Meant for evaluation mode."""
        tokens_BND = self.embed(images_BCHW)
        maps = []
        for block in self._blocks():
            maps.append(block.attn.weights(block.norm1(tokens_BND)))
            tokens_BND = block(tokens_BND)
        return maps

    def embed(self, images_BCHW: Tensor) -> Tensor:
        """What enters the first block (B, N, D): prefix tokens and patches, with their positions (eq. 1)."""
        height, width = images_BCHW.shape[-2:]
        positions_1ND: Tensor = self.pos_embed
        if self._any_size and height == width:
            grid = grid_of(height, self.config.patch)
            positions_1ND = resize_position_embedding(positions_1ND, grid, prefix=self.num_prefix)
        elif height != self.image_size or width != self.image_size:
            raise RequestError(
                f"the images are {height} x {width} pixels but this model takes {self.image_size} x {self.image_size}: "
                "resize them, or adapt the model to their size"
            )
        patches_BPD = self.patch_embed(images_BCHW)
        prefix = [token.expand(len(patches_BPD), -1, -1) for token in self._prefix()]
        tokens_BND: Tensor = self.pos_drop(torch.cat([*prefix, patches_BPD], dim=1) + positions_1ND)
        return tokens_BND

    def layer_of(self, name: str) -> int:
        """0 for patches, tokens and positions, i + 1 for block i, depth + 1 for the final norm and the head."""
        self.get_parameter(name) if "." in name else self._parameters[name]
        block = re.match(r"blocks\.(\d+)\.", name)
        if block:
            return int(block[1]) + 1
        return self.num_layers if name.startswith(("norm.", "head")) else 0

    def undecayed(self) -> set[str]:
        """The position embedding and the prefix tokens."""
        return {name for name, _ in self.named_parameters(recurse=False)}

    def state_for(self, image_size: int) -> dict[str, Tensor]:
        """The state dict with position embeddings interpolated to the grid of another image size."""
        state, grid = super().state_for(image_size), grid_of(image_size, self.config.patch)
        state["pos_embed"] = resize_position_embedding(state["pos_embed"], grid, prefix=self.num_prefix)
        return state

    def allow_any_size(self) -> None:
        """Position embeddings are interpolated to the grid of each batch."""
        self._any_size = True

    def head_parameters(self) -> tuple[str, ...]:
        """Weight and bias of the head."""
        return ("head.weight", "head.bias") if self.num_classes else ()

    def reset_head(self, num_classes: int) -> None:
        """Replace the head in place by a zero-initialised one."""
        self.head = zero_head(self.width, num_classes, self.pos_embed)
        self.num_classes = num_classes

    def _prefix_tokens(self) -> int:
        return 0 if self.config.pooling == "mean" else 1

    def _prefix(self) -> list[Tensor]:
        return [self.cls_token] if self.num_prefix else []

    def _blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def _encode(self, images_BCHW: Tensor, first: int | None = None) -> Tensor:
        tokens_BND = self.embed(images_BCHW)
        for block in self.blocks[:-1]:
            tokens_BND = block(tokens_BND)
        normed_BND: Tensor = self.norm(self.blocks[-1](tokens_BND, first))
        return normed_BND

    def _initialise(self) -> None:
        """Truncated normal for linear layers, positions and tokens, as DeiT and timm; LeCun's for the patches, as
        big_vision. Biases are zero.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=INIT_STD)
                nn.init.zeros_(module.bias)
        fan_in = self.patch_embed.proj.weight[0].numel()
        nn.init.trunc_normal_(self.patch_embed.proj.weight, std=fan_in**-0.5)
        assert self.patch_embed.proj.bias is not None
        nn.init.zeros_(self.patch_embed.proj.bias)
        for _, parameter in self.named_parameters(recurse=False):
            nn.init.trunc_normal_(parameter, std=INIT_STD)


def grid_of(image_size: int, patch: int) -> int:
    """Patches along a side.

    Raises:
        RequestError: the patch does not divide the image.
    """
    if image_size < patch or image_size % patch:
        below = max(image_size // patch, 1) * patch
        raise RequestError(
            f"image size {image_size} is not a multiple of the patch ({patch} pixels): take {below} or {below + patch}"
        )
    return image_size // patch
