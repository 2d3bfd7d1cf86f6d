"""What happens to a photograph between decoding and the network, and how a lane's photographs are mixed.

Everything is drawn from a generator that belongs to the view, so pixels depend neither on the order in which threads
come to it nor on their number or the number of ranks. Images are uint8 [3, H, W] throughout; all resizing is
antialiased bicubic, in training and in evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms.v2 import functional as F

from vitcore.data.batch import Mix
from vitcore.data.order import keyed
from vitcore.recipe import AugmentConfig

Rng = np.random.Generator

_CROP_TRIES = 10
_ERASED_AREA = (0.02, 1 / 3)  # of the view, section 4 of 1708.04896
_ERASED_RATIO = (0.3, 1 / 0.3)
_TRANSLATE = 150 / 331  # largest shift of RandAugment, as a fraction of the side
_MID_GREY = 128


class Box(NamedTuple):
    """A rectangle of pixels; `bottom` and `right` are outside it."""

    top: int
    left: int
    bottom: int
    right: int


def view_rng(seed: int, source: int, epoch: int, sample: int, repeat: int, view: int = 0) -> Rng:
    """The generator of one view of one sample."""
    return np.random.Generator(keyed("vit.view", seed, source, epoch, sample, repeat, view))


def training_view(image_CHW: Tensor, out_CHW: Tensor, config: AugmentConfig, rng: Rng) -> None:
    """Crop, flip, RandAugment and random erasing, as `config` says, into `out_CHW` (uint8, of the size wanted)."""
    _, height, width = image_CHW.shape
    box = draw_crop(height, width, config.crop_scale, config.crop_ratio, rng)
    view = _resize(image_CHW[:, box.top : box.bottom, box.left : box.right], out_CHW.shape[1], out_CHW.shape[2])
    flips = [axis for axis, chance in ((-1, config.hflip), (-2, config.vflip)) if rng.random() < chance]
    if flips:
        view = view.flip(flips)
    for _ in range(config.randaug_layers):
        view = _randaug(view, config.randaug_magnitude / 10, rng)
    out_CHW.copy_(view)
    if rng.random() < config.erasing:
        _erase(out_CHW, rng)


def default_resize(image_size: int) -> int:
    """Short side before the centre crop, where none is named: the crop then sees 87.5 % of it, as is usual."""
    return round(image_size / 0.875)


def evaluation_view(image_CHW: Tensor, out_CHW: Tensor, resize: int) -> None:
    """Short side to `resize` pixels, then the centre of `out_CHW`'s size, into `out_CHW` (uint8)."""
    _, height, width = image_CHW.shape
    short = min(height, width)
    view = _resize(image_CHW, height * resize // short, width * resize // short)
    rows, columns = out_CHW.shape[1], out_CHW.shape[2]
    top, left = (view.shape[1] - rows) // 2, (view.shape[2] - columns) // 2
    out_CHW.copy_(view[:, top : top + rows, left : left + columns])


def draw_crop(height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], rng: Rng) -> Box:
    """The Inception crop (1409.4842, section 6): area and log aspect ratio uniform.

    Where ten draws do not fit, the largest centred crop of an allowed ratio.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(_CROP_TRIES):
        area = height * width * _between(*scale, rng)
        aspect = math.exp(_between(low, high, rng))
        columns, rows = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < columns <= width and 0 < rows <= height:
            top, left = _below(height - rows + 1, rng), _below(width - columns + 1, rng)
            return Box(top, left, top + rows, left + columns)
    rows, columns = height, width
    if width < height * ratio[0]:
        rows = max(1, min(height, round(width / ratio[0])))
    elif width > height * ratio[1]:
        columns = max(1, min(width, round(height * ratio[1])))
    top, left = (height - rows) // 2, (width - columns) // 2
    return Box(top, left, top + rows, left + columns)


def draw_mix(
    config: AugmentConfig, *, seed: int, step: int, lanes: Sequence[int], weights_S: Tensor, lane_size: int, size: int
) -> Mix | None:
    """How the lanes of a rank are mixed at a step: Mixup (1710.09412) or CutMix (1905.04899), one draw a lane.

    A slot's partner is the slot at its place in the reversed lane, so partners share λ and box. A slot whose partner
    has weight 0 is left as it is. CutMix's λ is the share of the area that was really left.

    Args:
        config: `mixup`, `cutmix` and `mix_prob` are read.
        seed: `train.seed`.
        step: t.
        lanes: lanes of the rank; slots beyond them are padding.
        weights_S: weights of the slots, after reading.
        lane_size: g.
        size: side of the image, in pixels.
    """
    if not (config.mixup or config.cutmix):
        return None
    slots = len(weights_S)
    lam_S, box_S4 = torch.ones(slots), torch.zeros(slots, 4, dtype=torch.int64)
    for place, lane in enumerate(lanes):
        lam, box = _draw_lane_mix(config, np.random.Generator(keyed("vit.mix", seed, step, lane)), size)
        part = slice(place * lane_size, (place + 1) * lane_size)
        alone = weights_S[part].flip(0) == 0
        lam_S[part] = torch.where(alone, 1.0, lam)
        box_S4[part] = torch.where(alone[:, None], 0, torch.tensor(box))
    return Mix(lam_S, box_S4)


def _draw_lane_mix(config: AugmentConfig, rng: Rng, size: int) -> tuple[float, Box]:
    nothing = Box(0, 0, 0, 0)
    if rng.random() >= config.mix_prob:
        return 1.0, nothing
    cut = rng.random() < 0.5 if config.mixup and config.cutmix else bool(config.cutmix)
    alpha = config.cutmix if cut else config.mixup
    lam = float(rng.beta(alpha, alpha))
    if not cut:
        return lam, nothing
    side = size * math.sqrt(1 - lam)
    middle_y, middle_x = size * rng.random(), size * rng.random()
    top, bottom = (min(size, max(0, round(middle_y + side * half))) for half in (-0.5, 0.5))
    left, right = (min(size, max(0, round(middle_x + side * half))) for half in (-0.5, 0.5))
    area = (bottom - top) * (right - left)
    return (1 - area / size**2, Box(top, left, bottom, right)) if area else (1.0, nothing)


def _resize(image_CHW: Tensor, height: int, width: int) -> Tensor:
    resized: Tensor = interpolate(image_CHW[None], (height, width), mode="bicubic", antialias=True)[0]
    return resized


def _erase(out_CHW: Tensor, rng: Rng) -> None:
    """Random erasing with noise; nothing happens where ten draws do not fit."""
    channels, height, width = out_CHW.shape
    low, high = map(math.log, _ERASED_RATIO)
    for _ in range(_CROP_TRIES):
        area = height * width * _between(*_ERASED_AREA, rng)
        aspect = math.exp(_between(low, high, rng))
        rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < rows < height and 0 < columns < width:
            top, left = _below(height - rows + 1, rng), _below(width - columns + 1, rng)
            noise = rng.integers(0, 256, (channels, rows, columns), np.uint8)
            out_CHW[:, top : top + rows, left : left + columns] = torch.from_numpy(noise)
            return


def _randaug(image_CHW: Tensor, strength: float, rng: Rng) -> Tensor:
    """One operation of RandAugment (1909.13719): which one is drawn, and a sign where it has two directions."""
    operation = _OPERATIONS[_below(len(_OPERATIONS), rng)]
    return operation(image_CHW, strength if rng.random() < 0.5 else -strength)


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


_OPERATIONS: tuple[Callable[[Tensor, float], Tensor], ...] = (
    # Each takes a signed strength in [-1, 1]; those with one direction use its size.
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


def _between(low: float, high: float, rng: Rng) -> float:
    return low + (high - low) * rng.random()


def _below(count: int, rng: Rng) -> int:
    """A uniform integer in [0, count)."""
    return min(count - 1, int(rng.random() * count))
