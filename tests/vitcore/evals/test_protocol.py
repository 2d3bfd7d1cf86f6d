"""Which protocol fits, and what a report's identity depends on."""

from __future__ import annotations

import types

import pytest
from pydantic import ValidationError

from vitcore.errors import RequestError
from vitcore.evals.protocol import Protocol, choose, usual_protocols
from vitcore.evals.report import Report
from vitcore.models import ModelCard
from vitcore.recipe import ClipConfig, VitConfig

HEAD = ModelCard(model=VitConfig(), image_size=32, num_classes=2)
BACKBONE = ModelCard(model=VitConfig(), image_size=32, num_classes=0)
CLIP = ModelCard(model=ClipConfig(), image_size=32, num_classes=0)


class Data:
    """What `choose` asks of a dataset."""

    def __init__(self, *fields: str) -> None:
        self.manifest = types.SimpleNamespace(fields=("image", *fields))

    def require(self, field: str) -> None:
        if field not in self.manifest.fields:
            raise RequestError(f"the dataset has no {field}")


@pytest.mark.parametrize(
    ("card", "fields", "protocol"),
    [
        (HEAD, ("label",), "classifier"),
        (BACKBONE, ("label",), "knn"),
        (CLIP, ("label",), "zero-shot"),
        (CLIP, ("captions",), "retrieval"),
        (CLIP, ("label", "captions"), "zero-shot"),
    ],
)
def test_what_fits_is_found(card: ModelCard, fields: tuple[str, ...], protocol: str) -> None:
    assert choose("auto", card, Data(*fields)) == protocol  # type: ignore[arg-type]
    assert protocol in usual_protocols(card)
    assert choose("linear", card, Data("label")) == "linear"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("asked", "card", "fields", "words"),
    [
        ("zero-shot", HEAD, ("label",), "take classifier or knn or linear"),
        ("classifier", BACKBONE, ("label",), "this is one without a head: take knn or linear"),
        ("classifier", CLIP, ("label",), "this is an image and text model"),
        ("retrieval", CLIP, ("label",), "no captions"),
        ("auto", BACKBONE, ("captions",), "no label"),
        ("auto", HEAD, (), "no label"),
        ("guess", HEAD, ("label",), "there is no protocol 'guess'"),
    ],
)
def test_what_does_not_fit_is_one_sentence(asked: str, card: ModelCard, fields: tuple[str, ...], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        choose(asked, card, Data(*fields))  # type: ignore[arg-type]


def test_an_identity_holds_what_the_protocol_reads_and_nothing_else() -> None:
    assert Protocol().identity_parts() == {}
    assert Protocol(name="knn").identity_parts() == {"protocol": "knn", "bank": "train"}
    assert Protocol(name="linear", bank="val").identity_parts() == {"protocol": "linear", "bank": "val"}
    one, other = (Protocol(name="zero-shot", prompts=(text,)).identity_parts() for text in ("a {}", "the {}"))
    assert one != other
    assert Protocol(name="retrieval", gallery=7).identity_parts() == {"protocol": "retrieval", "gallery": 7}
    with pytest.raises(ValidationError, match="must hold one"):
        Protocol(name="zero-shot", prompts=("no place",))
    with pytest.raises(ValidationError, match="at least 1"):
        Protocol(name="retrieval", gallery=0)


def test_reports_of_before_there_were_protocols_are_those_of_classifiers(make_outcomes) -> None:
    from vitcore.evals.report import build_report

    outcomes = make_outcomes(40, 2, 1.0)
    report = build_report(outcomes, model="m", dataset="d", split="test", protocol="knn", resamples=20)
    assert Report.model_validate_json(report.model_dump_json()) == report
    old = report.model_dump(mode="json", exclude={"protocol"})
    assert Report.model_validate(old).protocol == "classifier"
