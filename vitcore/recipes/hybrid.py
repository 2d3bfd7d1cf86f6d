"""Hybrids: a transformer over the feature map of a convolutional stem (2010.11929, section 3.1)."""

from __future__ import annotations

from vitcore.recipe import HybridConfig, OptimConfig, Recipe, TrainConfig, VitConfig
from vitcore.recipes.vit import variant, vit_b16, vit_tiny_cpu


def over_stem(vit: VitConfig, stem: tuple[int, ...]) -> HybridConfig:
    """The transformer of a ViT over a stem of `stem` blocks a stage, one token a cell of its map."""
    fields = vit.model_dump(exclude={"kind", "patch"})
    return HybridConfig.model_validate({**fields, "stem": stem, "patch": 1})


def hybrid_r50_b16() -> Recipe:
    """R50+ViT-B/16 on JFT-300M: a ResNet-50 whose fourth stage is folded into the third, then ViT-B.

    Paper: Dosovitskiy et al. 2021, 2010.11929; table 3 (the row R50+ViT-B, JFT-300M) and B.2 (the stem)
    Command: vit pretrain hybrid_r50_b16 --data URL
    Hardware: TPUv3 (the paper's)
    Hours: not published; 274 exaFLOPs (table 6)
    Number: 85.58 % top-1; table 6, after fine-tuning on ImageNet-1k at 384 px

    JFT-300M was never published. The rate falls along a cosine where the paper's falls along a line.
    """
    base = vit_b16()
    return base.model_copy(
        update={
            "name": "hybrid_r50_b16",
            "model": over_stem(variant("B/16"), (3, 4, 9)),
            "optim": OptimConfig(lr=8e-4, min_lr=0.0, warmup="10k steps", weight_decay=0.1, clip_norm=None),
            "train": TrainConfig(duration="7 epochs", batch_size=4096),
        }
    )


def hybrid_tiny_cpu() -> Recipe:
    """A 1.3 M parameter hybrid for 32-pixel photographs (CIFAR-10) and two CPU cores.

    Paper: Dosovitskiy et al. 2021, 2010.11929; section 3.1, shrunk
    Command: vit pretrain hybrid_tiny_cpu --data URL
    Hardware: two CPU cores
    Hours: 0.3; a rough estimate
    Number: none; chance is 10 % on CIFAR-10

    `vit_tiny_cpu` with a first convolution, a pooling and one stage of a ResNet instead of its patches.
    """
    model = over_stem(variant("Nano/4"), (1,)).model_copy(update={"pooling": "mean"})
    return vit_tiny_cpu().model_copy(update={"name": "hybrid_tiny_cpu", "model": model})
