"""Photographs and texts as vectors: the features a head would read, and a CLIP's embeddings in its shared space.

Legend: N photographs or texts, E dimension of the shared space, D width of the features, L tokens of a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vitcore.data.dataset.manifest import Dataset
from vitcore.errors import RequestError
from vitcore.evals.answers import Answers, Progress, answer, answering, device_of
from vitcore.models.adapt import adapt
from vitcore.models.classifier import Classifier
from vitcore.models.clip import Clip
from vitcore.models.pretrained import Pretrained
from vitcore.models.tokenizer import Tokenizer

_TEXTS = 256  # in a forward pass


def backbone_of(pretrained: Pretrained) -> Classifier:
    """What turns a photograph into the features a head would read (B, D): a model without its head, or the image tower
    of a CLIP without its projection, as in CLIP's own linear probes (2103.00020, appendix A.2).
    """
    model = pretrained.model
    if isinstance(model, Clip):
        return model.image
    return adapt(pretrained.classifier, num_classes=0) if model.num_classes else pretrained.classifier


def clip_of(pretrained: Pretrained) -> Clip:
    """The model as one that embeds photographs and texts.

    Raises:
        RequestError: it is none.
    """
    if not isinstance(pretrained.model, Clip):
        raise RequestError(f"the model is a {pretrained.card.model.kind}, which knows no texts; give a CLIP")
    return pretrained.model


def features(
    pretrained: Pretrained,
    dataset: Dataset,
    split: str,
    *,
    start: int = 0,
    stop: int | None = None,
    batch_size: int = 64,
    autocast: AbstractContextManager[Any] | None = None,
    progress: Progress | None = None,
) -> Answers:
    """Features (N, D) of a range of a split; see `answer`."""
    return answer(
        backbone_of(pretrained),
        pretrained.card,
        dataset,
        split,
        start=start,
        stop=stop,
        batch_size=batch_size,
        autocast=autocast,
        progress=progress,
    )


def image_embeddings(
    pretrained: Pretrained,
    dataset: Dataset,
    split: str,
    *,
    start: int = 0,
    stop: int | None = None,
    batch_size: int = 64,
    autocast: AbstractContextManager[Any] | None = None,
    progress: Progress | None = None,
) -> Answers:
    """Embeddings (N, E) of length 1 of the photographs in a range of a split; see `answer`."""
    clip = clip_of(pretrained)
    return answer(
        clip,
        pretrained.card,
        dataset,
        split,
        ask=clip.embed_images,
        start=start,
        stop=stop,
        batch_size=batch_size,
        autocast=autocast,
        progress=progress,
    )


def text_embeddings(
    pretrained: Pretrained, texts: Sequence[str], *, autocast: AbstractContextManager[Any] | None = None
) -> NDArray[np.float32]:
    """Embeddings (N, E) of length 1 of texts, computed where the weights lie."""
    clip = clip_of(pretrained)
    tokenize = Tokenizer(clip.config.text)
    parts = []
    with answering(clip), torch.inference_mode(), autocast or nullcontext():
        for start in range(0, len(texts), _TEXTS):
            tokens_NL = clip.text.cut(tokenize(texts[start : start + _TEXTS]))
            parts.append(clip.embed_texts(tokens_NL.to(device_of(clip))).cpu())
    return np.asarray(torch.cat(parts).numpy(), dtype=np.float32)


def scale_of(pretrained: Pretrained) -> float:
    """The inverse temperature that a CLIP has learned."""
    return clip_of(pretrained).logit_scale.detach().exp().item()
