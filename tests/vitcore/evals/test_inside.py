"""Figures of what is inside: their numbers against plain computations, their panels, and where there is nothing."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from tests.vitcore.evals.conftest import SMALL_CLIP
from vitcore.data.dataset.manifest import Dataset
from vitcore.evals import style
from vitcore.evals.attention import attention_of
from vitcore.evals.distance import distance_figure, mean_attention_distances, patch_distances
from vitcore.evals.embedding import filters_figure, position_similarity, positions_figure, principal_filters
from vitcore.evals.heads import heads_figure, mass_mask
from vitcore.evals.inside import load_images, model_figures, outcome_figures, retrieval_figure, zero_shot_figure
from vitcore.evals.represent import image_embeddings, scale_of, text_embeddings
from vitcore.evals.similarity import similarity_figure
from vitcore.evals.zeroshot import class_embeddings, prompts, zero_shot
from vitcore.models import Pretrained, build
from vitcore.recipe import CnnConfig, DeitConfig, HybridConfig, ModelConfig, VitConfig

PNG = b"\x89PNG\r\n\x1a\n"
SMALL = {"width": 32, "depth": 2, "heads": 2}
ATTENTIVE = {"attention_heads", "attention_distance", "position_similarity"}
KINDS: dict[str, tuple[ModelConfig, set[str]]] = {
    "vit": (VitConfig(patch=8, **SMALL), {*ATTENTIVE, "patch_filters"}),
    "mean": (VitConfig(patch=8, pooling="mean", class_token=True, registers=2, **SMALL), {*ATTENTIVE, "patch_filters"}),
    "deit": (DeitConfig(patch=8, **SMALL), {*ATTENTIVE, "patch_filters"}),
    "hybrid": (HybridConfig(stem=(1,), patch=1, **SMALL), ATTENTIVE),
    "clip": (SMALL_CLIP, {*ATTENTIVE, "patch_filters"}),
    "cnn": (CnnConfig(name="resnet18"), set()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_has_the_figures_of_its_parts(kind: str) -> None:
    config, expected = KINDS[kind]
    torch.manual_seed(0)
    model = build(config, num_classes=0, image_size=32).train()
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    found = model_figures(model, images)
    assert set(found) == expected
    for figure in found.values():
        assert style.to_png(figure).startswith(PNG)
    assert model.training
    assert set(model_figures(model, images[:0])) == expected & {"patch_filters", "position_similarity"}


def test_the_figure_of_heads_has_a_column_a_head_and_two_rows_a_photograph() -> None:
    model = build(VitConfig(patch=8, width=48, depth=1, heads=3), num_classes=0, image_size=32)
    figure = heads_figure(model, torch.rand(3, 3, 32, 32))
    assert figure is not None
    assert len(figure.axes) == (1 + 3) * 2 * 3
    assert [panel.get_title() for panel in figure.axes[:4]] == ["photograph", "head 1", "head 2", "head 3"]


def test_a_mask_holds_the_fewest_patches_with_the_mass() -> None:
    maps = torch.tensor([0.05, 0.4, 0.1, 0.25, 0.2, 0.0]).view(1, 1, 2, 3)
    assert mass_mask(maps, 0.6).flatten().tolist() == [False, True, False, True, False, False]
    assert mass_mask(maps, 0.39).sum() == 1
    drawn = torch.rand(2, 3, 7, 7).flatten(2).softmax(2).view(2, 3, 7, 7)
    kept = (drawn * mass_mask(drawn)).sum((2, 3))
    smallest_kept = drawn.masked_fill(~mass_mask(drawn), 1).amin((2, 3))
    assert (kept >= 0.6).all()
    assert (kept - smallest_kept < 0.6).all()


def test_distances_are_those_between_patch_centres() -> None:
    found = patch_distances(3, 8.0)
    places = list(product(range(3), range(3)))
    for one, other in product(range(9), range(9)):
        expected = 8 * np.hypot(places[one][0] - places[other][0], places[one][1] - places[other][1])
        assert found[one, other].item() == pytest.approx(expected, abs=1e-3)


def test_attention_distance_is_a_mean_over_patches_without_prefix_tokens() -> None:
    stays = torch.zeros(1, 2, 5, 5)
    stays[:, 0] = torch.eye(5) / 2  # half at itself, half at the prefix token
    stays[:, 0, :, 0] += 0.5
    stays[:, 1] = 0.2  # looks everywhere, at the prefix token too
    found = mean_attention_distances([stays], grid=2, side=16)
    assert found.shape == (1, 2)
    assert found[0, 0].item() == pytest.approx(0, abs=1e-4)
    assert found[0, 1].item() == pytest.approx((16 + 16 + 16 * 2**0.5) / 4, rel=1e-4)


def test_attention_of_looks_at_normalised_pixels() -> None:
    config = VitConfig(patch=8, mean=(0.2, 0.3, 0.4), std=(0.3, 0.2, 0.1), **SMALL)
    model = build(config, num_classes=0, image_size=32)
    images = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.mean, config.std))
    with torch.no_grad():
        expected = model.eval().attention((images.float() / 255 - mean) / std)
    for found, wanted in zip(attention_of(model, images), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_filters_are_principal_components() -> None:
    torch.manual_seed(0)
    planted = torch.linalg.qr(torch.randn(3 * 16, 2)).Q.T
    weights = (torch.randn(200, 2) * torch.tensor([5.0, 2.0])) @ planted + 0.3
    found, shares = principal_filters(weights.view(200, 3, 4, 4), most=2)
    assert shares.sum().item() == pytest.approx(1, abs=1e-4)
    overlap = (found.flatten(1) @ planted.T).abs()
    assert overlap[0, 0] > 0.95
    assert overlap[1, 1] > 0.95
    assert (found.flatten(1).amax(1) >= -found.flatten(1).amin(1)).all()
    few = build(VitConfig(patch=8, width=8, depth=1, heads=2), num_classes=0, image_size=32)
    assert filters_figure(few) is not None


def test_position_similarity_is_the_cosine_and_ignores_the_prefix() -> None:
    positions = torch.randn(6, 4)
    found = position_similarity(positions)
    expected = torch.cosine_similarity(positions[1], positions[4], dim=0)
    assert found[1, 4].item() == pytest.approx(expected.item(), abs=1e-5)
    model = build(VitConfig(patch=8, **SMALL), num_classes=0, image_size=32)
    figure = positions_figure(model)
    assert figure is not None
    shown = np.asarray(figure.axes[0].images[0].get_array())
    tile = position_similarity(model.pos_embed[0, 1:])[0].view(4, 4).numpy()
    assert np.allclose(shown[:4, :4], tile, atol=1e-6)


def test_a_grid_of_photographs_and_texts_frames_what_belongs() -> None:
    cosines = np.array([[0.3, 0.1], [0.2, 0.4], [0.0, 0.1]], np.float32)
    figure = similarity_figure(torch.rand(2, 3, 8, 8), ["one", "two", "a long text " * 30], cosines, [[0], [1], []])
    assert figure is not None
    grid, *photographs = figure.axes
    assert len(photographs) == 2
    assert len(grid.patches) == 2
    assert {"0.30", "0.40", "0.00"} <= {text.get_text() for text in grid.texts}
    assert style.to_png(figure).startswith(PNG)
    assert similarity_figure(torch.rand(0, 3, 8, 8), [], np.zeros((0, 0), np.float32), []) is None


def test_an_evaluation_has_its_figures(clip: Pretrained, toy: Dataset) -> None:
    classes = toy.manifest.classes
    images = image_embeddings(clip, toy, "val")
    vectors = class_embeddings(text_embeddings(clip, prompts(classes, ("a {}",))), len(classes))
    outcomes = zero_shot(images, vectors, classes, scale=scale_of(clip))
    drawn = outcome_figures(clip.model, clip.card, toy, "val", outcomes)
    assert set(drawn) == {"attention", "patch_filters", *ATTENTIVE}
    grid = zero_shot_figure(clip.card, toy, "val", outcomes, scale=scale_of(clip))
    assert grid is not None
    assert len(grid.axes) == 1 + len(classes)
    shown = np.asarray(grid.axes[0].images[0].get_array())
    first = [int(np.flatnonzero(outcomes.labels == label)[0]) for label in range(len(classes))]
    assert np.allclose(shown, vectors @ images.values[first].T, atol=1e-5)
    captions = [("a caption", "another")] * len(images.rows)
    embedded = [np.stack([vectors[0], vectors[1]])] * len(images.rows)
    found = retrieval_figure(clip.card, toy, "val", images, captions, embedded)
    assert found is not None
    assert len(found.axes) == 1 + 8


def test_images_are_loaded_by_row(toy: Dataset, clip: Pretrained) -> None:
    assert load_images(clip.card, toy, "val", []).shape == (0, 3, 32, 32)
    two = load_images(clip.card, toy, "val", [5, 0])
    assert torch.equal(two[1:], load_images(clip.card, toy, "val", [0]))


def test_distance_figure_tells_heads_and_blocks() -> None:
    model = build(VitConfig(patch=8, **SMALL), num_classes=0, image_size=32)
    figure = distance_figure(model, torch.rand(2, 3, 32, 32))
    assert figure is not None
    points = figure.axes[0].collections[0].get_offsets()
    assert len(points) == 2 * 2
    assert set(points[:, 0].tolist()) == {1.0, 2.0}
