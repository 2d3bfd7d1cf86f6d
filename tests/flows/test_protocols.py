"""Every protocol on the cluster: models without a head, image and text models; what is kept, shown and found again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mlflow.tracking import MlflowClient

from flows.evaluate import evaluate, plan
from flows.promote import promote
from tasks.evaluate import EvaluateStage
from tasks.models import ModelRef
from tasks.on_mlflow import registry, runs
from tasks.register import register_model
from tasks.settings import Settings
from vitcore.data.dataset.manifest import Dataset
from vitcore.data.ingest.ingest import ingest
from vitcore.data.ingest_config import IngestConfig, SplitFractions
from vitcore.errors import RequestError
from vitcore.evals.protocol import Protocol
from vitcore.evals.report import Report
from vitcore.evals.retrieval import RetrievalReport
from vitcore.models import ModelCard, build, save_pretrained
from vitcore.recipe import ClipConfig, ModelConfig, Recipe, TextConfig, VitConfig

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

BACKBONE = VitConfig(patch=8, width=32, depth=1, heads=2)
CLIP = ClipConfig(width=16, image=BACKBONE, text=TextConfig(context=16, width=16, depth=1, heads=2))


def saved(folder: Path, config: ModelConfig) -> str:
    torch.manual_seed(0)
    model = build(config, num_classes=0, image_size=32)
    save_pretrained(folder, model, ModelCard(model=config, image_size=32, num_classes=0, resize=32))
    return str(folder)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(tmp_path_factory.mktemp("backbone"), BACKBONE)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(tmp_path_factory.mktemp("clip"), CLIP)


def only(reports: list[Report | RetrievalReport]) -> Report:
    (report,) = reports
    assert isinstance(report, Report)
    return report


def artifacts(house: Settings, dataset: Dataset, identity: str) -> set[str]:
    found = runs.find_finished(house.tracking_uri, dataset.url.rsplit("/", 1)[-1], identity)
    assert found is not None
    client = MlflowClient(house.tracking_uri)
    return {item.path for where in (None, "figures") for item in client.list_artifacts(found.run_id, where)}


def test_colours_are_told_by_the_features_of_a_random_backbone(house: Settings, toy: Dataset, backbone: str) -> None:
    (stage,) = plan(backbone, [toy.url], "val")
    report = only(evaluate(backbone, [toy.url], "val"))
    assert report.protocol == "knn"
    assert report.samples == toy.split("val").samples
    assert report.metrics["balanced_accuracy"].low > 1 / 3
    linear = only(evaluate(backbone, [toy.url], "val", protocol="linear"))
    assert linear.protocol == "linear"
    assert linear.metrics["balanced_accuracy"].low > 1 / 3
    assert {"report.json", "outcomes.npz", "figures/attention_heads.png", "figures/patch_filters.png"} <= artifacts(
        house, toy, stage.identity
    )
    (again,) = plan(backbone, [toy.url], "val")
    assert again.state == "done"
    assert only(evaluate(backbone, [toy.url], "val")) == report


def test_an_image_and_text_model_is_asked_by_the_names_of_the_classes(
    house: Settings, toy: Dataset, clip: str, tmp_path: Path
) -> None:
    (stage,) = plan(clip, [toy.url], "val")
    report = only(evaluate(clip, [toy.url], "val"))
    assert (report.protocol, report.classes) == ("zero-shot", toy.manifest.classes)
    assert report.images_per_s
    assert "figures/similarity.png" in artifacts(house, toy, stage.identity)
    (tmp_path / "prompts.txt").write_text("something {}\n")
    (other,) = plan(clip, [toy.url], "val", prompts=str(tmp_path / "prompts.txt"))
    assert other.state == "run"
    assert other.identity != stage.identity


def test_captions_and_photographs_find_each_other(house: Settings, captioned: Dataset, clip: str) -> None:
    split = next(iter(captioned.manifest.splits))
    (stage,) = plan(clip, [captioned.url], split, protocol="retrieval", gallery=12)
    (report,) = evaluate(clip, [captioned.url], split, protocol="retrieval", gallery=12)
    assert isinstance(report, RetrievalReport)
    index = captioned.index(split)
    assert report.samples + report.uncaptioned == 12
    assert report.captions == sum(len(index.captions(row)) for row in range(12))
    assert {"report.json", "figures/similarity.png"} <= artifacts(house, captioned, stage.identity)
    assert evaluate(clip, [captioned.url], split, protocol="retrieval", gallery=12) == [report]
    (more,) = plan(clip, [captioned.url], split, protocol="retrieval", gallery=13)
    assert (more.state, more.stage) == ("run", stage.stage)


def test_a_registered_backbone_has_its_scores_on_its_card_and_passes_the_gate(
    house: Settings, photographs: Path, backbone: str, plain: Recipe
) -> None:
    config = IngestConfig(splits=SplitFractions(train=0.6, val=0.2, test=0.2))
    data = Dataset.open(ingest(str(photographs), str(house.home / "data" / "hues"), config))
    run_id = runs.open_run(house.tracking_uri, experiment="hues", identity="train-1", name="r", params={}, tags={})
    version = register_model(
        house,
        Path(backbone),
        name="hues",
        identity="train-1",
        run_id=run_id,
        recipe=plain,
        data=data,
        init=None,
        teacher=None,
        fresh=False,
    )
    assert "features of 32 numbers" in version.description
    report = only(evaluate(version.uri, [data.url]))
    assert report.protocol == "knn"
    known = registry.resolve(house.tracking_uri, version.uri)
    assert "by the 20 nearest training photographs" in known.description
    assert float(known.tags["test/knn/top1"]) == pytest.approx(report.metrics["top1"].value, abs=1e-4)
    assert report.overlap is not None
    verdict = promote(version.uri)
    assert verdict.champion == version.uri
    assert verdict.decision.passed


def test_a_bank_cannot_hold_what_is_asked_about(house: Settings, toy: Dataset, backbone: str, clip: str) -> None:
    with pytest.raises(RequestError, match="take another split than train as --bank"):
        plan(backbone, [toy.url], "train")
    with pytest.raises(RequestError, match="no split 'known'"):
        plan(backbone, [toy.url], "val", bank="known")
    with pytest.raises(RequestError, match="needs a model with a head"):
        plan(clip, [toy.url], "val", protocol="classifier")


def test_the_identity_of_a_classifiers_report_is_that_of_before_there_were_protocols(toy: Dataset) -> None:
    from vitcore.identity import identity

    model = ModelRef(ref="/m", digest="d")
    stage = EvaluateStage(name="n", model=model, data=toy.ref, split="val")
    assert stage.identity == identity("evaluate", 2, {"split": "val"}, {"model": "d", "data": toy.digest})
    others = [
        EvaluateStage(name="n", model=model, data=toy.ref, split="val", protocol=protocol).identity
        for protocol in (
            Protocol(name="knn"),
            Protocol(name="knn", bank="other"),
            Protocol(name="linear"),
            Protocol(name="zero-shot", prompts=("a {}",)),
            Protocol(name="zero-shot", prompts=("the {}",)),
            Protocol(name="retrieval", gallery=1),
            Protocol(name="retrieval", gallery=2),
        )
    ]
    assert len({stage.identity, *others}) == 8
