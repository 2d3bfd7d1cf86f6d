"""What a network says of every photograph in a range of a split: the reading below all protocols of evaluation.

Legend: S slots of a batch, N samples, D length of a row, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vitcore.data.dataset.manifest import Dataset
from vitcore.data.loading.batch import to_inputs
from vitcore.data.loading.loader import EvalLoader
from vitcore.errors import RequestError, WorkError
from vitcore.evals.metrics import IntArray
from vitcore.models.model import Model
from vitcore.models.pretrained import ModelCard
from vitcore.objectives.objective import Normalize

Progress = Callable[[int, int], None]
"""Called with (samples done, samples in all) after each batch."""


class Answers(NamedTuple):
    """A row for each photograph that could be read, in the order of the split."""

    keys: NDArray[np.str_]
    """[N], unique"""
    rows: IntArray
    """[N], positions in the split"""
    labels: IntArray
    """[N], positions in the dataset's classes; −1 where there is none"""
    values: NDArray[np.float32]
    """[N, D], what the network said"""
    skipped: tuple[str, ...] = ()
    """Keys of the photographs that could not be read"""

    def some(self, which: NDArray[np.bool_]) -> Answers:
        """Those of a mask [N]."""
        return Answers(self.keys[which], self.rows[which], self.labels[which], self.values[which], self.skipped)


def answer(
    network: Model,
    card: ModelCard,
    dataset: Dataset,
    split: str,
    *,
    ask: Callable[[Tensor], Tensor] | None = None,
    start: int = 0,
    stop: int | None = None,
    batch_size: int = 256,
    threads: int = 2,
    autocast: AbstractContextManager[Any] | None = None,
    progress: Progress | None = None,
) -> Answers:
    """What a network says of samples `start` to `stop` of a split, at the resolution on its card.

    The network computes where its weights lie, in evaluation mode; its own mode comes back afterwards.

    Args:
        network: whose statistics normalise the images.
        card: resolution.
        dataset: an opened dataset.
        split: one of its splits.
        ask: from normalised images (B, 3, H, W) to rows (B, D); default: the network's `forward`.
        start: first sample.
        stop: sample to stop before; default: the end of the split.
        batch_size: samples in a forward pass; changes no result beyond rounding.
        threads: decoding threads.
        autocast: context of the forward passes (`Precision.autocast()`); default: the weights' own precision.
        progress: told how far it is.

    Raises:
        RequestError: no such split or range.
        WorkError: no sample could be read.
    """
    stop = check_range(dataset, split, start, stop)
    with EvalLoader(
        dataset,
        split,
        image_size=card.image_size,
        resize=card.resize,
        batch_size=batch_size,
        start=start,
        stop=stop,
        threads=threads,
    ) as batches:
        rows, labels, values, bad = _all(network, ask or network, batches, autocast, stop - start, progress)
    keys = sample_keys(dataset, split)
    return Answers(keys[rows].astype(np.str_), rows, labels, values, tuple(bad))


def check_range(dataset: Dataset, split: str, start: int, stop: int | None) -> int:
    """The sample to stop before.

    Raises:
        RequestError: no such split or range.
    """
    count = dataset.split(split).samples
    stop = count if stop is None else stop
    if not 0 <= start < stop <= count:
        raise RequestError(f"samples {start} to {stop} are not a range of the split {split!r}, which has {count}")
    return stop


def join(parts: Sequence[Answers]) -> Answers:
    """The answers of several ranges of one split by one network, in the order given.

    Raises:
        WorkError: no parts.
    """
    if not parts:
        raise WorkError("there are no answers to put together")
    keys, rows, labels, values = (np.concatenate(columns) for columns in list(zip(*parts, strict=True))[:4])
    return Answers(keys, rows, labels, values, tuple(key for part in parts for key in part.skipped))


def sample_keys(dataset: Dataset, split: str) -> NDArray[np.object_]:
    """A unique name of every sample of a split [N]: its key, with its shard before it where tars repeat keys."""
    index = dataset.index(split)
    if len(set(index.keys)) == len(index):
        return index.keys
    shards = [shard.name for shard in dataset.shards(split)]
    named = [f"{shards[shard]}/{key}" for shard, key in zip(index.shard_of, index.keys, strict=True)]
    return np.array(named, dtype=np.object_)


@contextmanager
def answering(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; the model's own mode comes back afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def device_of(model: nn.Module) -> torch.device:
    """Where its weights lie."""
    return next(model.parameters()).device


def _all(
    network: Model,
    ask: Callable[[Tensor], Tensor],
    batches: EvalLoader,
    autocast: AbstractContextManager[Any] | None,
    total: int,
    progress: Progress | None,
) -> tuple[IntArray, IntArray, NDArray[np.float32], list[str]]:
    """Positions [N], labels [N] and rows [N, D] of every readable sample, and the keys of the others."""
    device = device_of(network)
    normalize = Normalize(network.config, device)
    samples: list[Tensor] = []
    labels: list[Tensor] = []
    values: list[Tensor] = []
    bad: list[str] = []
    done = 0
    with answering(network), autocast or nullcontext():
        for batch in batches:
            real = batch.weights_S > 0
            with torch.inference_mode():  # not around the loader: its threads must be able to fill the next batches
                output_SD = ask(normalize(to_inputs(batch, device).images_SCHW))
                values.append(output_SD.float().cpu()[real])
            samples.append(batch.samples_S[real])
            labels.append(batch.labels_S[real])
            bad.extend(batch.bad)
            done += int((batch.samples_S >= 0).sum())
            if progress is not None:
                progress(done, total)
    if not sum(map(len, samples)):
        raise WorkError(f"none of the {total} samples could be read; run: vit check on the dataset")
    return torch.cat(samples).numpy(), torch.cat(labels).numpy(), torch.cat(values).numpy(), bad
