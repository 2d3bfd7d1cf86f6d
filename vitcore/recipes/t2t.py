"""Tokens-to-Token ViT: tokens gathered in overlapping neighbourhoods, then a deep and narrow transformer (2101.11986).

Hyper-parameters are those of the paper's section 4.1 and of the released commands. They end with ten epochs at the
least rate, which here belong to the cosine.
"""

from __future__ import annotations

from vitcore.recipe import (
    AugmentConfig,
    ClassifyConfig,
    DataConfig,
    EvalConfig,
    OptimConfig,
    Recipe,
    T2tConfig,
    TrainConfig,
)
from vitcore.recipes.pixels import IMAGENET
from vitcore.recipes.vit import vit_tiny_cpu


def t2t_14() -> Recipe:
    """T2T-ViT_t-14 from scratch on ImageNet-1k, with transformers in the tokens-to-token module.

    Paper: Yuan et al. 2021, 2101.11986; Tokens-to-Token ViT, table 2
    Command: vit pretrain t2t_14 --data URL
    Hardware: eight GPUs (the paper's, section 4.1)
    Hours: not published
    Number: 81.7 % top-1
    """
    return Recipe(
        name="t2t_14",
        data=DataConfig(
            image_size=224,
            augment=AugmentConfig(randaug_layers=2, randaug_magnitude=9.0, erasing=0.25, mixup=0.8, cutmix=1.0),
        ),
        model=T2tConfig(drop_path=0.1).model_copy(update=IMAGENET),
        objective=ClassifyConfig(label_smoothing=0.1),
        optim=OptimConfig(lr=5e-4, min_lr=1e-5, warmup="10 epochs", weight_decay=0.05, clip_norm=None),
        train=TrainConfig(duration="310 epochs", batch_size=512, ema_decay=0.99996),
    )


def t2t_19() -> Recipe:
    """T2T-ViT_t-19 from scratch on ImageNet-1k.

    Paper: Yuan et al. 2021, 2101.11986; Tokens-to-Token ViT, table 2
    Command: vit pretrain t2t_19 --data URL
    Hardware: eight GPUs (the paper's, section 4.1)
    Hours: not published
    Number: 82.4 % top-1
    """
    base = t2t_14()
    return base.model_copy(
        update={
            "name": "t2t_19",
            "model": T2tConfig(width=448, depth=19, heads=7, drop_path=0.1).model_copy(update=IMAGENET),
            "optim": base.optim.model_copy(update={"weight_decay": 0.065}),
        }
    )


def t2t_tiny_cpu() -> Recipe:
    """A 1.1 M parameter T2T-ViT for small photographs (CIFAR-10, at 64 pixels) and two CPU cores.

    Paper: Yuan et al. 2021, 2101.11986; shrunk
    Command: vit pretrain t2t_tiny_cpu --data URL
    Hardware: two CPU cores
    Hours: 0.3; a rough estimate
    Number: none; chance is 10 % on CIFAR-10

    Every step of the module makes the map smaller, by 4, 2 and 2: of 64 pixels there remain 4 x 4 tokens.
    """
    base = vit_tiny_cpu()
    return base.model_copy(
        update={
            "name": "t2t_tiny_cpu",
            "data": base.data.model_copy(update={"image_size": 64}),
            "model": T2tConfig(token_width=32, width=128, depth=6, heads=4),
            "eval": EvalConfig(every="20%", resize=64),
        }
    )
