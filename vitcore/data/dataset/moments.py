"""Channel statistics of photographs, from exact sums that add up over shards."""

from __future__ import annotations

import math

from vitcore.data.dataset.shard import Value

Channels = tuple[float, float, float]
"""A value for each of red, green and blue."""
_IMAGENET: tuple[Channels, Channels] = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Moments(Value):
    """Exact sums over pixels, from which channel statistics follow for any union of shards."""

    pixels: int = 0
    sums: tuple[int, int, int] = (0, 0, 0)
    """Sum of each channel's 8-bit values (RGB)."""
    squares: tuple[int, int, int] = (0, 0, 0)
    """Sum of their squares."""

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            pixels=self.pixels + other.pixels,
            sums=_add(self.sums, other.sums),
            squares=_add(self.squares, other.squares),
        )

    def statistics(self) -> tuple[Channels, Channels]:
        """Channel means and deviations in [0, 1]; those of ImageNet where no pixel was counted."""
        if not self.pixels:
            return _IMAGENET
        means = [total / self.pixels for total in self.sums]
        stds = [
            math.sqrt(max(0.0, square / self.pixels - mean**2))
            for mean, square in zip(means, self.squares, strict=True)
        ]
        red, green, blue = ((round(mean / 255, 6), round(std / 255, 6)) for mean, std in zip(means, stds, strict=True))
        return (red[0], green[0], blue[0]), (red[1], green[1], blue[1])


def _add(one: tuple[int, int, int], other: tuple[int, int, int]) -> tuple[int, int, int]:
    return one[0] + other[0], one[1] + other[1], one[2] + other[2]
