"""Promote: the alias `champion` moves to a version that the gate lets pass, one decision at a time for each name."""

from __future__ import annotations

from typing import Literal, NamedTuple

from prefect import get_client, task
from prefect.concurrency.sync import concurrency

from tasks.evaluate import evaluate_model, stage_of
from tasks.models import pinned
from tasks.on_mlflow import champion as reign
from tasks.on_mlflow import registry
from tasks.on_mlflow.registry import ModelVersion
from tasks.settings import Settings
from tasks.story import tell
from vitcore.data.dataset.manifest import DatasetRef
from vitcore.evals.gate import Decision, decide
from vitcore.evals.outcomes import Outcomes

GATE = "vit.gate"
"""Tag of a version with what the gate said of it last."""


class Verdict(NamedTuple):
    """What came of a decision."""

    decision: Decision
    champion: str | None
    """Reference of the reigning version afterwards."""


@task(name="promote", task_run_name="promote {candidate.uri}")
def promote_model(
    candidate: ModelVersion,
    data: DatasetRef,
    settings: Settings,
    *,
    split: str,
    metric: Literal["top1", "balanced_accuracy", "auroc"],
    margin: float,
) -> Verdict:
    """Compare the candidate with the champion on `split`, and move the alias if the gate passes.

    Both are evaluated on the same samples (what was evaluated before is not evaluated again). Two decisions about one
    name never overlap: Prefect holds the lock, since aliases have no compare-and-set.
    """
    _require_lock(candidate.name)
    with concurrency(_lock_name(candidate.name), timeout_seconds=600, strict=True):
        current = reign.champion(settings.tracking_uri, candidate.name)
        own = _outcomes(candidate, data, settings, split)
        other = _outcomes(current, data, settings, split) if current and current.version != candidate.version else None
        decision = decide(own, other, metric=metric, margin=margin)
        if decision.passed:
            reign.set_champion(settings.tracking_uri, candidate.name, candidate.version)
        verdict = ("passed: " if decision.passed else "refused: ") + " ".join(decision.reasons)
        registry.tag_version(settings.tracking_uri, candidate, {GATE: verdict[:4000]})
    tell(settings, f"promote {candidate.uri}: {verdict}")
    reigning = reign.champion(settings.tracking_uri, candidate.name)
    return Verdict(decision, reigning.uri if reigning else None)


@task(name="roll back", task_run_name="roll back {name}")
def roll_back(name: str, settings: Settings) -> ModelVersion:
    """Give the alias back to the champion before this one."""
    _require_lock(name)
    with concurrency(_lock_name(name), timeout_seconds=600, strict=True):
        version = reign.rollback_champion(settings.tracking_uri, name)
    tell(settings, f"roll back {name}: {version.uri} is the champion again")
    return version


def _outcomes(version: ModelVersion, data: DatasetRef, settings: Settings, split: str) -> Outcomes:
    stage = stage_of(settings, version.name, pinned(version), data, split)
    return evaluate_model(stage, settings).outcomes


def _lock_name(name: str) -> str:
    return f"vit-gate-{name}"


def _require_lock(name: str) -> None:
    """Make the lock if it is not there; Prefect lets work pass a limit it does not know."""
    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name(_lock_name(name), 1)
