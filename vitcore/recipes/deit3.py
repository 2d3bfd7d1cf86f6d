"""DeiT III: a plain ViT with LayerScale, trained without a teacher by a simpler augmentation (2204.07118).

Hyper-parameters are those of the released commands. With DeiT's three repeated augmentations, 800 of its epochs (of as
many views as there are photographs) are 266.667 here. The position embeddings are of patches alone; the class token
has none.
"""

from __future__ import annotations

from vitcore.recipe import (
    AugmentConfig,
    ClassifyConfig,
    DataConfig,
    EvalConfig,
    OptimConfig,
    ParentConfig,
    Recipe,
    TrainConfig,
    VitConfig,
)
from vitcore.recipes.pixels import IMAGENET
from vitcore.recipes.vit import variant, vit_tiny_cpu

_COLOURS = {"three_augment": True, "jitter": (0.3, 0.3, 0.3, 0.0), "jitter_prob": 1.0}
"""3-Augment: one of three operations, then a colour jitter of 0.3 (section 3.2)."""


def with_layer_scale(vit: VitConfig, drop_path: float) -> VitConfig:
    """A ViT as DeiT III has it: LayerScale from 1e-4, no position of the class token."""
    return vit.model_copy(update={"layer_scale": 1e-4, "embed_prefix": False, "drop_path": drop_path, **IMAGENET})


def deit3_s16() -> Recipe:
    """ViT-S/16 with LAMB, 3-Augment and a binary cross-entropy on ImageNet-1k, 800 epochs.

    Paper: Touvron et al. 2022, 2204.07118; DeiT III: Revenge of the ViT, the released command
    Command: vit pretrain deit3_s16 --data URL
    Hardware: eight GPUs on one node (the released command's)
    Hours: not published
    Number: 81.4 % top-1; at 224 px (released model)
    """
    return Recipe(
        name="deit3_s16",
        data=DataConfig(
            image_size=224, repeats=3, augment=AugmentConfig.model_validate({"mixup": 0.8, "cutmix": 1.0, **_COLOURS})
        ),
        model=with_layer_scale(variant("S/16"), drop_path=0.05),
        objective=ClassifyConfig(loss="binary"),
        optim=OptimConfig(name="lamb", lr=4e-3, min_lr=1e-5, warmup="0.625%", weight_decay=0.05, clip_norm=1.0),
        train=TrainConfig(duration="266.667 epochs", batch_size=2048),
        eval=EvalConfig(resize=224),
    )


def deit3_b16() -> Recipe:
    """ViT-B/16 by the same recipe, at 192 pixels; `deit3_finetune_224` goes on from it.

    Paper: Touvron et al. 2022, 2204.07118; DeiT III: Revenge of the ViT, the released command
    Command: vit pretrain deit3_b16 --data URL
    Hardware: eight GPUs on one node (the released command's)
    Hours: not published
    Number: 83.8 % top-1; after `deit3_finetune_224` (released model)
    """
    base = deit3_s16()
    return base.model_copy(
        update={
            "name": "deit3_b16",
            "data": base.data.model_copy(update={"image_size": 192}),
            "model": with_layer_scale(variant("B/16"), drop_path=0.2),
            "optim": base.optim.model_copy(update={"lr": 3e-3}),
            "eval": EvalConfig(resize=192),
        }
    )


def deit3_l16() -> Recipe:
    """ViT-L/16 by the same recipe, at 192 pixels; `deit3_finetune_224` goes on from it.

    Paper: Touvron et al. 2022, 2204.07118; DeiT III: Revenge of the ViT, the released command
    Command: vit pretrain deit3_l16 --data URL
    Hardware: four nodes of eight GPUs (the released command's)
    Hours: not published
    Number: 84.9 % top-1; after `deit3_finetune_224 --model.drop-path 0.45` (released model)
    """
    model = with_layer_scale(variant("L/16"), drop_path=0.45)
    return deit3_b16().model_copy(update={"name": "deit3_l16", "model": model})


def deit3_b16_in21k() -> Recipe:
    """ViT-B/16 on ImageNet-21k: 3-Augment with the simple random crop and no Mixup.

    Paper: Touvron et al. 2022, 2204.07118; DeiT III: Revenge of the ViT, the released command
    Command: vit pretrain deit3_b16_in21k --data URL
    Hardware: four nodes of eight GPUs (the released command's)
    Hours: not published
    Number: 85.7 % top-1; after fine-tuning on ImageNet-1k at 224 px (released model)
    """
    augment = {"crop": "simple", "crop_padding": 4, "cutmix": 1.0, **_COLOURS}
    base = deit3_b16()
    return base.model_copy(
        update={
            "name": "deit3_b16_in21k",
            "data": DataConfig(image_size=224, augment=AugmentConfig.model_validate(augment)),
            "model": with_layer_scale(variant("B/16"), drop_path=0.1),
            "objective": ClassifyConfig(label_smoothing=0.1),
            "optim": OptimConfig(
                name="lamb", lr=1e-3, min_lr=1e-5, warmup="5 epochs", weight_decay=0.02, clip_norm=1.0
            ),
            "train": TrainConfig(duration="240 epochs", batch_size=2048),
            "eval": EvalConfig(resize=224),
        }
    )


def deit3_finetune_224() -> Recipe:
    """A DeiT III of 192 pixels, continued on the same photographs at 224.

    Paper: Touvron et al. 2022, 2204.07118; DeiT III: Revenge of the ViT, the released command for ViT-B
    Command: vit finetune deit3_finetune_224 --model REF --data URL
    Hardware: eight GPUs on one node (the released command's)
    Hours: not published
    Number: 83.8 % top-1; ViT-B (released model)
    """
    return Recipe(
        name="deit3_finetune_224",
        data=DataConfig(
            image_size=224, augment=AugmentConfig(randaug_layers=2, randaug_magnitude=9.0, mixup=0.8, cutmix=1.0)
        ),
        model=ParentConfig(drop_path=0.2),
        objective=ClassifyConfig(label_smoothing=0.1),
        optim=OptimConfig(lr=1e-5, min_lr=1e-6, warmup="5 epochs", weight_decay=0.1, clip_norm=None),
        train=TrainConfig(duration="20 epochs", batch_size=512),
        eval=EvalConfig(resize=224),
    )


def deit3_tiny_cpu() -> Recipe:
    """A 1.2 M parameter DeiT III for 32-pixel photographs (CIFAR-10) and two CPU cores.

    Paper: Touvron et al. 2022, 2204.07118; shrunk
    Command: vit pretrain deit3_tiny_cpu --data URL
    Hardware: two CPU cores
    Hours: 0.25; a rough estimate
    Number: none; chance is 10 % on CIFAR-10
    """
    base = vit_tiny_cpu()
    augment = {"crop": "simple", "crop_padding": 4, "cutmix": 1.0, "mix_prob": 0.5, **_COLOURS}
    return base.model_copy(
        update={
            "name": "deit3_tiny_cpu",
            "data": DataConfig(image_size=32, augment=AugmentConfig.model_validate(augment)),
            "model": with_layer_scale(variant("Nano/4"), drop_path=0.0).model_copy(update={"layer_scale": 0.1}),
            "objective": ClassifyConfig(loss="binary"),
            "optim": OptimConfig(name="lamb", lr=5e-3, min_lr=1e-5, warmup="5%", weight_decay=0.02),
        }
    )
