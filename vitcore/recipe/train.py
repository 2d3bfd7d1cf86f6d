"""How long and how fast a model learns, and how it is validated meanwhile."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator

from vitcore.duration import PartDuration, TrainDuration, TrainInterval
from vitcore.recipe.config import Config


class OptimConfig(Config):
    """The optimiser, a linear warm-up and a cosine decay (1608.03983)."""

    name: Literal["adamw", "lamb", "sgd"] = "adamw"
    """AdamW (1711.05101), LAMB (1904.00962), or SGD with a momentum of 0.9."""
    lr: float = 1e-3
    """Peak learning rate, at the recipe's own batch size."""
    min_lr: float = 1e-5
    """Learning rate at the end of the cosine."""
    warmup: PartDuration = "5%"
    """Linear warm-up from 0."""
    weight_decay: float = 0.05
    """Weight decay (decoupled but for SGD); never on biases, norms, tokens and position embeddings."""
    final_weight_decay: float | None = None
    """Weight decay at the end, reached along a cosine (2104.14294); default: as at the start."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of Adam's two moments."""
    eps: float = 1e-8
    """Adam's epsilon."""
    clip_norm: float | None = 1.0
    """Largest global gradient norm; none: no clipping."""
    layer_decay: float = 1.0
    """Factor on the learning rate per layer from the head down (1.0: none; fine-tuning often takes 0.65 to 0.9)."""


class TrainConfig(Config):
    """How long, with which batch and seed."""

    duration: TrainDuration = "90 epochs"
    """How long to train."""
    batch_size: int = 1024
    """Samples in an optimiser step over all workers; accumulation and worker count do not change it."""
    seed: int = 0
    """Seed of weights, sample order and augmentation."""
    ema_decay: float | None = None
    """Decay of an exponential moving average of the weights; the average is what is validated and kept."""

    @field_validator("batch_size")
    @classmethod
    def _positive(cls, value: int) -> int:
        if value < 1:
            raise ValueError("must be at least 1")
        return value


class EvalConfig(Config):
    """Validation while training; the best checkpoint is the one kept."""

    split: str = "val"
    """Split to validate on."""
    every: TrainInterval = "10%"
    """How often to validate; the last step is always validated."""
    metric: Literal["top1", "balanced_accuracy", "loss", "recall_at_10", "knn", "last"] = "top1"
    """What chooses the best checkpoint. ``recall_at_10``: the mean of both directions of retrieval. ``knn``: accuracy
    of the 20 nearest training photographs' vote on frozen features (1805.01978). ``last``: the last checkpoint is kept,
    as self-supervised learning does, and without labels nothing else is known."""
    resize: int | None = None
    """Short side before the centre crop, in pixels; default: image size ÷ 0.875."""
    batch_size: int = 256
    """Samples in an evaluation batch."""
