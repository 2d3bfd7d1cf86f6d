"""A training, planned: what each of several sizes of a cluster needs and takes for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import lcm

from vitcore import duration
from vitcore.data.loading.order import rank_slots, resolve_lanes
from vitcore.estimate.cost import Cost, Share, Size, measure_size, rehearse
from vitcore.estimate.hardware import Hardware
from vitcore.estimate.loading import Loading
from vitcore.estimate.memory import Memory
from vitcore.estimate.probe import Probe
from vitcore.estimate.sharding import sharded_peak
from vitcore.estimate.subject import Captions, Subject
from vitcore.estimate.timing import Cluster, Step, step
from vitcore.train.learner import Plan
from vitcore.train.precision import Precision
from vitcore.train.validate.neighbours import BANK
from vitcore.train.validate.retrieval import MOST_IMAGES

MFU = 0.35
"""Share of a GPU's peak that a step computes at, where it is not measured. Assumed."""
MFU_CPU = 0.55
"""The same of a CPU, whose peak is measured."""
STORE = 1e9
"""Bytes/s at which checkpoints are written, where that is not measured. Assumed."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """What a training does, in counts; the same at any size of a cluster."""

    steps: int
    validate_every: int
    """Steps between validations."""
    validations: int
    images: int
    """Photographs that a validation looks at."""
    texts: int
    """Captions that it reads."""


@dataclass(frozen=True, slots=True)
class Row:
    """A training on one size of a cluster. Seconds and hours are predicted, bytes computed."""

    nodes: int
    devices: int
    slots: int
    """Samples of a device in a step, with padding."""
    flops: int
    """Of a step, on all devices."""
    memory: Memory
    """Of a device."""
    checkpointed: int
    """Its peak with activation checkpointing."""
    sharded: int
    """Its peak with FSDP over all devices."""
    peak: int
    """Its peak, trained as asked."""
    fits: bool
    step: Step
    images_per_s: float
    needed_images_per_s: float
    """That the loaders must bring so that nothing waits for them."""
    needed_bytes_per_s: float
    available_images_per_s: float
    """That they bring, if every worker's do what was measured here."""
    train_s: float
    validate_s: float
    """Of all validations."""
    checkpoint_s: float
    """Of all checkpoints and models written."""
    advice: str | None
    """What to change where it does not fit."""

    @property
    def hours(self) -> float:
        """On the clock."""
        return (self.train_s + self.validate_s + self.checkpoint_s) / 3600

    @property
    def device_hours(self) -> float:
        """Of all devices together."""
        return self.hours * self.devices


@dataclass(frozen=True, slots=True)
class Planned:
    """The plan of a training."""

    recipe: str
    dataset: str
    hardware: Hardware
    precision: Precision
    size: Size
    lengths: Lengths
    batch_size: int
    duration: str
    loading: Loading
    captions: Captions | None
    probe: Probe | None
    why_no_probe: str | None
    rate: float
    """FLOP/s that a device is taken to compute at."""
    network: float
    """Bytes/s of a node."""
    teacher: bool
    """Whether a teacher's forward pass is counted."""
    rows: tuple[Row, ...]

    @property
    def flops_per_sample(self) -> float:
        """Of a step; on the smallest cluster asked for, without its padding."""
        row = self.rows[0]
        return row.flops / (row.slots * row.devices)


class Planner:
    """What all sizes of a cluster have in common, and a row for each.

    Args:
        subject: the training.
        hardware: of each device.
        loading: measured.
        precision: of a step.
        mfu: share of the hardware's peak that a step computes at.
    """

    def __init__(
        self, subject: Subject, hardware: Hardware, loading: Loading, precision: Precision, *, mfu: float
    ) -> None:
        self.subject, self.hardware, self.loading, self.precision = subject, hardware, loading, precision
        self.compute = subject.request.compute
        self.rate = hardware.peak(precision) * mfu
        """FLOP/s of a device: assumed, until a probe has measured it."""
        self.size: Size = measure_size(subject, precision.dtype, cuda=hardware.cuda)
        self.lengths = lengths(subject)
        self.probe: Probe | None = None
        self._costs: dict[tuple[Share, bool], Cost] = {}

    def calibrate(self, measured: Probe) -> None:
        """Take the rate at which steps ran here."""
        lane_size = measured.batch_size // resolve_lanes(measured.batch_size, samples=measured.batch_size)
        share = Share(1, measured.batch_size, lane_size, self.subject.request.compute.microbatch)
        self.rate = self.cost(share, checkpointing=self.compute.recompute).flops / measured.step_s
        self.probe = measured

    def cost(self, share: Share, *, checkpointing: bool = False) -> Cost:
        """Of a rank's share; equal ones are rehearsed once."""
        if not self.size.coupled:  # then a rank only asks whether there are others
            share = replace(share, ranks=min(share.ranks, 2))
        key = share, checkpointing
        if key not in self._costs:
            self._costs[key] = rehearse(
                self.subject, share, self.precision.dtype, cuda=self.hardware.cuda, checkpointing=checkpointing
            )
        return self._costs[key]

    def share(self, ranks: int, microbatch: int | None) -> Share:
        """A rank's part of a step.

        Raises:
            RequestError: so many ranks cannot share the batch.
        """
        recipe = self.subject.recipe
        batch = recipe.train.batch_size
        lanes = resolve_lanes(batch, samples=self.subject.fewest, world=ranks, lanes=recipe.data.lanes)
        return Share(ranks, rank_slots(ranks, lanes, batch // lanes), batch // lanes, microbatch)

    def row(self, cluster: Cluster) -> Row:
        """The training on one size of a cluster.

        Raises:
            RequestError: so many devices cannot share the batch.
        """
        recipe, batch = self.subject.recipe, self.subject.recipe.train.batch_size
        share = self.share(cluster.devices, self.compute.microbatch)
        cost = self.cost(share, checkpointing=self.compute.recompute)
        checkpointed = self.cost(share, checkpointing=True).memory
        loaders = cluster.devices if self.hardware.cuda else cluster.nodes  # on a CPU the workers share its cores
        available = loaders * self.loading.images_per_s
        parts = step(
            cluster,
            share,
            cost,
            self.size,
            compute_s=cost.flops / self.rate,
            measured=self.probe is not None,
            data_s=batch / available,
            sharded=self.compute.parallel == "fsdp",
        )
        peak = self._peak(cost, cluster.devices)
        fits = peak <= self.hardware.usable
        needed = batch / parts.busy
        train_s = self.lengths.steps * parts.total + (0.0 if self.probe is None else self.probe.setup_s)
        return Row(
            nodes=cluster.nodes,
            devices=cluster.devices,
            slots=share.slots,
            flops=cost.flops * cluster.devices,
            memory=cost.memory,
            checkpointed=checkpointed.peak,
            sharded=sharded_peak(cost.memory, self.size, cluster.devices),
            peak=peak,
            fits=fits,
            step=parts,
            images_per_s=batch / parts.total,
            needed_images_per_s=needed,
            needed_bytes_per_s=needed / recipe.data.repeats * _sample_bytes(self.subject),
            available_images_per_s=available,
            train_s=train_s,
            validate_s=self._validate_s(cluster.devices, loaders),
            checkpoint_s=self._checkpoint_s(train_s),
            advice=None if fits else self._advice(share, cost, checkpointed.peak, cluster),
        )

    def planned(self, rows: Sequence[Row], *, network: float, why_no_probe: str | None) -> Planned:
        """The plan with these rows."""
        recipe = self.subject.recipe
        return Planned(
            recipe=recipe.name,
            dataset=self.subject.dataset.url,
            hardware=self.hardware,
            precision=self.precision,
            size=self.size,
            lengths=self.lengths,
            batch_size=recipe.train.batch_size,
            duration=recipe.train.duration,
            loading=self.loading,
            captions=self.subject.captions,
            probe=self.probe,
            why_no_probe=why_no_probe,
            rate=self.rate,
            network=network,
            teacher=self.subject.teacher is not None,
            rows=tuple(rows),
        )

    def _validate_s(self, devices: int, loaders: int) -> float:
        each = self.size.predict_flops / self.rate / devices
        if self.probe is None:
            image = max(each, 1 / (loaders * self.loading.images_per_s))
        else:
            image = self.probe.validate_s / devices
        text = self.size.text_flops / self.rate / devices
        return self.lengths.validations * (self.lengths.images * image + self.lengths.texts * text)

    def _checkpoint_s(self, train_s: float) -> float:
        """Every validation is a checkpoint, and may publish a model; others come by `compute.checkpoint_every`."""
        span, count = duration.parse(self.subject.request.compute.checkpoint_every), self.lengths.validations
        save, publish = self.size.checkpoint_bytes / STORE, self.size.parameters * 4 / STORE
        if self.probe is not None:
            save, publish = self.probe.checkpoint_s, self.probe.publish_s
        if span.unit == "steps":
            every = max(1, round(span.value))
            total, validate_every = self.lengths.steps, self.lengths.validate_every
            last = total % every == 0 and total % validate_every != 0  # the last step is validated in any case
            more = total // every - total // lcm(every, validate_every) - last
        else:
            more = int(train_s / 60 / span.value)
        return (count + more) * save + count * publish

    def _peak(self, cost: Cost, devices: int) -> int:
        """Bytes of a device, trained as asked."""
        if self.compute.parallel == "fsdp":
            return sharded_peak(cost.memory, self.size, devices)
        return cost.memory.peak

    def _advice(self, share: Share, cost: Cost, checkpointed: int, cluster: Cluster) -> str:
        """What to change: the largest micro-batch that fits, found by rehearsing; else what would help."""
        usable, lane, devices = self.hardware.usable, share.lane_size, cluster.devices
        most = share.span
        while most > lane and self._peak(cost, devices) > usable:
            fixed = self._peak(cost, devices) - cost.memory.activations
            fitting = int((usable - fixed) / (cost.memory.activations / most)) if usable > fixed else lane
            most = max(lane, min(fitting, most - lane) // lane * lane)
            cost = self.cost(replace(share, microbatch=most), checkpointing=self.compute.recompute)
        if self._peak(cost, devices) <= usable:
            return f"set --compute.microbatch {most}"
        sharded = sharded_peak(cost.memory, self.size, devices)
        helps = [
            name
            for name, peak in (("--compute.recompute True", checkpointed), ("--compute.parallel fsdp", sharded))
            if peak <= usable
        ]
        smaller = (
            f"even one lane of {lane} samples does not fit; take a GPU with more memory, or a smaller model or image"
        )
        return smaller + (f" ({' or '.join(helps)} would do)" if helps else "")


def lengths(subject: Subject) -> Lengths:
    """What a training does, in counts."""
    recipe, dataset = subject.recipe, subject.dataset
    train = dataset.split(recipe.data.train_split).samples
    plan = Plan.of(recipe, train)
    validations = math.ceil(plan.total / plan.validate_every)
    images = dataset.split(recipe.eval.split).samples if recipe.validates else 0
    texts = 0
    if subject.captions is not None:
        images = min(images, MOST_IMAGES)
        texts = round(images * subject.captions.each)
    elif recipe.eval.metric == "knn":
        images += min(train, BANK)
    return Lengths(plan.total, plan.validate_every, validations, images, texts)


def _sample_bytes(subject: Subject) -> float:
    """Mean bytes of a training sample in its tar, over the datasets of a mixture in their shares."""
    splits = [each.split(subject.recipe.data.train_split) for each in subject.mixture.datasets]
    weights = subject.mixture.weights
    return sum(weight * split.bytes / split.samples for weight, split in zip(weights, splits, strict=True)) / sum(
        weights
    )
