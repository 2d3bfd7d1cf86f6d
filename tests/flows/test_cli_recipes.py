"""The recipes on the command line: how they are listed, and every field of every family as a flag."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flows.cli.fields import changes, mirror
from flows.cli.main import main
from flows.cli.training import verb_of
from tests.flows.test_cli import ROOT, VERSION, Flow, sentence
from vitcore.data.dataset.manifest import Dataset
from vitcore.recipe import ParentConfig, VitConfig, apply_overrides, flatten
from vitcore.recipes import CATALOGUE, FAMILIES, find


@pytest.fixture(autouse=True)
def wide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """State under the test's own folder, and lines that are not broken."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VIT_HOME", str(tmp_path / ".vit"))
    monkeypatch.setenv("COLUMNS", "200")


def test_recipes_are_listed_under_their_families(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    for family, recipes in FAMILIES.items():
        place = lines.index(family)
        names = [line.split()[0] for line in lines[place + 1 : place + 1 + len(recipes)]]
        assert names == [recipe.__name__ for recipe in recipes]
    vit_b16 = next(line for line in lines if line.startswith("vit_b16 "))
    assert "86.6 M" in vit_b16
    assert "2010.11929" in vit_b16


def test_a_recipe_is_shown_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "clip_b32"]) == 0
    shown = capsys.readouterr().out
    assert "151,277,313" in shown
    for words in ("2103.00020", "vit pretrain clip_b32", "model.image.width", "63.2 %", "objective.max_scale"):
        assert words in shown
    assert main(["recipes", "siglip_b16", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["family"], told["parameters"], told["fields"]["model.bias"]) == ("CLIP", 203_155_970, -10.0)


@pytest.mark.parametrize("name", [name for name in CATALOGUE if name.endswith("_tiny_cpu") or name == "siglip_b16"])
def test_every_recipe_can_be_shown(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", name]) == 0
    shown = capsys.readouterr().out
    assert all(field in shown for field in flatten(find(name)) if field != "name")


def test_a_verbs_help_lists_its_own_recipes_by_family(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("pretrain", "distill", "finetune"):
        assert main([verb, "--help"]) == 0
        listed = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line.split()}
        assert {name for name in CATALOGUE if verb_of(find(name)) == verb} == listed & set(CATALOGUE)
    assert "MAE" in listed
    assert "PVT" not in listed


def test_every_recipe_belongs_to_the_verb_of_its_command() -> None:
    from vitcore.recipes import header

    for name in CATALOGUE:
        assert header(name).command.startswith(f"vit {verb_of(find(name))} {name} ")


def test_a_tower_is_reached_by_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    flow = Flow(monkeypatch, "pretrain", VERSION)
    line = "pretrain siglip_b16 --data x --model.image.width 192 --model.image.heads 6 --model.image.drop-path 0.1"
    assert main([*line.split(), "--model.text.depth", "2", "--model.bias", "-9", "--objective.loss", "softmax"]) == 0
    assert flow.calls[0]["overrides"] == {
        "model.image.width": 192,
        "model.image.heads": 6,
        "model.image.drop_path": 0.1,
        "model.text.depth": 2,
        "model.bias": -9.0,
        "objective.loss": "softmax",
    }


@pytest.mark.parametrize("name", CATALOGUE)
def test_the_flags_defaults_change_nothing(name: str) -> None:
    recipe = find(name)
    assert changes(recipe, mirror(recipe, hide=frozenset({"name"}))()) == {}


@pytest.mark.parametrize(
    ("words", "overrides"),
    [
        ("--model.pooling none", {"model.pooling": None}),
        ("--model.pooling token", {"model.pooling": "token"}),
        ("--model.drop-path none", {"model.drop_path": None}),
    ],
)
def test_what_is_optional_is_said_by_words(
    words: str, overrides: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = Flow(monkeypatch, "finetune", VERSION)
    assert main(["finetune", "mae_finetune_b16", "--data", "x", "--model", "m", *words.split()]) == 0
    assert flow.calls[0]["overrides"] == overrides
    assert isinstance(apply_overrides(find("mae_finetune_b16"), overrides).model, ParentConfig)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("pretrain lit_b16 --data x", "vit finetune lit_b16"),
        ("finetune lit_b16 --data x", "missing --model"),
        (
            "finetune mae_finetune_b16 --data x --model m --model.pooling sum",
            "takes one of token, mean, none, not 'sum'",
        ),
        ("pretrain clip_b32 --data x --model.image.width 99", "model.image: width 99 is not divisible by"),
        ("pretrain clip_b32 --data x --model.image.widht 96", "did you mean --model.image.width?"),
        ("pretrain dino_tiny_cpu --data x --objective.global-views 9", "global_views must be at least 2"),
        ("pretrain mae_tiny_cpu --data x --objective.mask 1.5", "objective.mask: must be a share between 0 and 1"),
        ("pretrain moco_tiny_cpu --data x --eval.metric top1", "take knn or last"),
        ("distill deit_b16_384 --data x --teacher t", "vit finetune deit_b16_384"),
    ],
)
def test_a_wrong_request_is_one_sentence(line: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 2
    assert words in sentence(capsys)


def test_finetuning_may_go_on_following_a_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    flow = Flow(monkeypatch, "finetune", VERSION)
    assert main(["finetune", "deit_b16_384", "--data", "x", "--model", "m", "--teacher", "t"]) == 0
    assert main(["finetune", "finetune_224", "--data", "x", "--model", "m"]) == 0
    assert [(call["model"], call["teacher"]) for call in flow.calls] == [("m", "t"), ("m", None)]
    assert [plan["teacher"] for plan in flow.plans] == ["t", None]


def test_what_a_recipe_needs_is_asked_for_before_anything_starts(toy: Dataset) -> None:
    """In a process of their own, since Prefect takes its settings when it is imported; no server is started."""
    lines = {
        f"finetune deit_b16_384 --data {toy.url} --model m": "learns from a teacher: name one with --teacher",
        f"finetune finetune_224 --data {toy.url} --model m --teacher t": "follows no teacher: leave --teacher out",
        f"pretrain clip_tiny_cpu --data {toy.url}": "captions",
    }
    code = "import sys, json; from flows.cli.main import main; print([main(line.split()) for line in sys.argv[1:]])"
    ran = subprocess.run(
        [sys.executable, "-c", code, *lines],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(ran.stdout) == [2] * len(lines)
    for said, words in zip(ran.stderr.splitlines(), lines.values(), strict=True):
        assert words in said


def test_the_list_is_quick() -> None:
    """Best of five: `vit recipes` within 1.5 s of one core, since nothing heavy is imported."""
    code = "import sys; from flows.cli.main import main; main(['recipes']); print({'torch', 'ray'} & set(sys.modules))"
    seconds = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert ran.stdout.splitlines()[-1] == "set()"
    assert min(seconds) <= 1.5


def test_a_models_fields_have_flags_of_their_own_type() -> None:
    fields = mirror(VitConfig())
    assert fields().class_token is None
    assert not hasattr(fields(), "kind")
