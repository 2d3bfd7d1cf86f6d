"""What happens to a photograph between decoding and the network, and how a lane's photographs are mixed.

Everything is drawn from a generator that belongs to the view, so pixels depend neither on the order in which threads
come to it nor on their number or the number of ranks. Images are uint8 [3, H, W] throughout; all resizing is
antialiased bicubic, in training and in evaluation.

A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where that is large enough. Such a decoding cuts frequencies off more
sharply than the filter does: at the size of the target it is 32 dB from a whole decoding, at twice that size 38 dB
(photographs, at 1/2), less than bilinear and bicubic filters differ by. Training, where crops differ by far more,
takes what is as large as the target; evaluation takes what is twice as large.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from vitcore.data.loading.batch import Mix
from vitcore.data.loading.operations import (
    TRIES,
    Rng,
    below,
    between,
    blur,
    erase,
    grey,
    jitter,
    randaug,
    solarize,
    three_augment,
)
from vitcore.data.loading.order import keyed
from vitcore.data.reading.decode import SHRINKS, Photograph
from vitcore.recipe import AugmentConfig

_EVALUATION_MARGIN = 2


class Box(NamedTuple):
    """A rectangle of pixels; `bottom` and `right` are outside it."""

    top: int
    left: int
    bottom: int
    right: int


class Crop(NamedTuple):
    """What a view shows of a photograph."""

    box: Box
    """The pixels of the photograph."""
    borders: Box = Box(0, 0, 0, 0)
    """Pixels of the view, at each of its sides, that mirror what lies beside them."""


class View(NamedTuple):
    """A view of a sample, to be made."""

    out_CHW: Tensor
    """Where its pixels go: uint8, of the size wanted."""
    config: AugmentConfig
    rng: Rng
    """Its own generator."""


def view_rng(seed: int, source: int, epoch: int, sample: int, repeat: int, view: int = 0) -> Rng:
    """The generator of one view of one sample."""
    return np.random.Generator(keyed("vit.view", seed, source, epoch, sample, repeat, view))


def training_views(photograph: Photograph, views: Sequence[View]) -> None:
    """Crop and change a photograph into each of its views; it is decoded once, as large as the crops together ask for.

    Raises:
        BadSampleError: the photograph cannot be decoded.
    """
    crops = [_draw(photograph.height, photograph.width, view) for view in views]
    sizes = [_inside(view.out_CHW, crop.borders) for crop, view in zip(crops, views, strict=True)]
    wanted = min(
        _shrink(crop.box.bottom - crop.box.top, crop.box.right - crop.box.left, *size)
        for crop, size in zip(crops, sizes, strict=True)
    )
    image_CHW, shrink = photograph.decode(wanted)
    for crop, size, (out_CHW, config, rng) in zip(crops, sizes, views, strict=True):
        top, left, bottom, right = crop.box
        view_CHW = _resize(image_CHW[:, _part(top, bottom, shrink), _part(left, right, shrink)], *size)
        _change(_mirror(view_CHW, crop.borders) if any(crop.borders) else view_CHW, out_CHW, config, rng)


def default_resize(image_size: int) -> int:
    """Short side before the centre crop, where none is named: the crop then sees 87.5 % of it, as is usual."""
    return round(image_size / 0.875)


def evaluation_view(photograph: Photograph, out_CHW: Tensor, resize: int) -> None:
    """Short side to `resize` pixels, then the centre of `out_CHW`'s size, into `out_CHW` (uint8).

    Raises:
        BadSampleError: the photograph cannot be decoded.
    """
    height, width = photograph.height, photograph.width
    short = min(height, width)
    target = _EVALUATION_MARGIN * resize
    image_CHW, _ = photograph.decode(_shrink(short, short, target, target))
    view = _resize(image_CHW, height * resize // short, width * resize // short)
    rows, columns = out_CHW.shape[1], out_CHW.shape[2]
    top, left = (view.shape[1] - rows) // 2, (view.shape[2] - columns) // 2
    _put(view[:, top : top + rows, left : left + columns], out_CHW)


def draw_crop(height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], rng: Rng) -> Box:
    """The Inception crop (1409.4842, section 6): area and log aspect ratio uniform.

    Where ten draws do not fit, the largest centred crop of an allowed ratio.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(TRIES):
        area = height * width * between(*scale, rng)
        aspect = math.exp(between(low, high, rng))
        columns, rows = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < columns <= width and 0 < rows <= height:
            top, left = below(height - rows + 1, rng), below(width - columns + 1, rng)
            return Box(top, left, top + rows, left + columns)
    rows, columns = height, width
    if width < height * ratio[0]:
        rows = max(1, min(height, round(width / ratio[0])))
    elif width > height * ratio[1]:
        columns = max(1, min(width, round(height * ratio[1])))
    top, left = (height - rows) // 2, (width - columns) // 2
    return Box(top, left, top + rows, left + columns)


def draw_simple_crop(height: int, width: int, size: int, padding: int, rng: Rng) -> Crop:
    """The simple random crop (2204.07118, section 3.2): a square of the whole short side, anywhere along the long one.

    Args:
        height: of the photograph, in pixels.
        width: of the photograph, in pixels.
        size: side of the view, in pixels; `padding` is in the same ones.
        padding: how far the square may reach beyond the photograph.
        rng: the view's generator.
    """
    zoom, padding = min(height, width) / size, min(padding, size - 1)
    edges: list[tuple[int, int, int, int]] = []
    for length in (height, width):
        whole = round(length / zoom)
        start = below(whole + 2 * padding - size + 1, rng) - padding
        first, last = max(0, start), min(whole, start + size)
        pixels = min(length - 1, round(first * zoom)), max(1, min(length, round(last * zoom)))
        edges.append((pixels[0], max(pixels[1], pixels[0] + 1), first - start, start + size - last))
    (top, bottom, above, under), (left, right, before, after) = edges
    return Crop(Box(top, left, bottom, right), Box(above, before, under, after))


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


def _draw(height: int, width: int, view: View) -> Crop:
    config, rng = view.config, view.rng
    if config.crop == "simple":
        return draw_simple_crop(height, width, view.out_CHW.shape[1], config.crop_padding, rng)
    return Crop(draw_crop(height, width, config.crop_scale, config.crop_ratio, rng))


def _inside(out_CHW: Tensor, borders: Box) -> tuple[int, int]:
    """Height and width of a view without its borders."""
    top, left, bottom, right = borders
    return out_CHW.shape[1] - top - bottom, out_CHW.shape[2] - left - right


def _mirror(view_CHW: Tensor, borders: Box) -> Tensor:
    """Borders that mirror the view, whose outermost pixels are not repeated."""
    top, left, bottom, right = borders
    return torch.from_numpy(np.pad(view_CHW.numpy(), ((0, 0), (top, bottom), (left, right)), mode="reflect"))


def _shrink(rows: int, columns: int, height: int, width: int) -> int:
    """How far a part of rows × columns pixels may be shrunk and still have height × width."""
    return next((shrink for shrink in SHRINKS if rows >= shrink * height and columns >= shrink * width), 1)


def _part(start: int, stop: int, shrink: int) -> slice:
    """A stretch of pixels among those that stand for `shrink` each: moved by half of one at most, and never empty."""
    first = round(start / shrink)
    return slice(first, max(first + 1, round(stop / shrink)))


def _resize(image_CHW: Tensor, height: int, width: int) -> Tensor:
    resized: Tensor = interpolate(image_CHW[None], (height, width), mode="bicubic", antialias=True)[0]
    return resized


def _change(view_CHW: Tensor, out_CHW: Tensor, config: AugmentConfig, rng: Rng) -> None:
    """Everything after the crop, into `out_CHW`. What is off draws nothing, so it does not move what is drawn later."""
    flips = [axis for axis, chance in ((-1, config.hflip), (-2, config.vflip)) if rng.random() < chance]
    if flips:
        view_CHW = view_CHW.flip(flips)
    for _ in range(config.randaug_layers):
        view_CHW = randaug(view_CHW, config.randaug_magnitude / 10, rng)
    if config.three_augment:
        view_CHW = three_augment(view_CHW, config.blur_sigma, rng)
    if any(config.jitter) and rng.random() < config.jitter_prob:
        view_CHW = jitter(view_CHW, config.jitter, rng)
    if config.grey and rng.random() < config.grey:
        view_CHW = grey(view_CHW)
    if config.blur and rng.random() < config.blur:
        view_CHW = blur(view_CHW, between(*config.blur_sigma, rng))
    if config.solarize and rng.random() < config.solarize:
        view_CHW = solarize(view_CHW)
    _put(view_CHW, out_CHW)
    if rng.random() < config.erasing:
        erase(out_CHW, rng)


def _put(view_CHW: Tensor, out_CHW: Tensor) -> None:
    np.copyto(out_CHW.numpy(), view_CHW.numpy())  # from channels-last memory, in half the time of torch's copy
