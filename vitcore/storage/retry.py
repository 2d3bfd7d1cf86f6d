"""Operations on a store, tried again while that may help, and errors in words of our own.

Clients of stores raise what they like: `OSError`, errors of HTTP libraries, of parsers, of event loops. Their texts and
causes may hold signatures or the credentials of an endpoint's URL. So none of them leaves this module.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from vitcore.errors import RequestError, WorkError

T = TypeVar("T")

_TRIES = 6
_FIRST_PAUSE = 0.2  # seconds, doubled from try to try
_PATIENCE = 60.0  # seconds after which no further try begins

_random = random.SystemRandom()  # neither seeded by nor visible to whoever trains

_OUR_OWN = (RequestError, WorkError, TypeError, AttributeError, AssertionError, MemoryError)
# Answers that are called the client's fault and yet come from a broken connection. (An upload in parts is no more where
# it was completed and the answer was lost.)
_PASSING_CODES = frozenset(
    {"BadDigest", "IncompleteBody", "NoSuchUpload", "RequestTimeout", "XAmzContentSHA256Mismatch"}
)
_PASSING_STATUSES = frozenset({408, 409, 425, 429})
# An answer that broke off, to aiohttp; the code it bears, 400, is what a server would say of such a message.
_MALFORMED = "HttpProcessingError"
_SECRETS = re.compile(
    r"(?<=//)[^/@\s]+@"  # user:password@ in a URL
    r"|(?i:(?<=signature=)|(?<=credential=)|(?<=security-token=)|(?<=authorization: ))[^\s&,'\"]+"
)
_SECRET_VARIABLES = re.compile(r"SECRET|TOKEN|PASSWORD|ACCESS_KEY|ACCOUNT_KEY|CONNECTION_STRING|SAS")


def patiently(url: str, done: str, operation: Callable[[], T]) -> T:
    """Call `operation` until it succeeds, with growing, jittered pauses.

    Args:
        url: what it works on, for the message.
        done: the participle of what it does: ``read``.
        operation: is repeated as a whole, so it must be harmless to repeat.

    Raises:
        FileNotFoundError, PermissionError: at once.
        OSError: a failure that repeating cannot mend, at once; any other after 6 tries or a minute.
        RequestError: the store cannot do this at all.
    """
    started = time.monotonic()
    pause = _FIRST_PAUSE
    for tries in range(1, _TRIES + 1):
        try:
            return operation()
        except NotImplementedError:
            failure: Exception = RequestError(f"{url} cannot be {done}: its store does not allow it; give another URL")
            break
        except _OUR_OWN:
            raise
        except Exception as error:
            final, failure = _in_our_words(error, url, done, tries)
            if final or time.monotonic() - started > _PATIENCE:
                break
        if tries < _TRIES:
            time.sleep(_random.uniform(pause / 2, pause))
            pause *= 2
    raise failure  # outside of the handler, so that the client's error is not its context


def pause_up_to(seconds: float) -> None:
    """Sleep for a random time, so that those who collided do not meet again."""
    time.sleep(_random.uniform(0, seconds))


def status_of(error: BaseException) -> int | None:
    """The HTTP status of a store's answer, where the error or what caused it tells."""
    for one in _causes(error):
        if any(kind.__name__ == _MALFORMED for kind in type(one).__mro__):
            continue
        response = getattr(one, "response", None)
        if isinstance(response, dict):
            found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:
            found = next((getattr(one, name) for name in ("status", "status_code", "code") if hasattr(one, name)), None)
        if isinstance(found, int):
            return found
    return None


def _in_our_words(error: Exception, url: str, done: str, tries: int) -> tuple[bool, OSError]:
    """Whether another try is in vain, and the error to raise then."""
    status, code = status_of(error), _code_of(error)
    often = f" in {tries} tries" if tries > 1 else ""
    begin = f"{url} could not be {done}{often}"
    if code in _PASSING_CODES:
        return False, OSError(f"{begin}: {_brief(error)}")
    if isinstance(error, FileNotFoundError) or status == 404:
        return True, FileNotFoundError(f"{begin}: it does not exist" + (f" ({code})" if code else ""))
    refused = isinstance(error, PermissionError) or status in (401, 403) or "Credential" in type(error).__name__
    if refused:
        return True, PermissionError(
            f"{begin}: the store refused access ({_brief(error)}); check its credentials in the environment"
        )
    if isinstance(error, (FileExistsError, IsADirectoryError, NotADirectoryError)):
        return True, type(error)(f"{begin}: {_brief(error)}")
    theirs = status is None or status >= 500 or status in _PASSING_STATUSES
    final = not theirs or status == 501 or isinstance(error, ValueError) or "Validation" in type(error).__name__
    return final, OSError(f"{begin}: {_brief(error)}")


def _code_of(error: BaseException) -> str | None:
    for one in _causes(error):
        response = getattr(one, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code"))
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    one: BaseException | None = error
    for _ in range(8):
        if one is None:
            return
        yield one
        one = one.__cause__ or one.__context__


def _brief(error: Exception) -> str:
    """An error's text on one line, without anything secret."""
    text = " ".join(str(error).split()) or type(error).__name__
    for name, value in os.environ.items():
        if len(value) >= 4 and _SECRET_VARIABLES.search(name):
            text = text.replace(value, "***")
    return _SECRETS.sub("***", text)[:300]
