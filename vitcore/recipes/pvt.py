"""Pyramid vision transformer v2: four stages, each at half the resolution of the one before (2106.13797).

Hyper-parameters are those of section 4.1 and of the released configurations: DeiT's recipe without a teacher and
without repeated augmentation, which the paper does not name.
"""

from __future__ import annotations

from vitcore.recipe import (
    AugmentConfig,
    ClassifyConfig,
    DataConfig,
    EvalConfig,
    OptimConfig,
    PvtConfig,
    Recipe,
    TrainConfig,
)
from vitcore.recipes.pixels import IMAGENET
from vitcore.recipes.vit import vit_tiny_cpu


def pvt_v2_b2() -> Recipe:
    """PVT v2-B2 from scratch on ImageNet-1k.

    Paper: Wang et al. 2021, 2106.13797; PVT v2: improved baselines with pyramid vision transformer, table 2
    Command: vit pretrain pvt_v2_b2 --data URL
    Hardware: eight V100 GPUs (the paper's, section 4.1)
    Hours: not published
    Number: 82.0 % top-1
    """
    return Recipe(
        name="pvt_v2_b2",
        data=DataConfig(
            image_size=224,
            augment=AugmentConfig(randaug_layers=2, randaug_magnitude=9.0, erasing=0.25, mixup=0.8, cutmix=1.0),
        ),
        model=PvtConfig(drop_path=0.1).model_copy(update=IMAGENET),
        objective=ClassifyConfig(label_smoothing=0.1),
        optim=OptimConfig(lr=1e-3, min_lr=1e-5, warmup="5 epochs", weight_decay=0.05, clip_norm=None),
        train=TrainConfig(duration="300 epochs", batch_size=1024),
    )


def pvt_v2_b0() -> Recipe:
    """PVT v2-B0 from scratch on ImageNet-1k.

    Paper: Wang et al. 2021, 2106.13797; PVT v2: improved baselines with pyramid vision transformer, table 2
    Command: vit pretrain pvt_v2_b0 --data URL
    Hardware: eight V100 GPUs (the paper's, section 4.1)
    Hours: not published
    Number: 70.5 % top-1
    """
    model = PvtConfig(widths=(32, 64, 160, 256), depths=(2, 2, 2, 2), drop_path=0.1)
    return pvt_v2_b2().model_copy(update={"name": "pvt_v2_b0", "model": model.model_copy(update=IMAGENET)})


def pvt_v2_b5() -> Recipe:
    """PVT v2-B5 from scratch on ImageNet-1k.

    Paper: Wang et al. 2021, 2106.13797; PVT v2: improved baselines with pyramid vision transformer, table 2
    Command: vit pretrain pvt_v2_b5 --data URL
    Hardware: eight V100 GPUs (the paper's, section 4.1)
    Hours: not published
    Number: 83.8 % top-1
    """
    base = pvt_v2_b2()
    model = PvtConfig(depths=(3, 6, 40, 3), mlp_ratios=(4, 4, 4, 4), drop_path=0.3).model_copy(update=IMAGENET)
    optim = base.optim.model_copy(update={"clip_norm": 1.0})
    return base.model_copy(update={"name": "pvt_v2_b5", "model": model, "optim": optim})


def pvt_tiny_cpu() -> Recipe:
    """A 1.1 M parameter pyramid for small photographs (CIFAR-10, at 64 pixels) and two CPU cores.

    Paper: Wang et al. 2021, 2106.13797; shrunk
    Command: vit pretrain pvt_tiny_cpu --data URL
    Hardware: two CPU cores
    Hours: 0.3; a rough estimate
    Number: none; chance is 10 % on CIFAR-10

    The first stage makes the map 4 times smaller and the others halve it: of 64 pixels there remain 2 x 2 cells.
    """
    base = vit_tiny_cpu()
    return base.model_copy(
        update={
            "name": "pvt_tiny_cpu",
            "data": base.data.model_copy(update={"image_size": 64}),
            "model": PvtConfig(
                widths=(32, 64, 128, 160),
                depths=(1, 1, 2, 1),
                heads=(1, 2, 4, 5),
                mlp_ratios=(4, 4, 4, 4),
                reductions=(4, 2, 1, 1),
            ),
            "eval": EvalConfig(every="20%", resize=64),
        }
    )
