"""Retrieve: an image and text model and captioned photographs become a report of recall, in a run of its own."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from prefect import task

from tasks.evaluate import REPORT, EvaluateStage, load_stage, publish, recorded
from tasks.on_mlflow import runs
from tasks.on_ray.cluster import connected
from tasks.on_ray.evaluate import embed_texts, embeddings_of_split
from tasks.settings import Settings
from tasks.story import tell, track
from vitcore.errors import RequestError
from vitcore.evals.classify import throughput
from vitcore.evals.inside import load_images, model_figures, retrieval_figure
from vitcore.evals.retrieval import RetrievalReport, build_retrieval_report

_LOOKED_AT = 4  # photographs that the figures of the image tower are made of


@task(name="retrieve", task_run_name="{stage.verb}")
def measure_retrieval(stage: EvaluateStage, settings: Settings, *, fresh: bool = False) -> RetrievalReport:
    """The retrieval report of a stage: the existing one, or made now.

    Raises:
        RequestError: no photograph of the gallery has a caption.
    """
    finished = None if fresh else runs.find_finished(settings.tracking_uri, stage.name, stage.identity)
    if finished is not None:
        report = _stored(settings, finished.run_id)
        tell(settings, f"{stage.verb}: done before")
        return report
    with recorded(stage, settings, fresh=fresh) as run_id:
        report = _measure(stage, settings, run_id)
    found = ", ".join(
        f"{name.replace('_', ' ')} {side.recall['recall_at_1']}"
        for name, side in (("image_to_text", report.image_to_text), ("text_to_image", report.text_to_image))
    )
    tell(settings, f"{stage.verb}: recall at 1 {found}")
    return report


def _measure(stage: EvaluateStage, settings: Settings, run_id: str) -> RetrievalReport:
    model, dataset = load_stage(stage, settings)
    ref, split, gallery = stage.model.ref, stage.split, stage.protocol.gallery
    samples = dataset.split(split).samples if gallery is None else gallery
    with connected(settings), track(settings, f"retrieve on {split}", samples, "photographs") as shown:
        answers = embeddings_of_split(ref, stage.data, split, settings, most=gallery, progress=shown.update)
        index = dataset.index(split)
        captions = [index.captions(int(row)) for row in answers.rows]
        captioned = np.array([bool(own) for own in captions])
        if not captioned.any():
            raise RequestError(f"no photograph of the gallery in {split} has a caption; take another --split")
        images = answers.some(captioned)
        captions = [own for own in captions if own]
        texts = embed_texts(ref, [caption for own in captions for caption in own], settings)
    counts = [len(own) for own in captions]
    report = build_retrieval_report(
        images.values,
        texts,
        np.repeat(np.arange(len(counts)), counts),
        model=ref,
        dataset=stage.data.digest,
        split=split,
        uncaptioned=int((~captioned).sum()),
        skipped=images.skipped,
        parameters=sum(parameter.numel() for parameter in model.model.parameters()),
        images_per_s=throughput(model),
    )
    rows = [int(row) for row in images.rows[:_LOOKED_AT]]
    figures = model_figures(model.model, load_images(model.card, dataset, split, rows))
    of_each = np.split(texts, np.cumsum(counts)[:-1])
    grid = retrieval_figure(model.card, dataset, split, images, captions, of_each)
    figures |= {} if grid is None else {"similarity": grid}
    publish(stage, settings, run_id, model, report, figures)
    return report


def _stored(settings: Settings, run_id: str) -> RetrievalReport:
    """Read a finished report back from its run."""
    with TemporaryDirectory() as scratch:
        path = runs.fetch_file(settings.tracking_uri, run_id, REPORT, Path(scratch))
        return RetrievalReport.model_validate_json(path.read_text(encoding="utf-8"))
