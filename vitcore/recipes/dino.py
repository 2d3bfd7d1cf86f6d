"""DINO: small crops of a photograph learn what a momentum teacher says of large ones, without labels (2104.14294).

Hyper-parameters are those of the paper's sections 3.2 and of the released arguments; learning rates there are per 256
samples: 5e-4 at a batch of 1,024 is 2e-3. Numbers are of a linear classifier on the frozen features and of the vote of
20 neighbours (table 2). Known departure: the last layer's weights are normalised in all recipes, where the paper's
ViT-S leaves their lengths free.
"""

from __future__ import annotations

from typing import Any

from vitcore.recipe import (
    AugmentConfig,
    DataConfig,
    DinoConfig,
    EvalConfig,
    OptimConfig,
    Recipe,
    TrainConfig,
    ViewConfig,
)
from vitcore.recipes.pixels import IMAGENET
from vitcore.recipes.vit import variant


def multi_crop(image_size: int, local_size: int, local: int, split: float, **colours: Any) -> DataConfig:
    """Two large views, one always blurred and one seldom, but solarized; and `local` small ones.

    Args:
        image_size: of the large views, in pixels.
        local_size: of the small views, in pixels.
        local: how many small views.
        split: area, as a part of the photograph, that small crops stay below and large ones above.
        colours: fields of the augmentation that all views have in place of these.
    """
    shared = {"jitter": (0.4, 0.4, 0.2, 0.1), "jitter_prob": 0.8, "grey": 0.2, **colours}
    large, small = {"crop_scale": (split, 1.0), **shared}, {"crop_scale": (0.05, split), **shared}
    second = AugmentConfig.model_validate({"blur": 0.1, "solarize": 0.2, **large})
    rest = AugmentConfig.model_validate({"blur": 0.5, **small})
    return DataConfig(
        image_size=image_size,
        augment=AugmentConfig.model_validate({"blur": 1.0, **large}),
        views=(ViewConfig(augment=second), ViewConfig(count=local, image_size=local_size, augment=rest)),
    )


def dino_s16() -> Recipe:
    """DINO of a ViT-S/16 on ImageNet-1k without labels, 800 epochs.

    Paper: Caron et al. 2021, 2104.14294; Emerging properties in self-supervised vision transformers, table 2
    Command: vit pretrain dino_s16 --data URL
    Hardware: two nodes of eight V100 GPUs (the paper's, section 3.2)
    Hours: not published; 72.6 for 300 epochs (table 8)
    Number: 77.0 % top-1; linear classifier; 74.5 % by neighbours
    """
    return Recipe(
        name="dino_s16",
        data=multi_crop(224, 96, 10, 0.25),
        model=variant("S/16").model_copy(update={"drop_path": 0.1, **IMAGENET}),
        objective=DinoConfig(teacher_warmup=30 / 800, freeze_head=1 / 800),
        optim=OptimConfig(
            lr=2e-3, min_lr=1e-5, warmup="10 epochs", weight_decay=0.04, final_weight_decay=0.4, clip_norm=None
        ),
        train=TrainConfig(duration="800 epochs", batch_size=1024),
        eval=EvalConfig(metric="knn"),
    )


def dino_s8() -> Recipe:
    """DINO of a ViT-S/8 on ImageNet-1k without labels, 800 epochs.

    Paper: Caron et al. 2021, 2104.14294; Emerging properties in self-supervised vision transformers, table 2
    Command: vit pretrain dino_s8 --data URL
    Hardware: not published; for this patch
    Hours: not published; for this patch
    Number: 79.7 % top-1; linear classifier; 78.3 % by neighbours

    The settings are those of ViT-S/16.
    """
    model = variant("S/8").model_copy(update={"drop_path": 0.1, **IMAGENET})
    return dino_s16().model_copy(update={"name": "dino_s8", "model": model})


def dino_b16() -> Recipe:
    """DINO of a ViT-B/16 on ImageNet-1k without labels, 400 epochs.

    Paper: Caron et al. 2021, 2104.14294; Emerging properties in self-supervised vision transformers, table 2
    Command: vit pretrain dino_b16 --data URL
    Hardware: not published; for this model
    Hours: not published; for this model
    Number: 78.2 % top-1; linear classifier; 76.1 % by neighbours

    Rates, the teacher's warm-up, the frozen head and clipping are the released arguments'; the batch is the paper's.
    """
    return dino_s16().model_copy(
        update={
            "name": "dino_b16",
            "model": variant("B/16").model_copy(update={"drop_path": 0.1, **IMAGENET}),
            "objective": DinoConfig(teacher_warmup=50 / 400, freeze_head=3 / 400),
            "optim": OptimConfig(
                lr=3e-3, min_lr=2e-6, warmup="10 epochs", weight_decay=0.04, final_weight_decay=0.4, clip_norm=0.3
            ),
            "train": TrainConfig(duration="400 epochs", batch_size=1024),
        }
    )


def dino_tiny_cpu() -> Recipe:
    """DINO of a 1.2 M parameter ViT for 32-pixel photographs (CIFAR-10) and two CPU cores.

    Paper: Caron et al. 2021, 2104.14294; shrunk
    Command: vit pretrain dino_tiny_cpu --data URL
    Hardware: two CPU cores
    Hours: 0.7; a rough estimate
    Number: none; chance is 10 % on CIFAR-10

    Validated by the nearest neighbours' vote: labels are looked at then, and never learned from.
    """
    return dino_s16().model_copy(
        update={
            "name": "dino_tiny_cpu",
            # A blur of two pixels would leave nothing of 32.
            "data": multi_crop(32, 16, 4, 0.4, blur_sigma=(0.1, 0.5)),
            "model": variant("Nano/4"),
            "objective": DinoConfig(prototypes=1024, hidden=512, bottleneck=128, momentum=0.99, freeze_head=0.1),
            "optim": OptimConfig(lr=1e-3, min_lr=1e-5, warmup="10%", weight_decay=0.04, final_weight_decay=0.4),
            "train": TrainConfig(duration="5 epochs", batch_size=256),
            "eval": EvalConfig(every="20%", metric="knn", resize=32),
        }
    )
