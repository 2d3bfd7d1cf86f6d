"""Validation by retrieval: does an image find its captions, and a caption its image?

Legend: N images of the gallery, T captions, B of a batch, E dimension of the shared space.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vitcore.data.loading.batch import to_inputs
from vitcore.measures.retrieval import Ranks, ranks, recall
from vitcore.models.clip import Clip
from vitcore.objectives.contrast import Contrast, Pairs, contrast, scale_and_bias
from vitcore.recipe import ContrastConfig
from vitcore.train.learner import Learner
from vitcore.train.validate.split import evaluation_loader
from vitcore.world import World

MOST_IMAGES = 5000
"""Images of a gallery: that of COCO's retrieval benchmark, to which published recalls belong. Larger galleries only
make every recall smaller, and their embeddings (a tenth of a gigabyte with five captions each) go to every rank."""
RECALLS = (1, 5, 10)


class Gallery(NamedTuple):
    """The photographs that could be read, in the order of the index, and all their captions."""

    image_NE: Tensor
    text_TE: Tensor
    image_of_T: Tensor
    """int64: row of the image a caption belongs to; the captions of an image follow each other"""
    bad: int
    """photographs that could not be read"""


def by_retrieval(learner: Learner) -> dict[str, float]:
    """Recall among the first `MOST_IMAGES` photographs of the validation split and all their captions.

    Returns:
        ``image_to_text_recall_at_K`` and ``text_to_image_recall_at_K`` for K of `RECALLS`; ``recall_at_10``, the mean
        of both at 10; ``loss``, the objective's on the first captions of `eval.batch_size` photographs at a time, in
        the order of the index; ``bad_samples``. All the same on every rank, and at any number of ranks.
    """
    gallery = _gallery(learner)
    found: Ranks = ranks(gallery.image_NE, gallery.text_TE, gallery.image_of_T)
    metrics = {"loss": _loss(learner, gallery)}
    for k in RECALLS:
        metrics[f"image_to_text_recall_at_{k}"] = recall(found.texts_N, k)
        metrics[f"text_to_image_recall_at_{k}"] = recall(found.images_T, k)
    both = metrics["image_to_text_recall_at_10"] + metrics["text_to_image_recall_at_10"]
    return metrics | {"recall_at_10": both / 2, "bad_samples": float(gallery.bad)}


def _gallery(learner: Learner) -> Gallery:
    """Embed this rank's photographs and their captions; then everybody gets everything."""
    images, rows, bad = _embed_images(learner)
    index = learner.dataset.index(learner.request.recipe.eval.split)
    captions = [index.captions(row) for row in rows]
    texts = _embed_texts(learner, [caption for each in captions for caption in each])
    world = learner.world
    counts = world.gather((len(rows), len(texts), bad))
    all_images, first = _shared(images, [count[0] for count in counts], world)
    all_texts, _ = _shared(texts, [count[1] for count in counts], world)
    own = [first + place for place, each in enumerate(captions) for _ in each]
    owners = [owner for each in world.gather(own) for owner in each]
    image_of_T = torch.tensor(owners, dtype=torch.int64, device=world.device)
    return Gallery(all_images, all_texts, image_of_T, sum(count[2] for count in counts))


def _embed_images(learner: Learner) -> tuple[Tensor, list[int], int]:
    """Embeddings of this rank's photographs, their rows in the index, and how many could not be read."""
    parts, rows, bad = [torch.empty(0, _product(learner).config.width, device=learner.world.device)], [], 0
    with evaluation_loader(learner, learner.request.recipe.eval.split, most=MOST_IMAGES) as loader:
        for batch in loader:
            learner.at(learner.progress.step, "validating")
            bad += len(batch.bad)
            kept_B = batch.weights_S > 0
            rows += batch.samples_S[kept_B].tolist()
            with learner.precision.autocast():
                embeddings_BE = learner.objective.predict(to_inputs(batch, learner.world.device).images_SCHW)
            parts.append(embeddings_BE.float()[kept_B.to(embeddings_BE.device)])
    return torch.cat(parts), rows, bad


def _embed_texts(learner: Learner, texts: list[str]) -> Tensor:
    """Embeddings of texts, `eval.batch_size` at a time."""
    objective, product = learner.objective, _product(learner)
    assert isinstance(objective, Contrast)
    size = learner.request.recipe.eval.batch_size
    parts = [torch.empty(0, product.config.width, device=learner.world.device)]
    for start in range(0, len(texts), size):
        tokens_BN = product.text.cut(objective.tokenize(texts[start : start + size])).to(learner.world.device)
        with learner.precision.autocast():
            parts.append(product.embed_texts(tokens_BN).float())
    return torch.cat(parts)


def _shared(rows: Tensor, counts: list[int], world: World) -> tuple[Tensor, int]:
    """The rows of all ranks, by rank, and where this rank's begin. Sums with zeros: exact, whatever the counts."""
    first = sum(counts[: world.rank])
    everybody = rows.new_zeros(sum(counts), rows.shape[1])
    everybody[first : first + len(rows)] = rows
    return world.sum(everybody), first


def _loss(learner: Learner, gallery: Gallery) -> float:
    """Mean loss of the photographs that have captions."""
    config, shared = learner.request.recipe.objective, scale_and_bias(_product(learner))
    assert isinstance(config, ContrastConfig)
    places, size = gallery.image_of_T, learner.request.recipe.eval.batch_size
    first_T = torch.ones_like(places, dtype=torch.bool)
    first_T[1:] = places[1:] != places[:-1]
    images, texts = gallery.image_NE[places[first_T]], gallery.text_TE[first_T]
    total = 0.0
    for start in range(0, len(images), size):
        image_BE, text_BE = images[start : start + size], texts[start : start + size]
        pairs = Pairs(image_BE, text_BE, torch.ones(len(image_BE), device=image_BE.device))
        total += contrast(config.loss, pairs, shared, World())[0].sum().item()
    return total / max(len(images), 1)


def _product(learner: Learner) -> Clip:
    product = learner.objective.product
    assert isinstance(product, Clip)
    return product
