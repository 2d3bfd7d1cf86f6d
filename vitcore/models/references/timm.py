"""``timm:NAME[@FILE]``: ViT, DeiT, hybrids, Mixer, PVT v2 and CNNs with timm's weights; its other networks, asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vitcore.errors import RequestError
from vitcore.models.build import build_with
from vitcore.models.cnn import TIMM, timm_fits
from vitcore.models.interop.timm import check_computation, from_timm
from vitcore.models.pretrained import Pretrained, read_safetensors
from vitcore.models.references.card import imagenet_names, with_card
from vitcore.models.references.hub import fetch_tensors
from vitcore.models.references.wrap import wrap
from vitcore.recipe import CnnConfig


def load(name: str, file: str) -> Pretrained:
    """A timm model by name, with the weights of a file where one is given.

    Raises:
        RequestError: timm is not installed, has no such model, or its weights cannot be had or do not fit.
    """
    described = _describe(name)
    told: dict[str, Any] = described.pretrained_cfg  # type: ignore[assignment]
    state = read_safetensors(file) if file else _from_hub(name, told)
    resize = int(told["input_size"][-1] / told["crop_pct"])
    if _is_ours(described):
        ours = from_timm(_native(name, described, state), like=described)
        classes = () if file else imagenet_names(ours.num_classes)
        return with_card(ours, classes, int(ours.image_size / told["crop_pct"]))
    if not timm_fits(described):
        return _only_asked(name, told, state, resize)
    state = _native(name, described, state)
    network = build_with(
        CnnConfig(name=TIMM + name.partition(".")[0], mean=_triple(told["mean"]), std=_triple(told["std"])),
        {f"net.{key}": tensor for key, tensor in state.items()},
        num_classes=len(state.get(f"{told['classifier']}.weight", ())),
        image_size=told["input_size"][-1],
        source=f"the weights for {name}",
    )
    return with_card(network, () if file else imagenet_names(network.num_classes), resize)


def _describe(name: str) -> nn.Module:
    """The model without memory: only its description is wanted."""
    try:
        import timm
    except ImportError:
        raise RequestError(f"timm:{name} needs timm: pip install timm") from None
    if not timm.is_model(name):  # which also keeps timm from reading the name as a folder or a repository
        raise RequestError(f"timm has no model {name!r}; `timm.list_models('vit*')` lists them")
    try:
        with torch.device("meta"):
            described: nn.Module = timm.create_model(name, pretrained=False)
    except (RuntimeError, ValueError) as error:
        raise RequestError(f"timm cannot build {name}: {' '.join(str(error).split())}") from None
    return described


def _from_hub(name: str, told: Mapping[str, Any]) -> dict[str, Tensor]:
    otherwise = f"give the file: timm:{name}@/path/to/model.safetensors"
    repository = told.get("hf_hub_id")
    if not repository:
        raise RequestError(f"timm has no weights for {name} on the hub; {otherwise}")
    return fetch_tensors(repository, "model.safetensors", otherwise)


def _is_ours(described: nn.Module) -> bool:
    try:
        check_computation(described)
    except RequestError:
        return False
    return True


def _native(name: str, described: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the names of today: some files are older than timm's names, or another library's."""
    names = set(described.state_dict())
    if 2 * len(names & set(state)) >= len(names):
        return state
    return dict(_loaded(name, state).state_dict())


def _loaded(name: str, state: Mapping[str, Tensor], **options: Any) -> nn.Module:
    """timm's own model, with weights that it renames itself; the global random numbers are left as they were."""
    import timm

    overlay = {"state_dict": dict(state), "custom_load": False, **options}
    try:
        with torch.random.fork_rng(devices=[]):
            net: nn.Module = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **options)
    except (RuntimeError, ValueError, KeyError) as error:
        said = " ".join(str(error).split())
        raise RequestError(f"the weights are not those of timm's {name}: {said[:300]}") from None
    return net


def _only_asked(name: str, told: Mapping[str, Any], state: dict[str, Tensor], resize: int) -> Pretrained:
    """timm's own module, for an architecture that is not ours."""
    head = told.get("classifier")
    rows = state.get(f"{head}.weight") if isinstance(head, str) else None
    net = _loaded(name, state, **({} if rows is None else {"num_classes": len(rows)}))
    return wrap(
        net,
        image_size=told["input_size"][-1],
        mean=_triple(told["mean"]),
        std=_triple(told["std"]),
        classes=imagenet_names(told["num_classes"] if rows is None else len(rows)),
        resize=resize,
        name=f"timm:{name}",
    )


def _triple(values: Any) -> tuple[float, float, float]:
    first, second, third = values
    return float(first), float(second), float(third)
