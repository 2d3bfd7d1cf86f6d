"""T2T-ViT against the paper's formulas written down plainly, number by number where that is possible."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vitcore.data.loading.batch import Inputs
from vitcore.errors import RequestError
from vitcore.models import adapt, build
from vitcore.models.build import build_with
from vitcore.models.positions import resize_position_embedding
from vitcore.models.t2t import T2tVit, sinusoids, soft_split
from vitcore.objectives import Frozen
from vitcore.objectives.classify import Classify
from vitcore.objectives.distill import Distill
from vitcore.recipe import ClassifyConfig, DistillConfig, OptimConfig, T2tConfig, VitConfig
from vitcore.train.optim import parameter_groups
from vitcore.world import World

TINY: dict[str, Any] = {"token_width": 8, "width": 24, "depth": 2, "heads": 3}


def t2t(num_classes: int = 7, image_size: int = 32, **config: Any) -> T2tVit:
    torch.manual_seed(0)
    model = build(T2tConfig(**{**TINY, **config}), num_classes=num_classes, image_size=image_size)
    assert isinstance(model, T2tVit)
    return model


def scattered(model: T2tVit) -> T2tVit:
    """Weights far from their initial values, so that no term hides behind a zero bias or a unit norm."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def inputs() -> Inputs:
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(7, (6,), generator=generator)
    return Inputs(torch.rand(6, 3, 32, 32, generator=generator), labels, labels, torch.ones(6), torch.ones(6))


class Plainly:
    """The network in double precision from its weights alone: products, sums and exponentials."""

    def __init__(self, state: dict[str, Tensor], heads: int) -> None:
        self.state, self.heads = {name: tensor.double() for name, tensor in state.items()}, heads

    def linear(self, name: str, x: Tensor) -> Tensor:
        out = torch.einsum("bni,oi->bno", x, self.state[f"{name}.weight"])
        bias = self.state.get(f"{name}.bias")
        return out if bias is None else out + bias

    def norm(self, name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        unit = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return unit * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def mlp(self, name: str, x: Tensor) -> Tensor:
        hidden = self.linear(f"{name}.fc1", x)
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        return self.linear(f"{name}.fc2", hidden)

    def gather(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        scores = torch.einsum("bnd,bmd->bnm", q, k) * scale
        weights = torch.exp(scores)
        return torch.einsum("bnm,bmd->bnd", weights / weights.sum(-1, keepdim=True), v)

    def token_transformer(self, name: str, x: Tensor) -> Tensor:
        packed = self.linear(f"{name}.attn.qkv", self.norm(f"{name}.norm1", x))
        width = packed.shape[2] // 3
        q, k, v = packed[..., :width], packed[..., width : 2 * width], packed[..., 2 * width :]
        x = v + self.linear(f"{name}.attn.proj", self.gather(q, k, v, 1 / math.sqrt(x.shape[2])))
        return x + self.mlp(f"{name}.mlp", self.norm(f"{name}.norm2", x))

    def block(self, name: str, x: Tensor) -> Tensor:
        packed = self.linear(f"{name}.attn.qkv", self.norm(f"{name}.norm1", x))
        width = x.shape[2] // self.heads
        of_heads = []
        for head in range(self.heads):
            q, k, v = (packed[..., part * x.shape[2] + head * width :][..., :width] for part in range(3))
            of_heads.append(self.gather(q, k, v, 1 / math.sqrt(width)))
        x = x + self.linear(f"{name}.attn.proj", torch.cat(of_heads, -1))
        return x + self.mlp(f"{name}.mlp", self.norm(f"{name}.norm2", x))

    def split(self, plane: Tensor, side: int, stride: int, padding: int) -> Tensor:
        padded = nn.functional.pad(plane, [padding] * 4)
        tops = range(0, padded.shape[2] - side + 1, stride)
        lefts = range(0, padded.shape[3] - side + 1, stride)
        windows = [padded[:, :, top : top + side, left : left + side].flatten(1) for top in tops for left in lefts]
        return torch.stack(windows, 1)

    def square(self, x: Tensor) -> Tensor:
        side = math.isqrt(x.shape[1])
        return torch.stack([x[:, row * side : (row + 1) * side].transpose(1, 2) for row in range(side)], 2)

    def __call__(self, images: Tensor) -> Tensor:
        x = self.token_transformer("tokens_to_token.attention1", self.split(images.double(), 7, 4, 2))
        x = self.token_transformer("tokens_to_token.attention2", self.split(self.square(x), 3, 2, 1))
        x = self.linear("tokens_to_token.project", self.split(self.square(x), 3, 2, 1))
        x = torch.cat([self.state["cls_token"].repeat(len(x), 1, 1), x], 1)
        x = x + torch.tensor(
            [[wave(n, channel, x.shape[2]) for channel in range(x.shape[2])] for n in range(x.shape[1])]
        )
        for block in range(1 + max(int(name.split(".")[1]) for name in self.state if name.startswith("blocks."))):
            x = self.block(f"blocks.{block}", x)
        return self.linear("head", self.norm("norm", x)[:, :1])[:, 0]


def wave(n: int, channel: int, width: int) -> float:
    angle = n / 10_000 ** (2 * (channel // 2) / width)
    return math.cos(angle) if channel % 2 else math.sin(angle)


@pytest.mark.parametrize(
    ("config", "image_size"),
    [({}, 32), ({"token_width": 5, "width": 20, "heads": 2, "mlp_ratio": 1.6, "depth": 1}, 48)],
)
def test_logits_and_gradients_equal_the_formulas(config: dict[str, Any], image_size: int) -> None:
    model = scattered(t2t(image_size=image_size, **config))
    images = torch.randn(2, 3, image_size, image_size, requires_grad=True)
    plainly = Plainly(dict(model.state_dict()), model.config.heads)
    logits, expected = model(images), plainly(images)
    torch.testing.assert_close(logits.double(), expected, atol=1e-5, rtol=0)
    ours, theirs = (torch.autograd.grad(out.square().sum(), images)[0] for out in (logits, expected))
    torch.testing.assert_close(ours, theirs.float(), atol=1e-4, rtol=1e-4)


def test_tokens_at_each_stage_of_224_pixels() -> None:
    model = t2t(image_size=224, depth=1).eval()
    seen: dict[str, tuple[int, ...]] = {}
    for name in ("attention1", "attention2", "project"):
        model.tokens_to_token.get_submodule(name).register_forward_hook(
            lambda _, entered, left, name=name: seen.update({name: (*entered[0].shape[1:], *left.shape[1:])})
        )
    with torch.no_grad():
        model(torch.randn(1, 3, 224, 224))
    assert seen == {
        "attention1": (3136, 147, 3136, 8),
        "attention2": (784, 72, 784, 8),
        "project": (196, 72, 196, 24),
    }


def test_parameters_are_those_of_the_paper() -> None:
    def linear(entering: int, leaving: int, *, bias: bool = True) -> int:
        return entering * leaving + bias * leaving

    def layer(entering: int, width: int, hidden: int) -> int:
        attention = linear(entering, 3 * width, bias=False) + linear(width, width)
        return 2 * entering + attention + 2 * width + linear(width, hidden) + linear(hidden, width)

    gather = layer(147, 64, 64) + layer(576, 64, 64) + linear(576, 384)
    backbone = 384 + 14 * layer(384, 384, 1152) + 2 * 384
    expected = gather + backbone + linear(384, 1000)
    with torch.device("meta"):
        model = build(T2tConfig(), num_classes=1000, image_size=224)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected == 21_465_422
    assert round(expected / 1e6, 1) == 21.5  # millions, as the paper rounds


def test_positions_are_numbered_waves_and_are_not_trained() -> None:
    expected = torch.tensor([[wave(n, channel, 24) for channel in range(24)] for n in range(5)])
    model = t2t()
    torch.testing.assert_close(model.pos_embed, expected[None])
    torch.testing.assert_close(sinusoids(3, 5)[0, 2], torch.tensor([wave(2, channel, 5) for channel in range(5)]))
    assert "pos_embed" in model.state_dict()
    assert "pos_embed" not in dict(model.named_parameters())


def test_windows_overlap_and_are_zero_beyond_the_border() -> None:
    plane = torch.arange(1.0, 17).view(1, 1, 4, 4)
    first, *_, last = soft_split(plane, 3, stride=2, padding=1)[0].tolist()
    assert first == [0, 0, 0, 0, 1, 2, 0, 5, 6]
    assert last == [6, 7, 8, 10, 11, 12, 14, 15, 16]


def test_another_resolution_interpolates_the_positions() -> None:
    model = scattered(t2t())
    larger = adapt(model, image_size=64)
    assert isinstance(larger, T2tVit)
    assert larger.pos_embed.shape == (1, 17, 24)
    assert torch.equal(larger.pos_embed, resize_position_embedding(model.pos_embed, 4, prefix=1))
    assert torch.equal(larger.pos_embed[:, 0], model.pos_embed[:, 0])
    images = torch.randn(2, 3, 64, 64)
    with pytest.raises(RequestError, match="takes 32 x 32"):
        model(images)
    model.allow_any_size()
    torch.testing.assert_close(model(images), larger(images))
    small = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(small), adapt(model)(small))
    for height, width in ((64, 32), (40, 40)):
        with pytest.raises(RequestError):
            model(torch.zeros(1, 3, height, width))
    with pytest.raises(RequestError, match="take 96 or 112"):
        t2t(image_size=100)


def test_it_survives_its_state_dict_with_the_positions_it_had() -> None:
    larger = adapt(scattered(t2t()), image_size=48)
    rebuilt = build_with(larger.config, larger.state_dict(), num_classes=7, image_size=48).eval()
    images = torch.randn(2, 3, 48, 48)
    assert torch.equal(rebuilt(images), larger(images))


def test_the_features_are_what_the_head_reads() -> None:
    model = scattered(t2t())
    headless = adapt(model, num_classes=0)
    images = torch.randn(2, 3, 32, 32)
    assert headless(images).shape == (2, 24)
    assert headless.head_parameters() == ()
    torch.testing.assert_close(model.head(headless(images)), model(images))


def test_layers_are_numbered_from_stem_to_head() -> None:
    model = t2t()
    numbers = {name: model.layer_of(name) for name, _ in model.named_parameters()}
    stem = {name for name in numbers if name.startswith(("tokens_to_token.", "cls_token"))}
    assert {name for name, number in numbers.items() if number == 0} == stem
    assert [numbers[f"blocks.{i}.mlp.fc1.weight"] for i in range(2)] == [1, 2]
    assert {numbers[name] for name in model.head_parameters()} == {model.num_layers} == {numbers["norm.weight"]} == {3}
    for unknown in ("head.scale", "pos_embed", "position"):
        with pytest.raises(KeyError):
            model.layer_of(unknown)


def test_dropout_and_drop_path_act_in_training_only_and_grow() -> None:
    images = torch.randn(4, 3, 32, 32)
    for rates in ({"dropout": 0.3}, {"drop_path": 0.5}):
        model = t2t(**rates)
        assert not torch.equal(model(images), model(images))
        model.eval()
        assert torch.equal(model(images), model(images))
    assert [block.drop_path.rate for block in model.blocks] == pytest.approx([0, 0.5])


def test_initial_weights_have_the_prescribed_spread() -> None:
    model = t2t(width=192, token_width=32, num_classes=100)
    for name in ("tokens_to_token.attention1.attn.qkv.weight", "blocks.0.attn.qkv.weight", "head.weight", "cls_token"):
        assert model.get_parameter(name).std().item() == pytest.approx(0.02, rel=0.15), name
    assert all(not value.any() for name, value in model.named_parameters() if name.endswith("bias"))
    assert "blocks.0.attn.qkv.bias" not in model.state_dict()


def test_reset_head_starts_at_zero() -> None:
    model = t2t()
    model.reset_head(5)
    assert model.num_classes == 5
    assert model(torch.randn(1, 3, 32, 32)).tolist() == [[0.0] * 5]


def test_it_learns_labels_and_a_teacher() -> None:
    world = World()
    teacher = Frozen(
        build(VitConfig(patch=8, width=32, depth=1, heads=2), num_classes=7, image_size=32), torch.device("cpu")
    )
    counts = [1] * 7
    for objective in (
        Classify(ClassifyConfig(), scattered(t2t()).train(), counts, world),
        Distill(DistillConfig(), scattered(t2t()).train(), teacher, counts, world),
    ):
        objective(inputs()).loss.backward()
        for name, parameter in objective.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name


def test_biases_norms_and_the_class_token_are_never_decayed() -> None:
    objective = Classify(ClassifyConfig(), t2t(), [1] * 7, World())
    groups = parameter_groups(objective, OptimConfig(weight_decay=0.3))
    decay = {name: group["weight_decay"] for group in groups for name in group["names"]}  # type: ignore[attr-defined]
    norms = {f"{name}.weight" for name, module in objective.named_modules() if isinstance(module, nn.LayerNorm)}
    assert len(norms) == 9
    assert set(decay) == {name for name, _ in objective.named_parameters()}
    for name, rate in decay.items():
        spared = name.endswith(("bias", "cls_token")) or name in norms
        assert rate == (0.0 if spared else 0.3), name
