"""What changes the pixels of a view: RandAugment, 3-Augment, colour jitter, greyscale, blur, solarisation, erasing.

Images are uint8 [3, H, W]. Every value is a function of the image and of what was drawn, not of memory layout or
number of threads: sums are of whole numbers, and a product is rounded before it is added.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torchvision.transforms.v2 import functional as F

Rng = np.random.Generator

TRIES = 10
"""Draws of a rectangle before one that always fits is taken."""
_ERASED_AREA = (0.02, 1 / 3)  # of the view, section 4 of 1708.04896
_ERASED_RATIO = (0.3, 1 / 0.3)
_TRANSLATE = 150 / 331  # largest shift of RandAugment, as a fraction of the side
_MID_GREY = 128


def between(low: float, high: float, rng: Rng) -> float:
    """A uniform number in [low, high)."""
    return low + (high - low) * rng.random()


def below(count: int, rng: Rng) -> int:
    """A uniform whole number in [0, count)."""
    return min(count - 1, int(rng.random() * count))


def randaug(image_CHW: Tensor, strength: float, rng: Rng) -> Tensor:
    """One operation of RandAugment (1909.13719): which one is drawn, and a sign where it has two directions.

    Args:
        image_CHW: the view.
        strength: 0 to 1.
        rng: the view's generator.
    """
    operation = RANDAUGMENT[below(len(RANDAUGMENT), rng)]
    return operation(image_CHW, strength if rng.random() < 0.5 else -strength)


def three_augment(image_CHW: Tensor, blur_sigma: tuple[float, float], rng: Rng) -> Tensor:
    """3-Augment (2204.07118, section 3.2): greyscale, solarisation or blur, each as often as the others.

    Args:
        image_CHW: the view.
        blur_sigma: least and most standard deviation of the blur, in pixels.
        rng: the view's generator.
    """
    chosen = below(3, rng)
    if chosen == 0:
        return grey(image_CHW)
    return solarize(image_CHW) if chosen == 1 else blur(image_CHW, between(*blur_sigma, rng))


def jitter(image_CHW: Tensor, ranges: tuple[float, float, float, float], rng: Rng) -> Tensor:
    """Brightness, contrast, saturation and hue moved at random, in a random order (2002.05709, appendix A).

    Args:
        image_CHW: the view.
        ranges: largest change of each factor from 1, and of the hue as a part of the colour circle.
        rng: the view's generator.
    """
    image_CHW = image_CHW.contiguous()  # where saturation and hue take half the time of channels-last memory
    for number in rng.random(4).argsort(kind="stable").tolist():
        moved = between(-ranges[number], ranges[number], rng)
        if ranges[number]:
            image_CHW = _JITTER[number](image_CHW, moved)
    return image_CHW


def grey(image_CHW: Tensor) -> Tensor:
    """The luminance in all three channels."""
    colourless: Tensor = F.rgb_to_grayscale(image_CHW, num_output_channels=3)
    return colourless


def solarize(image_CHW: Tensor) -> Tensor:
    """Values in the brighter half inverted."""
    solarized: Tensor = F.solarize(image_CHW, 128)
    return solarized


def blur(image_CHW: Tensor, sigma: float) -> Tensor:
    """A Gaussian blur of standard deviation `sigma` pixels, cut off at three of them; the border is repeated."""
    radius = math.ceil(3 * sigma)
    weights = [math.exp(-0.5 * (tap / sigma) ** 2) for tap in range(-radius, radius + 1)]
    weights = [weight / sum(weights) for weight in weights]
    image = image_CHW.contiguous().float()
    for axis, border in ((2, (radius, radius, 0, 0)), (1, (0, 0, radius, radius))):
        wide, size = pad(image[None], border, mode="replicate")[0], image.shape[axis]
        image = wide.narrow(axis, 0, size) * weights[0]
        for tap, weight in enumerate(weights[1:], start=1):
            image += wide.narrow(axis, tap, size) * weight
    return image.round_().clamp_(0, 255).to(torch.uint8)


def erase(out_CHW: Tensor, rng: Rng) -> None:
    """Random erasing (1708.04896) with noise, in place; nothing happens where ten draws do not fit."""
    channels, height, width = out_CHW.shape
    low, high = map(math.log, _ERASED_RATIO)
    for _ in range(TRIES):
        area = height * width * between(*_ERASED_AREA, rng)
        aspect = math.exp(between(low, high, rng))
        rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < rows < height and 0 < columns < width:
            top, left = below(height - rows + 1, rng), below(width - columns + 1, rng)
            noise = rng.integers(0, 256, (channels, rows, columns), np.uint8)
            out_CHW[:, top : top + rows, left : left + columns] = torch.from_numpy(noise)
            return


def _contrast(image_CHW: Tensor, factor: float) -> Tensor:
    # The mean is a sum of integers: a float mean would depend on how many threads add it up.
    red, green, blue = (int(channel.sum(dtype=torch.int64)) for channel in image_CHW)
    mean = (299 * red + 587 * green + 114 * blue) / (1000 * image_CHW[0].numel())
    return image_CHW.float().mul_(factor).add_(mean * (1 - factor)).clamp_(0, 255).to(torch.uint8)


def _warp(image_CHW: Tensor, matrix: tuple[float, float, float, float], shift: tuple[float, float] = (0, 0)) -> Tensor:
    """The pixel that `matrix` (about the centre: x from x and y, y from x and y) and then `shift` (fractions of width
    and height) point to, nearest one, mid-grey from outside. In numpy: half the time of a sampled float grid."""
    channels, height, width = image_CHW.shape
    xx, xy, yx, yy = np.asarray(matrix, np.float32)
    middle_x, middle_y = np.float32((width - 1) / 2), np.float32((height - 1) / 2)
    x, y = np.arange(width, dtype=np.float32) - middle_x, np.arange(height, dtype=np.float32) - middle_y
    from_x = (x * xx + (middle_x + np.float32(shift[0] * width)))[None] + (y * xy)[:, None]
    from_y = (x * yx + (middle_y + np.float32(shift[1] * height)))[None] + (y * yy)[:, None]
    column, row = np.rint(from_x).astype(np.int32), np.rint(from_y).astype(np.int32)
    near_column, near_row = column.clip(0, width - 1), row.clip(0, height - 1)
    outside = (near_column != column) | (near_row != row)
    pixels = image_CHW.reshape(channels, -1).numpy()
    warped = np.take(pixels, (near_row * width + near_column).reshape(-1), axis=1).reshape(channels, height, width)
    warped[:, outside] = _MID_GREY
    return torch.from_numpy(warped)


def _rotate(image_CHW: Tensor, signed: float) -> Tensor:
    turn = math.radians(30 * signed)
    return _warp(image_CHW, (math.cos(turn), math.sin(turn), -math.sin(turn), math.cos(turn)))


RANDAUGMENT: tuple[Callable[[Tensor, float], Tensor], ...] = (
    lambda image, signed: image,
    lambda image, signed: F.autocontrast(image),
    lambda image, signed: F.equalize(image),
    lambda image, signed: F.posterize(image, 8 - round(4 * abs(signed))),
    lambda image, signed: F.solarize(image, 255 * (1 - abs(signed))),
    lambda image, signed: F.adjust_brightness(image, 1 + 0.9 * signed),
    lambda image, signed: _contrast(image, 1 + 0.9 * signed),
    lambda image, signed: F.adjust_saturation(image, 1 + 0.9 * signed),
    lambda image, signed: F.adjust_sharpness(image, 1 + 0.9 * signed),
    _rotate,
    lambda image, signed: _warp(image, (1, 0.3 * signed, 0, 1)),
    lambda image, signed: _warp(image, (1, 0, 0.3 * signed, 1)),
    lambda image, signed: _warp(image, (1, 0, 0, 1), (_TRANSLATE * signed, 0)),
    lambda image, signed: _warp(image, (1, 0, 0, 1), (0, _TRANSLATE * signed)),
)
"""What `randaug` draws from; each takes a signed strength in [-1, 1], those with one direction use its size."""

_JITTER: tuple[Callable[[Tensor, float], Tensor], ...] = (
    lambda image, moved: F.adjust_brightness(image, 1 + moved),
    lambda image, moved: _contrast(image, 1 + moved),
    lambda image, moved: F.adjust_saturation(image, 1 + moved),
    lambda image, moved: F.adjust_hue(image, moved),
)
