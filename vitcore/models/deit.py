"""DeiT: a ViT with a distillation token (Touvron et al. 2021, "Training data-efficient image transformers &
distillation through attention", 2012.12877, section 4). Shape suffixes as in `vitcore.models.vit`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitcore.models.classifier import make_head, zero_head
from vitcore.models.vit import INIT_STD, VisionTransformer
from vitcore.recipe import DeitConfig


class DeiT(VisionTransformer):
    """Class token and head for the labels, distillation token and head for the teacher.

    `forward` averages the two heads' logits ("late fusion", section 5.2), in training too; a distillation objective
    asks for both with `heads`.
    """

    config: DeitConfig

    def __init__(self, config: DeitConfig, num_classes: int, image_size: int) -> None:
        super().__init__(config, num_classes, image_size)
        self.num_read = 2
        self.dist_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.head_dist = make_head(config.width, num_classes)
        nn.init.trunc_normal_(self.dist_token, std=INIT_STD)
        if isinstance(self.head_dist, nn.Linear):
            nn.init.trunc_normal_(self.head_dist.weight, std=INIT_STD)
            nn.init.zeros_(self.head_dist.bias)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """The mean of both heads' logits (B, K); of both tokens (B, D) without heads."""
        class_BK, distill_BK = self.heads(images_BCHW)
        return (class_BK + distill_BK) / 2

    def heads(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, K) of the class head and of the distillation head."""
        tokens_BTD = self.fc_norm(self.encode(self.embed(images_BCHW), first=self.num_read))
        return self.head(tokens_BTD[:, 0]), self.head_dist(tokens_BTD[:, 1])

    def head_parameters(self) -> tuple[str, ...]:
        """Weights and biases of both heads."""
        own = ("head_dist.weight", "head_dist.bias") if self.num_classes else ()
        return (*super().head_parameters(), *own)

    def reset_head(self, num_classes: int) -> None:
        """Replace both heads in place by zero-initialised ones."""
        super().reset_head(num_classes)
        self.head_dist = zero_head(self.width, num_classes, self.dist_token)

    def _prefix_tokens(self) -> int:
        return super()._prefix_tokens() + 1

    def _prefix(self) -> list[Tensor]:
        class_token, *registers = super()._prefix()
        return [class_token, self.dist_token, *registers]
