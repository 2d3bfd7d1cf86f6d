"""Which samples reach a model, in which order, and how they are changed."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator, model_validator

from vitcore.recipe.config import Config

MOST_IN_A_ROUND = 10_000
"""Largest sum of a mixture's weights: the pattern of a round is kept in memory, and a share below 0.01 % is none."""


class AugmentConfig(Config):
    """What happens to a training photograph between decoding and the network."""

    crop: Literal["inception", "simple"] = "inception"
    """``inception``: a part of random area and aspect ratio, resized. ``simple``: the short side resized to the size,
    then a square at a random place (2204.07118, section 3.2: for many photographs; CLIP)."""
    crop_padding: int = 0
    """Simple crop: pixels mirrored at every border before the square is placed; DeiT III takes 4."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Area of the random resized crop, as a fraction of the photograph (Inception crop)."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Aspect ratio of the random resized crop."""
    hflip: float = 0.5
    """Probability of a horizontal flip."""
    vflip: float = 0.0
    """Probability of a vertical flip."""
    randaug_layers: int = 0
    """RandAugment (1909.13719): operations per view; 0 switches it off."""
    randaug_magnitude: float = 9.0
    """RandAugment: strength, 0 to 10."""
    three_augment: bool = False
    """3-Augment (2204.07118, section 3.2): each view loses its colour, or is solarized, or is blurred; which one is
    drawn. The colour jitter and the flip that belong to it are set beside it."""
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """Colour jitter (2002.05709, appendix A): how far the factors of brightness, contrast and saturation may move from
    1, and the hue along the colour circle; self-supervised recipes take 0.4 0.4 0.2 0.1."""
    jitter_prob: float = 0.8
    """Probability of the colour jitter, where it is on."""
    grey: float = 0.0
    """Probability of losing all colour."""
    blur: float = 0.0
    """Probability of a Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Blur: least and most standard deviation, in pixels."""
    solarize: float = 0.0
    """Probability of inverting the brighter half of the values (2006.07733, appendix B)."""
    erasing: float = 0.0
    """Probability of random erasing (1708.04896)."""
    mixup: float = 0.0
    """Mixup's Beta(alpha, alpha) (1710.09412); 0 switches it off."""
    cutmix: float = 0.0
    """CutMix's Beta(alpha, alpha) (1905.04899); 0 switches it off. With both, each lane draws one of the two a step."""
    mix_prob: float = 1.0
    """Probability that a lane is mixed at a step, when Mixup or CutMix is on."""

    @field_validator("crop_padding")
    @classmethod
    def _padding_range(cls, value: int) -> int:
        if value < 0:
            raise ValueError("must be 0 or more")
        return value

    @field_validator("jitter")
    @classmethod
    def _jitter_range(cls, value: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
        if not all(0 <= part <= most for part, most in zip(value, (1, 1, 1, 0.5), strict=True)):
            raise ValueError("brightness, contrast and saturation must be from 0 to 1, hue from 0 to 0.5")
        return value

    @field_validator("blur_sigma")
    @classmethod
    def _sigma_range(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1]:
            raise ValueError("must be two deviations above 0, the smaller one first")
        return value


class ViewConfig(Config):
    """Further views of a sample, beside the first, for objectives that compare views (self-supervised learning)."""

    count: int = 1
    """How many views of this kind."""
    image_size: int | None = None
    """Height and width, in pixels; default: that of the first view."""
    augment: AugmentConfig = AugmentConfig()
    """How they are made; all but Mixup and CutMix, which mix first views only."""

    @field_validator("count", "image_size")
    @classmethod
    def _positive(cls, value: int | None) -> int | None:
        if value is not None and value < 1:
            raise ValueError("must be at least 1")
        return value

    @model_validator(mode="after")
    def _unmixed(self) -> ViewConfig:
        if self.augment.mixup or self.augment.cutmix:
            raise ValueError("Mixup and CutMix mix first views only: set them in data.augment")
        return self


class DataConfig(Config):
    """Which samples reach the model, in which order, and how they are changed."""

    image_size: int = 224
    """Height and width of the network's input, in pixels."""
    train_split: str = "train"
    """Split to train on."""
    lanes: int | None = None
    """Lanes the sample order is cut into; default: the largest divisor of the batch with at least 8 slots a lane."""
    window: int = 1024
    """Samples shuffled together inside a lane: larger mixes better, smaller reads more locally."""
    repeats: int = 1
    """Repeated augmentation (1901.09335): views of a sample that follow each other."""
    error_budget: float = 0.01
    """Fraction of samples that may be unreadable before the run fails."""
    mixture: tuple[int, ...] = ()
    """Training on several datasets: how many samples of each make a round, in the order in which they are given."""
    captions: bool = False
    """Whether batches carry a caption of each sample, drawn anew every time it is shown."""
    augment: AugmentConfig = AugmentConfig()
    views: tuple[ViewConfig, ...] = ()
    """Further views of each sample; its photograph is decoded once for all of them."""

    @field_validator("image_size", "window", "repeats")
    @classmethod
    def _positive(cls, value: int) -> int:
        if value < 1:
            raise ValueError("must be at least 1")
        return value

    @field_validator("mixture")
    @classmethod
    def _weights(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(weight < 1 for weight in value) or sum(value) > MOST_IN_A_ROUND:
            raise ValueError(f"must be whole numbers from 1, adding up to {MOST_IN_A_ROUND} at most")
        return value
