"""What can be trained: the catalogue of recipes, and the header that says where each comes from.

Nothing registers itself: a recipe is in the catalogue because its line stands here.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from dataclasses import dataclass

from vitcore.errors import RequestError
from vitcore.recipe import DeitConfig, Recipe, VitConfig
from vitcore.recipes.deit import deit_b16, deit_s16, deit_ti16, deit_tiny_cpu
from vitcore.recipes.demo import elpv_deit, elpv_finetune, elpv_teacher, elpv_vit
from vitcore.recipes.finetune import finetune_224, finetune_384
from vitcore.recipes.vit import vit_b16, vit_l16, vit_s16, vit_s16_in1k_90ep, vit_ti16, vit_tiny_cpu

CATALOGUE: dict[str, Callable[[], Recipe]] = {
    "vit_ti16": vit_ti16,
    "vit_s16": vit_s16,
    "vit_s16_in1k_90ep": vit_s16_in1k_90ep,
    "vit_b16": vit_b16,
    "vit_l16": vit_l16,
    "deit_ti16": deit_ti16,
    "deit_s16": deit_s16,
    "deit_b16": deit_b16,
    "finetune_224": finetune_224,
    "finetune_384": finetune_384,
    "vit_tiny_cpu": vit_tiny_cpu,
    "deit_tiny_cpu": deit_tiny_cpu,
    "elpv_teacher": elpv_teacher,
    "elpv_vit": elpv_vit,
    "elpv_deit": elpv_deit,
    "elpv_finetune": elpv_finetune,
}


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


def parameters(recipe: Recipe, num_classes: int = 1000) -> int | None:
    """Trainable parameters of the recipe's transformer with a head of `num_classes`, by arithmetic.

    None where the architecture is another model's (fine-tuning) or no transformer.
    """
    model = recipe.model
    if not isinstance(model, VitConfig):
        return None
    width, hidden = model.width, round(model.width * model.mlp_ratio)
    tokens = 2 if isinstance(model, DeitConfig) else int(model.pooling == "token")
    heads = 2 if isinstance(model, DeitConfig) else 1
    patches = (recipe.data.image_size // model.patch) ** 2
    stem = (3 * model.patch**2 + 1) * width + tokens * width + (patches + tokens) * width
    attention = 4 * width * (width + 1)
    mlp = hidden * (width + 1) + width * (hidden + 1)
    norm = 2 * width
    return stem + model.depth * (attention + mlp + 2 * norm) + norm + heads * num_classes * (width + 1)


def _function(name: str) -> Callable[[], Recipe]:
    if name not in CATALOGUE:
        near = difflib.get_close_matches(name, CATALOGUE, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "see `vit recipes`"
        raise RequestError(f"there is no recipe {name!r}; {hint}")
    return CATALOGUE[name]
