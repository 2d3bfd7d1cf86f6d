"""Augmentation: a function of its generator alone, in the ranges the papers name; and how lanes are mixed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from vitcore.data.loading import operations
from vitcore.data.loading.augment import (
    View,
    draw_crop,
    draw_mix,
    draw_simple_crop,
    evaluation_view,
    training_views,
    view_rng,
)
from vitcore.data.loading.batch import Batch, to_inputs
from vitcore.data.loading.operations import RANDAUGMENT, blur, grey, jitter, solarize
from vitcore.data.reading.decode import Decoded, Photograph
from vitcore.errors import RequestError
from vitcore.recipe import AugmentConfig, DataConfig, parse

STRONG = AugmentConfig(vflip=0.5, randaug_layers=2, erasing=0.5)
SSL = AugmentConfig(jitter=(0.4, 0.4, 0.2, 0.1), jitter_prob=0.8, grey=0.2, blur=0.5, solarize=0.2)
"""The augmentation of BYOL, MoCo v3 and DINO."""
PLAIN = AugmentConfig(crop_scale=(1, 1), crop_ratio=(1, 1), hflip=0)
DEIT3 = AugmentConfig(crop="simple", crop_padding=4, three_augment=True, jitter=(0.3, 0.3, 0.3, 0), jitter_prob=1)


def photograph(height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (1, 3, 6, 6), generator=generator).float()
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]
    return smooth.to(torch.uint8)


class Shown(Photograph):
    """A photograph that was decoded already; at a fraction it is the mean of its pixels, as a JPEG nearly is."""

    def __init__(self, image: torch.Tensor) -> None:
        self.image, self.asked = image, list[int]()
        _, self.height, self.width = image.shape

    def decode(self, shrink: int = 1) -> Decoded:
        self.asked.append(shrink)
        pool = torch.nn.functional.avg_pool2d(self.image[None].float(), shrink, ceil_mode=True, count_include_pad=False)
        return Decoded(pool[0].round().to(torch.uint8), shrink) if shrink > 1 else Decoded(self.image, 1)


def view(image: torch.Tensor, config: AugmentConfig, *key: int, size: int = 32) -> torch.Tensor:
    out = torch.empty(3, size, size, dtype=torch.uint8)
    training_views(Shown(image), [View(out, config, view_rng(*(key or (0, 0, 0, 0, 0))))])
    return out


def test_a_view_depends_on_its_key_and_on_nothing_else() -> None:
    image = photograph(60, 80)
    first = view(image, STRONG, 0, 0, 1, 7, 0)
    np.random.default_rng().random()
    torch.manual_seed(123)
    assert torch.equal(first, view(image, STRONG, 0, 0, 1, 7, 0))
    for key in (
        (1, 0, 1, 7, 0),
        (0, 1, 1, 7, 0),
        (0, 0, 2, 7, 0),
        (0, 0, 1, 8, 0),
        (0, 0, 1, 7, 1),
        (0, 0, 1, 7, 0, 1),
    ):
        assert not torch.equal(first, view(image, STRONG, *key)), key


def test_pixels_do_not_depend_on_the_number_of_threads_or_on_the_memory_layout() -> None:
    image = photograph(224, 224)
    image ^= torch.randint(0, 32, image.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    last = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)

    def everything(layout: torch.Tensor) -> list[torch.Tensor]:
        changed = [change(layout, 0.77) for change in RANDAUGMENT]
        changed += [blur(layout, 1.7), grey(layout), solarize(layout)]
        changed += [jitter(layout, ranges, view_rng(0, 0, 0, 0, 0)) for ranges in (0.4 * np.eye(4)).tolist()]
        for n in range(4):
            changed += [view(layout, config, 0, 0, 0, n, 0, size=192) for config in (STRONG, SSL, DEIT3)]
        return changed

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = everything(image)
        for threads, layout in ((1, last), (2, image)):
            torch.set_num_threads(threads)
            for number, (ours, theirs) in enumerate(zip(everything(layout), expected, strict=True)):
                assert torch.equal(ours, theirs), (number, threads)
    finally:
        torch.set_num_threads(before)


def test_crops_have_the_areas_and_ratios_asked_for() -> None:
    rng = view_rng(0, 0, 0, 0, 0)
    boxes = [draw_crop(300, 400, (0.08, 1.0), (3 / 4, 4 / 3), rng) for _ in range(2000)]
    areas = np.array([(b.bottom - b.top) * (b.right - b.left) / 120_000 for b in boxes])
    ratios = np.array([(b.right - b.left) / (b.bottom - b.top) for b in boxes])
    assert all(0 <= b.top < b.bottom <= 300 and 0 <= b.left < b.right <= 400 for b in boxes)
    assert areas.min() > 0.07
    assert areas.max() > 0.95
    assert 0.4 < areas.mean() < 0.6
    assert ratios.min() > 0.72
    assert ratios.max() < 1.38
    assert abs(np.log(ratios).mean()) < 0.05


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 500), (500, 1), (3, 7)])
def test_no_photograph_is_too_thin_to_be_cropped(height: int, width: int) -> None:
    box = draw_crop(height, width, (0.9, 1.0), (3 / 4, 4 / 3), view_rng(0, 0, 0, 0, 0))
    assert 0 <= box.top < box.bottom <= height
    assert 0 <= box.left < box.right <= width
    assert view(photograph(height, width), STRONG).shape == (3, 32, 32)


def test_flips_happen_as_often_as_asked_and_the_whole_crop_changes_nothing() -> None:
    image = photograph(32, 32)
    assert torch.equal(view(image, PLAIN), image)
    for field, axis in (("hflip", 2), ("vflip", 1)):
        assert torch.equal(view(image, PLAIN.model_copy(update={field: 1.0})), image.flip(axis))
    half = PLAIN.model_copy(update={"hflip": 0.5})
    flipped = sum(torch.equal(view(image, half, 0, 0, 0, n, 0), image.flip(2)) for n in range(200))
    assert 70 < flipped < 130


@pytest.mark.parametrize("operation", range(len(RANDAUGMENT)))
def test_each_operation_of_randaugment_changes_more_with_more_strength(operation: int) -> None:
    image = photograph(48, 40)
    change = RANDAUGMENT[operation]
    weak, strong = (
        max(float((change(image, sign * size).int() - image.int()).abs().float().mean()) for sign in (-1, 1))
        for size in (0.1, 0.9)
    )
    assert change(image, 0.9).shape == image.shape
    assert change(image, 0.9).dtype == torch.uint8
    if operation == 0:
        assert strong == 0
    elif operation in (1, 2):
        assert strong == weak > 0  # autocontrast and equalize have no strength
    else:
        assert strong > weak


def test_warps_move_pixels_where_they_say_and_leave_grey_behind() -> None:
    image = photograph(331, 331)
    shifted = RANDAUGMENT[-2](image, 0.1)
    assert torch.equal(shifted[:, :, :316], image[:, :, 15:])
    assert shifted[:, :, 316:].unique().tolist() == [128]
    square = photograph(33, 33)
    turned = operations._warp(square, (0, 1, -1, 0))
    assert torch.equal(turned, square.rot90(1, (1, 2))) or torch.equal(turned, square.rot90(-1, (1, 2)))


def test_erasing_fills_a_part_with_noise() -> None:
    image = torch.full((3, 64, 64), 7, dtype=torch.uint8)
    config = PLAIN.model_copy(update={"erasing": 1.0})
    for n in range(30):
        out = view(image, config, 0, 0, 0, n, 0, size=64)
        share = float((out != 7).any(0).float().mean())
        assert 0.015 < share < 0.36
        assert out.unique().numel() > 50


def test_evaluation_shows_the_centre_of_the_resized_photograph() -> None:
    out = torch.empty(3, 32, 32, dtype=torch.uint8)
    evaluation_view(Shown(photograph(32, 50)), out, 32)
    assert torch.equal(out, photograph(32, 50)[:, :, 9:41])
    for height, width in ((80, 60), (60, 80), (20, 21)):
        evaluation_view(Shown(photograph(height, width)), out, 40)
        assert out.float().std() > 0


def test_a_photograph_is_decoded_as_small_as_all_its_crops_allow() -> None:
    whole = AugmentConfig(crop_scale=(1, 1), crop_ratio=(1, 1), hflip=0)
    image, key = photograph(256, 256), (0, 0, 0, 0, 0)
    for sizes, shrink in (((128,), 2), ((32,), 8), ((31, 129), 1), ((32, 64), 4), ((16,), 8)):
        shown = Shown(image)
        outs = [torch.empty(3, size, size, dtype=torch.uint8) for size in sizes]
        training_views(shown, [View(out, whole, view_rng(*key)) for out in outs])
        assert shown.asked == [shrink]
        for out in outs:
            expected = torch.nn.functional.interpolate(image[None], out.shape[1:], mode="bicubic", antialias=True)[0]
            assert (out.int() - expected.int()).abs().max() <= 4
    for resize, shrink in ((128, 1), (65, 1), (64, 2), (32, 4), (16, 8), (8, 8)):
        shown = Shown(photograph(256, 300))
        evaluation_view(shown, torch.empty(3, 8, 8, dtype=torch.uint8), resize)
        assert shown.asked == [shrink]


def test_a_crop_of_a_small_decoding_is_where_that_of_the_whole_one_is() -> None:
    image = photograph(301, 403)
    for n in range(50):
        ours, theirs = Shown(image), Shown(image)
        theirs.decode = lambda shrink=1, plain=theirs: Decoded(plain.image, 1)  # type: ignore[method-assign]
        outs = [torch.empty(3, 24, 24, dtype=torch.uint8) for _ in range(2)]
        for shown, out in zip((ours, theirs), outs, strict=True):
            training_views(shown, [View(out, AugmentConfig(crop_scale=(0.3, 1)), view_rng(0, 0, 0, n, 0))])
        assert ours.asked[0] > 1
        assert (outs[0].int() - outs[1].int()).abs().float().mean() < 8  # edges are half a pixel off at most


def test_jitter_moves_what_it_says_and_no_further() -> None:
    image = photograph(32, 32)
    lum = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    for n in range(20):
        rng = view_rng(0, 0, 0, n, 0)
        bright = jitter(image, (0.4, 0, 0, 0), rng).float()
        factor = (bright / image.clamp_min(1))[(bright < 255) & (image > 100)].mean()
        assert 0.59 <= factor <= 1.41
        dull = jitter(image, (0, 0.4, 0, 0), rng).float()
        assert 0.55 <= dull.std() / image.float().std() <= 1.45
        saturated = jitter(image, (0, 0, 0.2, 0), rng).float()
        inside = ((saturated > 0) & (saturated < 255)).all(0)
        assert ((saturated - image) * lum).sum(0)[inside].abs().max() < 2
        turned = jitter(image, (0, 0, 0, 0.1), rng)
        assert (turned.amax(0).int() - image.amax(0).int()).abs().max() <= 1
        assert (turned.amin(0).int() - image.amin(0).int()).abs().max() <= 1
    assert torch.equal(jitter(image, (0, 0, 0, 0), view_rng(0, 0, 0, 0, 0)), image)


def test_blur_is_gaussian() -> None:
    point = torch.zeros(3, 41, 41, dtype=torch.uint8)
    point[:, 20, 20] = 255
    for sigma in (0.5, 1.0, 2.0):
        spread = blur(point, sigma)[0].double()
        place = torch.arange(41, dtype=torch.float64) - 20
        expected = torch.exp(-0.5 * (place[:, None] ** 2 + place**2) / sigma**2)
        assert (spread - 255 * expected / expected.sum()).abs().max() < 1
    flat = torch.full((3, 5, 4), 77, dtype=torch.uint8)
    assert torch.equal(blur(flat, 2.0), flat)  # the border adds nothing, however small the image


def test_grey_and_solarize() -> None:
    image = photograph(16, 16)
    red, green, blue = grey(image)
    assert torch.equal(red, green)
    assert torch.equal(red, blue)
    assert torch.equal(solarize(image), torch.where(image < 128, image, 255 - image))


@pytest.mark.parametrize("field", ["jitter", "grey", "blur", "solarize"])
def test_what_is_added_happens_as_often_as_asked_and_moves_nothing_else(field: str) -> None:
    image = photograph(32, 32)
    changed = {"jitter": {"jitter": (0.4, 0.4, 0.2, 0.1), "jitter_prob": 0.3}}.get(field, {field: 0.3})
    config = PLAIN.model_copy(update=changed)
    times = sum(not torch.equal(view(image, config, 0, 0, 0, n, 0), image) for n in range(300))
    assert 60 < times < 120
    still = PLAIN.model_copy(update={"jitter_prob": 1.0, "blur_sigma": (1.0, 1.0)})
    assert torch.equal(view(image, still), image)


def test_three_augment_draws_one_of_three_and_nothing_when_it_is_off() -> None:
    image = photograph(32, 32)
    config = PLAIN.model_copy(update={"three_augment": True, "blur_sigma": (1.0, 1.0)})
    outcomes = {"grey": grey(image), "solarized": solarize(image), "blurred": blur(image, 1.0)}
    seen = []
    for n in range(300):
        out = view(image, config, 0, 0, 0, n, 0)
        seen.append(next(name for name, expected in outcomes.items() if torch.equal(out, expected)))
    assert all(70 < seen.count(name) < 130 for name in outcomes)
    off = STRONG.model_copy(update={"three_augment": False, "blur_sigma": (1.0, 1.0)})
    assert torch.equal(view(image, off), view(image, STRONG))


def test_a_simple_crop_is_a_square_of_the_short_side_anywhere_along_the_long_one() -> None:
    image = photograph(32, 50)
    config = PLAIN.model_copy(update={"crop": "simple"})
    seen = set()
    for n in range(300):
        out = view(image, config, 0, 0, 0, n, 0)
        seen.add(next(left for left in range(19) if torch.equal(out, image[:, :, left : left + 32])))
    assert seen == set(range(19))


def test_a_padded_simple_crop_reaches_beyond_the_photograph_and_mirrors_it() -> None:
    image = photograph(32, 32)
    config = PLAIN.model_copy(update={"crop": "simple", "crop_padding": 4})
    padded = torch.from_numpy(np.pad(image.numpy(), ((0, 0), (4, 4), (4, 4)), mode="reflect"))
    places = [(top, left) for top in range(9) for left in range(9)]
    seen = set()
    for n in range(600):
        out = view(image, config, 0, 0, 0, n, 0)
        seen.add(next(p for p in places if torch.equal(out, padded[:, p[0] : p[0] + 32, p[1] : p[1] + 32])))
    assert len(seen) > 70


@pytest.mark.parametrize(("height", "width", "size", "padding"), [(1, 1, 32, 4), (500, 3, 32, 4), (7, 9, 2, 8)])
def test_no_photograph_is_too_thin_for_a_simple_crop(height: int, width: int, size: int, padding: int) -> None:
    config = PLAIN.model_copy(update={"crop": "simple", "crop_padding": padding})
    for n in range(50):
        box, borders = draw_simple_crop(height, width, size, padding, view_rng(0, 0, 0, n, 0))
        assert 0 <= box.top < box.bottom <= height
        assert 0 <= box.left < box.right <= width
        assert min(borders) >= 0
        assert view(photograph(height, width), config, 0, 0, 0, n, 0, size=size).shape == (3, size, size)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"augment": {"crop_padding": -1}}, "0 or more"),
        ({"augment": {"jitter": (0.1, 0.1, 0.1, 0.6)}}, "hue from 0 to 0.5"),
        ({"augment": {"blur_sigma": (2.0, 0.1)}}, "the smaller one first"),
        ({"views": [{"augment": {"mixup": 0.8}}]}, "first views only"),
        ({"views": [{"count": 0}]}, "at least 1"),
        ({"mixture": (3, 0)}, "whole numbers from 1"),
    ],
)
def test_wrong_settings_are_refused(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        parse(DataConfig, fields)


def mixed(config: AugmentConfig, weights: list[float], *, step: int = 0, lanes: range = range(2)) -> Batch:
    weights_S = torch.tensor(weights)
    mix = draw_mix(config, seed=0, step=step, lanes=lanes, weights_S=weights_S, lane_size=4, size=16)
    images = torch.stack([torch.full((3, 16, 16), 16 * n, dtype=torch.uint8) for n in range(len(weights))])
    return Batch(step, images, torch.arange(len(weights)), weights_S, torch.arange(len(weights)), 4, mix)


def test_nothing_is_drawn_when_mixing_is_off() -> None:
    assert mixed(AugmentConfig(), [1] * 8).mix is None


def test_mixup_pairs_a_lane_with_its_reverse() -> None:
    batch = mixed(AugmentConfig(mixup=0.8), [1] * 8)
    inputs = to_inputs(batch, torch.device("cpu"))
    assert inputs.partners_S.tolist() == [3, 2, 1, 0, 7, 6, 5, 4]
    assert inputs.lam_S[:4].unique().numel() == 1
    assert inputs.lam_S[0] != inputs.lam_S[4]
    expected = inputs.lam_S * inputs.labels_S * 16 + (1 - inputs.lam_S) * inputs.partners_S * 16
    assert torch.allclose(inputs.images_SCHW.mean((1, 2, 3)) * 255, expected, atol=1e-3)


def test_cutmix_weighs_labels_by_the_area_that_was_left() -> None:
    config = AugmentConfig(cutmix=1.0)
    clipped = 0
    for step in range(40):
        batch = mixed(config, [1] * 8, step=step)
        inputs = to_inputs(batch, torch.device("cpu"))
        pixels = (inputs.images_SCHW * 255).round().int()
        assert set(pixels.unique().tolist()) <= set(range(0, 128, 16))
        for slot in range(8):
            own = float((pixels[slot, 0] == 16 * slot).float().mean())
            assert math.isclose(own, float(inputs.lam_S[slot]), abs_tol=1e-6)
        assert batch.mix is not None
        clipped += int(batch.mix.box_S4[0, 0] == 0)
    assert clipped


def test_with_both_each_lane_draws_one_and_mix_prob_leaves_some_alone() -> None:
    config = AugmentConfig(mixup=0.8, cutmix=1.0, mix_prob=0.5)
    kinds = []
    for step in range(300):
        mix = mixed(config, [1] * 4, step=step, lanes=range(1)).mix
        assert mix is not None
        kinds.append("cut" if mix.box_S4[0, 2] > 0 else "mix" if mix.lam_S[0] < 1 else "none")
    assert 45 < kinds.count("cut") < 110
    assert 45 < kinds.count("mix") < 110
    assert 110 < kinds.count("none") < 190


@pytest.mark.parametrize("config", [AugmentConfig(mixup=0.8), AugmentConfig(cutmix=1.0)])
def test_a_slot_whose_partner_is_missing_is_left_as_it_is(config: AugmentConfig) -> None:
    inputs = to_inputs(mixed(config, [0, 1, 1, 1, 1, 1, 1, 1], step=3), torch.device("cpu"))
    assert inputs.lam_S[3] == 1
    assert (inputs.images_SCHW[3] * 255).round().unique().tolist() == [48]
    assert (inputs.lam_S[[1, 2]] < 1).all()


def test_a_lane_is_mixed_alike_whoever_owns_it() -> None:
    config = AugmentConfig(mixup=0.8, cutmix=1.0)
    together = mixed(config, [1] * 12, lanes=range(3)).mix
    alone = mixed(config, [1] * 8, lanes=range(2, 3)).mix  # the second lane is padding
    assert together is not None
    assert alone is not None
    assert torch.equal(together.lam_S[8:], alone.lam_S[:4])
    assert torch.equal(together.box_S4[8:], alone.box_S4[:4])
    assert alone.lam_S[4:].tolist() == [1] * 4


def test_micro_batches_keep_pairs_together() -> None:
    batch = mixed(AugmentConfig(mixup=0.8, cutmix=1.0), [1] * 16, lanes=range(4))
    whole = to_inputs(batch, torch.device("cpu")).images_SCHW
    parts = [to_inputs(part, torch.device("cpu")).images_SCHW for part in batch.micro(6)]
    assert [len(part) for part in parts] == [4, 4, 4, 4]
    assert torch.equal(whole, torch.cat(parts))
