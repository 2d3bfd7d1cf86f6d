"""One truthful MLflow run a product: opened, continued after a crash, finished, and found again by its identity.

A run carries its identity in the tag `vit.identity`. FINISHED means that the product is whole; everything else is
unfinished and is continued by the next one who wants the same identity.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from tasks.on_mlflow.client import connect, local_root
from tasks.on_mlflow.events import event_tag
from vitcore.errors import WorkError
from vitcore.identity import canonical_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

IDENTITY = "vit.identity"
"""Tag with the identity of what a run (or a model version) produces."""
SUPERSEDED = "vit.superseded"
"""Tag of an unfinished run that `fresh` replaced: the run that stands for the identity now."""
FAILURE = "vit.failure"
"""Tag with the reason a run failed."""

_PARAM_CHARACTERS = 6000  # MLflow's column
_TAG_CHARACTERS = 5000  # holds for every MLflow release and database
_SETTLE_S = 0.5
_WHOLE_PARAMS = "params.json"


class RunInfo(BaseModel):
    """What is known about a run."""

    model_config = ConfigDict(frozen=True)

    run_id: str
    experiment: str
    name: str
    identity: str
    status: str
    started: datetime
    ended: datetime | None
    params: dict[str, str]
    tags: dict[str, str]
    metrics: dict[str, float]
    """Latest value of each metric."""


def open_run(
    tracking_uri: str,
    *,
    experiment: str,
    identity: str,
    name: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    fresh: bool = False,
) -> str:
    """The id of the one run for `identity`, RUNNING: the unfinished one continued, else a new one.

    Params longer than MLflow's column are cut, and all of them kept whole in the artifact ``params.json``. A param that
    has changed since the run began keeps its first value; the change becomes an event.

    Args:
        tracking_uri: MLflow server or SQLite file.
        experiment: name of the experiment; made when there is none.
        identity: name of the product (`vitcore.identity.identity`).
        name: what the run is called in the UI.
        params: JSON values; strings stay as they are.
        tags: further tags, replaced on a continued run.
        fresh: close unfinished runs of the identity as KILLED and begin a new one.
    """
    mlflow = connect(tracking_uri)
    experiment_id = _experiment_id(mlflow, tracking_uri, experiment)
    all_tags = {**tags, IDENTITY: identity}
    unfinished = _unfinished(mlflow, experiment_id, identity)
    if unfinished and not fresh:
        run_id = str(unfinished[0].info.run_id)
        mlflow.update_run(run_id, status="RUNNING")
    else:
        created = mlflow.create_run(experiment_id, tags={IDENTITY: identity}, run_name=name)
        run_id = str(created.info.run_id)
        if fresh:
            _supersede(mlflow, unfinished, run_id)
        else:
            run_id = _settle(mlflow, experiment_id, identity, run_id)
    _set_tags(mlflow, run_id, all_tags)
    _log_params(mlflow, run_id, params)
    return run_id


def find_finished(tracking_uri: str, experiment: str, identity: str) -> RunInfo | None:
    """The newest FINISHED run of an identity: the product exists."""
    mlflow = connect(tracking_uri)
    found = mlflow.get_experiment_by_name(experiment)
    if found is None:
        return None
    runs = mlflow.search_runs(
        [found.experiment_id],
        f"tags.`{IDENTITY}` = '{identity}' and attributes.status = 'FINISHED'",
        max_results=1,
        order_by=["attributes.end_time DESC"],
    )
    return _info(runs[0], experiment) if runs else None


def get(tracking_uri: str, run_id: str) -> RunInfo:
    """What is known about a run."""
    mlflow = connect(tracking_uri)
    run = mlflow.get_run(run_id)
    return _info(run, mlflow.get_experiment(run.info.experiment_id).name)


def finish(tracking_uri: str, run_id: str) -> None:
    """Commit: the product is whole, and whoever looks for its identity finds this run."""
    mlflow = connect(tracking_uri)
    if FAILURE in mlflow.get_run(run_id).data.tags:
        mlflow.delete_tag(run_id, FAILURE)
    mlflow.set_terminated(run_id, "FINISHED")


def fail(tracking_uri: str, run_id: str, why: str, status: Literal["FAILED", "KILLED"] = "FAILED") -> None:
    """Close a run that did not make its product; the next `open_run` of the identity continues it."""
    mlflow = connect(tracking_uri)
    mlflow.set_tag(run_id, FAILURE, cut(why, _TAG_CHARACTERS))
    mlflow.set_terminated(run_id, status)


def fail_with(tracking_uri: str, run_id: str, error: BaseException) -> None:
    """Close a run for an exception: KILLED where a person or the system stopped it, else FAILED."""
    stopped = not isinstance(error, Exception)
    fail(tracking_uri, run_id, str(error) or "stopped", "KILLED" if stopped else "FAILED")


def log_metrics(tracking_uri: str, run_id: str, metrics: Mapping[str, float], step: int = 0) -> None:
    """Final figures in one call; a metric that already stands at this step or a later one is left as it is."""
    from mlflow.entities import Metric

    mlflow = connect(tracking_uri)
    standing = latest_steps(mlflow.get_run(run_id))
    now = int(time.time() * 1000)
    new = [
        Metric(metric_name(key), float(value), now, step)
        for key, value in metrics.items()
        if standing.get(metric_name(key), -1) < step
    ]
    mlflow.log_batch(run_id, metrics=new)


def log_figures(tracking_uri: str, run_id: str, figures: Mapping[str, Figure]) -> None:
    """Figures as ``figures/<name>.png``."""
    mlflow = connect(tracking_uri)
    for name, figure in figures.items():
        mlflow.log_figure(run_id, figure, f"figures/{name}.png")


def log_json(tracking_uri: str, run_id: str, name: str, value: Any) -> None:
    """A JSON value as the artifact `name`."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    connect(tracking_uri).log_text(run_id, text, name)


def log_text(tracking_uri: str, run_id: str, name: str, text: str) -> None:
    """Text (Markdown, a log) as the artifact `name`."""
    connect(tracking_uri).log_text(run_id, text, name)


def log_file(tracking_uri: str, run_id: str, path: Path, folder: str | None = None) -> None:
    """A file under its own name, in the artifact folder `folder`."""
    connect(tracking_uri).log_artifact(run_id, str(path), folder)


def fetch_file(tracking_uri: str, run_id: str, name: str, into: Path) -> Path:
    """An artifact of a run, downloaded into the folder `into`.

    Raises:
        WorkError: the run has no such artifact.
    """
    from mlflow.exceptions import MlflowException

    try:
        return Path(connect(tracking_uri).download_artifacts(run_id, name, str(into)))
    except (MlflowException, OSError) as error:
        raise WorkError(f"run {run_id} has lost its artifact {name} ({error}); repeat it with --fresh") from error


def history(tracking_uri: str, run_id: str, metrics: Sequence[str]) -> list[dict[str, float]]:
    """Every logged value of some metrics, a row a step: ``{"step": 10, "train/loss": 0.7}``."""
    mlflow = connect(tracking_uri)
    rows: dict[int, dict[str, float]] = {}
    for name in metrics:
        for point in mlflow.get_metric_history(run_id, metric_name(name)):
            rows.setdefault(int(point.step), {"step": float(point.step)})[name] = float(point.value)
    return [rows[step] for step in sorted(rows)]


def log_dataset(tracking_uri: str, run_id: str, *, name: str, digest: str, url: str, role: str) -> None:
    """A dataset version that went in, shown under "Datasets" in the UI; `role` is ``training`` or ``evaluation``."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = json.dumps({"uri": url})
    dataset = Dataset(name=name, digest=digest[:36], source_type="webdataset", source=source)
    connect(tracking_uri).log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", role)])])


def latest_steps(run: Run) -> dict[str, int]:
    """The highest step each metric of a run was logged at."""
    return {metric.key: int(metric.step) for metric in run.data.to_proto().metrics}


def metric_name(name: str) -> str:
    """`name` with the characters MLflow refuses replaced: one bad class name must not lose a whole batch."""
    kept = "".join(c if c.isalnum() or c in "_-. /:" else "_" for c in name)
    return cut(kept.strip("/") or "_", 250)


def cut(text: str, most: int) -> str:
    """At most `most` characters, the cut shown."""
    return text if len(text) <= most else text[: most - 1] + "…"


def _experiment_id(mlflow: MlflowClient, tracking_uri: str, name: str) -> str:
    from mlflow.exceptions import MlflowException

    found = mlflow.get_experiment_by_name(name)
    if found is None:
        try:
            return str(mlflow.create_experiment(name, artifact_location=_artifact_location(tracking_uri, name)))
        except MlflowException:
            found = mlflow.get_experiment_by_name(name)  # made by another process since we looked
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        mlflow.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def _artifact_location(tracking_uri: str, experiment: str) -> str | None:
    """Beside the database of a local store (MLflow's default is the working directory); a server knows its own."""
    root = local_root(tracking_uri)
    folder = "".join(c if c.isalnum() or c in "_-." else "-" for c in experiment)
    return None if root is None else (root / "mlartifacts" / folder).as_uri()


def _unfinished(mlflow: MlflowClient, experiment_id: str, identity: str) -> list[Run]:
    """Oldest first, so that everyone picks the same."""
    runs = mlflow.search_runs([experiment_id], f"tags.`{IDENTITY}` = '{identity}' and attributes.status != 'FINISHED'")
    live = [run for run in runs if SUPERSEDED not in run.data.tags]
    return sorted(live, key=lambda run: (run.info.start_time, run.info.run_id))


def _settle(mlflow: MlflowClient, experiment_id: str, identity: str, mine: str) -> str:
    """Two that opened at once find each other here: the older run stays, the other is deleted by its maker.

    The pause lets the other's commit become visible: without it, the younger may be seen before the older.
    """
    time.sleep(_SETTLE_S)
    winner = str(_unfinished(mlflow, experiment_id, identity)[0].info.run_id)
    if winner != mine:
        mlflow.delete_run(mine)
    return winner


def _supersede(mlflow: MlflowClient, runs: list[Run], by: str) -> None:
    for run in runs:
        mlflow.set_tag(run.info.run_id, SUPERSEDED, by)
        mlflow.set_terminated(run.info.run_id, "KILLED")


def _set_tags(mlflow: MlflowClient, run_id: str, tags: Mapping[str, str]) -> None:
    from mlflow.entities import RunTag

    mlflow.log_batch(run_id, tags=[RunTag(key, cut(str(value), _TAG_CHARACTERS)) for key, value in tags.items()])


def _log_params(mlflow: MlflowClient, run_id: str, params: Mapping[str, Any]) -> None:
    whole = {key: value if isinstance(value, str) else canonical_json(value) for key, value in params.items()}
    short = {metric_name(key): cut(value, _PARAM_CHARACTERS) for key, value in whole.items()}
    standing = _add_params(mlflow, run_id, short)
    changed = {key: value for key, value in short.items() if standing.get(key, value) != value}
    if changed:
        detail = ", ".join(f"{key}: {cut(standing[key], 80)} → {cut(value, 80)}" for key, value in changed.items())
        mlflow.set_tag(run_id, *event_tag(int(time.time() * 1000), 0, "changed", detail))
    if changed or list(short.values()) != list(whole.values()):
        mlflow.log_text(run_id, json.dumps(dict(params), indent=2, ensure_ascii=False), _WHOLE_PARAMS)


def _add_params(mlflow: MlflowClient, run_id: str, params: Mapping[str, str], tries: int = 4) -> dict[str, str]:
    """Log the params the run has not; returns those it had. Another process may be adding them at this moment."""
    from mlflow.entities import Param
    from mlflow.exceptions import MlflowException

    standing: dict[str, str] = mlflow.get_run(run_id).data.params
    try:
        mlflow.log_batch(run_id, params=[Param(key, params[key]) for key in params if key not in standing])
    except MlflowException:
        if tries == 1:
            raise
        return _add_params(mlflow, run_id, params, tries - 1)
    return standing


def _info(run: Run, experiment: str) -> RunInfo:
    ended = run.info.end_time
    return RunInfo(
        run_id=run.info.run_id,
        experiment=experiment,
        name=run.info.run_name or "",
        identity=run.data.tags.get(IDENTITY, ""),
        status=run.info.status,
        started=_time(run.info.start_time),
        ended=None if ended is None else _time(ended),
        params=run.data.params,
        tags=run.data.tags,
        metrics=run.data.metrics,
    )


def _time(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
