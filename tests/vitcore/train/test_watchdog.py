"""A rank that stands still ends all of them, with a sentence that says which one stood where."""

from __future__ import annotations

import time
from typing import Any

import pytest

from vitcore.recipe import Recipe
from vitcore.train.watchdog import Watchdog
from vitcore.world import World

PATIENCE = "0.05 min"


@pytest.mark.parametrize("how", ["asleep", "stopped"])
def test_a_hang_names_the_rank_and_where_it_stands(plain: Recipe, make_request: Any, processes: Any, how: str) -> None:
    request = make_request(plain, hang_after=PATIENCE).model_copy(update={"identity": how})
    ranks, _ = processes.ranks(3, {"tasks": [["hang", request.model_dump(mode="json")]]})
    try:
        for rank in ranks if how == "asleep" else ranks[:2]:
            rank.join(60)
            assert rank.exitcode == 1, rank.log.read_text()
        said = ranks[0].log.read_text()
        waiting = "computing, or waiting for others, step 3"
        assert f"rank 0 {waiting}; rank 1 {waiting}; rank 2 " in said
        if how == "asleep":
            assert "rank 2 loading its photographs, step 3" in said
        else:
            assert "rank 2 does not answer (last heard: " in said
        assert "no step for" in said
    finally:
        for rank in ranks:
            if rank.is_alive():
                rank.kill()
            rank.join(10)


def test_whoever_moves_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step may take five times as long as the longest before it, whatever the patience."""
    ended: list[str] = []
    monkeypatch.setattr(Watchdog, "_end", lambda self, sentence, beat: ended.append(sentence))
    with Watchdog(World(), 0.2, ended.append) as watchdog:
        for step in range(8):
            watchdog.at(step, "computing")
            time.sleep(0.1)
        assert ended == []
        time.sleep(1.2)
    assert "no step for" in ended[0]
    assert "rank 0 computing, step 7" in ended[0]


def test_without_patience_nothing_is_watched() -> None:
    with Watchdog(World(), 0, print) as watchdog:
        watchdog.at(1, "computing")
        assert not watchdog._thread.is_alive()
