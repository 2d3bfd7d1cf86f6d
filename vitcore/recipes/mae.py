"""Masked autoencoders: the hidden patches of a photograph are told from the others, without labels (2111.06377).

Hyper-parameters are those of appendix A.1 (tables 8 and 9) and of the released commands, whose learning rates are per
256 samples. A pre-trained model is measured after fine-tuning, by the recipe that belongs to it.
"""

from __future__ import annotations

from vitcore.recipe import (
    AugmentConfig,
    ClassifyConfig,
    DataConfig,
    EvalConfig,
    MaeConfig,
    OptimConfig,
    ParentConfig,
    Recipe,
    TrainConfig,
    VitConfig,
)
from vitcore.recipes.pixels import IMAGENET
from vitcore.recipes.vit import variant


def mae_b16() -> Recipe:
    """Masked autoencoder of a ViT-B/16 on ImageNet-1k without labels, 1600 epochs.

    Paper: He et al. 2022, 2111.06377; Masked autoencoders are scalable vision learners, table 3
    Command: vit pretrain mae_b16 --data URL
    Hardware: eight nodes of eight V100 GPUs (the released command's)
    Hours: not published; for this model
    Number: 83.6 % top-1; after `mae_finetune_b16`
    """
    return Recipe(
        name="mae_b16",
        data=DataConfig(image_size=224, augment=AugmentConfig(crop_scale=(0.2, 1.0))),
        model=_fixed_positions(variant("B/16")),
        objective=MaeConfig(),
        optim=OptimConfig(
            lr=2.4e-3, min_lr=0.0, warmup="40 epochs", weight_decay=0.05, betas=(0.9, 0.95), clip_norm=None
        ),
        train=TrainConfig(duration="1600 epochs", batch_size=4096),
        eval=EvalConfig(metric="last"),
    )


def mae_l16() -> Recipe:
    """Masked autoencoder of a ViT-L/16 on ImageNet-1k without labels, 1600 epochs.

    Paper: He et al. 2022, 2111.06377; Masked autoencoders are scalable vision learners, table 3
    Command: vit pretrain mae_l16 --data URL
    Hardware: TPUv3 with 128 cores (the paper's, section 4)
    Hours: 31; the paper's
    Number: 85.9 % top-1; after `mae_finetune_l16`
    """
    return mae_b16().model_copy(update={"name": "mae_l16", "model": _fixed_positions(variant("L/16"))})


def mae_h14() -> Recipe:
    """Masked autoencoder of a ViT-H/14 on ImageNet-1k without labels, 1600 epochs.

    Paper: He et al. 2022, 2111.06377; Masked autoencoders are scalable vision learners, table 3
    Command: vit pretrain mae_h14 --data URL
    Hardware: TPUv3 with 128 cores (the paper's, section 4)
    Hours: not published; for 1600 epochs
    Number: 86.9 % top-1; after `mae_finetune_h14`
    """
    return mae_b16().model_copy(update={"name": "mae_h14", "model": _fixed_positions(variant("H/14"))})


def mae_finetune_b16() -> Recipe:
    """A masked autoencoder's ViT-B/16, fine-tuned on labels: the mean of the tokens, rates that fall by layer.

    Paper: He et al. 2022, 2111.06377; table 9 and the released command
    Command: vit finetune mae_finetune_b16 --model REF --data URL
    Hardware: four nodes of eight V100 GPUs (the released command's)
    Hours: 7.2; the released command's
    Number: 83.6 % top-1; table 3
    """
    return Recipe(
        name="mae_finetune_b16",
        data=DataConfig(
            image_size=224,
            augment=AugmentConfig(randaug_layers=2, randaug_magnitude=9.0, erasing=0.25, mixup=0.8, cutmix=1.0),
        ),
        model=ParentConfig(pooling="mean", drop_path=0.1),
        objective=ClassifyConfig(label_smoothing=0.1),
        optim=OptimConfig(lr=2e-3, min_lr=1e-6, warmup="5 epochs", weight_decay=0.05, clip_norm=None, layer_decay=0.65),
        train=TrainConfig(duration="100 epochs", batch_size=1024),
    )


def mae_finetune_l16() -> Recipe:
    """A masked autoencoder's ViT-L/16, fine-tuned on labels.

    Paper: He et al. 2022, 2111.06377; table 9 and the released command
    Command: vit finetune mae_finetune_l16 --model REF --data URL
    Hardware: four nodes of eight V100 GPUs (the released command's)
    Hours: 8.9; the released command's
    Number: 85.9 % top-1; table 3
    """
    base = mae_finetune_b16()
    return base.model_copy(
        update={
            "name": "mae_finetune_l16",
            "model": ParentConfig(pooling="mean", drop_path=0.2),
            "optim": base.optim.model_copy(update={"lr": 4e-3, "layer_decay": 0.75}),
            "train": TrainConfig(duration="50 epochs", batch_size=1024),
        }
    )


def mae_finetune_h14() -> Recipe:
    """A masked autoencoder's ViT-H/14, fine-tuned on labels.

    Paper: He et al. 2022, 2111.06377; table 9 and the released command
    Command: vit finetune mae_finetune_h14 --model REF --data URL
    Hardware: eight nodes of eight V100 GPUs (the released command's)
    Hours: 13.2; the released command's
    Number: 86.9 % top-1; table 3
    """
    model = ParentConfig(pooling="mean", drop_path=0.3)
    return mae_finetune_l16().model_copy(update={"name": "mae_finetune_h14", "model": model})


def mae_tiny_cpu() -> Recipe:
    """A masked autoencoder of 1.2 M parameters for 32-pixel photographs (CIFAR-10) and two CPU cores.

    Paper: He et al. 2022, 2111.06377; shrunk
    Command: vit pretrain mae_tiny_cpu --data URL
    Hardware: two CPU cores
    Hours: 0.2; a rough estimate
    Number: none; chance is 10 % on CIFAR-10

    Validated by the nearest neighbours' vote: labels are looked at then, and never learned from. `mae_finetune_b16`
    with `--data.image-size 32` goes on from it.
    """
    return mae_b16().model_copy(
        update={
            "name": "mae_tiny_cpu",
            "data": DataConfig(image_size=32, augment=AugmentConfig(crop_scale=(0.4, 1.0))),
            "model": _fixed_positions(variant("Nano/4")),
            "objective": MaeConfig(width=64, depth=2, heads=4),
            "optim": OptimConfig(lr=1e-3, min_lr=1e-5, warmup="10%", weight_decay=0.05, betas=(0.9, 0.95)),
            "train": TrainConfig(duration="10 epochs", batch_size=256),
            "eval": EvalConfig(every="20%", metric="knn", resize=32),
        }
    )


def _fixed_positions(vit: VitConfig) -> VitConfig:
    """A ViT as the paper has it: fixed positions and a class token (appendix A.1)."""
    return vit.model_copy(update={"positions": "sincos", **IMAGENET})
