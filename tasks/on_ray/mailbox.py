"""What workers say while they work, carried to the process that waits for them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ray

_POLL_S = 0.3
Message = Mapping[str, Any]


class Mailbox:
    """Holds messages until they are fetched; lives as an actor."""

    def __init__(self) -> None:
        self._messages: list[Message] = []

    def post(self, message: Message) -> None:
        """Leave a message."""
        self._messages.append(message)

    def fetch(self) -> list[Message]:
        """Take all messages, oldest first."""
        taken, self._messages = self._messages, []
        return taken


@contextlib.contextmanager
def listening(listener: Callable[[Message], None]) -> Iterator[Any]:
    """A mailbox whose messages are handed to `listener`, on a thread of this process, until the block ends."""
    actor: Any = ray.remote(Mailbox)
    mailbox = actor.options(num_cpus=0).remote()
    done = threading.Event()

    def deliver() -> None:
        for message in ray.get(mailbox.fetch.remote()):
            listener(message)

    def poll() -> None:
        while not done.wait(_POLL_S):
            deliver()

    thread = threading.Thread(target=poll, name="vit-mailbox", daemon=True)
    thread.start()
    try:
        yield mailbox
    finally:
        done.set()
        thread.join()
        with contextlib.suppress(ray.exceptions.RayError):
            deliver()
        ray.kill(mailbox)
