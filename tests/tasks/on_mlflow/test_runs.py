import json
import logging
import math
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from tasks.on_mlflow import runs
from tasks.on_mlflow.client import client, connect, quiet
from tasks.on_mlflow.events import event_tag, read_events
from vitcore.errors import WorkError

BASE = {"experiment": "elpv", "identity": "train-7", "name": "deit"}


def open_run(uri, **changes):
    return runs.open_run(uri, **{**BASE, "params": {}, "tags": {}, **changes})


def artifact(uri, run_id, path):
    return Path(client(uri).download_artifacts(run_id, path))


def test_an_unfinished_run_is_continued_and_a_finished_one_is_not(uri):
    first = open_run(uri)
    assert runs.find_finished(uri, "elpv", "train-7") is None
    runs.fail(uri, first, "out of memory")
    failed = runs.get(uri, first)
    assert (failed.status, failed.tags[runs.FAILURE]) == ("FAILED", "out of memory")

    assert open_run(uri, name="other name") == first
    assert runs.get(uri, first).status == "RUNNING"
    runs.finish(uri, first)
    found = runs.find_finished(uri, "elpv", "train-7")
    assert found is not None
    assert (found.run_id, found.status, found.name, found.experiment) == (first, "FINISHED", "deit", "elpv")
    assert runs.FAILURE not in found.tags

    assert open_run(uri) != first
    assert open_run(uri, identity="train-8") != first


def test_fresh_supersedes_what_is_unfinished(uri):
    old = open_run(uri)
    new = open_run(uri, fresh=True)
    assert new != old
    assert runs.get(uri, old).status == "KILLED"
    assert runs.get(uri, old).tags[runs.SUPERSEDED] == new
    assert open_run(uri) == new


def test_nothing_is_found_where_nothing_is(uri):
    assert runs.find_finished(uri, "no such experiment", "train-7") is None


def test_params_too_long_or_changed_never_raise(uri):
    many = {f"field.{i}": i for i in range(250)}
    run_id = open_run(uri, params={"long": "x" * 9000, "list": [1, 2], "none": None, "workers": 2, "é": 1, **many})
    kept = runs.get(uri, run_id).params
    assert len(kept["long"]) == 6000
    assert (kept["list"], kept["none"], kept["field.249"]) == ("[1,2]", "null", "249")
    assert json.loads(artifact(uri, run_id, "params.json").read_text())["long"] == "x" * 9000

    assert open_run(uri, params={"workers": 4, "new": "y"}) == run_id
    info = runs.get(uri, run_id)
    assert (info.params["workers"], info.params["new"]) == ("2", "y")
    changed = [event for event in read_events(info.tags) if event.kind == "changed"]
    assert changed[0].detail == "workers: 2 → 4"


def test_tags_are_cut(uri):
    run_id = open_run(uri, tags={"long": "y" * 9000})
    assert len(runs.get(uri, run_id).tags["long"]) == 5000


def test_artifacts_lie_beside_the_database(uri, tmp_path):
    run_id = open_run(uri)
    figure = Figure()
    figure.subplots().plot([1, 2])
    runs.log_figures(uri, run_id, {"confusion": figure})
    runs.log_json(uri, run_id, "report.json", {"top1": 0.5})
    runs.log_text(uri, run_id, "card.md", "# elpv")
    file = tmp_path / "notes.txt"
    file.write_text("hello")
    runs.log_file(uri, run_id, file, "notes")
    found = {path.name for path in (tmp_path / "mlartifacts" / "elpv" / run_id / "artifacts").rglob("*.*")}
    assert found == {"confusion.png", "report.json", "card.md", "notes.txt"}


def test_final_metrics_stand_once(uri):
    run_id = open_run(uri)
    runs.log_metrics(uri, run_id, {"test/top1": 0.75, "class: cracked?": 0.5, "odd": math.nan})
    runs.log_metrics(uri, run_id, {"test/top1": 0.5, "test/auroc": 0.8})
    assert runs.get(uri, run_id).metrics["test/top1"] == 0.75
    assert len(client(uri).get_metric_history(run_id, "test/top1")) == 1
    assert client(uri).get_metric_history(run_id, "test/auroc")[0].value == 0.8


def test_events_and_datasets_are_visible(uri):
    run_id = open_run(uri)
    said = ((3, "resumed", "from step 3: again"), (5, "checkpoint", "step 5"), (9, "checkpoint", "step 9"))
    for time_ms, (step, kind, detail) in enumerate(said, 1):
        client(uri).set_tag(run_id, *event_tag(time_ms, step, kind, detail))
    events = read_events(runs.get(uri, run_id).tags)
    assert [(event.step, event.kind, event.detail) for event in events] == [
        (3, "resumed", "from step 3: again"),
        (9, "checkpoint", "step 9"),
    ]
    assert events[0].time.tzinfo is not None
    runs.log_dataset(uri, run_id, name="elpv", digest="ab" * 40, url="/data/elpv", role="training")
    assert client(uri).get_run(run_id).inputs.dataset_inputs[0].dataset.name == "elpv"


def test_the_experiment_is_made_once_and_restored_when_deleted(uri):
    first = open_run(uri)
    mlflow = client(uri)
    mlflow.delete_experiment(mlflow.get_run(first).info.experiment_id)
    assert mlflow.get_experiment(mlflow.get_run(open_run(uri)).info.experiment_id).lifecycle_stage == "active"


def test_a_server_that_is_away_is_one_sentence():
    with pytest.raises(WorkError, match="does not answer"):
        connect("http://127.0.0.1:9")


def test_importing_mlflow_leaves_log_levels_alone():
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    with quiet():
        logging.getLogger("mlflow").setLevel(logging.INFO)
    assert logging.getLogger("mlflow").level == logging.ERROR
