"""Claim (d): images and captions find each other after learning from pairs alone (2103.00020).

6,000 photographs of Flickr8k with five captions each, from scratch. Measured on 1,000 photographs of the validation
split, the first in index order, and their 5,000 captions; nothing is chosen by that score. Beside it: guessing, and a
baseline that does not learn to see (bags of words told from thumbnails by ridge regression). The same model then sorts
CIFAR-10's 10,000 test photographs by class names, which it was never shown.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from experiments.corpora import Corpora
from experiments.report import Results, Section, bars, claim, percent, table
from experiments.runs import Run
from experiments.words import Words, features, told
from vitcore.data.dataset.manifest import Dataset
from vitcore.data.loading.loader import EvalLoader
from vitcore.evals.represent import image_embeddings, scale_of, text_embeddings
from vitcore.evals.retrieval import RetrievalReport, build_retrieval_report
from vitcore.evals.statistics import top1_estimate
from vitcore.evals.zeroshot import class_embeddings, prompts, zero_shot
from vitcore.models.pretrained import load_pretrained
from vitcore.recipe import EvalConfig, Recipe
from vitcore.recipes import find

GALLERY = 1000
STEPS = 1125
"""24 epochs."""
THUMBNAIL = 64
BOTH = {"image_to_text": "image → caption", "text_to_image": "caption → image"}


def recipe() -> Recipe:
    """`clip_tiny_cpu`, validated once, at its end."""
    base = find("clip_tiny_cpu")
    return base.model_copy(
        update={
            "train": base.train.model_copy(update={"duration": f"{STEPS} steps"}),
            "eval": EvalConfig(every="100%", metric="recall_at_10", resize=base.data.image_size),
        }
    )


def runs(corpora: Corpora) -> list[Run]:
    """The training of the claim."""
    return [Run("clip", recipe(), corpora.captioned(), cores=2)]


def section(corpora: Corpora, results: Results) -> Section:
    """What was found."""
    dataset, model = Dataset.open(corpora.captioned()), load_pretrained(results["clip"].model)
    texts, owners = gallery_texts(dataset)
    images = image_embeddings(model, dataset, "val", stop=GALLERY).values
    clip = build_retrieval_report(images, text_embeddings(model, texts), owners, model="", dataset="", split="val")
    words = bag_of_words(dataset, texts, owners)
    rows = [
        (
            name,
            f"{side.recall['recall_at_1'].value:.1%} / {side.recall['recall_at_5'].value:.1%}".replace("%", " %"),
            percent(side.recall["recall_at_10"]),
            percent(getattr(words, way).recall["recall_at_10"]),
            f"{100 * side.chance['recall_at_10']:.1f} %",
        )
        for way, name in BOTH.items()
        for side in (getattr(clip, way),)
    ]
    seen = zero_shot_on_cifar10(corpora, model)
    head = ("direction", "R@1 / R@5", "R@10", "R@10 of bags of words", "R@10 of guessing")
    reached = all(getattr(clip, way).recall["recall_at_10"].value >= 0.1 for way in BOTH)
    minutes = results["clip"].seconds / 60
    said = (
        f"The aim of 10 % is {'' if reached else 'not '}reached in both directions, after {minutes:.0f} minutes on two "
        f"cores. Zero-shot on CIFAR-10: top-1 {percent(seen)}, where guessing has 10 %."
    )
    estimates = {
        f"{name}, {who}": getattr(found, way).recall["recall_at_10"]
        for way, name in BOTH.items()
        for who, found in (("CLIP", clip), ("bags of words", words))
    }
    note = "95 % intervals over photographs; guessing has 1 % and less"
    figure = bars(estimates, "Retrieval among 1,000 photographs", "R@10", note)
    return Section("(d) CLIP on Flickr8k", claim(__doc__, table(head, rows), said), {"captions": figure})


def gallery_texts(dataset: Dataset) -> tuple[list[str], Any]:
    """All captions of the gallery, and the photograph of each."""
    index = dataset.index("val")
    captions = [index.captions(row) for row in range(GALLERY)]
    owners = torch.tensor([row for row, own in enumerate(captions) for _ in own])
    return [caption for own in captions for caption in own], owners.numpy()


def bag_of_words(dataset: Dataset, texts: list[str], owners: Any) -> RetrievalReport:
    """The baseline."""
    index = dataset.index("train")
    captions = [index.captions(row) for row in range(len(index))]
    words = Words([caption for own in captions for caption in own])
    bags_NV = torch.stack([F.normalize(words(own).sum(0), dim=0) for own in captions])
    train, gallery = (features(thumbnails(dataset, *what)) for what in (("train", len(index)), ("val", GALLERY)))
    images_MV = told(train, bags_NV, gallery)
    return build_retrieval_report(images_MV.numpy(), words(texts).numpy(), owners, model="", dataset="", split="val")


def thumbnails(dataset: Dataset, split: str, count: int) -> torch.Tensor:
    """The first photographs of a split, uint8 [N, 3, 64, 64]."""
    with EvalLoader(
        dataset, split, image_size=THUMBNAIL, resize=THUMBNAIL, batch_size=500, start=0, stop=count
    ) as loader:
        return torch.cat([batch.images_SCHW[batch.samples_S >= 0] for batch in loader])


def zero_shot_on_cifar10(corpora: Corpora, model: Any) -> Any:
    """Top-1 and its interval."""
    cifar10 = Dataset.open(corpora.photographs("50000", per_class=5000))
    classes = cifar10.manifest.classes
    vectors = class_embeddings(text_embeddings(model, prompts(classes)), len(classes))
    outcomes = zero_shot(image_embeddings(model, cifar10, "test"), vectors, classes, scale=scale_of(model))
    return top1_estimate(outcomes.labels, outcomes.predictions)
