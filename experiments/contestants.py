"""The networks that are compared, and the one way in which all of them are trained.

All see CIFAR-10's photographs enlarged to 64 pixels, random crops and flips, and nothing else; AdamW, a cosine, no
average of the weights. They are scored once, on the test photographs, at the last step: nothing is chosen by it.
"""

from __future__ import annotations

from typing import Any

from vitcore.recipe import (
    AugmentConfig,
    CnnConfig,
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

BATCH = 64
VIT: VitConfig = variant("Pico/8")
CNN = CnnConfig(name="shufflenet_v2_x0_5", dropout=0.0)
"""With about as many weights as the ViT."""


def recipe(name: str, steps: int, seed: int, **changes: Any) -> Recipe:
    """A ViT from scratch; `changes` replace parts of the recipe."""
    base = Recipe(
        name=name,
        data=DataConfig(image_size=64, augment=AugmentConfig(crop_scale=(0.5, 1.0))),
        model=VIT,
        optim=OptimConfig(lr=1e-3, min_lr=1e-5, warmup="5%", weight_decay=0.05),
        train=TrainConfig(duration=f"{steps} steps", batch_size=BATCH, seed=seed),
        eval=EvalConfig(split="test", every="100%", resize=64),
    )
    return base.model_copy(update=changes)


def distilled(name: str, steps: int, seed: int, mode: str) -> Recipe:
    """The DeiT of the same size, with a teacher."""
    objective = DistillConfig.model_validate({"mode": mode, "tau": 3.0, "alpha": 0.5})
    return recipe(name, steps, seed, model=student(VIT), objective=objective)


def tuned(name: str, steps: int, seed: int, lr: float) -> Recipe:
    """Another model, continued."""
    optim = OptimConfig(lr=lr, min_lr=1e-5, warmup="5%", weight_decay=0.05)
    return recipe(name, steps, seed, model=ParentConfig(), optim=optim)
