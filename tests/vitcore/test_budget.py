"""Budgets: what people write, and what stays within them."""

from __future__ import annotations

import pytest

from vitcore.budget import Budget, parse


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("12 hours", Budget(12, "wall")),
        ("90 min", Budget(1.5, "wall")),
        ("3 days", Budget(72, "wall")),
        (" 1.5 Hour ", Budget(1.5, "wall")),
        ("200 gpu-hours", Budget(200, "devices")),
        ("1 GPU-hour", Budget(1, "devices")),
    ],
)
def test_budgets_are_read(text: str, budget: Budget) -> None:
    assert parse(text) == budget


@pytest.mark.parametrize("text", ["", "12", "hours", "-1 hours", "0 hours", "12 epochs", "5%", "200 gpu hours!"])
def test_what_is_no_budget_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a budget"):
        parse(text)


def test_device_hours_count_every_device() -> None:
    assert parse("12 hours").allows(12, 64)
    assert not parse("12 hours").allows(12.1, 1)
    assert parse("200 gpu-hours").allows(25, 8)
    assert not parse("200 gpu-hours").allows(25.1, 8)
