"""Recipes, durations, digests, overrides and the catalogue."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from pydantic import ValidationError

from vitcore import duration
from vitcore.errors import RequestError
from vitcore.identity import canonical_json, digest, identity
from vitcore.recipe import (
    ClipConfig,
    Compute,
    DataConfig,
    DeitConfig,
    DistillConfig,
    HybridConfig,
    OptimConfig,
    Recipe,
    TrainConfig,
    VitConfig,
    apply_overrides,
    flatten,
    parse,
)
from vitcore.recipes import CATALOGUE, FAMILIES, find, header
from vitcore.recipes.vit import VARIANTS, variant


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("90 epochs", 90, "epochs"),
        ("1 epoch", 1, "epochs"),
        ("10k steps", 10_000, "steps"),
        ("1.2M samples", 1_200_000, "samples"),
        ("1.2m samples", 1_200_000, "samples"),
        (".5 epochs", 0.5, "epochs"),
        ("  30   min ", 30, "min"),
        ("30min", 30, "min"),
        ("1 minute", 1, "min"),
        ("5%", 5, "%"),
        ("5 %", 5, "%"),
        ("2b samples", 2e9, "samples"),
    ],
)
def test_durations_are_read(text: str, value: float, unit: str) -> None:
    assert duration.parse(text) == duration.Span(value, unit)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text", ["", "90", "epochs", "ten epochs", "-1 epochs", "9 parsecs", "1e3 steps", "90 epochs x"]
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        duration.parse(text)


@pytest.mark.parametrize("text", ["90 epochs", "10000 steps", "1.5 epochs", "1200000 samples", "5%", "2.5%", "30 min"])
def test_a_duration_reads_what_it_writes(text: str) -> None:
    assert str(duration.parse(text)) == text
    assert duration.parse(str(duration.parse(text))) == duration.parse(text)


def test_durations_become_steps() -> None:
    def steps(text: str, total: int | None = None) -> int:
        return duration.parse(text).steps(per_epoch=12.5, batch_size=8, total=total)

    assert steps("40 steps") == 40
    assert steps("2 epochs") == 25
    assert steps("1 epoch") == 13
    assert steps("100 samples") == 13
    assert steps("10%", total=250) == 25
    assert steps("0%", total=250) == 0
    with pytest.raises(ValueError, match="no length in steps"):
        steps("5%")
    with pytest.raises(ValueError, match="no length in steps"):
        steps("30 min", total=10)


def test_two_spellings_of_a_duration_have_one_digest() -> None:
    def of(text: str) -> str:
        return digest(Recipe(name="a", train=TrainConfig(duration=text)).identity_parts())

    assert of("90 epochs") == of(" 90  epoch ")
    assert of("1k steps") == of("1000 steps")
    assert of("90 epochs") != of("91 epochs")


@pytest.mark.parametrize(
    ("field", "value"), [("train.duration", "5%"), ("train.duration", "5 min"), ("eval.every", "1 min")]
)
def test_a_duration_has_the_units_its_field_can_use(field: str, value: str) -> None:
    with pytest.raises(RequestError, match=f"{field}: .* must be given in one of"):
        apply_overrides(Recipe(name="a"), {field: value})


def test_checkpoints_are_timed_by_the_clock_or_by_steps() -> None:
    assert Compute(checkpoint_every="100 steps").checkpoint_every == "100 steps"
    with pytest.raises(ValidationError):
        Compute(checkpoint_every="1 epoch")


def test_a_recipe_is_frozen_and_refuses_what_it_does_not_know() -> None:
    recipe = Recipe(name="a")
    with pytest.raises(ValidationError):
        recipe.name = "b"  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Recipe(name="a", colour="red")  # type: ignore[call-arg]


def test_the_name_is_not_part_of_the_identity() -> None:
    assert Recipe(name="a").identity_parts() == Recipe(name="b").identity_parts()


def test_identity_depends_on_everything_it_is_told() -> None:
    parts, inputs = {"lr": 1e-3}, {"data": "abc", "teacher": None}
    first = identity("train", 1, parts, inputs)
    assert first.startswith("train-")
    assert first == identity("train", 1, dict(parts), dict(reversed(inputs.items())))
    others = {
        identity("train", 2, parts, inputs),
        identity("finetune", 1, parts, inputs),
        identity("train", 1, {"lr": 2e-3}, inputs),
        identity("train", 1, parts, {"data": "abd", "teacher": None}),
        identity("train", 1, parts, {"data": "abc", "teacher": "d"}),
    }
    assert len(others | {first}) == 6


def test_canonical_json_has_one_spelling() -> None:
    assert canonical_json({"b": [1, 2.5], "a": "ä"}) == '{"a":"ä","b":[1,2.5]}'
    assert digest({"a": 1}) == digest(json.loads(' {"a" : 1} '))


def test_a_digest_does_not_depend_on_the_process() -> None:
    code = (
        "from vitcore.identity import digest; from vitcore.recipes import find; "
        "print(digest(find('deit_s16').identity_parts()))"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert printed == {digest(find("deit_s16").identity_parts())}


def test_overrides_replace_fields_and_leave_the_recipe() -> None:
    recipe = find("deit_s16")
    changed = apply_overrides(
        recipe, {"train.duration": "3 epochs", "data.augment.crop_scale": [0.5, 1.0], "optim.clip_norm": 2}
    )
    assert changed.train.duration == "3 epochs"
    assert changed.data.augment.crop_scale == (0.5, 1.0)
    assert changed.optim.clip_norm == 2.0
    assert recipe.train.duration == "100 epochs"
    assert isinstance(changed.model, DeitConfig)
    assert apply_overrides(recipe, {}) == recipe


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"train.duraton": "3 epochs"}, "there is no field 'train.duraton' in train; did you mean 'duration'?"),
        ({"trian.duration": "3 epochs"}, "there is no field 'trian.duration'; did you mean 'train'?"),
        ({"train.duration.x": "3"}, "there is no field 'train.duration.x' in train.duration"),
        ({"model.width": 100}, "model: width 100 is not divisible by 6 heads"),
        ({"model.depth": "many"}, "model.depth: Input should be a valid integer"),
        ({"train.batch_size": 0}, "train.batch_size: must be at least 1"),
        ({"objective.mode": "medium"}, "objective.mode: Input should be 'hard' or 'soft'"),
    ],
)
def test_a_wrong_override_is_one_clear_sentence(overrides: dict[str, object], sentence: str) -> None:
    with pytest.raises(RequestError) as raised:
        apply_overrides(find("deit_s16"), overrides)
    assert str(raised.value).startswith(sentence)
    assert "\n" not in str(raised.value)


def test_flatten_names_every_leaf() -> None:
    flat = flatten(find("vit_b16"))
    assert flat["data.augment.crop_scale"] == [0.05, 1.0]
    assert flat["model.kind"] == "vit"
    assert not any(isinstance(value, dict) for value in flat.values())


def test_a_recipe_comes_back_from_its_json() -> None:
    for name in CATALOGUE:
        recipe = find(name)
        assert parse(Recipe, json.loads(recipe.model_dump_json())) == recipe


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"schema_version": 99, "name": "a"}', "upgrade"),
        ('{"schema_version": 1}', "name: Field required"),
        ('{"schema_version": 1, "name": "a", "model": {"kind": "mlp"}}', "model: "),
    ],
)
def test_what_is_no_recipe_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        parse(Recipe, json.loads(text))


def test_parse_needs_no_mapping() -> None:
    with pytest.raises(RequestError):
        parse(OptimConfig, 3)


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_recipe_has_a_whole_header(name: str) -> None:
    head = header(name)
    assert find(name).name == name
    assert all([head.title, head.paper, head.hardware, head.hours, head.number])
    assert name in head.command
    assert head.command.startswith("vit ")
    assert head.title.endswith(".")


def test_every_family_is_in_the_catalogue_once() -> None:
    listed = [recipe for recipes in FAMILIES.values() for recipe in recipes]
    assert len(listed) == len(CATALOGUE) == len(set(listed))
    assert all(FAMILIES.values())


def test_find_names_the_nearest() -> None:
    with pytest.raises(RequestError, match=r"did you mean .*deit_s16"):
        find("deit_s_16")
    with pytest.raises(RequestError, match="vit recipes"):
        find("zzzz")


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_a_valid_architecture(name: str) -> None:
    config = variant(f"{name}/16")
    size = VARIANTS[name]
    assert (config.width, config.depth, config.heads, config.patch) == (size.width, size.depth, size.heads, 16)
    assert VitConfig.model_validate(config.model_dump()) == config
    assert size.width % size.heads == 0
    assert config.mlp_ratio == size.mlp_ratio


@pytest.mark.parametrize("name", ["S", "S16", "X/16", "S/0", "/16", "S/16/2"])
def test_what_is_no_variant_is_refused(name: str) -> None:
    with pytest.raises(RequestError, match="is no variant"):
        variant(name)


def test_recipes_that_are_compared_differ_in_what_is_compared() -> None:
    vit, deit = find("elpv_vit"), find("elpv_deit")
    assert (vit.data, vit.optim, vit.train, vit.eval) == (deit.data, deit.optim, deit.train, deit.eval)
    assert isinstance(deit.objective, DistillConfig)
    assert vit.model.model_dump(exclude={"kind"}) == deit.model.model_dump(exclude={"kind"})
    assert find("vit_s16_in1k_90ep").train.duration == "90 epochs"


def test_image_sizes_are_whole_grids() -> None:
    for name in CATALOGUE:
        recipe = find(name)
        model = recipe.model.image if isinstance(recipe.model, ClipConfig) else recipe.model
        if isinstance(model, VitConfig) and not isinstance(model, HybridConfig):
            sizes = [recipe.data.image_size, *(view.image_size for view in recipe.data.views if view.image_size)]
            assert all(size % model.patch == 0 for size in sizes)
    assert DataConfig().image_size % VitConfig().patch == 0
    assert find("elpv_finetune").data.image_size % find("elpv_deit").model.patch == 0  # type: ignore[union-attr]


def test_reading_a_recipe_is_cheap() -> None:
    code = "import sys, vitcore.recipes; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, check=True)


def test_an_evaluation_crop_that_does_not_fit_is_refused_before_training() -> None:
    with pytest.raises(RequestError, match=r"eval\.resize 32 is smaller than data\.image_size 64"):
        apply_overrides(find("vit_tiny_cpu"), {"data.image_size": 64})
