"""The averaged weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vitcore.train.ema import Ema


def layer(value: float) -> nn.Linear:
    module = nn.Linear(3, 2)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(value)
    return module


def put(module: nn.Module, value: float) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(value)


def test_matches_the_closed_form_with_its_early_decay() -> None:
    module = layer(1.0)
    ema = Ema(module, 0.5)
    values = [2.0, 5.0, -3.0, 4.0, 0.5, 8.0, -1.0, 2.0, 6.0, 7.0, 1.0, 9.0, 3.0]
    decays = [min(0.5, (1 + t) / (10 + t)) for t in range(len(values))]
    assert decays[0] == 0.1
    assert decays[-1] == 0.5
    for t, value in enumerate(values):
        put(module, value)
        ema.update(t)
    weights = []
    rest = 1.0
    for decay in reversed(decays):
        weights.append(rest * (1 - decay))
        rest *= decay
    expected = rest * 1.0 + sum(w * v for w, v in zip(reversed(weights), values, strict=True))
    for tensor in ema.shadow.values():
        torch.testing.assert_close(tensor, torch.full_like(tensor, expected))


def test_applied_swaps_and_restores_even_after_an_error() -> None:
    module = layer(1.0)
    ema = Ema(module, 0.5)
    put(module, 3.0)
    ids = [id(parameter) for parameter in module.parameters()]
    with ema.applied():
        assert all((parameter == 1).all() for parameter in module.parameters())
        assert all((tensor == 3).all() for tensor in ema.shadow.values())
        assert [id(parameter) for parameter in module.parameters()] == ids
    with pytest.raises(ZeroDivisionError), ema.applied():
        raise ZeroDivisionError
    assert all((parameter == 3).all() for parameter in module.parameters())
    assert all((tensor == 1).all() for tensor in ema.shadow.values())
    ema.update(10**6)
    assert all((tensor == 2).all() for tensor in ema.shadow.values())


def test_the_average_shares_no_memory_and_no_graph_with_the_weights() -> None:
    module = layer(1.0)
    ema = Ema(module, 0.5)
    put(module, 9.0)
    assert all((tensor == 1).all() and not tensor.requires_grad for tensor in ema.shadow.values())


def test_a_loaded_average_goes_on_as_if_nothing_had_happened() -> None:
    module, twin = layer(1.0), layer(7.0)
    ema, other = Ema(module, 0.9), Ema(twin, 0.9)
    put(module, 2.0)
    ema.update(0)
    for name, tensor in ema.shadow.items():
        other.shadow[name].copy_(tensor)
    put(module, 5.0)
    put(twin, 5.0)
    ema.update(1)
    other.update(1)
    for name, tensor in ema.shadow.items():
        assert torch.equal(tensor, other.shadow[name])
