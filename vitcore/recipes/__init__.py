"""What can be trained: the catalogue of recipes by family, and the header that says where each comes from.

Nothing registers itself: a recipe is in the catalogue because its line stands here.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from dataclasses import dataclass

from vitcore.errors import RequestError
from vitcore.recipe import Recipe
from vitcore.recipes import clip, cnn, deit, deit3, demo, dino, finetune, hybrid, mae, mixer, moco, pvt, t2t, vit
from vitcore.recipes.sizes import SIZES

FAMILIES: dict[str, tuple[Callable[[], Recipe], ...]] = {
    "ViT": (
        vit.vit_ti16,
        vit.vit_s16,
        vit.vit_s16_in1k_90ep,
        vit.vit_b16,
        vit.vit_l16,
        vit.vit_b16_in21k,
        vit.vit_l16_in21k,
        vit.vit_h14,
        vit.vit_tiny_cpu,
    ),
    "DeiT": (deit.deit_ti16, deit.deit_s16, deit.deit_b16, deit.deit_b16_384, deit.deit_tiny_cpu),
    "DeiT III": (
        deit3.deit3_s16,
        deit3.deit3_b16,
        deit3.deit3_l16,
        deit3.deit3_b16_in21k,
        deit3.deit3_finetune_224,
        deit3.deit3_tiny_cpu,
    ),
    "CLIP": (
        clip.clip_b32,
        clip.clip_b16,
        clip.clip_l14,
        clip.clip_rn50,
        clip.siglip_b16,
        clip.lit_b16,
        clip.clip_tiny_cpu,
        clip.siglip_tiny_cpu,
    ),
    "MoCo v3": (moco.moco_v3_s16, moco.moco_v3_b16, moco.moco_tiny_cpu),
    "DINO": (dino.dino_s16, dino.dino_s8, dino.dino_b16, dino.dino_tiny_cpu),
    "MAE": (
        mae.mae_b16,
        mae.mae_l16,
        mae.mae_h14,
        mae.mae_finetune_b16,
        mae.mae_finetune_l16,
        mae.mae_finetune_h14,
        mae.mae_tiny_cpu,
    ),
    "Hybrid": (hybrid.hybrid_r50_b16, hybrid.hybrid_tiny_cpu),
    "MLP-Mixer": (mixer.mixer_b16, mixer.mixer_tiny_cpu),
    "T2T-ViT": (t2t.t2t_14, t2t.t2t_19, t2t.t2t_tiny_cpu),
    "PVT v2": (pvt.pvt_v2_b0, pvt.pvt_v2_b2, pvt.pvt_v2_b5, pvt.pvt_tiny_cpu),
    "CNN": (cnn.cnn_tiny_cpu,),
    "Fine-tuning": (finetune.finetune_224, finetune.finetune_384),
    "Demo": (demo.elpv_teacher, demo.elpv_vit, demo.elpv_deit, demo.elpv_finetune),
}
"""The recipes of each family; the last of most is small enough for two CPU cores."""

CATALOGUE: dict[str, Callable[[], Recipe]] = {
    recipe.__name__: recipe for recipes in FAMILIES.values() for recipe in recipes
}
"""Every recipe by its name, which is that of its function."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a recipe's docstring says of it. Numbers and hours are the paper's, never measured here."""

    title: str
    paper: str
    command: str
    hardware: str
    hours: str
    number: str
    notes: str
    """The rest of the docstring; often empty."""


def find(name: str) -> Recipe:
    """The recipe of a name.

    Raises:
        RequestError: there is none; the sentence names the nearest ones.
    """
    return _function(name)()


def header(name: str) -> Header:
    """Paper, command, hardware, hours and number of a recipe, read from its docstring.

    Raises:
        RequestError: there is no such recipe.
    """
    title, _, body = inspect.cleandoc(_function(name).__doc__ or "").partition("\n\n")
    block, _, notes = body.partition("\n\n")
    fields: dict[str, str] = {}
    key = ""
    for line in block.splitlines():
        if line.startswith(" "):
            fields[key] += f" {line.strip()}"
        else:
            key, _, value = line.partition(":")
            fields[key] = value.strip()
    return Header(
        title=" ".join(title.split()),
        paper=fields["Paper"],
        command=fields["Command"],
        hardware=fields["Hardware"],
        hours=fields["Hours"],
        number=fields["Number"],
        notes=" ".join(notes.split()),
    )


def parameters(name: str) -> int | None:
    """Trainable parameters of a recipe's model: with a head of 1,000 classes where it learns from labels, else without.

    From a table, since counting them takes the seconds that torch needs to be imported. None where the architecture is
    the parent's (fine-tuning).

    Raises:
        RequestError: there is no such recipe.
    """
    return SIZES.get(_function(name).__name__)


def _function(name: str) -> Callable[[], Recipe]:
    if name not in CATALOGUE:
        near = difflib.get_close_matches(name, CATALOGUE, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "see `vit recipes`"
        raise RequestError(f"there is no recipe {name!r}; {hint}")
    return CATALOGUE[name]
