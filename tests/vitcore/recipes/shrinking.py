"""Recipes made small enough that a step of each takes a moment, and still of their own kind."""

from __future__ import annotations

from typing import Any

from vitcore.recipe import Recipe, parse

SIDE = 32
"""Of an image, in pixels."""
_VIT = {"width": 32, "depth": 2, "heads": 2}
_MODELS: dict[str, dict[str, Any]] = {
    "vit": {**_VIT, "patch": 8},
    "deit": {**_VIT, "patch": 8},
    "hybrid": {**_VIT, "stem": (1,)},
    "mixer": {"width": 32, "depth": 2, "patch": 8},
    "t2t": {**_VIT, "token_width": 16},
    "pvt": {"widths": (8, 16, 16, 32), "depths": (1, 1, 1, 1), "heads": (1, 2, 2, 2)},
    "cnn": {"name": "resnet18"},
    "parent": {},
}
_OBJECTIVES: dict[str, dict[str, Any]] = {
    "moco": {"width": 8, "hidden": 16, "momentum": 0.9},
    "dino": {
        "prototypes": 16,
        "hidden": 16,
        "bottleneck": 8,
        "momentum": 0.9,
        "teacher_warmup": 0.5,
        "freeze_head": 0.5,
    },
    "mae": {"width": 16, "depth": 1, "heads": 2},
}


_RATES = {"lr": 1e-3, "min_lr": 1e-5, "weight_decay": 0.05, "betas": (0.9, 0.99), "eps": 1e-8, "warmup": "1 steps"}


def shrink(recipe: Recipe) -> Recipe:
    """The recipe with a small model, small images and two small steps.

    All that chooses a way of doing things stays; numbers that do not are made alike, so that recipes which differ in
    nothing else become one.
    """
    tree = recipe.model_dump(mode="json")
    tree["name"] = "small"
    model = tree["model"]
    if model["kind"] == "clip":
        model["image"] |= _MODELS[model["image"]["kind"]]
        model["text"] |= {"width": 32, "depth": 1, "heads": 2, "tokenizer": "clip", "vocabulary": 49408, "context": 16}
        model["width"] = 16 if model["image_projection"] else model["image"]["width"]
    else:
        model |= _MODELS[model["kind"]]
    tree["objective"] |= _OBJECTIVES.get(tree["objective"]["kind"], {})
    _level(model)
    tree["data"] |= {"image_size": SIDE, "lanes": None, "window": 8}
    for view in tree["data"]["views"]:
        view |= {"count": min(view["count"], 2), "image_size": view["image_size"] and SIDE // 2}
    for augment in (tree["data"]["augment"], *(view["augment"] for view in tree["data"]["views"])):
        augment |= {"crop_scale": (0.3, 1.0), "randaug_magnitude": 9.0, "blur_sigma": (0.1, 1.0)}
    tree["optim"] |= _RATES
    tree["train"] |= {"duration": "2 steps", "batch_size": 8, "ema_decay": tree["train"]["ema_decay"] and 0.9}
    tree["eval"] |= {"every": "100%", "resize": SIDE, "batch_size": 32}
    return parse(Recipe, tree)


def _level(model: dict[str, Any]) -> None:
    """What does not choose a way of computing, made alike."""
    for rate in ("dropout", "drop_path"):
        if model.get(rate):
            model[rate] = 0.1
    if "mean" in model:
        model |= {"mean": (0.5, 0.5, 0.5), "std": (0.3, 0.3, 0.3)}
