"""Processes that want the same thing at the same moment end up with one of it."""

import multiprocessing

from tasks.on_mlflow import registry, runs

PROCESSES = 3


def run(start, answers, uri, job):
    start.wait()
    try:
        answers.put(job(uri))
    except BaseException as error:
        answers.put(repr(error))


def at_once(uri, job):
    """The answers of processes that begin together; forked before anything in this one has opened the database."""
    context = multiprocessing.get_context("fork")
    start, answers = context.Barrier(PROCESSES), context.Queue()
    processes = [context.Process(target=run, args=(start, answers, uri, job)) for _ in range(PROCESSES)]
    for process in processes:
        process.start()
    found = [answers.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(30)
    return found


def open_run(uri):
    return runs.open_run(uri, experiment="race", identity="train-9", name="n", params={"a": 1}, tags={"b": "c"})


def register(uri):
    version = registry.register(
        uri,
        name="race",
        identity="train-9",
        run_id="",
        model_uri="file:///nowhere",
        tags={},
        description="",
    )
    return version.uri


def register_own(uri):
    identity = multiprocessing.current_process().name
    return registry.register(
        uri, name="race", identity=identity, run_id="", model_uri="file:///nowhere", tags={}, description=""
    ).version


def test_one_run(uri):
    answers = at_once(uri, open_run)
    assert len(set(answers)) == 1
    assert runs.get(uri, answers[0]).status == "RUNNING"


def test_one_version_an_identity(uri):
    assert set(at_once(uri, register)) == {"models:/race/1"}
    assert len(registry.versions(uri, "race")) == 1


def test_all_versions_of_different_identities(uri):
    assert sorted(at_once(uri, register_own)) == [1, 2, 3]
