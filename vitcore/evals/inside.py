"""Looking inside a model over a few photographs: every figure that the model has the parts for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from vitcore.data.dataset.manifest import Dataset
from vitcore.data.loading.loader import EvalLoader
from vitcore.evals.answers import Answers, sample_keys
from vitcore.evals.attention import attention_figure
from vitcore.evals.distance import distance_figure
from vitcore.evals.embedding import filters_figure, positions_figure
from vitcore.evals.heads import heads_figure
from vitcore.evals.outcomes import Outcomes
from vitcore.evals.similarity import similarity_figure
from vitcore.models.model import Model
from vitcore.models.pretrained import ModelCard

_SHOWN_EACH = 6
_CLASSES = 8  # rows of a grid of photographs and class names
_PAIRS = 8


def model_figures(model: Model, images_BCHW: Tensor) -> dict[str, Figure]:
    """What needs no labels: heads, filters of the patches, position embeddings, attention distance.

    Args:
        model: any.
        images_BCHW: uint8, or float in [0, 1]; not normalised, of the model's input size.
    """
    found = {
        "attention_heads": heads_figure(model, images_BCHW),
        "attention_distance": distance_figure(model, images_BCHW),
        "patch_filters": filters_figure(model),
        "position_similarity": positions_figure(model),
    }
    return {name: figure for name, figure in found.items() if figure is not None}


def outcome_figures(
    model: Model, card: ModelCard, dataset: Dataset, split: str, outcomes: Outcomes
) -> dict[str, Figure]:
    """`model_figures`, and attention, over photographs the model was surest of: half of them right, half wrong."""
    chosen = _surest(outcomes, right=True) + _surest(outcomes, right=False)
    rows = rows_of(dataset, split, [str(outcomes.keys[place]) for place in chosen])
    images = load_images(card, dataset, split, rows)
    found = model_figures(model, images)
    attention = attention_figure(
        model,
        images,
        labels=[int(outcomes.labels[place]) for place in chosen],
        predictions=[int(outcomes.predictions[place]) for place in chosen],
        classes=outcomes.classes,
    )
    return found if attention is None else {"attention": attention, **found}


def zero_shot_figure(
    card: ModelCard, dataset: Dataset, split: str, outcomes: Outcomes, *, scale: float
) -> Figure | None:
    """One photograph of each of the first classes, by the cosine similarity with all of them.

    Args:
        card: resolution.
        dataset: the evaluated version.
        split: its split.
        outcomes: of `zero_shot`.
        scale: inverse temperature that the logits were multiplied with.
    """
    firsts = {int(label): place for place, label in reversed(list(enumerate(outcomes.labels)))}
    shown = sorted(firsts)[:_CLASSES]
    places = [firsts[label] for label in shown]
    images = load_images(card, dataset, split, rows_of(dataset, split, [str(outcomes.keys[place]) for place in places]))
    cosines = (outcomes.logits[np.ix_(places, shown)] / scale).T
    return similarity_figure(
        images, [outcomes.classes[label] for label in shown], cosines, [[place] for place in range(len(shown))]
    )


def retrieval_figure(
    card: ModelCard,
    dataset: Dataset,
    split: str,
    images: Answers,
    captions: Sequence[Sequence[str]],
    embedded: Sequence[np.ndarray],
) -> Figure | None:
    """The first caption of each of a few photographs, evenly drawn, by its cosine similarity with all of them.

    Args:
        card: resolution.
        dataset: the evaluated version.
        split: its split.
        images: embeddings of the photographs.
        captions: of each photograph.
        embedded: embeddings (captions, E) of each photograph's captions.
    """
    places = np.unique(np.linspace(0, len(images.rows) - 1, _PAIRS).round().astype(int))
    texts = np.stack([embedded[place][0] for place in places])
    return similarity_figure(
        load_images(card, dataset, split, [int(images.rows[place]) for place in places]),
        [captions[place][0] for place in places],
        texts @ images.values[places].T,
        [[place] for place in range(len(places))],
    )


def rows_of(dataset: Dataset, split: str, keys: Sequence[str]) -> list[int]:
    """Positions in the split of samples by key; unknown ones are left out."""
    places = {str(key): row for row, key in enumerate(sample_keys(dataset, split))}
    return [places[key] for key in keys if key in places]


def load_images(card: ModelCard, dataset: Dataset, split: str, rows: Sequence[int]) -> Tensor:
    """Photographs as evaluation sees them: uint8 (B, 3, H, W)."""
    images = [torch.empty(0, 3, card.image_size, card.image_size, dtype=torch.uint8)]
    for row in rows:
        with EvalLoader(
            dataset,
            split,
            image_size=card.image_size,
            resize=card.resize,
            batch_size=1,
            start=row,
            stop=row + 1,
            threads=0,
        ) as loader:
            images.append(next(iter(loader)).images_SCHW)
    return torch.cat(images)


def _surest(outcomes: Outcomes, *, right: bool) -> list[int]:
    logits = outcomes.logits
    probability = np.exp(logits - logits.max(axis=1, keepdims=True))
    confidence = probability.max(axis=1) / probability.sum(axis=1)
    wanted = np.flatnonzero((outcomes.predictions == outcomes.labels) == right)
    return [int(place) for place in wanted[np.argsort(-confidence[wanted], kind="stable")][:_SHOWN_EACH]]
