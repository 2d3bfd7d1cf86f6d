"""The masked autoencoder (2111.06377) against its definition written down plainly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.vitcore.objectives.selfsupervised import assert_same, gradients, spoil_weightless, stir, views, vit
from vitcore.errors import RequestError
from vitcore.models import build
from vitcore.objectives.mae import HIDDEN, Mae, to_images, to_patches
from vitcore.recipe import CnnConfig, DeitConfig, MaeConfig
from vitcore.world import World

PATCH, GRID = 8, 4


def mae(vit_config: dict[str, Any] | None = None, **config: Any) -> Mae:
    objective = Mae(MaeConfig(width=16, depth=2, heads=2, **config), vit(**vit_config or {}), World())
    stir(objective.decoder)
    return objective


def plain_loss(objective: Mae, images_SCHW: Tensor, weights_S: Tensor, shown: int, *, normalize: bool) -> Tensor:
    """Sample by sample: only its shown patches enter the encoder, and mask tokens fill the holes of the decoder."""
    model, decoder = objective.encoder, objective.decoder
    noise_SP = torch.rand(len(images_SCHW), GRID**2)
    loss = torch.zeros(())
    for image_CHW, noise_P, weight in zip(images_SCHW, noise_SP, weights_S, strict=True):
        kept = noise_P.argsort()[:shown].tolist()
        pixels = (image_CHW - 0.5) / 0.5
        tokens_ND = model.embed(pixels[None])[0]
        prefix = model.num_prefix
        entering = torch.stack([*tokens_ND[:prefix], *(tokens_ND[prefix + patch] for patch in kept)])
        for block in model.blocks:
            entering = block(entering[None])[0]
        latent = decoder.enter(model.norm(entering))
        rows = list(latent[:prefix])
        rows += [
            latent[prefix + kept.index(patch)] if patch in kept else decoder.mask_token[0, 0]
            for patch in range(GRID**2)
        ]
        decoded = torch.stack(rows) + decoder.positions[0]
        for block in decoder.blocks:
            decoded = block(decoded[None])[0]
        told = decoder.tell(decoder.norm(decoded))[prefix:]
        errors = []
        for patch in set(range(GRID**2)) - set(kept):
            y, x = divmod(patch, GRID)
            cell = pixels[:, y * PATCH : (y + 1) * PATCH, x * PATCH : (x + 1) * PATCH]
            target = torch.stack([cell[:, row, column] for row in range(PATCH) for column in range(PATCH)]).flatten()
            if normalize:
                target = (target - target.mean()) / (target.var() + 1e-6) ** 0.5
            errors.append(((told[patch] - target) ** 2).mean())
        loss = loss + weight * sum(errors) / len(errors)
    return loss


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(
    "vit_config",
    [
        {},
        {"pooling": "mean", "positions": "sincos"},
        {"pooling": "mean", "class_token": True, "registers": 2, "embed_prefix": False},
    ],
)
def test_loss_and_gradients_equal_the_paper(vit_config: dict[str, Any], normalize: bool) -> None:
    objective, given = mae(vit_config, normalize_pixels=normalize), views(32)
    objective.train()
    torch.manual_seed(5)
    terms = objective(given)
    terms.loss.backward()
    ours = gradients(objective)
    objective.zero_grad()
    torch.manual_seed(5)
    expected = plain_loss(objective, given.images_SCHW, given.weights_S, shown=4, normalize=normalize)
    expected.backward()
    assert terms.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert terms.weight.item() == 5
    assert_same(ours, gradients(objective))
    assert ours.keys() == {name for name, parameter in objective.named_parameters() if parameter.requires_grad}


def test_what_weighs_nothing_leaves_no_trace() -> None:
    objective, given = mae(), views(32)
    said = []
    for _ in range(2):
        torch.manual_seed(5)
        objective.zero_grad()
        loss = objective(given).loss
        loss.backward()
        said.append(gradients(objective) | {"loss": loss.detach()})
        spoil_weightless(given)
    assert_same(said[0], said[1], 1e-6)


@pytest.mark.parametrize(("mask", "hidden"), [(0.75, 12), (0.5, 8), (0.999, 15), (0.001, 1)])
def test_how_many_patches_are_hidden(mask: float, hidden: int) -> None:
    objective = mae(mask=mask)
    _, hidden_SP = objective._tell(views(32).images_SCHW)
    assert hidden_SP.sum(1).tolist() == [hidden] * 6
    assert len({tuple(row.tolist()) for row in hidden_SP}) > 1  # each sample has its own


def test_patches_and_back() -> None:
    images_SCHW = views(32).images_SCHW
    patches_SPX = to_patches(images_SCHW, PATCH)
    assert patches_SPX.shape == (6, 16, 192)
    assert torch.equal(patches_SPX[2, 5].view(8, 8, 3), images_SCHW[2, :, 8:16, 8:16].permute(1, 2, 0))
    assert torch.equal(to_images(patches_SPX, PATCH), images_SCHW)


@pytest.mark.parametrize("normalize", [True, False])
def test_reconstruction_keeps_what_was_shown_and_tells_the_rest(normalize: bool) -> None:
    model = {"mean": (0.1, 0.2, 0.3), "std": (0.9, 0.8, 0.7)}
    objective, images_SCHW = mae(model, normalize_pixels=normalize).eval(), views(32).images_SCHW * 0.5 + 0.1
    torch.manual_seed(5)
    masked_SCHW, told_SCHW = objective.reconstruct(images_SCHW)
    torch.manual_seed(5)
    hidden_SP = torch.ones(6, 16).scatter(1, torch.rand(6, 16).argsort(dim=1)[:, :4], 0) > 0
    hidden_SPX = hidden_SP[..., None].expand(-1, -1, 192)
    of = {"image": images_SCHW, "masked": masked_SCHW, "told": told_SCHW}
    of = {name: to_patches(pixels, PATCH) for name, pixels in of.items()}
    assert (of["masked"][hidden_SPX] == HIDDEN).all()
    for name in ("masked", "told"):
        assert torch.equal(of[name][~hidden_SPX], of["image"][~hidden_SPX])
    assert (of["told"][hidden_SPX] != of["image"][hidden_SPX]).any()
    assert told_SCHW.min() >= 0
    assert told_SCHW.max() <= 1
    # A network that tells the truth gets the photograph back.
    mean, std = (torch.tensor(model[name]).view(-1, 1, 1) for name in ("mean", "std"))
    target_SPX = to_patches((images_SCHW - mean) / std, PATCH)
    if normalize:
        target_SPX = (target_SPX - target_SPX.mean(2, True)) / (target_SPX.var(2, keepdim=True) + 1e-6).sqrt()
    objective._tell = lambda images: (target_SPX, hidden_SP.float())  # type: ignore[method-assign]
    torch.testing.assert_close(objective.reconstruct(images_SCHW)[1], images_SCHW, rtol=0, atol=1e-5)


def test_a_deit_has_patches_too() -> None:
    deit = build(DeitConfig(patch=8, width=32, depth=1, heads=2), num_classes=0, image_size=32)
    objective = Mae(MaeConfig(width=16, depth=1, heads=2), deit, World())
    objective(views(32)).loss.backward()
    assert all(p.grad is not None for p in objective.parameters() if p.requires_grad)


def test_the_mask_token_does_not_decay() -> None:
    assert "decoder.mask_token" in mae().undecayed()
    assert "model.cls_token" in mae().undecayed()


def test_what_cannot_be_masked_is_refused() -> None:
    cnn = build(CnnConfig(name="shufflenet_v2_x0_5"), num_classes=0, image_size=32)
    for model, config, said in (
        (cnn, {}, r"needs a vision transformer over patches of pixels, not a cnn: set model\.kind to vit"),
        (vit(pooling="map"), {}, r"set model\.pooling to token or mean"),
        (vit(pooling="mean", norm_after_pool=True), {}, r"model\.norm_after_pool to false"),
        (vit(image_size=8), {}, r"needs several patches"),
        (vit(), {"width": 18}, r"objective\.width 18 must be divisible by 4"),
    ):
        with pytest.raises(RequestError, match=said):
            Mae(MaeConfig(**{"width": 16, "depth": 1, "heads": 2} | config), model, World())
