"""What is kept of a teacher's logits, and how close to them it stays."""

from __future__ import annotations

import math

import pytest
import torch

from vitcore.data.loading.batch import Batch
from vitcore.data.teaching.chunk import cut, decode, encode
from vitcore.data.teaching.outputs import Chunk, Outputs, Stream, span_of
from vitcore.data.teaching.stored import _of_rank
from vitcore.recipe import DataConfig


def outputs(classes: int, top: int) -> Outputs:
    stream = Stream(data=DataConfig(), datasets=("0" * 16,), batch_size=4, seed=0)
    return Outputs(dataset="0" * 16, stream=stream, teacher="t", ref="t", top=top, classes=classes, span=3, steps=3)


@pytest.mark.parametrize("spread", [0.01, 1.0, 10.0, 300.0])
@pytest.mark.parametrize("tau", [1.0, 3.0])
def test_all_logits_keep_the_distribution(spread: float, tau: float) -> None:
    logits = torch.randn(200, 50, generator=torch.Generator().manual_seed(1)) * spread + 40
    told = cut(logits, 50)
    assert told.top_SK.dtype == torch.float16
    assert (told.rest_S == -math.inf).all()
    dense = told.dense(50)
    assert dense.isfinite().all()
    assert float(((dense / tau).softmax(1) - (logits / tau).softmax(1)).abs().max()) < 2e-4
    assert torch.equal(told.classes_SK[:, 0], logits.argmax(1))


def test_what_is_left_out_keeps_its_mass() -> None:
    logits = torch.randn(100, 1000, generator=torch.Generator().manual_seed(1)) * 3
    told = cut(logits, 10)
    kept, meant = told.dense(1000).softmax(1), logits.softmax(1)
    torch.testing.assert_close(kept.gather(1, told.classes_SK), meant.gather(1, told.classes_SK), rtol=2e-3, atol=1e-5)
    others = torch.ones_like(kept).scatter(1, told.classes_SK, 0.0)
    torch.testing.assert_close((kept * others).sum(1), (meant * others).sum(1), rtol=2e-3, atol=1e-5)
    assert ((kept * others).amax(1) <= kept.gather(1, told.classes_SK).amin(1) + 1e-6).all()


def test_equal_logits_are_decided_as_argmax_decides() -> None:
    logits = torch.tensor([[1.0, 2, 2, 0], [0, 0, 0, 0], [3, 1, 3, 3], [0, 1e-9, 0, 0]])
    for top in (1, 2, 4):
        assert torch.equal(cut(logits, top).classes_SK[:, 0], logits.argmax(1))


def test_halves_from_autocast_and_logits_far_apart() -> None:
    logits = torch.tensor([[0.0, -1e6, 3.0], [1e5, 0, -1e5]])
    assert cut(logits, 3).dense(3).isfinite().all()
    assert torch.equal(cut(logits.bfloat16(), 3).classes_SK[:, 0], logits.argmax(1))


@pytest.mark.parametrize(("classes", "kind"), [(2**15, torch.int16), (2**15 + 1, torch.int32)])
def test_a_file_comes_back_and_is_written_alike(classes: int, kind: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(2)
    told = [cut(torch.randn(4, classes, generator=generator), 2) for _ in range(3)]
    what, chunk = outputs(classes, 2), Chunk(0, 3)
    data = encode(told, what, chunk)
    assert data == encode(told, what, chunk)
    rows = decode(data, what, chunk, "url")
    assert rows.classes.dtype == kind
    for step, one in enumerate(told):
        assert torch.equal(rows.top[step], one.top_SK)
        assert torch.equal(rows.classes[step].long(), one.classes_SK)
        assert torch.equal(rows.rest[step], one.rest_S)


def test_a_rank_gets_its_lanes_and_finite_padding() -> None:
    told = [cut(torch.randn(4, 5), 5)]
    rows = decode(encode(told, outputs(5, 5), Chunk(0, 1)), outputs(5, 5), Chunk(0, 1), "url")
    rows = rows._replace(classes=rows.classes.long())
    batch = Batch(0, torch.zeros(4, 3, 2, 2), torch.zeros(4), torch.ones(4), torch.zeros(4), lane_size=2)
    mine = _of_rank(rows, batch, 0, range(1, 2))
    assert torch.equal(mine.top_SK[:2], told[0].top_SK[2:])
    assert mine.dense(5).isfinite().all()
    assert len(mine.rest_S) == 4


def test_files_are_of_a_useful_size() -> None:
    assert span_of(1024, 10, 1000) * 1024 * 44 < 2**20
    assert span_of(1024, 1000, 1000) * 1024 * 4004 <= 2**23
    assert span_of(2**20, 10, 1000) == 1
