"""A model measured on held-out photographs."""

from __future__ import annotations

from prefect import flow

from tasks.evaluate import EvaluateStage, evaluate_model, plan_evaluation, stage_of
from tasks.models import resolve
from tasks.retrieve import measure_retrieval
from tasks.settings import Settings, load
from tasks.stages import StagePlan
from vitcore.data.dataset.manifest import Dataset
from vitcore.evals.report import Report
from vitcore.evals.retrieval import RetrievalReport
from vitcore.evals.zeroshot import TEMPLATES, read_templates


@flow(name="evaluate", flow_run_name="evaluate {model}")
def evaluate(
    model: str,
    data: list[str],
    split: str = "test",
    protocol: str = "auto",
    prompts: str | None = None,
    bank: str = "train",
    gallery: int | None = None,
    fresh: bool = False,
) -> list[Report | RetrievalReport]:
    """One report for each dataset, in their order.

    Args:
        model: its reference.
        data: URLs of datasets.
        split: the split of each to measure on.
        protocol: ``classifier``, ``zero-shot``, ``knn``, ``linear``, ``retrieval``, or what fits model and data.
        prompts: file with the templates of zero-shot classification; default: general ones.
        bank: split whose labels k-NN and the linear probe know.
        gallery: photographs that a retrieval searches; default: all, at most 5,000.
        fresh: measure again.
    """
    settings = load()
    stages = requested(model, data, split, settings, protocol, prompts, bank, gallery)
    return [
        measure_retrieval(stage, settings, fresh=fresh)
        if stage.protocol.name == "retrieval"
        else evaluate_model(stage, settings, fresh=fresh).report
        for stage in stages
    ]


def plan(
    model: str,
    data: list[str],
    split: str = "test",
    protocol: str = "auto",
    prompts: str | None = None,
    bank: str = "train",
    gallery: int | None = None,
    fresh: bool = False,
) -> list[StagePlan]:
    """What `evaluate` would do."""
    settings = load()
    stages = requested(model, data, split, settings, protocol, prompts, bank, gallery)
    return [plan_evaluation(stage, settings, fresh=fresh) for stage in stages]


def requested(
    model: str,
    data: list[str],
    split: str,
    settings: Settings,
    protocol: str = "auto",
    prompts: str | None = None,
    bank: str = "train",
    gallery: int | None = None,
) -> list[EvaluateStage]:
    """The evaluations a request names, with model and dataset versions pinned.

    Raises:
        RequestError: no such model, dataset, split or protocol, or one that fits neither model nor data.
    """
    pinned = resolve(model, settings)
    templates = TEMPLATES if prompts is None else read_templates(prompts)
    stages = []
    for url in data:
        dataset = Dataset.open(url)
        name = pinned.ref.split("/")[1] if pinned.ref.startswith("models:/") else dataset.url.rsplit("/", 1)[-1]
        stages.append(
            stage_of(
                settings,
                name,
                pinned,
                dataset.ref,
                split,
                asked=protocol,
                templates=templates,
                bank=bank,
                gallery=gallery,
            )
        )
    return stages
