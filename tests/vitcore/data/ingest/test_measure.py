"""Hash and moments are exact, whatever the size, and the hash is that of the picture, not of its encoding."""

import numpy as np
import pytest
from PIL import Image

from vitcore.data.ingest.measure import measure


def coarse(seed: int, size: tuple[int, int]) -> Image.Image:
    cells = np.random.default_rng(seed).integers(0, 256, (6, 7, 3), np.uint8)
    return Image.fromarray(cells).resize(size, Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    "shape",
    [(1, 1, 3), (3, 2, 1), (7, 9, 3), (32, 32, 3), (375, 500, 3), (1, 90_000, 1), (70_000, 1, 3), (70_000, 9, 1)],
)
def test_moments_are_exact(shape: tuple[int, int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    flat = np.broadcast_to(pixels.reshape(-1, shape[2]), (shape[0] * shape[1], 3)).astype(np.int64)
    found = measure(pixels)
    assert found.sums == tuple(flat.sum(axis=0))
    assert found.squares == tuple((flat**2).sum(axis=0))


@pytest.mark.parametrize("height", [65_536, 70_000])
def test_moments_of_the_brightest_do_not_overflow(height: int) -> None:
    found = measure(np.full((height, 3, 1), 255, np.uint8))
    assert found.squares == (3 * height * 255**2,) * 3


@pytest.mark.parametrize("size", [(9, 8), (32, 32), (50, 37), (101, 67)])
def test_hash_by_its_definition(size: tuple[int, int]) -> None:
    pixels = np.asarray(coarse(1, size), np.int64)
    luma = np.repeat(np.repeat(pixels @ [19595, 38470, 7471], 8, axis=0), 9, axis=1)  # each cell in whole numbers
    cells = luma.reshape(8, size[1], 9, size[0]).mean(axis=(1, 3)).round(-2) / 65536
    bits = (np.rint(cells)[:, :-1] > np.rint(cells)[:, 1:]).ravel()
    found = measure(pixels.astype(np.uint8)).phash
    assert [found >> 63 - bit & 1 for bit in range(64)] == bits.tolist()


def test_hash_survives_size_and_tells_pictures_apart() -> None:
    hashes = [measure(np.asarray(coarse(2, size))).phash for size in [(500, 375), (341, 256), (64, 48)]]
    assert max((hashes[0] ^ other).bit_count() for other in hashes[1:]) <= 2
    assert (hashes[0] ^ measure(np.asarray(coarse(3, (500, 375)))).phash).bit_count() > 16


def test_hash_of_a_plain_surface_ignores_its_noise() -> None:
    noise = np.random.default_rng(0).integers(-1, 2, (200, 300, 3)) + 250
    assert measure(noise.astype(np.uint8)).phash == 0


def test_a_grey_picture_and_its_colour_copy_measure_the_same() -> None:
    grey = np.asarray(coarse(4, (60, 50)).convert("L"))[:, :, None]
    assert measure(grey) == measure(np.repeat(grey, 3, axis=2))
