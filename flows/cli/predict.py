"""`vit predict`: classes and probabilities of photographs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from flows.cli import console
from flows.cli.arguments import parse
from flows.cli.session import Session
from vitcore.errors import RequestError

if TYPE_CHECKING:
    from torch import Tensor

    from vitcore.models import ModelCard, Pretrained


@dataclass(frozen=True)
class Arguments:
    """The arguments of the verb."""

    model: Annotated[Positional[str], arg(metavar="MODEL")]
    """The model: models:/NAME/VERSION, models:/NAME@ALIAS, timm:NAME, hf:ORG/NAME, open_clip:ARCH/TAG,
    torchvision:NAME, or a model's folder."""
    images: Annotated[Positional[tuple[Path, ...]], arg(metavar="IMAGE…", help_behavior_hint="(at least one)")]
    """The photographs."""
    classes: str = ""
    """Texts to choose between, for an image and text model, separated by commas: "a dog,a cat"."""
    top: int = 5
    """Most classes to print of each."""
    json: bool = False
    """Print JSON."""


def run(argv: list[str], session: Session) -> int:
    """Run the verb; returns the exit code."""
    given = parse(
        Arguments,
        argv,
        verb="predict",
        about="Print the most probable classes of photographs: those the model was trained on, or those you name for "
        "an image and text model.",
        examples=(
            "vit predict models:/birds@champion photos/wren.jpg",
            "vit predict .vit/model photos/*.jpg --json",
            'vit predict models:/clip/3 photos/wren.jpg --classes "a wren,a robin,an empty branch"',
        ),
    )
    if not given.images:
        raise RequestError("name at least one photograph: vit predict MODEL IMAGE…")
    for path in given.images:
        if not path.is_file():
            raise RequestError(f"there is no photograph {path}; give the path of an image file")
    settings = session.start()
    from tasks.models import localize
    from vitcore.models import load_reference

    model = load_reference(localize(settings.tracking_uri, settings.home / "models", given.model))
    names, probabilities_BK = _answer(given, model)
    top = probabilities_BK.topk(min(max(1, given.top), len(names)))
    answers = [
        (path, [(names[index], value) for index, value in zip(indices, values, strict=True)])
        for path, indices, values in zip(given.images, top.indices.tolist(), top.values.tolist(), strict=True)
    ]
    if given.json:
        console.as_json([{"image": str(path), "classes": dict(classes)} for path, classes in answers])
        return 0
    rows = [
        (path if not rank else "", name, f"{value:.3f}")
        for path, found in answers
        for rank, (name, value) in enumerate(found)
    ]
    console.table(("image", "class", "probability"), rows)
    return 0


def _answer(given: Arguments, model: Pretrained) -> tuple[tuple[str, ...], Tensor]:
    """Names of the K classes, and their probabilities (B, K) for each photograph.

    Raises:
        RequestError: the model has no classes, or classes were named that it cannot take.
    """
    from vitcore.evals.photographs import probabilities, text_probabilities

    card = model.card
    asked = tuple(dict.fromkeys(name.strip() for name in given.classes.split(",") if name.strip()))
    if card.model.kind == "clip":
        if not asked:
            raise RequestError(
                'an image and text model chooses between texts: name them, such as --classes "a dog,a cat"'
            )
        views = [_view(path, card) for path in given.images]
        return asked, text_probabilities(model, views, [f"a photo of {name}." for name in asked])
    if not card.num_classes:
        raise RequestError(
            f"{given.model} has no classes, it turns photographs into features: give it some with "
            f"`vit finetune finetune_224 --model {given.model} --data URL`, or measure it with `vit evaluate`"
        )
    if asked:
        raise RequestError(
            f"--classes is for image and text models; {given.model} has {card.num_classes} classes of its own"
        )
    names = card.classes or tuple(str(index) for index in range(card.num_classes))
    return names, probabilities(model, [_view(path, card) for path in given.images])


def _view(path: Path, card: ModelCard) -> Tensor:
    from vitcore.data.reading.decode import BadSampleError
    from vitcore.evals.photographs import view

    try:
        return view(path.read_bytes(), card)
    except (BadSampleError, OSError) as error:
        raise RequestError(f"{path} cannot be read as a photograph: {error}") from None
