"""A classifier's answers for a split of a dataset, and how fast any model gives them.

Legend: N samples, K classes, C channels, H height, W width, S slots of a batch.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch

from vitcore.data.dataset.manifest import Dataset
from vitcore.errors import RequestError
from vitcore.evals.answers import Progress, answer, answering, check_range, device_of
from vitcore.evals.metrics import IntArray
from vitcore.evals.outcomes import Outcomes
from vitcore.models.pretrained import Pretrained


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
    check_range(dataset, split, start, stop)
    classes, columns = match_classes(pretrained.card.classes, dataset.manifest.classes)
    found = answer(
        pretrained.classifier,
        pretrained.card,
        dataset,
        split,
        start=start,
        stop=stop,
        batch_size=batch_size,
        threads=threads,
        autocast=autocast,
        progress=progress,
    )
    return Outcomes(found.keys, found.labels, found.values[:, columns], classes, found.skipped)


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
    device = device_of(model)
    images_SCHW = torch.randn(batch_size, 3, size, size, device=device)
    passes = 0
    with answering(model), torch.inference_mode(), autocast or nullcontext():
        for _ in range(2):
            model(images_SCHW)
        _finish(device)
        began = time.perf_counter()
        while passes == 0 or time.perf_counter() - began < seconds:
            model(images_SCHW)
            _finish(device)
            passes += 1
        return passes * batch_size / (time.perf_counter() - began)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
