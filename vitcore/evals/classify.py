"""A classifier's answers for a split of a dataset, and how fast it gives them.

Legend: S slots of a batch, N samples, K classes, C channels, H height, W width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vitcore.data.dataset.manifest import Dataset
from vitcore.data.loading.batch import Batch, to_inputs
from vitcore.data.loading.loader import EvalLoader
from vitcore.errors import RequestError, WorkError
from vitcore.evals.metrics import IntArray
from vitcore.evals.outcomes import Outcomes
from vitcore.models.classifier import Classifier
from vitcore.models.pretrained import Pretrained
from vitcore.objectives.objective import Normalize

Progress = Callable[[int, int], None]
"""Called with (samples done, samples in all) after each batch."""


def predict(
    pretrained: Pretrained,
    dataset: Dataset,
    split: str,
    *,
    start: int = 0,
    stop: int | None = None,
    batch_size: int = 256,
    threads: int = 2,
    autocast: AbstractContextManager[Any] | None = None,
    progress: Progress | None = None,
) -> Outcomes:
    """Logits of a classifier for samples `start` to `stop` of a split, at the resolution on its card.

    The model computes where its weights lie. Classes are matched by name, whatever their order in the model; classes
    that only the model knows keep a column after the dataset's own, so that choosing one of them counts as wrong.
    Samples that cannot be decoded are left out and named in `Outcomes.skipped`. The outcomes of several ranges go
    together with `outcomes.concat`.

    Args:
        pretrained: the model and its card.
        dataset: an opened dataset with labels.
        split: one of its splits.
        start: first sample.
        stop: sample to stop before; default: the end of the split.
        batch_size: samples in a forward pass; changes no result beyond rounding.
        threads: decoding threads.
        autocast: context of the forward passes (`Precision.autocast()`); default: the weights' own precision.
        progress: told how far it is.

    Raises:
        RequestError: no labels, no such split or range, or a class of the dataset that the model was not trained on.
        WorkError: no sample could be read, or the logits are not finite.
    """
    dataset.require("label")
    count = dataset.split(split).samples
    stop = count if stop is None else stop
    if not 0 <= start < stop <= count:
        raise RequestError(f"samples {start} to {stop} are not a range of the split {split!r}, which has {count}")
    classes, columns = match_classes(pretrained.card.classes, dataset.manifest.classes)
    card = pretrained.card
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
        samples, labels, logits, bad = _answer(pretrained.classifier, batches, autocast, stop - start, progress)
    keys = sample_keys(dataset, split)
    return Outcomes(keys[samples].astype(np.str_), labels, logits[:, columns], classes, tuple(bad))


def match_classes(model: Sequence[str], dataset: Sequence[str]) -> tuple[tuple[str, ...], IntArray]:
    """Class names of the outcomes (the dataset's, then those only the model knows), and the model's column of each.

    Raises:
        RequestError: a class of the dataset that the model does not know.
    """
    column = {name: index for index, name in enumerate(model)}
    missing = [name for name in dataset if name not in column]
    if missing:
        shown = ", ".join(map(repr, missing[:5])) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        known = ", ".join(map(repr, model[:5])) + (f" and {len(model) - 5} more" if len(model) > 5 else "")
        raise RequestError(
            f"the model does not know the class {shown} of the dataset (it knows: {known or 'no names'}); "
            "fine-tune it on this dataset first, or name its classes in its card"
        )
    classes = (*dataset, *(name for name in model if name not in set(dataset)))
    return classes, np.array([column[name] for name in classes], dtype=np.int64)


def sample_keys(dataset: Dataset, split: str) -> NDArray[np.object_]:
    """A unique name of every sample of a split [N]: its key, with its shard before it where tars repeat keys."""
    index = dataset.index(split)
    if len(set(index.keys)) == len(index):
        return index.keys
    shards = [shard.name for shard in dataset.shards(split)]
    named = [f"{shards[shard]}/{key}" for shard, key in zip(index.shard_of, index.keys, strict=True)]
    return np.array(named, dtype=np.object_)


def throughput(
    pretrained: Pretrained,
    *,
    batch_size: int = 64,
    seconds: float = 2.0,
    autocast: AbstractContextManager[Any] | None = None,
) -> float:
    """Images a second of the forward pass alone, at the resolution on the card, where the weights lie.

    Two unmeasured passes come first; then whole batches of noise until `seconds` have passed (at least one).
    """
    model, size = pretrained.model, pretrained.card.image_size
    device = _device(model)
    images_SCHW = torch.randn(batch_size, 3, size, size, device=device)
    passes = 0
    with _answering(model), torch.inference_mode(), autocast or nullcontext():
        for _ in range(2):
            model(images_SCHW)
        _finish(device)
        began = time.perf_counter()
        while passes == 0 or time.perf_counter() - began < seconds:
            model(images_SCHW)
            _finish(device)
            passes += 1
        return passes * batch_size / (time.perf_counter() - began)


def _answer(
    model: Classifier,
    batches: Iterable[Batch],
    autocast: AbstractContextManager[Any] | None,
    total: int,
    progress: Progress | None,
) -> tuple[IntArray, IntArray, NDArray[np.float32], list[str]]:
    """Sample positions [N], labels [N], logits [N, K] of every readable sample, and the keys of the others."""
    device = _device(model)
    normalize = Normalize(model.config, device)
    samples: list[Tensor] = []
    labels: list[Tensor] = []
    logits: list[Tensor] = []
    bad: list[str] = []
    done = 0
    with _answering(model), autocast or nullcontext():
        for batch in batches:
            real = batch.weights_S > 0
            with torch.inference_mode():  # not around the loader: its threads must be able to fill the next batches
                output_SK: Tensor = model(normalize(to_inputs(batch, device).images_SCHW))
                logits.append(output_SK.float().cpu()[real])
            samples.append(batch.samples_S[real])
            labels.append(batch.labels_S[real])
            bad.extend(batch.bad)
            done += int((batch.samples_S >= 0).sum())
            if progress is not None:
                progress(done, total)
    if not sum(map(len, samples)):
        raise WorkError(f"none of the {total} samples could be read; run: vit check on the dataset")
    return torch.cat(samples).numpy(), torch.cat(labels).numpy(), torch.cat(logits).numpy(), bad


@contextmanager
def _answering(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; the model's own mode comes back afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
