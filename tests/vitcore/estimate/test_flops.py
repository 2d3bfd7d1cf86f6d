"""FLOPs: by closed formulas, and by torch's own counter over real steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from tests.vitcore.estimate.conftest import RECIPES, Plannable
from vitcore.data.dataset.manifest import Dataset
from vitcore.data.loading.loader import TrainLoader
from vitcore.estimate.cost import Share, measure_size, rehearse
from vitcore.estimate.plan import Planner
from vitcore.estimate.subject import Subject, subject
from vitcore.estimate.watch import Watch
from vitcore.recipe import Recipe, VitConfig, apply_overrides
from vitcore.train.accumulate import accumulate
from vitcore.train.learner import Learner
from vitcore.train.request import TrainRequest
from vitcore.world import World

S16 = VitConfig(patch=16, width=384, depth=12, heads=6)
B16 = VitConfig(patch=16, width=768, depth=12, heads=12)
K = 3


def vit(config: VitConfig, pixels: int, *, last: int | None = None) -> tuple[int, int, int]:
    """FLOPs of a ViT: of the patches' projection, of attention's two products, and of all other layers.

    Per token and block 2 · (3D² + D² + 4D² + 4D²) for queries, keys and values, their projection and the MLP; per block
    2 · 2 · N² · D for scores and mixing. `last`: tokens that leave the last block.
    """
    D, P = config.width, (pixels // config.patch) ** 2
    N = P + config.has_class_token
    L = config.depth
    out = N if last is None else last
    patches = 2 * P * 3 * config.patch**2 * D
    attention = (L - 1) * 4 * N * N * D + 4 * out * N * D
    layers = (L - 1) * N * 24 * D**2 + N * 6 * D**2 + out * 18 * D**2 + 2 * D * K
    return patches, attention, layers


def planned(toy: Dataset, config: VitConfig, pixels: int = 224) -> Subject:
    recipe = Recipe(name="it", model=config)
    recipe = apply_overrides(recipe, {"data.image_size": pixels, "train.batch_size": 8})
    return subject(TrainRequest(recipe=recipe, data=toy.ref, checkpoints="unused"))


@pytest.mark.parametrize(("config", "published"), [(S16, 4.6), (B16, 17.6)])
def test_a_forward_pass_is_the_closed_formula(toy: Dataset, config: VitConfig, published: float) -> None:
    """Published: thousands of millions of multiplications and additions of ViT-S/16 and B/16 at 224 pixels."""
    every = config.model_copy(update={"pooling": "mean", "class_token": True})
    found = measure_size(planned(toy, every), None, cuda=False).predict_flops
    assert found == sum(vit(every, 224))
    assert found / 2e9 == pytest.approx(published, abs=0.05)
    assert measure_size(planned(toy, config), None, cuda=False).predict_flops == sum(vit(config, 224, last=1))


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_step_is_the_closed_formula(toy: Dataset, dtype: torch.dtype | None) -> None:
    """The backward pass costs the forward pass twice, but for the patches (no gradient of the images is wanted) and
    for attention, of which the scores are computed again.
    """
    patches, attention, layers = vit(S16, 224, last=1)
    step = 2 * patches + attention * 7 // 2 + 3 * layers
    share = Share(1, 8, 8)
    assert rehearse(planned(toy, S16), share, dtype, cuda=dtype is not None).flops == 8 * step
    checkpointed = rehearse(planned(toy, S16), share, dtype, cuda=dtype is not None, checkpointing=True).flops
    blocks = attention + layers - 2 * S16.width * K
    # All of the blocks again, but for the layer that ends each MLP: nothing needs what it gives.
    last = (S16.depth - 1) * 197 * 8 * S16.width**2 + 8 * S16.width**2
    assert checkpointed == 8 * (step + blocks - last)


def counted(learner: Learner, batch: Any) -> int:
    """Of a real step, by torch's counter with its own formulas of attention."""
    aten = torch.ops.aten
    mapping = {
        aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *_, **__: (
            sdpa_backward_flop_count(g, q, k, v)
        ),
    }
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        accumulate(learner, batch)
    return int(counter.get_total_flops())


def real(asked: Subject) -> tuple[Learner, Any, int]:
    """A learner of the training, its first batch, and the slots of a lane."""
    recipe = asked.recipe
    learner = Learner(asked.request, asked.dataset, World())
    with TrainLoader(
        asked.dataset, recipe.data, batch_size=recipe.train.batch_size, seed=1, stop_step=1, threads=0
    ) as loader:
        return learner, next(loader), loader.lane_size


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", ["vit", "deit", "hybrid", "mixer", "t2t", "cnn", "clip", "moco", "dino", "mae"])
def test_a_rehearsal_counts_what_a_real_step_computes(plannable: Plannable, name: str) -> None:
    asked = plannable(name, 16)
    learner, batch, lane = real(asked)
    assert rehearse(asked, Share(1, 16, lane), None, cuda=False).flops == counted(learner, batch)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", ["vit", "clip", "moco"])
def test_many_micro_batches_are_counted_from_a_few(plannable: Plannable, name: str) -> None:
    asked = plannable(name, 64, microbatch=8)
    learner, batch, lane = real(asked)
    assert rehearse(asked, Share(1, 64, lane, 8), None, cuda=False).flops == counted(learner, batch)


@pytest.mark.parametrize("name", RECIPES)
def test_every_way_of_learning_is_rehearsed_as_on_a_gpu(plannable: Plannable, name: str) -> None:
    """In bf16, with the blocks computed again: which costs FLOPs and saves memory; those with a batch norm are not."""
    asked = plannable(name, 16)
    whole, again = (
        rehearse(asked, Share(2, 16, 8), torch.bfloat16, cuda=True, checkpointing=checkpointing)
        for checkpointing in (False, True)
    )
    if name == "cnn":
        assert again == whole
    else:
        assert whole.flops < again.flops < 2 * whole.flops
    assert whole.memory.resident == again.memory.resident


@pytest.mark.parametrize("groups", [1, 4, 8])
def test_a_grouped_convolution_costs_three_forward_passes(groups: int) -> None:
    layer = torch.nn.Conv2d(8, 16, 3, padding=1, stride=2, groups=groups)
    images = torch.randn(2, 8, 12, 12, requires_grad=True)
    with Watch() as watch:
        layer(images).sum().backward()
    assert watch.flops == 3 * 2 * (2 * 16 * 6 * 6) * (8 // groups) * 9


@pytest.mark.parametrize("name", ["clip", "moco"])
def test_all_ranks_are_compared_with_each_other(plannable: Plannable, name: str) -> None:
    """The loss of a rank grows with the ranks, and what they exchange is known; nothing else does."""
    asked = plannable(name, 64)
    one, two, four = (rehearse(asked, Share(ranks, 16, 8), None, cuda=False) for ranks in (1, 2, 4))
    assert one.flops < two.flops < four.flops
    assert four.flops - two.flops == 2 * (two.flops - one.flops)
    assert one.exchanged == 0 < two.exchanged <= four.exchanged


def test_equal_shares_are_rehearsed_once(plannable: Plannable, monkeypatch: pytest.MonkeyPatch) -> None:
    from vitcore.estimate import plan
    from vitcore.estimate.hardware import find
    from vitcore.estimate.loading import Loading
    from vitcore.train.precision import Precision

    ran = []
    monkeypatch.setattr(plan, "rehearse", lambda *given, **more: ran.append(given[1]) or rehearse(*given, **more))
    planner = Planner(plannable("vit"), find("h100"), Loading(100.0, 2), Precision("cpu", None), mfu=0.3)
    assert planner.cost(Share(2, 16, 8)) == planner.cost(Share(4, 16, 8))
    assert len(ran) == 1
