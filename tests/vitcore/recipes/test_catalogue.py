"""Every recipe: it is built, has the parameters its paper says, learns when it is small, and keeps its identity."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.vitcore.recipes.shrinking import shrink
from vitcore.data.dataset.manifest import Dataset
from vitcore.errors import RequestError
from vitcore.identity import digest
from vitcore.models import build, load_pretrained
from vitcore.recipe import ClipConfig, Compute, DistillConfig, LabelConfig, ParentConfig, Recipe, parse
from vitcore.recipes import CATALOGUE, find, parameters
from vitcore.recipes.sizes import SIZES
from vitcore.sink import NullSink
from vitcore.train.loop import train
from vitcore.train.request import TrainRequest
from vitcore.world import World

DIGESTS = Path(__file__).parent / "digests.json"
UPDATE = "VIT_UPDATE_DIGESTS"

PUBLISHED = {
    # Recipe → parameters in millions as published, and where. Heads of 1,000 classes, as in the papers.
    "vit_b16": (86, "2010.11929, table 1"),
    "vit_l16": (307, "2010.11929, table 1"),
    "vit_h14": (632, "2010.11929, table 1"),
    "vit_s16": (22, "2205.01580, section 1"),
    "deit_ti16": (6, "2012.12877, table 5"),
    "deit_s16": (22, "2012.12877, table 5"),
    "deit_b16": (87, "2012.12877, table 5"),
    "deit3_s16": (22.0, "2204.07118, released table"),
    "deit3_b16_in21k": (86.6, "2204.07118, released table"),
    "deit3_l16": (304.4, "2204.07118, released table"),
    "clip_b32": (151.3, "2103.00020, released weights"),
    "clip_b16": (149.6, "2103.00020, released weights"),
    "clip_l14": (427.6, "2103.00020, released weights"),
    "siglip_b16": (203.2, "2303.15343, released weights"),
    "moco_v3_s16": (22, "2104.02057, table 1"),
    "moco_v3_b16": (86, "2104.02057, table 1"),
    "dino_s16": (21, "2104.14294, table 1"),
    "dino_s8": (21, "2104.14294, table 1"),
    "dino_b16": (85, "2104.14294, table 1"),
    "mixer_b16": (59, "2105.01601, table 1"),
    "t2t_14": (21.5, "2101.11986, table 2"),
    "t2t_19": (39.2, "2101.11986, table 2"),
    "pvt_v2_b2": (25.4, "2106.13797, table 2"),
    "pvt_v2_b5": (82.0, "2106.13797, table 2"),
}
EXACT = {
    # Counts of public models with the same head.
    "vit_b16": 86_567_656,
    "vit_l16": 304_326_632,
    "vit_h14": 632_045_800,
    "deit_ti16": 5_910_800,
    "deit_s16": 22_436_432,
    "deit_b16": 87_338_192,
    "clip_b32": 151_277_313,
    "clip_b16": 149_620_737,
    "clip_l14": 427_616_513,
    "siglip_b16": 203_155_970,
    "hybrid_r50_b16": 98_659_112,
    "mixer_b16": 59_880_472,
    "pvt_v2_b0": 3_666_760,
    "pvt_v2_b2": 25_362_856,
    "pvt_v2_b5": 81_956_008,
    "cnn_tiny_cpu": 11_689_512,
}


def count(recipe: Recipe, num_classes: int = 1000) -> int:
    """Trainable parameters of a recipe's model, built without memory."""
    assert not isinstance(recipe.model, ParentConfig)
    classes = num_classes if isinstance(recipe.objective, LabelConfig) else 0
    with torch.device("meta"):
        model = build(recipe.model, num_classes=classes, image_size=recipe.data.image_size)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_recipe_is_valid_as_a_whole(name: str) -> None:
    """`model_copy` validates nothing, so that what it made is validated here."""
    recipe = find(name)
    assert parse(Recipe, recipe.model_dump()) == recipe


@pytest.mark.parametrize("name", CATALOGUE)
def test_the_table_of_sizes_says_what_the_models_have(name: str) -> None:
    recipe = find(name)
    if isinstance(recipe.model, ParentConfig):
        assert parameters(name) is None
    else:
        assert parameters(name) == count(recipe), f"write {count(recipe):_} into vitcore/recipes/sizes.py"


def test_the_table_of_sizes_names_recipes_only() -> None:
    assert set(SIZES) <= set(CATALOGUE)
    with pytest.raises(RequestError, match="did you mean"):
        parameters("vit_s17")


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_are_the_papers(name: str) -> None:
    """To the digits the papers give, one more or less of the last, since some cut where others round."""
    published, _ = PUBLISHED[name]
    found = parameters(name)
    assert found is not None
    last_digit = 0.1 if isinstance(published, float) else 1
    assert abs(found / 1e6 - published) <= max(1.01 * last_digit, 0.01 * published)
    if name in EXACT:
        assert found == EXACT[name]


@pytest.mark.parametrize("name", EXACT)
def test_parameter_counts_are_those_of_public_models(name: str) -> None:
    assert parameters(name) == EXACT[name]


def test_recipes_keep_their_identity() -> None:
    found = {name: digest(find(name).identity_parts()) for name in CATALOGUE}
    if os.environ.get(UPDATE):
        DIGESTS.write_text(json.dumps(found, indent=2) + "\n")
    kept = json.loads(DIGESTS.read_text())
    moved = sorted(name for name in found.keys() | kept.keys() if found.get(name) != kept.get(name))
    assert not moved, (
        f"{', '.join(moved)}: what they learn, or how it is written, is not what it was, so that every training of "
        f"them would be repeated. If that is meant, say so in the changelog and run this test once with {UPDATE}=1."
    )


def small_ones() -> dict[str, list[str]]:
    """Shrunk recipes that differ, each under the first of its names → all of them."""
    names: dict[str, list[str]] = {}
    for name in CATALOGUE:
        names.setdefault(digest(shrink(find(name)).identity_parts()), []).append(name)
    return {alike[0]: alike for alike in names.values()}


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", small_ones())
def test_a_recipe_learns_when_it_is_small(
    name: str, toy: Dataset, captioned: Dataset, models: dict[str, str], tmp_path: Path
) -> None:
    whole, recipe = find(name), shrink(find(name))
    follows = isinstance(recipe.objective, DistillConfig)
    more: dict[str, Any] = {"teacher": models["teacher"]} if follows else {}
    if recipe.needs_parent:
        more["init"] = models["deit" if follows else "vit"]
    request = TrainRequest(
        recipe=recipe,
        compute=Compute(threads=1, precision="fp32", loader_workers=1, compile="off"),
        data=(captioned if recipe.data.captions else toy).ref,
        checkpoints=str(tmp_path / "run"),
        identity="train-small",
        **more,
    )
    result = train(request, World(), NullSink())
    assert (result.step, result.skipped) == (2, ())
    assert all(math.isfinite(value) for value in result.metrics.values())
    assert bool(result.metrics) == recipe.validates
    product = load_pretrained(result.model)
    assert product.card.recipe == recipe
    if not isinstance(whole.model, ParentConfig):
        assert product.card.model.kind == whole.model.kind
    assert product.card.num_classes == (3 if isinstance(recipe.objective, LabelConfig) else 0)
    if isinstance(recipe.model, ParentConfig) and recipe.model.pooling:
        assert product.card.model.pooling == recipe.model.pooling  # type: ignore[union-attr]


def test_a_locked_image_tower_stays_and_the_text_tower_learns(
    captioned: Dataset, models: dict[str, str], tmp_path: Path
) -> None:
    recipe = shrink(find("lit_b16"))
    request = TrainRequest(
        recipe=recipe,
        compute=Compute(threads=1, precision="fp32", loader_workers=1, compile="off"),
        data=captioned.ref,
        init=models["vit"],
        checkpoints=str(tmp_path / "run"),
        identity="train-locked",
    )
    product = load_pretrained(train(request, World(), NullSink()).model)
    assert isinstance(product.card.model, ClipConfig)
    parent = load_pretrained(models["vit"]).model.state_dict()
    found = product.model.state_dict()
    tower = {name.removeprefix("image."): found[name] for name in found if name.startswith("image.")}
    assert tower
    assert all(torch.equal(tensor, parent[name]) for name, tensor in tower.items())
