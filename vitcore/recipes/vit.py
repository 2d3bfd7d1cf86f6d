"""Supervised vision transformers: the original recipe (2010.11929) and the plainer, better one (2205.01580).

Numbers are the papers' own, on ImageNet-1k (1,281,167 training photographs). Known departures: 2205.01580 fixes the
positions to 2-D sin-cos where these recipes learn them; RandAugment draws from its original list of operations;
2010.11929 pre-trains on ImageNet-21k and JFT with a rate that falls along a line, here along a cosine, and with a head
of one hidden layer, here of none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from vitcore.errors import RequestError
from vitcore.recipe import AugmentConfig, DataConfig, EvalConfig, OptimConfig, Recipe, TrainConfig, VitConfig


@dataclass(frozen=True, slots=True)
class Variant:
    """Size of a transformer: embedding width D, blocks, attention heads, where the size is defined; hidden width of the
    MLP over D.
    """

    width: int
    depth: int
    heads: int
    source: str
    mlp_ratio: float = 4.0


VARIANTS = {
    "Pico": Variant(64, 4, 2, "this project, for tests"),
    "Micro": Variant(96, 4, 3, "this project, for the demo"),
    "Nano": Variant(128, 6, 4, "this project, for two CPU cores"),
    "Ti": Variant(192, 12, 3, "DeiT, 2012.12877, table 1"),
    "S": Variant(384, 12, 6, "DeiT, 2012.12877, table 1"),
    "B": Variant(768, 12, 12, "ViT, 2010.11929, table 1"),
    "L": Variant(1024, 24, 16, "ViT, 2010.11929, table 1"),
    "H": Variant(1280, 32, 16, "ViT, 2010.11929, table 1"),
    "g": Variant(1408, 40, 16, "Scaling vision transformers, 2106.04560, table 2", mlp_ratio=6144 / 1408),
    "G": Variant(1664, 48, 16, "Scaling vision transformers, 2106.04560, table 2", mlp_ratio=8192 / 1664),
}
"""Sizes by name. Papers combine them with patches of 8, 14, 16 and 32 pixels."""


def variant(name: str) -> VitConfig:
    """The architecture of a name such as ``"S/16"``: the size of `VARIANTS`, a slash, the patch in pixels.

    Raises:
        RequestError: not such a name, or an unknown size.
    """
    match = re.fullmatch(r"([A-Za-z]+)/([1-9][0-9]*)", name)
    if match is None or match[1] not in VARIANTS:
        raise RequestError(f"{name!r} is no variant; write a size ({', '.join(VARIANTS)}), a slash and a patch: S/16")
    size = VARIANTS[match[1]]
    return VitConfig(
        patch=int(match[2]), width=size.width, depth=size.depth, heads=size.heads, mlp_ratio=size.mlp_ratio
    )


def vit_b16() -> Recipe:
    """ViT-B/16 from scratch on ImageNet-1k, the original recipe.

    Paper: Dosovitskiy et al. 2021, 2010.11929; An image is worth 16x16 words, table 3 (the row ViT-*, ImageNet)
    Command: vit pretrain vit_b16 --data URL
    Hardware: TPUv3 (the paper's)
    Hours: not published; the paper gives none for ImageNet-1k
    Number: 77.9 % top-1; table 5, after fine-tuning at 384 px

    No augmentation but crop and flip: strong weight decay and dropout carry the regularisation, and the paper's point
    is that this is not enough on 1.3 M photographs. `vit_s16` shows what augmentation does instead.
    """
    return Recipe(
        name="vit_b16",
        data=DataConfig(image_size=224, augment=AugmentConfig(crop_scale=(0.05, 1.0))),
        model=variant("B/16").model_copy(update={"dropout": 0.1}),
        optim=OptimConfig(lr=3e-3, min_lr=0.0, warmup="10k steps", weight_decay=0.3, clip_norm=1.0),
        train=TrainConfig(duration="300 epochs", batch_size=4096),
    )


def vit_l16() -> Recipe:
    """ViT-L/16 from scratch on ImageNet-1k, the original recipe.

    Paper: Dosovitskiy et al. 2021, 2010.11929; An image is worth 16x16 words, table 3 (the row ViT-*, ImageNet)
    Command: vit pretrain vit_l16 --data URL
    Hardware: TPUv3 (the paper's)
    Hours: not published; the paper gives none for ImageNet-1k
    Number: 76.5 % top-1; table 5, after fine-tuning at 384 px, less than ViT-B/16: it overfits
    """
    base = vit_b16()
    return base.model_copy(
        update={"name": "vit_l16", "model": variant("L/16").model_copy(update={"dropout": 0.1})},
    )


def vit_b16_in21k() -> Recipe:
    """ViT-B/16 on ImageNet-21k, the original recipe.

    Paper: Dosovitskiy et al. 2021, 2010.11929; An image is worth 16x16 words, table 3 (the row ViT-B, ImageNet-21k)
    Command: vit pretrain vit_b16_in21k --data URL
    Hardware: TPUv3 (the paper's)
    Hours: not published; for this model
    Number: 83.97 % top-1; table 5, after fine-tuning on ImageNet-1k at 384 px
    """
    base = vit_b16()
    optim = OptimConfig(lr=1e-3, min_lr=0.0, warmup="10k steps", weight_decay=0.03, clip_norm=None)
    train = TrainConfig(duration="90 epochs", batch_size=4096)
    return base.model_copy(update={"name": "vit_b16_in21k", "optim": optim, "train": train})


def vit_l16_in21k() -> Recipe:
    """ViT-L/16 on ImageNet-21k, the original recipe.

    Paper: Dosovitskiy et al. 2021, 2010.11929; An image is worth 16x16 words, table 3 (the row ViT-L, ImageNet-21k)
    Command: vit pretrain vit_l16_in21k --data URL
    Hardware: one TPUv3 of eight cores (the paper's, section 4.2)
    Hours: 720; about 30 days, 230 TPUv3-core-days (table 2)
    Number: 85.15 % top-1; table 5, after fine-tuning on ImageNet-1k at 384 px
    """
    return vit_b16_in21k().model_copy(update={"name": "vit_l16_in21k", "model": vit_l16().model})


def vit_h14() -> Recipe:
    """ViT-H/14 on JFT-300M, the original recipe; its photographs were never published, yours may be as many.

    Paper: Dosovitskiy et al. 2021, 2010.11929; An image is worth 16x16 words, table 3 (the row ViT-H/14, JFT-300M)
    Command: vit pretrain vit_h14 --data URL
    Hardware: TPUv3 (the paper's)
    Hours: not published; 2,500 TPUv3-core-days (table 2)
    Number: 88.55 % top-1; table 2, after fine-tuning on ImageNet-1k at 518 px with averaged weights
    """
    base = vit_b16()
    optim = OptimConfig(lr=3e-4, min_lr=0.0, warmup="10k steps", weight_decay=0.1, clip_norm=None)
    train = TrainConfig(duration="14 epochs", batch_size=4096)
    return base.model_copy(update={"name": "vit_h14", "model": variant("H/14"), "optim": optim, "train": train})


def vit_s16() -> Recipe:
    """ViT-S/16 from scratch on ImageNet-1k, the plain recipe, 300 epochs.

    Paper: Beyer et al. 2022, 2205.01580; Better plain ViT baselines for ImageNet-1k
    Command: vit pretrain vit_s16 --data URL
    Hardware: one TPUv3-8 (the paper's)
    Hours: < 24; the paper's
    Number: 80.0 % top-1

    Mean pooling and no class token, RandAugment(2, 10), Mixup 0.2 and a batch of 1,024. The paper's weight decay of
    1e-4 is decoupled from the learning rate; AdamW multiplies its own by it, so that 1e-4 there is 0.1 here.
    """
    lr = 1e-3
    return Recipe(
        name="vit_s16",
        data=DataConfig(
            image_size=224,
            augment=AugmentConfig(crop_scale=(0.05, 1.0), randaug_layers=2, randaug_magnitude=10.0, mixup=0.2),
        ),
        model=variant("S/16").model_copy(update={"pooling": "mean"}),
        optim=OptimConfig(lr=lr, min_lr=0.0, warmup="10k steps", weight_decay=1e-4 / lr, clip_norm=1.0),
        train=TrainConfig(duration="300 epochs", batch_size=1024),
    )


def vit_s16_in1k_90ep() -> Recipe:
    """ViT-S/16 from scratch on ImageNet-1k, the plain recipe, 90 epochs.

    Paper: Beyer et al. 2022, 2205.01580; Better plain ViT baselines for ImageNet-1k
    Command: vit pretrain vit_s16_in1k_90ep --data URL
    Hardware: one TPUv3-8 (the paper's)
    Hours: 6 to 7; the paper's
    Number: 76.5 % top-1
    """
    base = vit_s16()
    train = base.train.model_copy(update={"duration": "90 epochs"})
    return base.model_copy(update={"name": "vit_s16_in1k_90ep", "train": train})


def vit_ti16() -> Recipe:
    """ViT-Ti/16 from scratch on ImageNet-1k, the plain recipe.

    Paper: Beyer et al. 2022, 2205.01580; at the Ti width of Touvron et al. 2021, 2012.12877, table 1
    Command: vit pretrain vit_ti16 --data URL
    Hardware: not published; not at this width
    Hours: not published; not at this width
    Number: not published; not at this width. DeiT-Ti without a teacher has 72.2 % top-1 (2012.12877, table 5)
    """
    model = variant("Ti/16").model_copy(update={"pooling": "mean"})
    return vit_s16().model_copy(update={"name": "vit_ti16", "model": model})


def vit_tiny_cpu() -> Recipe:
    """A 1.2 M parameter ViT for 32-pixel photographs (CIFAR-10) and two CPU cores.

    Paper: Beyer et al. 2022, 2205.01580; shrunk
    Command: vit pretrain vit_tiny_cpu --data URL
    Hardware: two CPU cores
    Hours: 0.25; a rough estimate
    Number: none; chance is 10 % on CIFAR-10
    """
    base = vit_s16()
    return base.model_copy(
        update={
            "name": "vit_tiny_cpu",
            "data": DataConfig(image_size=32, augment=AugmentConfig(crop_scale=(0.4, 1.0), randaug_layers=1)),
            "model": variant("Nano/4").model_copy(update={"pooling": "mean"}),
            "optim": OptimConfig(lr=1e-3, min_lr=1e-5, warmup="5%", weight_decay=0.05),
            "train": TrainConfig(duration="5 epochs", batch_size=128),
            "eval": EvalConfig(every="20%", resize=32),
        }
    )
