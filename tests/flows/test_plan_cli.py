"""`vit plan` on the command line: what it prints, what it answers with, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flows.cli.main import main
from flows.cli.training import verb_of
from vitcore.data.dataset.manifest import Dataset
from vitcore.recipes import CATALOGUE, find

SMALL = (
    "--data.image-size 32 --model.patch 8 --model.width 64 --model.depth 2 --model.heads 2 --train.batch-size 64 "
    "--train.duration 200steps"
)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VIT_HOME", str(tmp_path / ".vit"))
    monkeypatch.setenv("COLUMNS", "240")


def small(toy: Dataset, *more: str, recipe: str = "vit_s16") -> list[str]:
    return ["plan", recipe, "--data", toy.url, *SMALL.split(), *more]


def told(capsys: pytest.CaptureFixture[str], argv: list[str], code: int = 0) -> Any:
    assert main([*argv, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_sizes_are_compared_in_a_table(toy: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(small(toy, "--gpu", "h100", "--nodes", "1", "2", "--gpus-per-node", "2")) == 0
    shown = capsys.readouterr().out
    for words in ("time (predicted)", "(computed)", "measured:", "assumed:", "h100, bf16", "GPU-hours", "FSDP"):
        assert words in shown
    assert "cost" not in shown
    rows = [line.split() for line in shown.splitlines() if line.split()[:1] in (["1"], ["2"])]
    assert [row[:3] for row in rows[:2]] == [["1", "2", "32"], ["2", "4", "16"]]


def test_json_says_what_is_measured_computed_predicted_and_assumed(
    toy: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = told(capsys, small(toy, "--gpu", "h100", "--nodes", "1", "--gpus-per-node", "2", "--price", "2.5"))
    (row,) = plan["rows"]
    assert plan["computed"]["lengths"]["steps"] == 200
    assert plan["measured"]["loading"]["images_per_s"] > 0
    assert plan["measured"]["probe"] is None
    assert plan["assumed"]["why_no_probe"] == "there is no h100 here"
    assert row["computed"]["flops"] == pytest.approx(plan["computed"]["flops_per_sample"] * 64)
    assert row["predicted"]["cost"] == pytest.approx(2.5 * row["predicted"]["device_hours"])
    assert row["predicted"]["device_hours"] == pytest.approx(2 * row["predicted"]["hours"])


def test_the_share_of_the_peak_can_be_said(toy: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    half, whole = (
        told(capsys, small(toy, "--gpu", "h100", "--gpus-per-node", "2", "--mfu", mfu))["rows"][0]["predicted"]
        for mfu in ("0.25", "0.5")
    )
    assert half["step"]["compute"] == pytest.approx(2 * whole["step"]["compute"])


def test_this_machine_is_probed(
    toy: Dataset, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitcore.estimate.probe.STEPS", 3)
    plan = told(capsys, small(toy, "--gpu", "cpu", "--compute.workers", "1"))
    assert plan["measured"]["probe"]["steps"] == 3
    assert plan["rows"][0]["predicted"]["step"]["compute"] == pytest.approx(plan["measured"]["probe"]["step_s"])
    off = told(capsys, small(toy, "--gpu", "cpu", "--compute.workers", "1", "--probe", "off"))
    assert off["measured"]["probe"] is None
    assert off["assumed"]["flops_per_s"] == pytest.approx(0.55 * off["hardware"][_precision(off)])


def _precision(plan: dict[str, Any]) -> str:
    return "bf16" if plan["precision"] == "bf16" else "fp32"


def test_a_budget_is_kept_or_said_to_be_broken(toy: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    line = small(toy, "--gpu", "h100", "--gpus-per-node", "2")
    assert main([*line, "--budget", "10 hours"]) == 0
    capsys.readouterr()
    assert main([*line, "--budget", "0.000001 gpu-hours"]) == 1
    said = capsys.readouterr()
    assert "over budget" in said.out
    (sentence,) = said.err.splitlines()
    assert "does not fit in the budget of 1e-06 GPU-hours" in sentence
    assert 'shorten train.duration from "200 steps" to about' in sentence


def test_what_does_not_fit_is_said_with_what_to_change(
    toy: Dataset, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from vitcore.estimate import hardware

    tiny = replace(hardware.find("l4"), memory=6 * 2**20)
    monkeypatch.setitem(hardware.GPUS, "l4", tiny)
    assert main(small(toy, "--gpu", "l4", "--gpus-per-node", "1")) == 1
    said = capsys.readouterr()
    assert "out of memory on 1 node: set --compute.microbatch" in said.out
    assert "out of memory" in said.err
    assert "--compute.microbatch" in said.err


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("plan", "name the recipe first"),
        ("plan vit_s17 --data {url}", "did you mean"),
        ("plan vit_s16 --data {url} --gpu h1000", "did you mean h100"),
        ("plan vit_s16 --data {url}/none", "does not exist"),
        ("plan vit_s16 --data {url} --nodes 0", "--nodes takes numbers from 1"),
        ("plan vit_s16 --data {url} --mfu 1.5", "--mfu is a share"),
        ("plan vit_s16 --data {url} --price -1", "--price takes a number above 0"),
        ("plan vit_s16 --data {url} --budget soon", "is not a budget"),
        ("plan vit_s16 --data {url} --gpu h100 --gpus-per-node 2 --compute.workers 4", "both say"),
        ("plan vit_s16 --data {url} --gpu h100 --probe on --train.batch-size 64", "there is no h100 here"),
        ("plan vit_s16 --data {url} --teacher t --gpu h100", "follows no teacher"),
        ("plan finetune_224 --data {url} --gpu h100", "name that with --model"),
        ("plan clip_tiny_cpu --data {url} --gpu h100", "captions"),
        ("plan vit_s16 --data {url} --gpu h100 --nodes 4 --train.batch-size 64", "workers cannot share"),
    ],
)
def test_wrong_requests_are_one_sentence(
    line: str, words: str, toy: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line.format(url=toy.url).split()) == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert words in sentence


def test_its_help_lists_every_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--help"]) == 0
    listed = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line.split()}
    assert set(CATALOGUE) <= listed
    assert {verb_of(find(name)) for name in CATALOGUE} == {"pretrain", "distill", "finetune"}
