"""Choices of precision and compilation, for hardware that is not here."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from vitcore.train.precision import Capabilities, Precision, choose, should_compile, tune

AMPERE = Capabilities("cuda", True)
TURING = Capabilities("cuda", False)
AMX = Capabilities("cpu", True)
AVX = Capabilities("cpu", False)


@pytest.mark.parametrize(
    ("policy", "capabilities", "name"),
    [
        ("auto", AMPERE, "bf16"),
        ("auto", TURING, "fp32"),
        ("auto", AMX, "bf16"),
        ("auto", AVX, "fp32"),
        ("bf16", TURING, "bf16"),
        ("bf16", AVX, "bf16"),
        ("fp32", AMPERE, "fp32"),
        ("fp32", AMX, "fp32"),
    ],
)
def test_precision(policy: Literal["auto", "fp32", "bf16"], capabilities: Capabilities, name: str) -> None:
    precision = choose(policy, capabilities)
    assert precision.name == name
    assert precision.device_type == capabilities.device_type
    assert (precision.dtype is torch.bfloat16) == (name == "bf16")


@pytest.mark.parametrize(
    ("policy", "capabilities", "compiled"),
    [
        ("auto", AMPERE, True),
        ("auto", TURING, True),
        ("auto", AMX, False),
        ("auto", AVX, False),
        ("on", AVX, True),
        ("off", AMPERE, False),
    ],
)
def test_compilation(policy: Literal["auto", "on", "off"], capabilities: Capabilities, compiled: bool) -> None:
    assert should_compile(policy, capabilities) is compiled


@pytest.mark.parametrize(("capability", "bf16"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_a_gpu_is_asked_for_its_capability(
    capability: tuple[int, int], bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert Capabilities.of(torch.device("cuda", 0)) == Capabilities("cuda", bf16)


@pytest.mark.parametrize(("amx", "avx", "bf16"), [(True, False, True), (False, True, True), (False, False, False)])
def test_a_cpu_is_asked_for_its_instructions(amx: bool, avx: bool, bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)
    assert Capabilities.of(torch.device("cpu")) == Capabilities("cpu", bf16)


def test_this_machine_answers() -> None:
    assert Capabilities.of(torch.device("cpu")).device_type == "cpu"


def test_autocast_computes_in_what_was_chosen() -> None:
    a = torch.ones(2, 2)
    with Precision("cpu", torch.bfloat16).autocast():
        assert (a @ a).dtype == torch.bfloat16
    with Precision("cpu", None).autocast():
        assert (a @ a).dtype == torch.float32


@pytest.mark.usefixtures("one_thread")
def test_threads_are_set_on_a_cpu_where_they_are_given() -> None:
    tune(torch.device("cpu"), 2)
    assert torch.get_num_threads() == 2
    tune(torch.device("cpu"), None)
    assert torch.get_num_threads() == 2
