import json
import math
import threading
import time

import pytest
from mlflow.exceptions import MlflowException

from tasks.on_mlflow import sink as sink_module
from tasks.on_mlflow.client import client
from tasks.on_mlflow.events import read_events
from tasks.on_mlflow.sink import ATTEMPTS, MARKER, MlflowSink
from tasks.on_mlflow.spool import Record, Spool, read_segment


def history(uri, run_id, name):
    return [(metric.step, metric.value) for metric in client(uri).get_metric_history(run_id, name)]


def open_sink(uri, run_id, **changes):
    return MlflowSink(uri, run_id, **{"interval": 0.02, "deadline": 20.0, **changes})


class Flaky:
    """A client whose `log_batch` fails while `down` is set, before or after the server took the batch."""

    def __init__(self, real, after=False):
        self.real, self.after = real, after
        self.down = threading.Event()
        self.calls = 0

    def __getattr__(self, name):
        return getattr(self.real, name)

    def log_batch(self, *args, **kwargs):
        self.calls += 1
        if self.after:
            self.real.log_batch(*args, **kwargs)
        if self.down.is_set():
            raise MlflowException("temporarily away")
        if not self.after:
            self.real.log_batch(*args, **kwargs)


@pytest.fixture
def flaky(uri, monkeypatch):
    fake = Flaky(client(uri))
    monkeypatch.setattr(sink_module, "client", lambda _: fake)
    return fake


def test_each_step_once_with_its_own_time(uri, run_id, tmp_path):
    before = time.time() * 1000
    sink = open_sink(uri, run_id)
    for step in range(50):
        sink.log(step, {"loss": 1 / (step + 1), "lr": 0.1})
    sink.close()
    entries = client(uri).get_metric_history(run_id, "loss")
    assert [(entry.step, entry.value) for entry in entries] == [(step, 1 / (step + 1)) for step in range(50)]
    assert all(before - 1 <= entry.timestamp <= time.time() * 1000 for entry in entries)
    assert list((tmp_path / "spool").iterdir()) == []


def test_a_new_attempt_skips_what_is_logged(uri, run_id):
    first = open_sink(uri, run_id)
    for step in range(10):
        first.log(step, {"loss": float(step)})
    first.close()
    second = open_sink(uri, run_id)
    for step in range(6, 14):
        second.log(step, {"loss": 100.0 + step})
    second.close()
    assert history(uri, run_id, "loss") == [(s, float(s)) for s in range(10)] + [(s, 100.0 + s) for s in range(10, 14)]
    assert [value for _, value in history(uri, run_id, MARKER)] == [1.0] * 10 + [2.0] * 4
    assert client(uri).get_run(run_id).data.tags[ATTEMPTS] == "2"


def test_a_step_reported_in_two_parts_keeps_both(uri, run_id):
    first = open_sink(uri, run_id)
    first.log(7, {"loss": 1.0})
    first.close()
    second = open_sink(uri, run_id)
    second.log(7, {"loss": 2.0, "val/top1": 0.5})
    second.log(7, {"val/top1": 0.6, "val/loss": 0.7})
    second.close()
    assert history(uri, run_id, "loss") == [(7, 1.0)]
    assert history(uri, run_id, "val/top1") == [(7, 0.5)]
    assert history(uri, run_id, "val/loss") == [(7, 0.7)]


def test_nothing_is_lost_while_the_server_is_away(uri, run_id, flaky):
    flaky.down.set()
    sink = open_sink(uri, run_id)
    for step in range(30):
        sink.log(step, {"loss": float(step)})
        time.sleep(0.01)
    assert flaky.calls >= 2
    assert history(uri, run_id, "loss") == []
    flaky.down.clear()
    sink.log(30, {"loss": 30.0})
    sink.close()
    assert history(uri, run_id, "loss") == [(step, float(step)) for step in range(31)]


def test_an_answer_lost_on_the_way_back_duplicates_nothing(uri, run_id, monkeypatch):
    fake = Flaky(client(uri), after=True)
    monkeypatch.setattr(sink_module, "client", lambda _: fake)
    fake.down.set()
    sink = open_sink(uri, run_id)
    for step in range(5):
        sink.log(step, {"loss": math.nan if step == 2 else float(step)})
    sink.event(4, "best", "top1 0.5")
    while fake.calls < 2:
        time.sleep(0.01)
    fake.down.clear()
    sink.close()
    assert [step for step, _ in history(uri, run_id, "loss")] == [0, 1, 2, 3, 4]
    assert len(read_events(client(uri).get_run(run_id).data.tags)) == 1


def test_what_a_killed_process_left_is_sent_by_the_next(uri, run_id, flaky, tmp_path, caplog):
    flaky.down.set()
    first = open_sink(uri, run_id, deadline=0.2)
    for step in range(5):
        first.log(step, {"loss": float(step)})
    first.event(4, "checkpoint", "step 4")
    first.close()
    assert "did not take everything" in caplog.text
    left = list((tmp_path / "spool").iterdir())
    assert left
    with left[-1].open("ab") as file:
        file.write(b'{"time_ms": 1, "st')  # torn by the kill

    flaky.down.clear()
    second = open_sink(uri, run_id)
    for step in range(3, 8):
        second.log(step, {"loss": 10.0 + step})
    second.close()
    expected = [(step, float(step)) for step in range(5)] + [(step, 10.0 + step) for step in range(5, 8)]
    assert history(uri, run_id, "loss") == expected
    assert list((tmp_path / "spool").iterdir()) == []


def test_odd_values_and_names(uri, run_id):
    sink = open_sink(uri, run_id)
    sink.log(0, {"loss": math.inf, "grad": -math.inf, "acc/class 1 (é)?": math.nan, "int": 3})
    sink.log(1, {"loss": math.inf})
    sink.close()
    assert [math.isnan(value) for _, value in history(uri, run_id, "loss")] == [True, True]
    events = read_events(client(uri).get_run(run_id).data.tags)
    assert [(event.step, event.kind) for event in events] == [(0, "infinite")]
    assert "loss, grad" in events[0].detail
    assert history(uri, run_id, "int") == [(0, 3.0)]


def test_a_refused_record_is_put_aside_and_the_rest_goes_on(uri, run_id, flaky, tmp_path, monkeypatch):
    def refuse(run, metrics=(), tags=()):
        if any(metric.key == "bad" for metric in metrics):
            raise MlflowException.invalid_parameter_value("no")
        flaky.real.log_batch(run, metrics=metrics, tags=tags)

    monkeypatch.setattr(flaky, "log_batch", refuse)
    sink = open_sink(uri, run_id)
    for step in range(9):
        sink.log(step, {"bad" if step == 5 else "loss": 1.0})
    sink.close()
    assert [step for step, _ in history(uri, run_id, "loss")] == [0, 1, 2, 3, 4, 6, 7, 8]
    rejected = (tmp_path / "spool" / f"{run_id}.rejected.jsonl").read_text()
    assert json.loads(rejected)["step"] == 5


def test_many_steps_go_in_one_call_and_a_step_is_not_cut(uri, run_id, flaky):
    sink = open_sink(uri, run_id, interval=0.5)
    for step in range(1000):
        sink.log(step, {"a": 1.0, "b": 2.0, "c": 3.0})
    sink.close()
    assert flaky.calls <= 10
    assert len(history(uri, run_id, "c")) == 1000


def test_logging_returns_at_once(uri, run_id, flaky):
    flaky.down.set()
    sink = open_sink(uri, run_id, deadline=0.1)
    start = time.perf_counter()
    for step in range(1000):
        sink.log(step, {"loss": 1.0, "lr": 0.1})
    assert (time.perf_counter() - start) / 1000 < 1e-3
    sink.close()


def test_segments_round_trip(tmp_path):
    spool = Spool(tmp_path, "run")
    assert spool.rotate() is None
    records = [Record(1, 2, {"loss": 0.5}), Record(3, 4, kind="best", detail="a\nb")]
    for record in records:
        spool.append(record)
    assert read_segment(spool.rotate()) == records
    assert spool.leftovers() == []
    assert len(Spool(tmp_path, "run").leftovers()) == 1
    assert Spool(tmp_path, "other").leftovers() == []
