"""A worker's place and its collectives, alone and in gloo groups."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vitcore import world
from vitcore.world import World


def test_alone_every_collective_is_the_value_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    here = world.current("cpu")
    assert here == World(0, 1, torch.device("cpu"))
    assert here.is_main
    assert not here.distributed
    values = torch.tensor([1.0, 2.0])
    assert here.sum(values) is values
    assert here.gather("x") == ["x"]
    assert here.broadcast({"a": 1}) == {"a": 1}
    here.share([values])
    assert values.tolist() == [1, 2]


@pytest.mark.parametrize("size", [2, 3])
def test_a_group_under_torchruns_variables(size: int, processes: Any) -> None:
    answers = [answer[0] for answer in processes.group(size, {"tasks": [["collectives", None]]})]
    for rank, answer in enumerate(answers):
        assert answer["place"] == [rank, size, rank == 0, True]
        assert answer["sum"] == [size, sum(range(size))]
        assert answer["gather"] == [{"rank": r} for r in range(size)]
        assert answer["broadcast"] == "from 0"
        assert answer["share"] == [10, 2]


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert world.pick_device("auto", 1) == torch.device("cpu")
    assert chosen == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert world.pick_device("auto", 1) == torch.device("cuda", 1)
    assert world.pick_device("cuda", 3) == torch.device("cuda", 1)
    assert world.pick_device("cpu", 1) == torch.device("cpu")
    assert chosen == [torch.device("cuda", 1)] * 2
