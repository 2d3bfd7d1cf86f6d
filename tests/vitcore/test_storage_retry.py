"""Trying again: what is, how often, for how long, and what is said in the end."""

from __future__ import annotations

import random
import time

import pytest

from vitcore.errors import RequestError
from vitcore.storage import retry
from vitcore.storage.retry import patiently


class AnswerError(Exception):
    """An error as an S3 client raises it."""

    def __init__(self, status: int, code: str, text: str = "text") -> None:
        super().__init__(text)
        self.response = {"ResponseMetadata": {"HTTPStatusCode": status}, "Error": {"Code": code}}


class ParamValidationError(Exception):
    """Named like the client's own."""


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    return slept


class Store:
    """Fails with these errors, one after the other, then answers."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.asked = 0

    def __call__(self) -> str:
        self.asked += 1
        if self.errors:
            raise self.errors.pop(0)
        return "answer"


@pytest.mark.parametrize(
    "error",
    [
        OSError("reset"),
        TimeoutError(),
        RuntimeError("Session is closed"),
        AnswerError(503, "SlowDown"),
        AnswerError(500, "InternalError"),
        AnswerError(429, "TooManyRequests"),
        AnswerError(400, "RequestTimeout"),
        AnswerError(404, "NoSuchUpload"),
        AnswerError(409, "ConditionalRequestConflict"),
    ],
)
def test_what_may_pass_is_tried_again_after_growing_pauses(error: Exception, pauses: list[float]) -> None:
    store = Store(*[error] * 5)
    assert patiently("s3://b/x", "read", store) == "answer"
    assert store.asked == 6
    assert all(0.1 * 2**n <= pause <= 0.2 * 2**n for n, pause in enumerate(pauses))
    assert len(pauses) == 5


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (FileNotFoundError("b/x"), FileNotFoundError),
        (AnswerError(404, "NoSuchKey"), FileNotFoundError),
        (PermissionError("no"), PermissionError),
        (AnswerError(403, "SignatureDoesNotMatch"), PermissionError),
        (AnswerError(400, "InvalidBucketName"), OSError),
        (AnswerError(501, "NotImplemented"), OSError),
        (ParamValidationError("Invalid bucket name"), OSError),
        (ValueError("Failed to list"), OSError),
        (NotImplementedError(), RequestError),
    ],
)
def test_what_will_not_pass_is_said_at_once(error: Exception, kind: type[Exception], pauses: list[float]) -> None:
    store = Store(error)
    with pytest.raises(kind, match=r"s3://b/x c(ould no|anno)t be read: ") as failure:
        patiently("s3://b/x", "read", store)
    assert type(failure.value) is kind
    assert store.asked == 1
    assert pauses == []
    assert failure.value.__context__ is None


def test_our_own_errors_and_slips_pass_through(pauses: list[float]) -> None:
    for error in (RequestError("wrong"), TypeError("slip"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as failure:
            patiently("s3://b/x", "read", Store(error))
        assert failure.value is error


def test_tries_and_time_are_bounded(pauses: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(*[OSError("503")] * 99)
    with pytest.raises(OSError, match="s3://b/x could not be written in 6 tries: 503"):
        patiently("s3://b/x", "written", store)
    assert store.asked == 6
    monkeypatch.setattr(retry, "_PATIENCE", -1.0)
    with pytest.raises(OSError, match="could not be written: 503"):
        patiently("s3://b/x", "written", store)


def test_nothing_secret_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter22")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "tokentoken")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "azurekey")
    text = (
        "GET http://user:pass22@host/?X-Amz-Credential=cred22%2F&X-Amz-Signature=sign22&x=1 hunter22 tokentoken\n"
        "Authorization: AWS4-HMAC azurekey"
    )
    with pytest.raises(OSError, match="http://") as failure:
        patiently("s3://b/x", "read", Store(AnswerError(400, "Bad", text)))
    said = str(failure.value)
    assert not [secret for secret in ("22", "token", "AWS4", "azure", "\n") if secret in said]
    assert "http://***host/" in said


def test_the_seeds_of_a_training_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "_FIRST_PAUSE", 0.0)
    random.seed(5)
    before = random.getstate()
    patiently("s3://b/x", "read", Store(OSError("reset")))
    assert random.getstate() == before
