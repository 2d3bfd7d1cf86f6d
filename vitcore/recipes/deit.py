"""Data-efficient image transformers: a student with a distillation token and any teacher (2012.12877).

Hyper-parameters are table 9's, numbers table 5's (300 epochs, the distilled students, teacher RegNetY-16GF at 82.9 %).
An epoch here shows every sample `data.repeats` times: with DeiT's three repeated augmentations, its 300 epochs (of as
many views as there are photographs) are 100 epochs here. Every recipe runs with any teacher: `--teacher REF`.
"""

from __future__ import annotations

from vitcore.recipe import (
    AugmentConfig,
    DataConfig,
    DeitConfig,
    DistillConfig,
    EvalConfig,
    OptimConfig,
    Recipe,
    TrainConfig,
    VitConfig,
)
from vitcore.recipes.finetune import finetune_384
from vitcore.recipes.pixels import IMAGENET
from vitcore.recipes.vit import variant


def student(vit: VitConfig, **changes: object) -> DeitConfig:
    """The DeiT of a ViT's size: the same blocks with a distillation token; `changes` replace fields."""
    fields = vit.model_dump(exclude={"kind", "pooling"})
    return DeitConfig.model_validate({**fields, **changes})


def deit_s16() -> Recipe:
    """DeiT-S/16 with hard distillation on ImageNet-1k.

    Paper: Touvron et al. 2021, 2012.12877; Training data-efficient image transformers & distillation through attention
    Command: vit distill deit_s16 --data URL --teacher REF
    Hardware: four V100 GPUs (the paper's, section 6)
    Hours: < 72; the paper's, without the teacher
    Number: 81.2 % top-1
    """
    return Recipe(
        name="deit_s16",
        data=DataConfig(
            image_size=224,
            repeats=3,
            augment=AugmentConfig(
                randaug_layers=2,
                randaug_magnitude=9.0,
                erasing=0.25,
                mixup=0.8,
                cutmix=1.0,
            ),
        ),
        model=student(variant("S/16"), drop_path=0.1, **IMAGENET),
        objective=DistillConfig(mode="hard", alpha=0.5, label_smoothing=0.1),
        optim=OptimConfig(lr=1e-3, min_lr=1e-5, warmup="1.6667%", weight_decay=0.05, clip_norm=None),
        train=TrainConfig(duration="100 epochs", batch_size=1024),
    )


def deit_ti16() -> Recipe:
    """DeiT-Ti/16 with hard distillation on ImageNet-1k.

    Paper: Touvron et al. 2021, 2012.12877; Training data-efficient image transformers & distillation through attention
    Command: vit distill deit_ti16 --data URL --teacher REF
    Hardware: four V100 GPUs (the paper's, section 6)
    Hours: < 72; the paper's, without the teacher
    Number: 74.5 % top-1
    """
    base = deit_s16()
    model = student(variant("Ti/16"), drop_path=0.1, **IMAGENET)
    return base.model_copy(update={"name": "deit_ti16", "model": model})


def deit_b16() -> Recipe:
    """DeiT-B/16 with hard distillation on ImageNet-1k.

    Paper: Touvron et al. 2021, 2012.12877; Training data-efficient image transformers & distillation through attention
    Command: vit distill deit_b16 --data URL --teacher REF
    Hardware: eight V100 GPUs on one node (the paper's, section 6)
    Hours: 53; the paper's, without the teacher
    Number: 83.4 % top-1
    """
    base = deit_s16()
    model = student(variant("B/16"), drop_path=0.1, **IMAGENET)
    return base.model_copy(update={"name": "deit_b16", "model": model})


def deit_b16_384() -> Recipe:
    """DeiT-B continued at 384 pixels, with the distillation that it was trained with.

    Paper: Touvron et al. 2021, 2012.12877; section 5.3 (fine-tuning with distillation), the released settings
    Command: vit finetune deit_b16_384 --model REF --teacher REF --data URL
    Hardware: eight V100 GPUs on one node (the paper's, section 6)
    Hours: 20; the paper's, 25 epochs
    Number: 84.5 % top-1; table 5, from 83.4 % at 224 px

    As `finetune_384`, but both heads go on learning, the one from labels, the other from the teacher, which sees the
    larger photographs too.
    """
    return finetune_384().model_copy(update={"name": "deit_b16_384", "objective": deit_s16().objective})


def deit_tiny_cpu() -> Recipe:
    """A 1.2 M parameter DeiT for 32-pixel photographs (CIFAR-10) and two CPU cores.

    Paper: Touvron et al. 2021, 2012.12877; shrunk
    Command: vit distill deit_tiny_cpu --data URL --teacher REF
    Hardware: two CPU cores
    Hours: 0.3; a rough estimate, and the teacher's forward passes
    Number: none; chance is 10 % on CIFAR-10
    """
    base = deit_s16()
    return base.model_copy(
        update={
            "name": "deit_tiny_cpu",
            "data": DataConfig(image_size=32, augment=AugmentConfig(crop_scale=(0.4, 1.0), randaug_layers=1)),
            "model": student(variant("Nano/4")),
            "optim": OptimConfig(lr=1e-3, min_lr=1e-5, warmup="5%", weight_decay=0.05),
            "train": TrainConfig(duration="5 epochs", batch_size=128),
            "eval": EvalConfig(every="20%", resize=32),
        }
    )
