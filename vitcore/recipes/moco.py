"""MoCo v3: two views of a photograph find each other, without labels (2104.02057).

Hyper-parameters are those of the released commands, whose learning rates are per 256 samples: 1.5e-4 at a batch of
4,096 is 2.4e-3. Numbers are of a linear classifier on the frozen features (`vit evaluate`).
"""

from __future__ import annotations

from typing import Any

from vitcore.recipe import (
    AugmentConfig,
    DataConfig,
    EvalConfig,
    MocoConfig,
    OptimConfig,
    Recipe,
    TrainConfig,
    ViewConfig,
    VitConfig,
)
from vitcore.recipes.pixels import IMAGENET
from vitcore.recipes.vit import variant


def two_views(image_size: int, **first: Any) -> DataConfig:
    """BYOL's two augmentations (2006.07733, appendix B): one always blurred, the other seldom, but solarized.

    Args:
        image_size: pixels.
        first: fields of the augmentation that both views have in place of these.
    """
    colours = {"jitter": (0.4, 0.4, 0.2, 0.1), "jitter_prob": 0.8, "grey": 0.2, **first}
    return DataConfig(
        image_size=image_size,
        augment=AugmentConfig.model_validate({"blur": 1.0, **colours}),
        views=(ViewConfig(augment=AugmentConfig.model_validate({"blur": 0.1, "solarize": 0.2, **colours})),),
    )


def moco_v3_s16() -> Recipe:
    """MoCo v3 of a ViT-S/16 on ImageNet-1k without labels, 300 epochs.

    Paper: Chen et al. 2021, 2104.02057; An empirical study of training self-supervised vision transformers, table 4
    Command: vit pretrain moco_v3_s16 --data URL
    Hardware: four nodes of eight V100 GPUs (the released command's)
    Hours: not published; for this hardware
    Number: 73.2 % top-1; linear classifier

    Its ViT-S has 12 heads, twice DeiT's (table 1); the parameters are as many.
    """
    return Recipe(
        name="moco_v3_s16",
        data=two_views(224),
        model=_fixed_positions(variant("S/16").model_copy(update={"heads": 12})),
        objective=MocoConfig(),
        optim=OptimConfig(lr=2.4e-3, min_lr=0.0, warmup="40 epochs", weight_decay=0.1, clip_norm=None),
        train=TrainConfig(duration="300 epochs", batch_size=4096),
        eval=EvalConfig(metric="knn"),
    )


def moco_v3_b16() -> Recipe:
    """MoCo v3 of a ViT-B/16 on ImageNet-1k without labels, 300 epochs.

    Paper: Chen et al. 2021, 2104.02057; An empirical study of training self-supervised vision transformers, table 4
    Command: vit pretrain moco_v3_b16 --data URL
    Hardware: eight nodes of eight V100 GPUs (the released command's)
    Hours: not published; for this hardware
    Number: 76.7 % top-1; linear classifier
    """
    return moco_v3_s16().model_copy(update={"name": "moco_v3_b16", "model": _fixed_positions(variant("B/16"))})


def moco_tiny_cpu() -> Recipe:
    """MoCo v3 of a 1.2 M parameter ViT for 32-pixel photographs (CIFAR-10) and two CPU cores.

    Paper: Chen et al. 2021, 2104.02057; shrunk
    Command: vit pretrain moco_tiny_cpu --data URL
    Hardware: two CPU cores
    Hours: 0.6; a rough estimate
    Number: none; chance is 10 % on CIFAR-10

    Validated by the nearest neighbours' vote: labels are looked at then, and never learned from.
    """
    return moco_v3_s16().model_copy(
        update={
            "name": "moco_tiny_cpu",
            # A blur of two pixels would leave nothing of 32.
            "data": two_views(32, crop_scale=(0.2, 1.0), blur_sigma=(0.1, 0.5)),
            "model": _fixed_positions(variant("Nano/4")),
            "objective": MocoConfig(width=128, hidden=512),
            "optim": OptimConfig(lr=1e-3, min_lr=1e-5, warmup="10%", weight_decay=0.1),
            "train": TrainConfig(duration="5 epochs", batch_size=256),
            "eval": EvalConfig(every="20%", metric="knn", resize=32),
        }
    )


def _fixed_positions(vit: VitConfig) -> VitConfig:
    """A ViT as MoCo v3 has it: fixed positions and a class token (section 4.1)."""
    return vit.model_copy(update={"positions": "sincos", **IMAGENET})
