"""What the data plane hands to an objective: `Batch` leaves a loader worker, `Inputs` enters the network.

Legend: S slots of this rank at this step, g slots a lane, C channels, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Mix:
    """How a lane's slots are mixed with their reverse (Mixup where the box is empty, else CutMix)."""

    lam_S: Tensor
    """float32: share of the slot's own pixels (and label)."""
    box_S4: Tensor
    """int64: top, left, bottom, right of the patch pasted from the partner; zeros: Mixup."""


class TeacherRows(NamedTuple):
    """A teacher's logits for S views, cut to the k largest of K classes."""

    top_SK: Tensor
    """float: the k largest logits, largest first"""
    classes_SK: Tensor
    """int64: their classes"""
    rest_S: Tensor
    """float: log Σ exp of the other logits; −∞ where k = K"""

    def part(self, rows: slice) -> TeacherRows:
        """Some of the views."""
        return TeacherRows(*(tensor[rows] for tensor in self))

    def dense(self, classes: int) -> Tensor:
        """Logits [S, K] in fp32. The mass that is not of the k largest is spread evenly over the other classes."""
        k = self.top_SK.shape[1]
        others_S1 = (self.rest_S.float() - math.log(max(classes - k, 1))).unsqueeze(1)
        return others_S1.repeat(1, classes).scatter(1, self.classes_SK, self.top_SK.float())

    def to(self, device: torch.device) -> TeacherRows:
        """On a device; the copy does not block where the memory is pinned."""
        return TeacherRows(*(tensor.to(device, non_blocking=True) for tensor in self))


@dataclass(frozen=True, slots=True)
class Batch:
    """One rank's share of a step, on the CPU. Rows of weight 0 pad it or replace bad samples."""

    step: int
    images_SCHW: Tensor
    """uint8"""
    labels_S: Tensor
    """int64; -1 where there is none"""
    weights_S: Tensor
    """float32; 0 or 1"""
    samples_S: Tensor
    """int64: index of the sample in its split; -1 for padding"""
    lane_size: int
    """g: slots a lane; S is a multiple of it"""
    mix: Mix | None = None
    bad: tuple[str, ...] = ()
    """keys of samples that could not be read; in a mixture with the number of their dataset before them"""
    sources_S: Tensor | None = None
    """int64: in a mixture, number of the dataset that `samples_S` counts in; -1 for padding"""
    captions: tuple[str, ...] | None = None
    """a caption a slot, where captions were asked for; empty for padding and bad samples"""
    more_views: tuple[Tensor, ...] = ()
    """further views of the same samples: uint8 [S, C, h, w] each"""
    teacher: TeacherRows | None = None
    """what a teacher said of these views (after mixing), where that was stored"""

    @property
    def views(self) -> tuple[Tensor, ...]:
        """All views of the samples, the first one first."""
        return self.images_SCHW, *self.more_views

    def micro(self, most: int | None) -> Iterator[Batch]:
        """Whole lanes at a time, at most `most` slots each (but at least one lane)."""
        slots = len(self.weights_S)
        span = slots if most is None else max(1, most // self.lane_size) * self.lane_size
        for start in range(0, slots, span):
            part = slice(start, start + span)
            mix = None if self.mix is None else Mix(self.mix.lam_S[part], self.mix.box_S4[part])
            yield replace(
                self,
                images_SCHW=self.images_SCHW[part],
                labels_S=self.labels_S[part],
                weights_S=self.weights_S[part],
                samples_S=self.samples_S[part],
                mix=mix,
                sources_S=None if self.sources_S is None else self.sources_S[part],
                captions=None if self.captions is None else self.captions[part],
                more_views=tuple(view[part] for view in self.more_views),
                teacher=None if self.teacher is None else self.teacher.part(part),
            )


@dataclass(frozen=True, slots=True)
class Inputs:
    """A (micro-)batch on the device, mixed, not yet normalised: each network normalises with its own statistics."""

    images_SCHW: Tensor
    """float32 in [0, 1]"""
    labels_S: Tensor
    """int64"""
    partners_S: Tensor
    """int64: label of the slot mixed in; equals `labels_S` where nothing is"""
    lam_S: Tensor
    """float32: weight of `labels_S` against `partners_S`"""
    weights_S: Tensor
    """float32"""
    more_views: tuple[Tensor, ...] = ()
    """further views of the same samples, never mixed: float32 [S, C, h, w] in [0, 1] each"""
    captions: tuple[str, ...] | None = None
    """a caption a slot, where captions were asked for"""
    teacher: TeacherRows | None = None
    """what a teacher said of these views, where that was stored"""

    @property
    def views(self) -> tuple[Tensor, ...]:
        """All views of the samples, the first one first."""
        return self.images_SCHW, *self.more_views


def to_inputs(batch: Batch, device: torch.device) -> Inputs:
    """Move a batch to `device` and apply its Mixup / CutMix there.

    The copy does not block where the loader pinned the memory. Pixels become float in [0, 1] first: Mixup is defined
    on pixels, and mixing before normalising equals mixing after it.
    """

    def move(tensor: Tensor) -> Tensor:
        return tensor.to(device, non_blocking=True)

    images, *more = (move(view).float().div_(255) for view in batch.views)
    labels, weights = move(batch.labels_S), move(batch.weights_S)
    told = None if batch.teacher is None else batch.teacher.to(device)
    if batch.mix is None:
        lam = torch.ones_like(weights)
        return Inputs(images, labels, labels, lam, weights, tuple(more), batch.captions, told)
    reverse = torch.arange(len(labels), device=device).view(-1, batch.lane_size).flip(1).reshape(-1)
    lam_S, box_S4 = move(batch.mix.lam_S), move(batch.mix.box_S4)
    top, left, bottom, right = (edge.view(-1, 1, 1, 1) for edge in box_S4.unbind(1))
    row = torch.arange(images.shape[2], device=device).view(-1, 1)
    column = torch.arange(images.shape[3], device=device)
    inside = (row >= top) & (row < bottom) & (column >= left) & (column < right)
    own = torch.where(bottom > top, (~inside).float(), lam_S.view(-1, 1, 1, 1))  # a pixel's share of its own photograph
    mixed = torch.lerp(images[reverse], images, own)
    return Inputs(mixed, labels, labels[reverse], lam_S, weights, tuple(more), batch.captions, told)
