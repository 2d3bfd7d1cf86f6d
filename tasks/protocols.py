"""A model's outcomes for a labelled split by any protocol, from the cluster."""

from __future__ import annotations

from tasks.on_ray.cluster import connected
from tasks.on_ray.evaluate import decide, embed_texts, embeddings_of_split, features_of_split, predict_split
from tasks.settings import Settings
from tasks.story import track
from vitcore.data.dataset.manifest import Dataset
from vitcore.evals.outcomes import Outcomes
from vitcore.evals.protocol import Protocol
from vitcore.evals.represent import scale_of
from vitcore.evals.zeroshot import TEMPLATES, class_embeddings, prompts, zero_shot
from vitcore.models.pretrained import Pretrained


def outcomes_of(
    settings: Settings, ref: str, model: Pretrained, dataset: Dataset, split: str, protocol: Protocol
) -> Outcomes:
    """The outcomes of a split, in its order.

    Args:
        settings: endpoints and folders.
        ref: pinned reference of the model.
        model: what it names.
        dataset: with labels.
        split: its name.
        protocol: any but retrieval.
    """
    samples = dataset.split(split).samples
    probing = protocol.name in ("knn", "linear")
    known = dataset.split(protocol.bank).samples if probing else 0
    data, classes = dataset.ref, dataset.manifest.classes
    with connected(settings), track(settings, f"evaluate on {split}", samples + known, "photographs") as shown:
        if protocol.name == "zero-shot":
            texts = embed_texts(ref, prompts(classes, protocol.prompts or TEMPLATES), settings)
            images = embeddings_of_split(ref, data, split, settings, progress=shown.update)
            vectors = class_embeddings(texts, len(classes))
            return zero_shot(images, vectors, classes, scale=scale_of(model))
        if probing:
            bank = features_of_split(ref, data, protocol.bank, settings, progress=shown.update)
            queries = features_of_split(ref, data, split, settings, progress=lambda done: shown.update(known + done))
            return decide("knn" if protocol.name == "knn" else "linear", bank, queries, classes)
        return predict_split(ref, data, split, settings, progress=shown.update)
